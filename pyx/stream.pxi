# Streaming: layers with few out channels, or few channels on both sides, whose time is that of moving pixels.
#
# A tile would hold few sums, and the bookkeeping of tiles would take longer than their products. So a block of pixels
# is cut into chunks whose channels fit the first-level cache. A chunk takes three kinds of calls: pack (to float32,
# pixels adjacent), stream (multiplied by all weights of a group) and unpack (rounded, in the layout of the result).
# Pixels are the columns of operand B, so that weights are packed as for tiles. Pictures of up to four channels take one
# call for all three.

cdef enum:
    STREAM_FLOATS = 4608           # floats of a chunk: with the parts of x and y that it reads and writes, a usual L1
    STREAM_MIN_PIXELS = 64
    STREAM_MAX_PIXELS = 2048
    STREAM_IN_PLACE_OUTS = 4       # with more out channels, pixels are packed wherever they lie
    STREAM_PREFETCH_OUTS = 8       # with so many, the product takes long enough to prefetch the next pixels meanwhile
    STREAM_K = 16                  # channels of channels-first pixels that are packed at a time
    STREAM_FEW_OUTS = 16           # few out channels are streamed for any number of in channels of one block of sums,
    STREAM_MAX_OUTS = 32           # more of them
    STREAM_MAX_K = 32              # with few in channels only
    FAR_BYTES = 4 << 20            # of a result that is stored past the caches: a usual core's share of the last one


cdef inline Py_ssize_t stream_k(const Problem* problem) noexcept nogil:
    """In channels that are packed at a time. Rows of channels-first maps are read in long runs, so fewer of them."""
    return min(problem.k, <Py_ssize_t> STREAM_K) if problem.x_step == 1 else problem.k


