# The heads of classifiers: labels, probabilities and resized labels from a block of logits in scratch.

cdef void store_labels(char* at, Py_ssize_t step, Py_ssize_t item, const int32_t* labels, Py_ssize_t n) noexcept nogil:
    """Stores labels as integers of 1, 2, 4 or 8 bytes. By memcpy, since an array may lie at any address."""
    cdef int64_t wide
    cdef int16_t half
    cdef int8_t byte
    cdef Py_ssize_t i
    if item == 4 and step == 4:
        memcpy(at, labels, n * sizeof(int32_t))
        return
    for i in range(n):
        if item == 1:
            byte = <int8_t> labels[i]
            memcpy(at + i * step, &byte, 1)
        elif item == 2:
            half = <int16_t> labels[i]
            memcpy(at + i * step, &half, 2)
        elif item == 4:
            memcpy(at + i * step, &labels[i], 4)
        else:
            wide = labels[i]
            memcpy(at + i * step, &wide, 8)


cdef enum:
    COUNTED_TOGETHER = 128  # pixels that are computed if one of them counts


cdef bint count_pixels(const Program* program, Block* block, uint32_t* counts) noexcept nogil:
    """Sets which pixels of a block count; False if none does.

    Cuts the block off where pixels that count begin or end, so that few are computed that do not. Resized labels need
    whole lines.
    """
    cdef Py_ssize_t done = 0, n
    cdef bint whole = program.head.code == HEAD_RESIZED, any = False, here
    if program.head.mask.data == NULL:
        memset(counts, 0xff, block.pixels * sizeof(uint32_t))
        return True
    while done < block.pixels:
        n = min(<Py_ssize_t> COUNTED_TOGETHER, block.pixels - done)
        here = read_mask(&program.head.mask, block.span, block.first + done, n, counts + done)
        if done and here != any and not whole:
            block.pixels = done
            break
        any = any or here
        done += n
    return any


cdef bint read_mask(const FeatureMap* mask, Py_ssize_t span, Py_ssize_t first, Py_ssize_t pixels,
                    uint32_t* counts) noexcept nogil:
    """Sets all bits of the counts of pixels whose mask is not 0; False if there is none."""
    cdef Py_ssize_t done = 0, n, i
    cdef uint32_t any = 0
    cdef Run run
    while done < pixels:
        run = run_from(mask, first + done)
        n = min(run.count, pixels - done)
        run.at += span * mask.span_step
        if run.step == 1:  # apart, since the compiler makes vectors of adjacent elements
            for i in range(n):
                counts[done + i] = 0 - <uint32_t> (run.at[i] != 0)
                any |= counts[done + i]
        else:
            for i in range(n):
                counts[done + i] = 0 - <uint32_t> (run.at[i * run.step] != 0)
                any |= counts[done + i]
        done += n
    return any != 0


cdef void run_head(const Program* program, const Block* block, bint any_counts, char* memory) noexcept nogil:
    """Consumes a block whose result the last step left in scratch, [channel][pixel], unless no pixel counts."""
    cdef const isa_t* isa = program.steps[0].plan.isa
    cdef const FeatureMap* out = &program.head.out
    cdef const FeatureMap* values = &program.head.values
    cdef Py_ssize_t done, n, place
    cdef head_t head
    cdef Run run
    head.logits = <float*> (block.y.data + block.first * sizeof(float))
    head.pitch = block.y.channel_step // sizeof(float)
    head.classes = block.y.channels
    head.pixels = block.pixels
    head.k = program.head.places
    head.labels = NULL
    head.values = NULL
    head.counts = <uint32_t*> (memory + program.counts_at)
    head.fill_label = program.head.fill_label
    head.fill = program.head.fill
    head.link = program.head.link
    head.binary = program.head.binary
    if program.head.code in (HEAD_BEST, HEAD_INDICATORS):
        head.labels = <int32_t*> (memory + program.head_at)
        if values.data != NULL:
            head.values = <float*> (head.labels + head.k * head.pitch)
    if any_counts:
        if program.head.fills:
            isa.discount_nan(&head)
        if program.head.code == HEAD_BEST:
            isa.best(&head)
        elif program.head.code == HEAD_INDICATORS:
            isa.indicate(&head)
        elif program.head.code == HEAD_PROBABILITIES:
            isa.probabilities(&head)
    if program.head.fills:
        isa.fill_uncounted(&head)
    if head.labels == NULL:
        put_rectangle(isa, out, block.span, head.logits, head.pitch, True, block.first, block.pixels, 0, head.classes)
        return
    for place in range(head.k):
        done = 0
        while done < block.pixels:
            run = run_from(out, block.first + done)
            n = min(run.count, block.pixels - done)
            store_labels(run.at + place * out.channel_step, run.step, out.item,
                         head.labels + place * head.pitch + done, n)
            done += n
    if head.values != NULL:
        put_rectangle(isa, values, block.span, head.values, head.pitch, True, block.first, block.pixels, 0, head.k)


