# The cut of a layer into tasks for threads: blocks of pixels times blocks of out channels.

cdef enum:
    MAX_TILES = 64                 # pixel tiles in a block
    SHARED_LINE_CYCLES = 100       # what a cache line costs that two threads write at about the same time


cdef Py_ssize_t block_pixels(const Plan* plan, Py_ssize_t pixels, Py_ssize_t blocks) noexcept nogil:
    """Pixels of each of so many blocks: whole tiles, so that only the last block has an edge; few rows of A evenly."""
    cdef Py_ssize_t even = ceil_div(pixels, blocks), mr = plan.kernels.mr[plan.vectors]
    if plan.pixels_in_b:
        return ceil_div(even, plan.vectors * plan.kernels.lanes) * plan.vectors * plan.kernels.lanes
    return ceil_div(even, mr) * mr if even >= 8 * mr else even


cdef Py_ssize_t worthwhile_threads(const Problem* problem, const Plan* plan) noexcept nogil:
    """How many threads have enough work each."""
    return <Py_ssize_t> min(<double> problem.threads, threads_worth(problem.isa, plan.cycles, problem.forked != 0))


cdef Schedule choose_schedule(const Problem* problem, Plan* plan) noexcept nogil:
    """Blocks that stay in the second-level cache, then as many tasks as keep all threads busy."""
    cdef Schedule schedule
    if plan.streamed:
        return streamed_schedule(problem, plan)
    cdef Tiling tiling = pixel_tiling(plan, problem.pixels)
    cdef Py_ssize_t tile_pixels = tiling.nr if plan.pixels_in_b else ceil_div(problem.pixels, tiling.tiles)
    cdef Py_ssize_t threads = worthwhile_threads(problem, plan)
    # Weights that come from memory, or are packed again for each block, are used for as many pixels.
    cdef bint weights_cost = weights_are_far(problem, plan.kernels) or (
        problem.weights_step != 0 and weights_exceed_l2(plan.kernels, problem.k, problem.outs))
    cdef Py_ssize_t least = MIN_BLOCK_PIXELS_FAR if weights_cost else MIN_BLOCK_PIXELS
    cdef Py_ssize_t fewest = ceil_div(min(problem.pixels, least), max(1, tile_pixels))
    # The next block is prefetched in its own type, which may take more room than packed pixels.
    cdef Py_ssize_t tiles = max(fewest, min(MAX_TILES, cache_share() // max(1, plan.kc * tile_pixels)))
    cdef Py_ssize_t blocks = ceil_div(tiling.tiles, tiles)
    cdef Py_ssize_t best_blocks, best_outs, b, o, block, turns, tasks
    cdef double balance, work, taller, best_balance = 0.0
    cdef double whole = <double> problem.spans * problem.groups * problem.pixels * plan.out_tiling.tiles
    # Costs of further blocks, as shares of the whole work: the weights are read again for each block of pixels, and x
    # is read, maybe packed, again for each block of out channels. The weights' share grows as pixels get fewer.
    cdef bint near = weight_bytes(plan.kernels, problem.k, problem.outs) <= <Py_ssize_t> cache_bytes[2]
    cdef double weights_again = max(0.002, (0.5 if near else 2.5) / problem.pixels)
    cdef double x_again = 0.002
    if plan.packed:
        x_again += problem.spans * problem.groups * expected_packing(problem, plan) / max(1.0, plan.cycles)
    # Threads that write the same pixels share cache lines of a result whose channels are adjacent.
    cdef bint lines_shared = problem.y_channel_step == problem.y_item and problem.y_step != problem.y_item
    plan.out_blocks = out_blocks_for(problem.k, problem.outs, plan, min(problem.pixels, tiles * tile_pixels))
    best_blocks = blocks
    best_outs = plan.out_blocks
    if threads > 1:
        # A quarter fewer blocks than fit the cache, or half of two, are allowed, if they can be divided more evenly.
        fewest = max(<Py_ssize_t> 1, 3 * blocks // 4)
        for b in range(fewest, min(tiling.tiles, blocks + 4 * threads) + 1):
            block = min(problem.pixels, block_pixels(plan, problem.pixels, b))
            taller = 1.0
            if not plan.pixels_in_b:
                taller = cycles_per_row(plan, problem.pixels) / cycles_per_row(plan, block)
            for o in range(plan.out_blocks, min(plan.out_tiling.tiles, plan.out_blocks + 2 * threads) + 1):
                if problem.transformed and o > plan.out_blocks and tiling.tiles >= threads:
                    break          # x would be transformed more than once
                # The even share of the work over that of the busiest thread. Several turns are a little better than
                # one, since threads are not equally fast, and the faster one helps the slower one.
                tasks = problem.spans * problem.groups * ceil_div(problem.pixels, block) * o
                turns = ceil_div(tasks, threads)
                work = <double> turns * block * ceil_div(plan.out_tiling.tiles, o) / taller
                if lines_shared and o > 1 and (tasks % threads or turns % o):
                    work += SHARED_LINE_CYCLES * block * whole / plan.cycles
                balance = whole / threads / work
                balance -= (weights_again * max(<Py_ssize_t> 0, b - blocks) + x_again * (o - plan.out_blocks)
                            + 0.006 / turns)
                if balance > best_balance:
                    best_balance = balance
                    best_blocks = b
                    best_outs = o
    plan.out_blocks = best_outs
    schedule.pixel_block = block_pixels(plan, problem.pixels, best_blocks)
    schedule.pixel_blocks = ceil_div(problem.pixels, schedule.pixel_block)
    schedule.spans = problem.spans
    schedule.out_parts = problem.groups * plan.out_blocks
    schedule.tasks = problem.spans * schedule.pixel_blocks * schedule.out_parts
    schedule.threads = <int> min(threads, schedule.tasks)
    schedule.speedup = max(1.0, threads * best_balance)
    return schedule
