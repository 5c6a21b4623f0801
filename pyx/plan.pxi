# How a layer is computed for one shape: the records of a plan, the choice among all plans, and the cache of plans.
#
# Every layer is a matrix product for each group: pixels x K in channels times K in channels x out channels. One side
# (pixels or out channels) is operand B, whose columns are loaded as vectors; the other is operand A, whose elements are
# broadcast. A tile is MR columns of A times NR columns of B. K is always the in channels of one group.

cdef enum:
    SPLIT_MIN_OUTS = 24            # fewer out channels, or fewer in channels, do not pay for splitting pixels
    SPLIT_MIN_K = 16
    PLANS = 4 * MAX_VECTORS        # of tiles
    UNUSED_LANES_DIVISOR = 8       # a share of the lanes that vectors half as long have to save
    MIN_BLOCK_PIXELS = 32          # a block has at least so many pixels; K is cut into blocks if all K leave fewer
    MIN_BLOCK_PIXELS_FAR = 256     # the same, where weights come from memory for each block
    L1_WAY = 1 << 12               # usual bytes of one way of the first-level cache, of the second-level cache
    L2_WAY = 1 << 16


# A plan with so many times as many cycles as the best one has may still be faster if it can be cut more evenly.
cdef double WORTH_CUTTING = 1.15


cdef struct Problem:
    # All that a plan depends on. Problems are compared byte by byte, so every field is as wide as a Py_ssize_t.
    Py_ssize_t isa, precision, threads
    Py_ssize_t forked              # in the child of a fork, where threads must be started first
    Py_ssize_t spans, pixels, groups, k, outs          # pixels per span; in and out channels per group
    Py_ssize_t x_run, x_step, x_channel_step           # pixels in a run; items between pixels, channels (0: not whole)
    Py_ssize_t y_run, y_step, y_channel_step           # bytes
    Py_ssize_t y_item              # bytes of an element of y
    Py_ssize_t plain               # the epilogue is bias and clip, and y is float32
    Py_ssize_t transformed         # x has an input scale, shift or activation, or bytes that are swapped
    Py_ssize_t in_parts            # x is not one float32 map, so tiles cannot read x in place
    Py_ssize_t x_parts             # maps that x consists of
    Py_ssize_t finished            # the epilogue is bias and clip
    Py_ssize_t weights_step        # 0: weights are packed already; else bytes between their in channels


cdef struct Tiling:
    # One dimension of the product, cut into tiles. Columns of B: every tile but the last has nr columns. Columns of A:
    # `taller` tiles of mr + 1, then tiles of mr; nr is 0.
    Py_ssize_t extent, tiles
    Py_ssize_t nr
    Py_ssize_t mr, taller


cdef struct StepCycles:
    # Of one step of the sum of a tile: of each FMA, of each element of A besides, and at least of each row.
    double fma, broadcast, row


cdef struct Plan:
    const isa_t* isa
    const kernel_set_t* kernels
    bint pixels_in_b               # B holds the pixels and A the weights; else the other way round
    bint packed                    # pixels are copied into panels
    bint rowwise                   # A is read row by row (channels-last pixels)
    bint streamed                  # computed in chunks of pixels instead of tiles; see stream.pxi
    Py_ssize_t chunk               # pixels in a chunk that is packed,
    Py_ssize_t run                 # and in one that is read in place
    int vectors                    # NR in vectors
    StepCycles step_cycles
    Tiling out_tiling              # out channels of a group
    Py_ssize_t kc                  # in channels of a block of K
    Py_ssize_t out_blocks          # blocks of a group's out channels
    int prefetch_distance          # in tiles, where B holds the pixels; 0: they are not prefetched
    double cycles                  # expected by the cost model, for one thread


cdef struct Schedule:
    # The cut into tasks: `pixel_blocks` x `out_parts` for each span. A part is one block of one group's out channels.
    Py_ssize_t spans, pixel_block, pixel_blocks
    Py_ssize_t out_parts
    Py_ssize_t tasks
    int threads
    double speedup                 # expected, over one thread


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t tile_start(const Tiling* tiling, Py_ssize_t tile) noexcept nogil:
    """The first column of a tile; the extent behind the last tile."""
    if tile >= tiling.tiles:
        return tiling.extent
    if tiling.nr:
        return tile * tiling.nr
    return tile * tiling.mr + min(tile, tiling.taller)