cdef struct Neighbours:
    # The two lines or columns of logits between which a line or column of labels lies, and the weight of the second.
    Py_ssize_t first, second
    float weight


cdef Neighbours neighbours_of(Py_ssize_t place, Py_ssize_t size, Py_ssize_t out_size) noexcept nogil:
    """Half-pixel centres, as in bilinear interpolation with align_corners=False; the edges are extended."""
    cdef Neighbours n
    # (place + 1/2) size / out_size - 1/2, in units of 1 / (2 out_size): integers, so weights of 0 are found exactly.
    cdef int64_t unit = 2 * <int64_t> out_size
    cdef int64_t at = max(<int64_t> 0, (2 * <int64_t> place + 1) * size - out_size)
    n.first = at // unit
    n.weight = <float> (<double> (at % unit) / <double> unit)
    # Without a weight, the second is the first: NaN times 0 would be NaN.
    n.second = min(n.first + 1, size - 1) if n.weight > 0.0 else n.first
    return n


cdef void run_resized_head(const Program* program, const Block* block, bint any_counts, char* memory) noexcept nogil:
    """The labels of all output lines whose upper neighbour lies in this block's band.

    Logits of pixels that do not count become NaN, which interpolation spreads to the labels that do not count.
    """
    cdef const Resize* size = &program.head.resize
    cdef const FeatureMap* out = &program.head.out
    cdef Py_ssize_t band = block.first // size.width, line, done, n
    cdef float* logits = <float*> (block.y.data + block.first * sizeof(float))
    cdef const uint32_t* counts = <uint32_t*> (memory + program.counts_at)
    cdef Py_ssize_t i
    cdef Neighbours lines
    cdef resize_t resize
    cdef Run run
    resize.pitch = block.y.channel_step // sizeof(float)
    resize.classes = block.y.channels
    resize.width = size.width
    resize.out_width = size.out_width
    resize.left = size.left
    resize.right = size.right
    resize.across = size.across
    resize.line = <float*> (memory + program.head_at)
    resize.ranks = <int32_t*> (resize.line + size.width + SCRATCH_PAD)
    resize.labels = resize.ranks + size.out_width + SCRATCH_PAD
    resize.fills = program.head.fills
    resize.fill_label = program.head.fill_label
    if not any_counts:
        for i in range(size.out_width):
            resize.labels[i] = program.head.fill_label
    elif program.head.mask.data != NULL:
        for i in range(block.pixels):
            if not counts[i]:
                logits[i] = NAN
    for line in range(size.out_height):
        lines = neighbours_of(line, size.height, size.out_height)
        if lines.first < band or lines.first >= band + size.band:
            continue
        resize.above = logits + (lines.first - band) * size.width
        resize.below = logits + (lines.second - band) * size.width
        resize.down = lines.weight
        if any_counts:
            program.steps[0].plan.isa.best_resized(&resize)
        done = 0
        while done < size.out_width:
            run = run_from(out, line * size.out_width + done)
            n = min(run.count, size.out_width - done)
            store_labels(run.at + block.span * out.span_step, run.step, out.item, resize.labels + done, n)
            done += n