cdef inline Py_ssize_t stream_chunk(const Problem* problem) noexcept nogil:
    """Pixels in a chunk: whole tiles of every instruction set, whose NR are 1, 2, 3 and 4 vectors."""
    cdef Py_ssize_t pixels = min(<Py_ssize_t> STREAM_MAX_PIXELS, STREAM_FLOATS // (problem.outs + stream_k(problem)))
    cdef Py_ssize_t whole = 3 * STREAM_MIN_PIXELS if pixels >= 3 * STREAM_MIN_PIXELS else STREAM_MIN_PIXELS
    return max(<Py_ssize_t> STREAM_MIN_PIXELS, pixels // whole * whole)


cdef inline Py_ssize_t stream_pitch(const Plan* plan) noexcept nogil:
    """Floats from channel to channel of a packed chunk: not a multiple of 4 KiB, which would crowd few cache sets."""
    return plan.chunk + SCRATCH_PAD


cdef bint may_be_streamed(const Problem* problem, const kernel_set_t* kernels) noexcept nogil:
    """Can a layer be streamed? Its sums have one block, and its out channels leave room for a chunk in cache."""
    return (not kernels.terms and problem.pixels >= STREAM_MIN_PIXELS and 0 < problem.k <= SUM_BLOCK
            and problem.outs <= STREAM_MAX_OUTS)


cdef bint is_better_streamed(const Problem* problem) noexcept nogil:
    """Do few channels make moving pixels, or the bookkeeping of tiles, the slowest part?"""
    if problem.k <= STREAM_MAX_K or problem.outs <= STREAM_IN_PLACE_OUTS:
        return True
    # Products of a map that stays in cache take longer than its moves, and tiles are the faster product.
    return (problem.outs <= STREAM_FEW_OUTS
            and problem.pixels * problem.k * <Py_ssize_t> sizeof(float) > 2 * <Py_ssize_t> cache_bytes[2])


cdef Plan streamed_plan(const Problem* problem, const Plan* start) noexcept nogil:
    """The plan of a layer that is streamed; expected cycles are those of FMAs and of moving bytes."""
    cdef Plan plan = start[0]
    cdef double bytes = 4.0 * problem.pixels * (problem.k + problem.outs)
    plan.streamed = plan.pixels_in_b = plan.packed = True
    plan.vectors = 1
    plan.kc = stream_k(problem)
    plan.out_tiling = a_tiling(problem.outs, plan.isa.stream_mr)
    plan.chunk = stream_chunk(problem)
    plan.cycles = problem.groups * problem.spans * (
        0.6 * problem.pixels * problem.k * problem.outs / plan.kernels.lanes + bytes / 8.0)
    return plan


cdef Schedule streamed_schedule(const Problem* problem, Plan* plan) noexcept nogil:
    """Blocks of whole chunks, several for each thread; groups one after the other within a block."""
    cdef Schedule schedule
    cdef Py_ssize_t chunks = ceil_div(problem.pixels, plan.chunk)
    cdef Py_ssize_t threads = worthwhile_threads(problem, plan)
    cdef Py_ssize_t blocks = max(<Py_ssize_t> 1, min(chunks, 4 * threads if threads > 1 else 1))
    schedule.spans = problem.spans
    schedule.pixel_block = ceil_div(chunks, blocks) * plan.chunk
    schedule.pixel_blocks = ceil_div(problem.pixels, schedule.pixel_block)
    schedule.out_parts = 1
    schedule.tasks = schedule.spans * schedule.pixel_blocks
    schedule.threads = <int> min(threads, schedule.tasks)
    return schedule


cdef Py_ssize_t run_pixels(const Step* step, const Block* block, Py_ssize_t group, Py_ssize_t pixel,
                           Py_ssize_t pixels) noexcept nogil:
    """Computes pixels with few adjacent channels without a chunk in between; returns how many, 0 if it cannot."""
    cdef const FeatureMap* x = block.x
    cdef const FeatureMap* y = block.y
    cdef Run from_x = run_from(x, pixel), to_y = run_from(y, pixel)
    cdef pixels_t p
    if (block.x_parts != 1 or step.in_scale != NULL or not step.plain or step.groups != 1
            or x.channel_step != x.item or y.channel_step != y.item
            or from_x.step != step.k * x.item or to_y.step != step.outs * y.item):
        return 0
    p.x = from_x.at + block_offset(step, block)
    p.y = to_y.at + block.span * y.span_step
    p.x_kind = x.kind
    p.y_kind = y.kind
    p.k = step.k
    p.outs = step.outs
    p.pixels = min(pixels, min(from_x.count, to_y.count))
    p.weights = step.weights
    p.bias = step.bias
    p.low = lower_bound(step)
    p.high = upper_bound(step)
    p.far = y.far
    return p.pixels if step.plan.isa.multiply_pixels(&p) else 0


cdef void run_streamed(const Step* step, Block* block, Py_ssize_t group) noexcept nogil:
    """One group's out channels for one block of pixels, chunk by chunk."""
    cdef const Plan* plan = &step.plan
    cdef const FeatureMap* x = block.x
    cdef const FeatureMap* y = block.y
    cdef Py_ssize_t pitch = stream_pitch(plan), channel = group * step.outs, done = 0, pixel, n
    cdef bint x_far = 2 * block.pixels * step.k * sizeof(float) > cache_bytes[1]
    cdef bint x_in_place = (block.x_parts == 1 and x.kind == KIND_FLOAT32 and step.in_scale == NULL
                            and (step.outs <= STREAM_IN_PLACE_OUTS or x.slack))
    cdef bint y_in_place = step.plain and y.kind == KIND_FLOAT32 and not y.far
    cdef bint in_place, direct
    cdef stream_t stream
    cdef Run from_x, to_y
    block.group = group
    stream.all_k = step.k
    stream.outs = step.outs
    stream.tiles = plan.out_tiling.tiles
    stream.weights = step.weights + group * step.group_stride
    stream.bias = step.bias + group * step.channel_pitch if step.plain else NULL
    stream.low = lower_bound(step)
    stream.high = upper_bound(step)
    while done < block.pixels:
        pixel = block.first + done
        block.first_k = 0
        if step.k <= 4 and step.outs <= 4:
            n = run_pixels(step, block, group, pixel, block.pixels - done)
            if n > 0:
                done += n
                continue
        n = min(plan.chunk, block.pixels - done)
        from_x = run_from(x, pixel)
        in_place = x_in_place and from_x.step == sizeof(float) and (from_x.count >= n
                                                                    or from_x.count >= STREAM_MIN_PIXELS)
        if in_place:
            n = min(n, from_x.count)
        to_y = run_from(y, pixel)
        direct = y_in_place and to_y.step == sizeof(float) and to_y.count >= n
        stream.pixels = n
        if direct:
            stream.y = to_y.at + block.span * y.span_step + channel * y.channel_step
            stream.y_channel_step = y.channel_step
        else:
            stream.y = <char*> block.partial
            stream.y_channel_step = pitch * sizeof(float)
        stream.first_k = 0
        while stream.first_k < step.k:
            block.first_k = stream.first_k
            block.k = stream.k = step.k if in_place else min(plan.kc, step.k - stream.first_k)
            stream.x_far = in_place and x_far
            stream.next_rows = 0
            if in_place:
                stream.x = from_x.at + block_offset(step, block)
                stream.x_channel_step = x.channel_step
            else:
                gather_pixels(step, block, False, pixel, n, pitch, block.panels)
                stream.x = <char*> block.panels
                stream.x_channel_step = pitch * sizeof(float)
                # With fewer out channels, the prefetches of the packing suffice.
                if block.x_parts == 1 and step.outs >= STREAM_PREFETCH_OUTS:
                    plan_next(step, block, &from_x, n, &stream)
            plan.isa.stream(&stream)
            stream.first_k += stream.k
        if not direct:
            if not step.plain:
                apply_epilogue(step, block, block.partial, pitch, <int> ceil_div(n, plan.kernels.lanes), True, pixel, n,
                               0, step.outs)
            put_rectangle(plan.isa, y, block.span, block.partial, pitch, True, pixel, n, channel, step.outs)
        done += n


cdef inline void plan_next(const Step* step, const Block* block, const Run* from_x, Py_ssize_t pixels,
                           stream_t* stream) noexcept nogil:
    """Chooses what is prefetched while some channels of a chunk are multiplied: those that are packed next."""
    cdef const FeatureMap* x = block.x
    cdef Py_ssize_t left = step.k - block.first_k - block.k, start = 0 if left > 0 else pixels
    cdef Py_ssize_t n = min(pixels, from_x.count - start)
    if n <= 0 or from_x.step <= 0:
        return
    stream.next = from_x.at + block_offset(step, block) + start * from_x.step
    stream.next += (block.k if left > 0 else -block.first_k) * x.channel_step
    if x.channel_step == x.item:           # pixel by pixel; adjacent pixels are one row
        stream.next_rows = n
        stream.next_row_step = from_x.step
        stream.next_bytes = step.k * x.item
        if stream.next_bytes == from_x.step:
            stream.next_rows = 1
            stream.next_bytes *= n
    elif from_x.step == x.item:
        stream.next_rows = min(step.plan.kc, left) if left > 0 else step.plan.kc
        stream.next_row_step = x.channel_step
        stream.next_bytes = n * x.item