cdef inline Py_ssize_t end_of_alike(const Tiling* tiling, Py_ssize_t tile) noexcept nogil:
    """The end of the tiles from this one on that have as many columns as it."""
    cdef Py_ssize_t first_part = tiling.extent // tiling.nr if tiling.nr else tiling.taller
    return first_part if tile < first_part else tiling.tiles


cdef Tiling b_tiling(Py_ssize_t extent, Py_ssize_t nr) noexcept nogil:
    cdef Tiling tiling
    tiling.extent = extent
    tiling.nr = nr
    tiling.tiles = ceil_div(extent, nr)
    tiling.mr = tiling.taller = 0
    return tiling


cdef Tiling a_tiling(Py_ssize_t extent, Py_ssize_t largest_mr) noexcept nogil:
    """Tiles of nearly equal MR: 49 columns are 13 + 12 + 12 + 12, not 14 + 14 + 14 + 7."""
    cdef Tiling tiling
    tiling.extent = extent
    tiling.nr = 0
    tiling.tiles = ceil_div(extent, largest_mr)
    tiling.mr = extent // tiling.tiles
    tiling.taller = extent % tiling.tiles
    return tiling


cdef Tiling pixel_tiling(const Plan* plan, Py_ssize_t pixels) noexcept nogil:
    if plan.pixels_in_b:
        return b_tiling(pixels, plan.vectors * plan.kernels.lanes)
    return a_tiling(pixels, plan.kernels.mr[plan.vectors])


cdef inline Py_ssize_t column_floats(const kernel_set_t* kernels, Py_ssize_t k) noexcept nogil:
    """The packed size of one column of A or B (a pixel or an out channel) with k in channels."""
    return ceil_div(k, kernels.k_step) * kernels.k_step * kernels.terms // 2 if kernels.terms else k


cdef inline Py_ssize_t step_bytes(const kernel_set_t* kernels) noexcept nogil:
    """Bytes that one step of the sum reads of each column."""
    return column_floats(kernels, kernels.k_step) * sizeof(float)


cdef inline Py_ssize_t weight_bytes(const kernel_set_t* kernels, Py_ssize_t k, Py_ssize_t outs) noexcept nogil:
    """The packed size of a group's weights without the padding of the last tile."""
    return outs * column_floats(kernels, k) * <Py_ssize_t> sizeof(float)


cdef inline int vectors_for(const kernel_set_t* kernels, Py_ssize_t columns) noexcept nogil:
    """The smallest NR, in vectors, of a tile that holds so many columns of B."""
    cdef int vectors = <int> ceil_div(columns, kernels.lanes)
    while kernels.mr[vectors] == 0:
        vectors += 1
    return vectors


cdef inline int vectors_of_tile(const Plan* plan, Py_ssize_t tile) noexcept nogil:
    """NR, in vectors, of a tile of out channels where they are operand B."""
    return vectors_for(plan.kernels, tile_start(&plan.out_tiling, tile + 1) - tile_start(&plan.out_tiling, tile))


cdef inline Py_ssize_t cache_share() noexcept nogil:
    """Floats of the second-level cache for each of the arrays that a block shares it with."""
    return cache_bytes[2] // 4 // sizeof(float)


cdef inline bint weights_exceed_l2(const kernel_set_t* kernels, Py_ssize_t k, Py_ssize_t outs) noexcept nogil:
    """Are a group's weights too many for the second-level cache, which they share with pixels?"""
    return 2 * weight_bytes(kernels, k, outs) > <Py_ssize_t> cache_bytes[2]


cdef inline bint weights_are_far(const Problem* problem, const kernel_set_t* kernels) noexcept nogil:
    """Are weights too many for the caches, so that each block of pixels reads them from memory?"""
    return 2 * weight_bytes(kernels, problem.k, problem.outs) > <Py_ssize_t> cache_bytes[3]


cdef inline Py_ssize_t out_blocks_for(Py_ssize_t k, Py_ssize_t outs, const Plan* plan,
                                      Py_ssize_t pixel_block) noexcept nogil:
    """Blocks of out channels such that their partial sums stay in cache from one block of K to the next."""
    if plan.kc >= k:
        return 1
    return min(plan.out_tiling.tiles, ceil_div(outs * pixel_block, 4 * cache_share()))


