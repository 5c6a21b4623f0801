# Packing pixels: from feature maps into panels, as float32 or split into bfloat16 terms.

cdef void gather_pixels(const Step* step, const Block* block, bint rowwise, Py_ssize_t pixel, Py_ssize_t count,
                        Py_ssize_t width, float* dst) noexcept nogil:
    """Copies `count` pixels from `pixel` on as float32, with the input scale, shift and activation.

    Into panels [channel][pixel], `width` pixels wide; or, `rowwise`, into rows [pixel][channel], `width` floats apart.
    """
    cdef pack_t pack
    cdef Run run
    cdef Py_ssize_t channel = block.group * step.k + block.first_k, done = 0, start = 0, i
    cdef const FeatureMap* x
    pack.width = width
    pack.panel = width * block.k
    pack.activation = step.before
    for i in range(block.x_parts):
        x = &block.x[i]
        if start + x.channels > channel + done and done < block.k:
            # This part holds the next channels.
            pack.k = min(x.channels - (channel + done - start), block.k - done)
            pack.kind = x.kind
            pack.channel_step = x.channel_step
            pack.dst = dst + (done if rowwise else done * width)
            pack.scale = pack.shift = NULL
            if step.in_scale != NULL:
                pack.scale = step.in_scale + block.span * step.in_scale_span + channel + done
                pack.shift = step.in_shift + block.span * step.in_shift_span + channel + done
            pack.at = 0
            while pack.at < count:
                run = run_from(x, pixel + pack.at)
                pack.src = run.at + block.span * x.span_step + (channel + done - start) * x.channel_step
                pack.step = run.step
                pack.count = min(run.count, count - pack.at)
                if rowwise:
                    step.plan.isa.pack_rows(&pack)
                else:
                    step.plan.isa.pack(&pack)
                pack.at += pack.count
            done += pack.k
        start += x.channels


cdef inline bint splits_along_k(const Plan* plan, bint operand_a, Py_ssize_t channel_step) noexcept nogil:
    """Are the channels of a column read in vectors and split, or the columns of a channel?"""
    cdef Py_ssize_t interleave = plan.kernels.k_interleave[operand_a]
    if operand_a and plan.rowwise:
        return True
    # Contiguous channels are read in vectors if as many are adjacent in the panel as a vector holds.
    return interleave > 4 or (interleave >= plan.kernels.lanes and channel_step == sizeof(float))


cdef void split_rectangle(const Plan* plan, bint operand_a, bint along_k, const char* src, Py_ssize_t step,
                          Py_ssize_t channel_step, Py_ssize_t columns, Py_ssize_t k, Py_ssize_t width, float* panel,
                          Py_ssize_t column, Py_ssize_t channel, uint32_t* special) noexcept nogil:
    """Splits a rectangle of float32 into bfloat16 terms, to a column and a channel of a panel of A or B.

    `width`: the columns of the panel, or the floats of a row where A is read row by row. `special`: one per column.
    """
    cdef split_t split
    split.src = src
    split.step = step
    split.channel_step = channel_step
    split.columns = columns
    split.k = k
    split.k_contiguous = along_k
    split.padded_k = ceil_div(k, plan.kernels.k_step) * plan.kernels.k_step
    split.special = special
    if operand_a and plan.rowwise:
        split.k_interleave = split.padded_k
        split.column_stride = width * sizeof(float)
        split.k_stride = split.term_stride = 0
        split.dst = <char*> (panel + column * width) + channel * sizeof(uint16_t)
    else:
        split.k_interleave = plan.kernels.k_interleave[operand_a]
        split.column_stride = split.k_interleave * sizeof(uint16_t)
        split.term_stride = width * split.column_stride
        split.k_stride = plan.kernels.terms * split.term_stride
        split.dst = <char*> panel + channel // split.k_interleave * split.k_stride + column * split.column_stride
    plan.kernels.split(&split)


cdef inline Py_ssize_t block_offset(const Step* step, const Block* block) noexcept nogil:
    """Bytes from a pixel's first channel in the first span to the first of the block's channels in its span."""
    return (block.span * block.x.span_step
            + (block.group * step.k + block.first_k) * block.x.channel_step)


cdef void split_pixels(const Step* step, const Block* block, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t width,
                       float* dst) noexcept nogil:
    """pack_pixels() for a kernel set that multiplies bfloat16 terms."""
    cdef const Plan* plan = &step.plan
    cdef bint operand_a = not plan.pixels_in_b
    cdef bint along_k = splits_along_k(plan, operand_a, block.x.channel_step)
    cdef bint in_place = block.x_parts == 1 and block.x.kind == KIND_FLOAT32 and step.in_scale == NULL
    cdef Py_ssize_t panel = width * column_floats(plan.kernels, block.k), channel = 0, channel_step, done, n
    cdef Py_ssize_t at_once = SPLIT_ROWS if plan.rowwise else width
    # Where pixels are adjacent, SPLIT_K channels of all panels come before the next ones: the map is read in long runs.
    cdef Py_ssize_t most_k = SPLIT_K
    cdef Block part = block[0]
    cdef Run run
    if in_place and along_k and block.x.channel_step == sizeof(float):
        most_k = block.k
    while channel < block.k:
        part.first_k = block.first_k + channel
        part.k = min(most_k, block.k - channel)
        done = 0
        while done < count:
            n = min(at_once - done % at_once, count - done)
            run = run_from(block.x, pixel + done)
            if in_place and (block.x.channel_step if along_k else run.step) == sizeof(float):
                n = min(n, run.count)
                run.at += block_offset(step, &part)
                channel_step = block.x.channel_step
            else:
                gather_pixels(step, &part, along_k, pixel + done, n, SPLIT_K + ROW_PAD if along_k else n,
                              block.split.unsplit)
                run.at = <char*> block.split.unsplit
                run.step = (SPLIT_K + ROW_PAD if along_k else 1) * sizeof(float)
                channel_step = (1 if along_k else n) * sizeof(float)
            split_rectangle(plan, operand_a, along_k, run.at, run.step, channel_step, n, part.k, width,
                            dst if plan.rowwise else dst + done // width * panel,
                            done if plan.rowwise else done % width, channel,
                            &block.special_pixels[pixel + done - block.first])
            done += n
        channel += part.k


