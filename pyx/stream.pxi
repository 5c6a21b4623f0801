# Streaming: layers with few out channels, or few channels on both sides, whose time is that of moving pixels.
#
# A tile would hold few sums, and the bookkeeping of tiles would take longer than their products. So a block of pixels
# is cut into chunks whose channels fit the first-level cache, and a kernel computes all out channels of a chunk.
#
# Where the channels of a pixel are adjacent in x and in y, multiply_adjacent multiplies pixels in the order in which
# they lie, whatever their types (run_rows). Else pixels are the columns of operand B, and stream multiplies planes
# (run_planes): in place, or after packing if they are swapped or far apart; results that are too large for a cache, or
# have other strides, are unpacked.

cdef enum:
    STREAM_FLOATS = 4608           # floats of a chunk: with the parts of x and y that it reads and writes, a usual L1
    STREAM_MIN_PIXELS = 64
    STREAM_CHUNKS = 8              # that each thread should have where products take long
    STREAM_MAX_PIXELS = 2048
    STREAM_LONG_RUN = 16384        # pixels of planes that are read in place: long runs of each plane are read faster;
    STREAM_SHARED_RUN = 4096       # fewer where several tiles read them
    STREAM_PREFETCH_OUTS = 8       # with so many, the product takes long enough to prefetch the next pixels meanwhile
    STREAM_K = 16                  # channels of channels-first pixels that are packed at a time
    STREAM_FEW_OUTS = 16           # few out channels are streamed for any number of in channels of one block of sums,
    STREAM_MAX_OUTS = 32           # more of them
    STREAM_MAX_K = 32              # with few in channels only,
    STREAM_ROWS_K = 128            # but more of both where short vectors multiply pixels row by row
    STREAM_ROWS_OUTS = 256
    STREAM_PLANES_K = 64           # more in channels of planes in cache are multiplied in tiles;
    STREAM_FAR_PLANES_K = 96       # of planes in memory that do not evict each other, too
    STREAM_NARROW_TILES = 2        # of out channels that multiply narrow numbers in place
    STORES_NEAR = 256              # bytes behind a load within which stores past the caches delay the next loads
    FAR_BYTES = 8 << 20            # of a result that is stored past the caches: a quarter of a usual last-level cache


cdef inline bint streams_rows(const Problem* problem) noexcept nogil:
    """Are pixels multiplied row by row, in the order in which they lie?"""
    if (problem.x_channel_step != 1 or problem.groups > 1 or problem.x_parts > 1 or problem.transformed
            or not problem.finished):
        return False
    if problem.outs == 1 or problem.y_channel_step == problem.y_item:
        return True
    return problem.y_step == problem.y_item and problem.outs <= FEW_OUTS <= problem.k


cdef inline Py_ssize_t stream_k(const Problem* problem) noexcept nogil:
    """In channels that are packed at a time. Rows of channels-first maps are read in long runs, so fewer of them."""
    return min(problem.k, <Py_ssize_t> STREAM_K) if problem.x_step == 1 else problem.k