cdef Py_ssize_t choose_kc(const Problem* problem, const kernel_set_t* kernels) noexcept nogil:
    """All K, or equal blocks of it such that enough pixels of a block fit the cache.

    Where the lines of a map evict each other, fewer of them are read at once.
    """
    cdef Py_ssize_t sums = cache_share() // MIN_BLOCK_PIXELS // column_floats(kernels, SUM_BLOCK), blocks
    cdef Py_ssize_t most = max(<Py_ssize_t> 1, sums) * SUM_BLOCK
    if problem.x_step == 1:
        while most > SUM_BLOCK and evict_each_other(problem.x_channel_step, min(most, problem.k), L2_WAY):
            most -= SUM_BLOCK
    blocks = ceil_div(problem.k, most)
    return problem.k if blocks <= 1 else ceil_div(ceil_div(problem.k, blocks), SUM_BLOCK) * SUM_BLOCK


cdef const kernel_set_t* kernels_for(const Problem* problem) noexcept nogil:
    """Depends on precision, channels and machine only, so that nothing else changes bits."""
    cdef const kernel_set_t* kernels = pwconv_kernel_set(<int> problem.isa, <int> problem.precision)
    if kernels.terms and (problem.k < max(kernels.k_step, <int> SPLIT_MIN_K) or problem.outs < SPLIT_MIN_OUTS):
        return pwconv_kernel_set(<int> problem.isa, HIGHEST)
    return kernels


cdef Py_ssize_t isa_of_half_vectors(const Problem* problem) noexcept nogil:
    """The instruction set with half as long vectors that computes the same bits as fast; -1: there is none.

    There is one where long vectors run at half the rate.
    """
    cdef Py_ssize_t half = pwconv_isa_of_half_vectors(<int> problem.isa)
    if half < 0 or kernels_for(problem).terms or core_of(half).fmas < 2.0 * core_of(problem.isa).fmas:
        return -1
    return half