cdef inline void pack_pixels(const Step* step, const Block* block, Py_ssize_t pixel, Py_ssize_t count,
                             Py_ssize_t width, float* dst) noexcept nogil:
    """Packs `count` pixels from `pixel` on into panels of `width` pixels, or rows of `width` floats (rowwise)."""
    if step.plan.kernels.terms:
        split_pixels(step, block, pixel, count, width, dst)
    else:
        gather_pixels(step, block, step.plan.rowwise, pixel, count, width, dst)


cdef void pack_columns(const Step* step, const Block* block) noexcept nogil:
    """Packs all pixels of a block into panels of A, a few channels of all panels before the next ones.

    A panel has less than a cache line of each channel, so that its neighbours find the rest in the first-level cache.
    """
    cdef Block part = block[0]
    cdef Py_ssize_t channel = 0, tile, start, count
    while channel < block.k:
        part.first_k = block.first_k + channel
        part.k = min(<Py_ssize_t> PACKED_AT_ONCE, block.k - channel)
        for tile in range(block.tiling.tiles):
            start = tile_start(&block.tiling, tile)
            count = tile_start(&block.tiling, tile + 1) - start
            gather_pixels(step, &part, False, block.first + start, count, count,
                          block.panels + start * block.k + channel * count)
        channel += part.k


cdef void compare_strips(const Tiling* tiling, Strip* strips) noexcept nogil:
    """Finds which tiles of A can be computed in one call."""
    cdef Py_ssize_t tile = tiling.tiles - 1
    strips[tile].next = 0
    strips[tile].alike = 1
    while tile > 0:
        tile -= 1
        strips[tile].next = strips[tile + 1].at - strips[tile].at
        strips[tile].alike = 1
        if strips[tile].step == strips[tile + 1].step and tile + 1 != tiling.taller:
            strips[tile].alike = 2
            if strips[tile + 1].alike > 1 and strips[tile].next == strips[tile + 1].next:
                strips[tile].alike = strips[tile + 1].alike + 1


cdef void prepare_pixels(const Step* step, const Block* block) noexcept nogil:
    """Finds where each pixel tile of a block is read by micro-kernels; packs pixels that cannot be read in place."""
    cdef const Plan* plan = &step.plan
    cdef Py_ssize_t offset = block_offset(step, block)
    cdef Py_ssize_t column = column_floats(plan.kernels, block.k), tile, start, count, width, whole
    cdef Strip* strip = block.strips
    cdef float* panel
    cdef Run run
    if plan.kernels.terms and block.first_k == 0:
        memset(block.special_pixels, 0, block.pixels * sizeof(uint32_t))
    if plan.packed and plan.rowwise:
        pack_pixels(step, block, block.first, block.pixels, row_floats(column), block.panels)
    elif plan.packed and not plan.pixels_in_b and not plan.kernels.terms:
        pack_columns(step, block)
    elif plan.packed and plan.pixels_in_b:
        whole = block.pixels - block.pixels % block.tiling.nr
        if whole > 0:
            pack_pixels(step, block, block.first, whole, block.tiling.nr, block.panels)
    for tile in range(block.tiling.tiles):
        start = tile_start(&block.tiling, tile)
        count = tile_start(&block.tiling, tile + 1) - start
        width = vectors_for(plan.kernels, count) * plan.kernels.lanes if plan.pixels_in_b else count
        if plan.rowwise:
            width = row_floats(column)
            panel = block.panels + start * width
        else:
            panel = block.panels + start * column
        if not plan.packed:
            run = run_from(block.x, block.first + start)
            if run.count >= count and (count == width or block.x.slack or not plan.pixels_in_b):
                strip.at = run.at + offset
                strip.step = run.step if plan.rowwise else block.x.channel_step
                strip += 1
                continue
        if not plan.packed or (plan.kernels.terms and not plan.rowwise) or (
                plan.pixels_in_b and count != block.tiling.nr):
            pack_pixels(step, block, block.first + start, count, width, panel)
        strip.at = <char*> panel
        strip.step = width * (sizeof(float) if plan.rowwise else step_bytes(plan.kernels))
        strip += 1
    if not plan.pixels_in_b:
        compare_strips(&block.tiling, block.strips)