cdef inline Py_ssize_t stream_chunk(Py_ssize_t channels, Py_ssize_t most) noexcept nogil:
    """Pixels in a chunk: whole tiles of every instruction set, whose NR are 1, 2, 3 and 4 vectors."""
    cdef Py_ssize_t pixels = min(most, STREAM_FLOATS // channels)
    cdef Py_ssize_t whole = 3 * STREAM_MIN_PIXELS if pixels >= 3 * STREAM_MIN_PIXELS else STREAM_MIN_PIXELS
    return max(<Py_ssize_t> STREAM_MIN_PIXELS, pixels // whole * whole)


cdef inline Py_ssize_t stream_held(const Plan* plan, Py_ssize_t k) noexcept nogil:
    """Pixels whose sums have room in scratch: a whole run if they rest there, else what is unpacked or put together."""
    return plan.run if k > plan.kc else max(plan.chunk, <Py_ssize_t> SHARED_RUN)


cdef inline Py_ssize_t stream_pitch(Py_ssize_t pixels) noexcept nogil:
    """Floats from channel to channel of a chunk: not a multiple of 4 KiB, which would crowd few cache sets."""
    return pixels + SCRATCH_PAD


cdef inline bint leaves_lanes_unused(const Problem* problem) noexcept nogil:
    """Would out channels on the lanes of rows leave so many unused that pixels are transposed to lie on them?"""
    return (streams_rows(problem) and FEW_OUTS <= problem.k and problem.outs < 32
            and pwconv_isa(<int> problem.isa).quad_outs >> problem.outs & 1)


cdef bint may_be_streamed(const Problem* problem, const kernel_set_t* kernels) noexcept nogil:
    """Can a layer be streamed? Its sums have one block, and its out channels leave room for a chunk in cache."""
    return (not kernels.terms and problem.pixels >= STREAM_MIN_PIXELS and 0 < problem.k <= SUM_BLOCK
            and problem.outs <= (STREAM_ROWS_OUTS if streams_rows(problem) else STREAM_MAX_OUTS))


cdef bint is_better_streamed(const Problem* problem, const kernel_set_t* kernels) noexcept nogil:
    """Do few channels make moving pixels, or the bookkeeping of tiles, the slowest part?"""
    cdef double bytes = <double> problem.spans * problem.pixels * problem.groups * problem.k * sizeof(float)
    if problem.outs <= FEW_OUTS or leaves_lanes_unused(problem):
        return True
    if streams_rows(problem) and problem.k <= STREAM_ROWS_K and kernels.lanes < 16:
        # More out channels take longer, so that threads need more chunks to have as much work each. Products at half
        # the rate hide the stores of tiles to memory (measured on Zen 1: tiles take 5 to 14% less then).
        return (problem.outs <= STREAM_MAX_OUTS
                or (problem.pixels >= problem.threads * STREAM_CHUNKS * <Py_ssize_t> STREAM_MIN_PIXELS
                    and (problem.outs <= STREAM_ROWS_OUTS // 2 or core_of(problem.isa).fmas > 1.0
                         or 3.0 * problem.spans * problem.pixels * problem.outs * sizeof(float) < cache_bytes[3])))
    if problem.k <= STREAM_MAX_K and problem.outs <= STREAM_MAX_OUTS:
        return (problem.x_step != 1 or problem.k <= STREAM_K or problem.outs <= STREAM_FEW_OUTS
                or 2 * bytes > cache_bytes[3])
    # Products of a map that stays in cache take longer than its moves, and tiles are the faster product.
    if problem.outs > STREAM_FEW_OUTS or bytes / problem.groups / problem.spans <= 2.0 * cache_bytes[2]:
        return False
    if problem.x_step != 1 or evict_each_other(problem.x_channel_step, problem.k, L2_WAY):
        return True
    return problem.k <= (STREAM_FAR_PLANES_K if 2 * bytes > cache_bytes[3] else STREAM_PLANES_K)


cdef Plan streamed_plan(const Problem* problem, const Plan* start) noexcept nogil:
    """The plan of a layer that is streamed; expected cycles are those of FMAs and of moving bytes."""
    cdef Plan plan = start[0]
    cdef double bytes = 4.0 * problem.pixels * (problem.k + problem.outs)
    plan.streamed = True
    plan.rowwise = streams_rows(problem)
    plan.pixels_in_b = not plan.rowwise or problem.outs <= FEW_OUTS
    plan.vectors = 1
    plan.kc = problem.k if plan.rowwise else stream_k(problem)
    if plan.pixels_in_b:
        plan.out_tiling = a_tiling(problem.outs, plan.isa.stream_mr)
    else:
        plan.vectors = <int> min(<Py_ssize_t> ROWS_VECTORS, ceil_div(problem.outs, plan.kernels.lanes))
        plan.out_tiling = b_tiling(problem.outs, plan.vectors * plan.kernels.lanes)
    plan.packed = problem.transformed or problem.x_parts > 1 or not (plan.rowwise or problem.x_step == 1)
    if problem.in_parts and (plan.rowwise or plan.out_tiling.tiles > STREAM_NARROW_TILES):
        plan.packed = True             # several tiles would convert the same numbers again
    plan.chunk = stream_chunk(problem.outs + plan.kc, STREAM_MAX_PIXELS)
    plan.run = max(plan.chunk, <Py_ssize_t> SHARED_RUN)
    if not plan.packed and not plan.rowwise:
        plan.run = STREAM_LONG_RUN if plan.out_tiling.tiles == 1 else STREAM_SHARED_RUN
        if problem.k > plan.kc:        # sums rest in cache from some channels to the next
            plan.run = max(plan.chunk, min(plan.run, cache_share() // problem.outs // SHARED_RUN * SHARED_RUN))
    plan.cycles = problem.groups * problem.spans * (
        0.6 * problem.pixels * problem.k * problem.outs / plan.kernels.lanes + bytes / 8.0)
    return plan


cdef Schedule streamed_schedule(const Problem* problem, Plan* plan) noexcept nogil:
    """Blocks of whole chunks, several for each thread, as evenly as may be; groups one after the other in a block."""
    cdef Schedule schedule
    cdef Py_ssize_t chunks = ceil_div(problem.pixels, plan.chunk), best = chunks, least = 0, turns, block, load
    cdef Py_ssize_t threads = worthwhile_threads(problem, plan)
    if threads > 1:
        for turns in range(4, 9):
            block = ceil_div(chunks, threads * turns)
            load = ceil_div(problem.spans * ceil_div(chunks, block), threads) * block
            if least == 0 or load < least:
                least = load
                best = block
    schedule.spans = problem.spans
    schedule.pixel_block = best * plan.chunk
    schedule.pixel_blocks = ceil_div(problem.pixels, schedule.pixel_block)
    schedule.out_parts = 1
    schedule.tasks = schedule.spans * schedule.pixel_blocks
    schedule.threads = <int> min(threads, schedule.tasks)
    schedule.speedup = schedule.threads
    return schedule


cdef inline void plan_next(const Step* step, const Block* block, const Run* from_x, Py_ssize_t pixels,
                           stream_t* stream) noexcept nogil:
    """Chooses what is prefetched while some channels of a chunk are multiplied: those that are read next."""
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


cdef bint loads_wait_for_stores(const Step* step, const char* x, Py_ssize_t x_step, const char* y,
                                Py_ssize_t y_step) noexcept nogil:
    """Would many loads of x wait for stores to y past the caches?

    They do where the low 12 bits of their addresses are those of stores that were issued shortly before.
    """
    cdef Py_ssize_t k, out, close = 0
    for k in range(step.k):
        for out in range(step.outs):
            close += 0 < ((y + out * y_step) - (x + k * x_step)) & 4095 < STORES_NEAR
    return 4 * close > step.k * step.outs


cdef void run_planes(const Step* step, Block* block) noexcept nogil:
    """One group's out channels for one block of pixels, which lie on the lanes."""
    cdef const Plan* plan = &step.plan
    cdef const FeatureMap* x = block.x
    cdef const FeatureMap* y = block.y
    cdef Py_ssize_t pitch = stream_pitch(stream_held(plan, step.k)), packed_pitch = stream_pitch(plan.chunk)
    cdef Py_ssize_t group = block.group, channel = group * step.outs, done = 0, pixel, n
    cdef bint x_far = <size_t> (2 * block.pixels * step.k * x.item) > cache_bytes[1]
    cdef bint y_in_place = step.plain and (y.kind == KIND_FLOAT32 or not y.far)
    # Planes that are stored past the caches all lie at whole cache lines, from some pixel on.
    cdef bint y_far = y.far and (y.channel_step % 64 == 0 or step.outs == 1)
    cdef Py_ssize_t ragged
    cdef bint in_place, direct
    cdef stream_t stream
    cdef Run from_x, to_y
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
        n = min(plan.run, block.pixels - done)
        from_x = run_from(x, pixel)
        in_place = (not plan.packed and from_x.step == x.item
                    and from_x.count >= min(n, <Py_ssize_t> STREAM_MIN_PIXELS))
        n = min(n, from_x.count if in_place else plan.chunk)
        to_y = run_from(y, pixel)
        direct = y_in_place and to_y.step == y.item and to_y.count >= min(n, <Py_ssize_t> STREAM_MIN_PIXELS)
        if direct:
            n = min(n, to_y.count)
        elif step.k <= plan.kc:
            n = min(n, plan.chunk)
        stream.sums = <char*> block.partial
        stream.sums_channel_step = pitch * sizeof(float)
        stream.y_far = stream.y_gathered = False
        stream.x_kind = x.kind if in_place else KIND_FLOAT32
        stream.y_kind = y.kind if direct else KIND_FLOAT32
        if direct:
            stream.y = to_y.at + block.span * y.span_step + channel * y.channel_step
            stream.y_channel_step = y.channel_step
            # Loads of packed pixels often have the low 12 bits of such a store's address, and would wait for it.
            if y_far and in_place:
                ragged = -(<Py_ssize_t> stream.y) & 63
                if ragged:
                    n = min(n, ceil_div(ragged, <Py_ssize_t> sizeof(float)))
                else:
                    # Where stores wait, few planes are faster put together in cache, whatever their addresses.
                    stream.y_gathered = stores_wait and (step.outs <= FEW_OUTS or loads_wait_for_stores(
                        step, from_x.at + block_offset(step, block), x.channel_step, stream.y, y.channel_step))
                    stream.y_far = not stream.y_gathered
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
                gather_pixels(step, block, False, pixel, n, packed_pitch, block.panels)
                stream.x = <char*> block.panels
                stream.x_channel_step = packed_pitch * sizeof(float)
                # With fewer out channels, the prefetches of the packing suffice.
                if block.x_parts == 1 and step.outs >= STREAM_PREFETCH_OUTS:
                    plan_next(step, block, &from_x, n, &stream)
            stream.pixels = n
            plan.isa.stream(&stream)
            stream.first_k += stream.k
        if not direct:
            if not step.plain:
                apply_epilogue(step, block, block.partial, pitch, <int> ceil_div(n, plan.kernels.lanes), True, pixel, n,
                               0, step.outs)
            put_rectangle(plan.isa, y, block.span, block.partial, pitch, True, pixel, n, channel, step.outs)
        done += n


cdef void run_rows(const Step* step, const Block* block) noexcept nogil:
    """One block of pixels whose channels are adjacent, in the order in which they lie."""
    cdef const FeatureMap* x = block.x
    cdef const FeatureMap* y = block.y
    cdef Py_ssize_t done = 0
    cdef Run from_x, to_y
    cdef adjacent_t a
    a.x_kind = x.kind
    a.k = step.k
    a.outs = step.outs
    a.weights = step.weights
    a.bias = step.bias
    a.low = lower_bound(step)
    a.high = upper_bound(step)
    a.y_kind = y.kind
    a.planes = y.channel_step != y.item and step.outs > 1
    a.y_channel_step = y.channel_step
    a.far = y.far
    a.stores_wait = stores_wait
    a.slack = y.slack
    while done < block.pixels:
        from_x = run_from(x, block.first + done)
        to_y = run_from(y, block.first + done)
        a.x = from_x.at + block.span * x.span_step
        a.x_step = from_x.step
        a.y = to_y.at + block.span * y.span_step
        a.y_step = to_y.step
        a.pixels = min(block.pixels - done, min(from_x.count, to_y.count))
        step.plan.isa.multiply_adjacent(&a)
        done += a.pixels


cdef void run_streamed(const Step* step, Block* block, Py_ssize_t group) noexcept nogil:
    """One group's out channels for one block of pixels, chunk by chunk."""
    block.group = group
    block.first_k = 0
    block.k = step.k
    if step.plan.rowwise:
        run_rows(step, block)
    else:
        run_planes(step, block)