cdef Py_ssize_t isa_of_tiles(const Problem* problem) noexcept nogil:
    """The instruction set in use, or half as long vectors if out channels on the lanes leave too many unused."""
    cdef Py_ssize_t half = isa_of_half_vectors(problem), used, used_by_half
    cdef Py_ssize_t lanes = pwconv_isa(<int> problem.isa).float32.lanes
    if half < 0 or problem.x_channel_step != 1:
        return problem.isa
    used = ceil_div(problem.outs, lanes) * lanes
    used_by_half = ceil_div(problem.outs, lanes // 2) * lanes // 2
    return half if UNUSED_LANES_DIVISOR * (used - used_by_half) >= used else problem.isa


cdef Py_ssize_t isa_of_stream(const Problem* problem) noexcept nogil:
    """The instruction set in use, or half as long vectors if pixels from memory are taken apart quad by quad.

    Measured: those read fewer pixels at a time, and so memory in a better order.
    """
    cdef Py_ssize_t half = isa_of_half_vectors(problem)
    cdef double bytes = <double> problem.spans * problem.pixels * problem.k * sizeof(float)
    if half >= 0 and problem.outs <= FEW_OUTS < problem.k and streams_rows(problem) and bytes > 2.0 * cache_bytes[3]:
        return half
    return problem.isa


cdef Plan unfinished_plan(const Problem* problem, Py_ssize_t isa) noexcept nogil:
    """What all plans of a problem with an instruction set begin with: kernels, blocks of K."""
    cdef Plan plan
    memset(&plan, 0, sizeof(Plan))
    plan.isa = pwconv_isa(<int> isa)
    plan.kernels = kernels_for(problem) if isa == problem.isa else &plan.isa.float32
    plan.step_cycles = step_cycles(plan.kernels, isa)
    plan.kc = choose_kc(problem, plan.kernels)
    plan.out_blocks = 1
    return plan


cdef int choose_prefetch_distance(const Problem* problem, const Plan* plan) noexcept nogil:
    """How many tiles ahead pixels are prefetched."""
    if problem.x_step == 1 and evict_each_other(problem.x_channel_step, problem.k, L2_WAY):
        return 0                       # lines of later channels would evict those of earlier ones before they are read
    if 2.0 * problem.spans * problem.groups * problem.pixels * problem.k * sizeof(float) > cache_bytes[3]:
        return 2                       # pixels come from memory, whose latency is longer than that of a cache
    if plan.packed and plan.kernels.lanes < 16:
        return 0                       # short vectors load often, and pixels in cache arrive in time for packing
    return 1


cdef bint set_tiles(const Problem* problem, Plan* plan, bint pixels_in_b, bint packed, int vectors) noexcept nogil:
    """Sets which operand holds the pixels, whether they are packed, and the tiles; False if there is no such plan."""
    if plan.kernels.mr[vectors] == 0:
        return False
    plan.pixels_in_b = pixels_in_b
    plan.vectors = vectors
    plan.packed = packed
    plan.prefetch_distance = choose_prefetch_distance(problem, plan)
    plan.rowwise = (not pixels_in_b and problem.x_channel_step == 1
                    and plan.kernels.micro_kernel[1][vectors][1] != NULL)
    if not packed and (plan.kernels.terms or problem.transformed or problem.in_parts
                       or not (plan.rowwise or problem.x_step == 1)):
        return False
    if pixels_in_b:
        plan.out_tiling = a_tiling(problem.outs, plan.kernels.mr[vectors])
    else:
        plan.out_tiling = b_tiling(problem.outs, vectors * plan.kernels.lanes)
    return True


cdef inline double expected_time(const Plan* plan, const Schedule* schedule) noexcept nogil:
    """Cycles of the busiest thread."""
    return plan.cycles / schedule.speedup


cdef void choose_plan(const Problem* problem, Plan* best, Schedule* schedule) noexcept nogil:
    """The fastest of: which operand holds the pixels, NR, pixels read in place or packed; each as it is cut best."""
    cdef Plan plans[PLANS]
    cdef Plan plan = unfinished_plan(problem, isa_of_stream(problem))
    cdef Schedule cut
    cdef double fewest = -1.0
    cdef int pixels_in_b, packed, vectors, count = 0, i
    if may_be_streamed(problem, plan.kernels) and is_better_streamed(problem, plan.kernels):
        best[0] = streamed_plan(problem, &plan)
        schedule[0] = streamed_schedule(problem, best)
        return
    plan = unfinished_plan(problem, isa_of_tiles(problem))
    for pixels_in_b in range(2):
        for vectors in range(1, MAX_VECTORS + 1):
            for packed in range(2):
                if set_tiles(problem, &plan, pixels_in_b, packed, vectors):
                    plan.cycles = expected_cycles(problem, &plan)
                    fewest = plan.cycles if fewest < 0.0 else min(fewest, plan.cycles)
                    plans[count] = plan
                    count += 1
    best.cycles = -1.0
    for i in range(count):
        if plans[i].cycles <= WORTH_CUTTING * fewest:
            cut = choose_schedule(problem, &plans[i])
            if best.cycles < 0.0 or expected_time(&plans[i], &cut) < expected_time(best, schedule):
                best[0] = plans[i]
                schedule[0] = cut


# A direct-mapped cache, guarded by the GIL. Its size is bounded; a collision only costs making the plan again.
cdef enum:
    PLAN_SLOTS = 256

cdef struct PlanSlot:
    bint used
    Problem problem
    Plan plan
    Schedule schedule

cdef PlanSlot plan_slots[PLAN_SLOTS]


cdef const PlanSlot* plan_for(const Problem* problem) except NULL:
    cdef const Py_ssize_t* words = <const Py_ssize_t*> problem
    cdef uint64_t mixed = 0
    cdef PlanSlot made
    cdef size_t i
    for i in range(sizeof(Problem) // sizeof(Py_ssize_t)):
        mixed = (mixed ^ <uint64_t> words[i]) * 0x9E3779B97F4A7C15ULL
        mixed ^= mixed >> 29
    cdef PlanSlot* slot = &plan_slots[mixed % PLAN_SLOTS]
    if not slot.used or memcmp(&slot.problem, problem, sizeof(Problem)) != 0:
        # Made before the slot is touched: collecting garbage may run calls that use the same slot.
        make_plan(problem, &made)
        made.problem = problem[0]
        made.used = True
        slot[0] = made
    return slot
