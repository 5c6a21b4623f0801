# Walking a plan. No code here knows layouts or makes a choice that changes speed, but for what is prefetched.
#
# The five loops around the micro-kernel, in the order of BLIS:
#   5, 4  run_task      blocks of pixels x blocks of out channels, dealt to threads as tasks (NC, MC)
#   3     run_step      blocks of K (KC); their partial sums wait in cache
#   2     macro_kernel  panels of B (NR), each of which stays in the first-level cache
#   1     macro_kernel  tiles of A (MR), which stream by; micro-kernels take those that are alike in one call

cdef struct Prefetch:
    # What the tiles of a panel of B prefetch: the next panel of B, divided among the tiles of A. Each tile fetches one
    # cache line for some channels; where A has few tiles, the first tiles fetch all lines of their channels.
    const char* at
    Py_ssize_t step                # bytes from a prefetch to the next one of the same tile
    Py_ssize_t lines               # adjacent lines of a channel
    Py_ssize_t channel_step        # bytes to the next channel's lines
    Py_ssize_t shares              # into how many tiles it is divided; 0: none
    bint pixels_of_a               # instead: pixels that are columns of A, tile after tile


cdef inline const float* panel_of_weights(const Step* step, const Block* block, Py_ssize_t tile) noexcept nogil:
    """Those weights of a panel of B, packed before, that a block of K has."""
    cdef const Plan* plan = &step.plan
    cdef Py_ssize_t width = vectors_of_tile(plan, tile) * plan.kernels.lanes
    return (step.weights + block.group * step.group_stride
            + tile_start(&plan.out_tiling, tile) * column_floats(plan.kernels, step.k)
            + column_floats(plan.kernels, block.first_k) * width)


cdef inline Prefetch plan_prefetch(const Step* step, const Block* block, const char* panel, Py_ssize_t tile,
                                   Py_ssize_t column) noexcept nogil:
    """Chooses what is prefetched during a panel of B: pixels, or weights from beyond the cache, never both.

    Nothing behind the end of a map or of the weights: there may be no memory, of which each prefetch takes as long as a
    cache miss, or on a virtual machine longer.
    """
    cdef const Plan* plan = &step.plan
    cdef const kernel_set_t* kernels = plan.kernels
    cdef Py_ssize_t nr = plan.vectors * kernels.lanes, distance
    # The input of the next block may be scratch that is not written yet, or several maps.
    cdef bint pixels_known = not plan.packed or step.x_parts == 1
    cdef Prefetch prefetch
    cdef Run run
    prefetch.at = panel
    prefetch.step = prefetch.channel_step = 0
    prefetch.lines = prefetch.shares = 0
    prefetch.pixels_of_a = False
    if plan.pixels_in_b:
        # Pixels of a later tile; of the next block where this block is packed already.
        distance = block.pixels if plan.packed else plan.prefetch_distance * nr
        run = run_from(block.x, block.first + column + distance)
        if plan.prefetch_distance and pixels_known and run.count > 0 and run.step == sizeof(float):
            prefetch.at = run.at + block_offset(step, block)
            prefetch.lines = ceil_div(nr * sizeof(float), 64)
            prefetch.channel_step = block.x.channel_step
            prefetch.shares = kernels.k_step // kernels.prefetches * prefetch.lines
            prefetch.step = kernels.k_step // kernels.prefetches * prefetch.channel_step
    elif block.weights == NULL and (
            (plan.packed and not plan.rowwise) or weights_exceed_l2(kernels, step.k, step.outs)):
        # The next panel; after the last one the first one, with which the next block of pixels begins.
        tile = tile + 1 if tile + 1 < block.end_out_tile else block.first_out_tile
        prefetch.at = <const char*> panel_of_weights(step, block, tile)
        prefetch.step = vectors_of_tile(plan, tile) * kernels.lanes * step_bytes(kernels) // kernels.prefetches
        prefetch.lines = prefetch.shares = ceil_div(prefetch.step, 64)
    else:
        prefetch.pixels_of_a = pixels_known and column == 0
        prefetch.step = block.x.channel_step
        if plan.rowwise:
            # Contiguous pixels are one run of lines, divided evenly among the prefetches of a tile.
            prefetch.step = (kernels.mr[plan.vectors] * block.x.step[block.x.axes - 1]
                             // max(<Py_ssize_t> 1, ceil_div(block.k, kernels.k_step) * kernels.prefetches))
    return prefetch


cdef inline Py_ssize_t prefetch_for(const Step* step, const Block* block, const Prefetch* prefetch, tile_t* tile,
                                    Py_ssize_t row, Py_ssize_t a_tile, Py_ssize_t a_tiles,
                                    Py_ssize_t most) noexcept nogil:
    """Sets what tiles of A prefetch from `a_tile` on, at most `most` in one call; returns how many may be.

    A tile without a share prefetches its own B.
    """
    cdef Run run
    cdef Py_ssize_t share
    tile.prefetch_whole_row = False
    tile.prefetch_repeats = 0
    if prefetch.shares and a_tiles >= prefetch.shares:
        tile.prefetch_step = prefetch.step
        tile.prefetch_next = 64
        tile.prefetch = prefetch.at
        if prefetch.shares == prefetch.lines:
            tile.prefetch_repeats = prefetch.lines
            return most
        share = a_tile % prefetch.shares
        tile.prefetch += share % prefetch.lines * 64 + share // prefetch.lines * prefetch.channel_step
        return min(most, prefetch.lines - share % prefetch.lines)
    tile.prefetch = tile.b
    tile.prefetch_step = tile.prefetch_next = 0
    if prefetch.pixels_of_a:
        # The next tile of pixels; that of the next block where this block is packed already.
        run = run_from(block.x, block.first + row + (block.pixels if step.plan.packed else tile.mr))
        if run.count > 0:
            tile.prefetch = run.at + block_offset(step, block)
            tile.prefetch_step = prefetch.step
            tile.prefetch_next = tile.mr * run.step
            if run.count < tile.mr:
                tile.prefetch_step = 0
                return 1
            return min(most, run.count // tile.mr)
    elif a_tile * prefetch.lines < prefetch.shares:
        tile.prefetch = prefetch.at + a_tile * prefetch.channel_step
        tile.prefetch_step = prefetch.step
        tile.prefetch_whole_row = True
        return 1
    return most


cdef void macro_kernel(const Step* step, const Block* block) noexcept nogil:
    """Loops 2 and 1: all tiles of a block of pixels and out channels, for one block of K."""
    cdef const Plan* plan = &step.plan
    cdef const kernel_set_t* kernels = plan.kernels
    cdef bint pixels_in_b = plan.pixels_in_b
    cdef const Tiling* b_tiles = &block.tiling if pixels_in_b else &plan.out_tiling
    cdef const Tiling* a_tiles = &plan.out_tiling if pixels_in_b else &block.tiling
    cdef Py_ssize_t first_b_tile = 0 if pixels_in_b else block.first_out_tile
    cdef Py_ssize_t end_b_tile = block.tiling.tiles if pixels_in_b else block.end_out_tile
    cdef Py_ssize_t first_a_tile = block.first_out_tile if pixels_in_b else 0
    cdef Py_ssize_t end_a_tile = block.end_out_tile if pixels_in_b else block.tiling.tiles
    cdef const float* weights = step.weights + block.group * step.group_stride if step.weights != NULL else NULL
    cdef const float* bias = step.bias + block.group * step.channel_pitch
    cdef Py_ssize_t y_offset = block.span * block.y.span_step + block.group * step.outs * block.y.channel_step
    cdef Py_ssize_t partial_step = tile_floats(plan) if plan.kc < step.k else 0
    cdef Py_ssize_t column_size = column_floats(kernels, step.k), k_offset = column_floats(kernels, block.first_k)
    cdef Py_ssize_t step_size = step_bytes(kernels)
    cdef Py_ssize_t b_tile, a_tile, column, nr, width, row, mr, together
    cdef float* partial = block.partial
    cdef bint storable             # may the micro-kernel store the rows of this panel's tiles?
    cdef bint stored, special, any_special
    cdef Prefetch prefetch
    cdef tile_t tile
    cdef int vectors
    cdef Run run
    run.at = NULL
    tile.steps = ceil_div(block.k, kernels.k_step)
    tile.first = block.first_k == 0
    tile.last = block.first_k + block.k == step.k
    tile.pixels_have_one_term = kernels.terms == 2 and pixels_have_one_term(step, block)
    tile.channels_in_b = not pixels_in_b
    tile.low = lower_bound(step)
    tile.high = upper_bound(step)
    row = tile_start(a_tiles, first_a_tile)
    column = tile_start(b_tiles, first_b_tile)
    any_special = kernels.terms and tile.last and has_special_values(
        step, block, row, tile_start(a_tiles, end_a_tile) - row, column, tile_start(b_tiles, end_b_tile) - column)
    for b_tile in range(first_b_tile, end_b_tile):
        column = tile_start(b_tiles, b_tile)
        nr = tile_start(b_tiles, b_tile + 1) - column
        vectors = vectors_for(kernels, nr)
        width = vectors * kernels.lanes
        storable = (tile.last and step.plain and block.y.kind == KIND_FLOAT32
                    and (nr > width - kernels.lanes or block.y.slack))
        if pixels_in_b:
            tile.b = block.strips[b_tile].at
            tile.b_step = block.strips[b_tile].step
            run = run_from(block.y, block.first + column)
            storable = storable and run.count >= nr and run.step == sizeof(float)
        else:
            tile.b_step = width * step_size
            if block.weights == NULL:
                tile.b = <const char*> panel_of_weights(step, block, b_tile)
            else:
                pack_panel(plan, &step.raw, block.group, b_tile, block.first_k, block.k, block.weights)
                tile.b = <const char*> block.weights
            storable = storable and block.y.channel_step == sizeof(float)
            tile.bias = bias + column
        prefetch = plan_prefetch(step, block, tile.b, b_tile, column)
        row = tile_start(a_tiles, first_a_tile)
        a_tile = first_a_tile
        while a_tile < end_a_tile:
            # As many tiles of A as are alike, in one call.
            mr = a_tiles.mr + (a_tile < a_tiles.taller)
            together = min(end_of_alike(a_tiles, a_tile), end_a_tile) - a_tile
            tile.y = NULL
            tile.nr = width if block.y.slack else nr
            if pixels_in_b:
                tile.a_step = mr * step_size
                tile.a = <const char*> (weights + row * column_size + k_offset * mr)
                tile.a_next = mr * column_size * sizeof(float)
                tile.bias = bias + row
                if storable:
                    tile.y = run.at + y_offset + row * block.y.channel_step
                    tile.y_step = block.y.channel_step
            else:
                tile.a = block.strips[a_tile].at
                tile.a_step = block.strips[a_tile].step
                tile.a_next = block.strips[a_tile].next
                together = min(together, block.strips[a_tile].alike)
                if storable:
                    run = run_from(block.y, block.first + row)
                    if run.count >= mr:
                        tile.y = run.at + y_offset + column * sizeof(float)
                        tile.y_step = run.step
                        together = min(together, run.count // mr)
            special = any_special and has_special_values(step, block, row, mr, column, nr)
            if special:
                tile.y = NULL
            stored = tile.y != NULL
            if any_special or (tile.last and not stored):
                together = 1
            tile.mr = mr
            together = prefetch_for(step, block, &prefetch, &tile, row, a_tile - first_a_tile,
                                    end_a_tile - first_a_tile, together)
            tile.more = together - 1
            tile.a_term = mr * kernels.k_interleave[1] * sizeof(uint16_t)
            tile.b_term = width * kernels.k_interleave[0] * sizeof(uint16_t)
            tile.partial = partial
            tile.partial_next = partial_step
            partial += together * partial_step
            if tile.last and step.plain and not stored and not special:
                tile.y = <char*> tile.partial
                tile.y_step = width * sizeof(float)
                tile.nr = width
            kernels.micro_kernel[plan.rowwise][vectors][mr](&tile)
            if special:
                recompute_tile(step, block, tile.partial, row, mr, column, nr, vectors)
            if tile.last and not stored:
                if pixels_in_b:
                    store_tile(step, block, tile.partial, block.first + column, nr, row, mr, vectors,
                               step.plain and not special)
                else:
                    store_tile(step, block, tile.partial, block.first + row, mr, column, nr, vectors,
                               step.plain and not special)
            row += together * mr
            a_tile += together


cdef void run_step(const Step* step, Block* block, Py_ssize_t part) noexcept nogil:
    """Loop 3: one part of a step's out channels over all K, for one block of pixels."""
    cdef const Plan* plan = &step.plan
    cdef Py_ssize_t out_block = part % plan.out_blocks
    if plan.streamed:
        run_streamed(step, block, part)
        return
    block.group = part // plan.out_blocks
    block.first_out_tile = out_block * plan.out_tiling.tiles // plan.out_blocks
    block.end_out_tile = (out_block + 1) * plan.out_tiling.tiles // plan.out_blocks
    block.tiling = pixel_tiling(plan, block.pixels)
    block.first_k = 0
    while True:
        block.k = min(plan.kc, step.k - block.first_k)
        prepare_pixels(step, block)
        macro_kernel(step, block)
        block.first_k += block.k
        if block.first_k >= step.k:
            return


cdef void run_block(const Program* program, Block* block, Py_ssize_t first_part, bint any_counts,
                    char* memory) noexcept nogil:
    """Loop 4: one block of pixels through all steps, or one part of the only step's out channels."""
    cdef const Schedule* schedule = &program.schedule
    cdef Py_ssize_t end_part, part
    cdef const Step* step
    cdef FeatureMap written[2]     # this thread's scratch maps; alternately, since a step reads the one before
    cdef int i
    block.y = NULL
    for i in range(program.count):
        step = &program.steps[i]
        block.x = step.x if step.x_parts else block.y
        block.x_parts = step.x_parts if step.x_parts else 1
        block.y = &step.y
        if step.y_is_scratch:
            written[i & 1] = step.y
            written[i & 1].data = memory + step.y_at - block.first * step.y.step[0]
            block.y = &written[i & 1]
        end_part = first_part + 1
        if schedule.out_parts == 1:
            end_part = step.groups * step.plan.out_blocks if step.outs and any_counts else 0
        for part in range(first_part, end_part):
            run_step(step, block, part)
    if program.head.code == HEAD_RESIZED:
        run_resized_head(program, block, any_counts, memory)
    elif program.head.code != HEAD_NONE:
        run_head(program, block, any_counts, memory)


cdef inline void take_scratch(const Program* program, char* memory, Block* block) noexcept nogil:
    block.strips = <Strip*> (memory + program.strips_at)
    block.panels = <float*> (memory + program.panels_at)
    block.partial = <float*> (memory + program.partial_at)
    block.residual = <float*> (memory + program.residual_at)
    block.special_pixels = <uint32_t*> (memory + program.special_at)
    block.split = <SplitScratch*> (memory + program.split_at)
    block.weights = <float*> (memory + program.weights_at) if program.packs_panels else NULL


cdef void run_task(const Program* program, Py_ssize_t task, char* memory) noexcept nogil:
    """Loop 5: one block of pixels, cut where whole runs of its pixels do not count."""
    cdef const Schedule* schedule = &program.schedule
    cdef Py_ssize_t first_part = task % schedule.out_parts, pixel_block, end
    cdef bint any_counts = True
    cdef Block block
    task //= schedule.out_parts
    pixel_block = task % schedule.pixel_blocks
    block.span = task // schedule.pixel_blocks
    block.first = pixel_block * schedule.pixel_block
    if program.head.code == HEAD_RESIZED:
        block.first = pixel_block * program.head.resize.band * program.head.resize.width
    end = min(block.first + schedule.pixel_block, program.pixels)
    take_scratch(program, memory, &block)
    while block.first < end:
        block.pixels = end - block.first
        if program.head.code != HEAD_NONE:
            any_counts = count_pixels(program, &block, <uint32_t*> (memory + program.counts_at))
        run_block(program, &block, first_part, any_counts, memory)
        block.first += block.pixels


cdef void run_pixels(const Program* program, Py_ssize_t first, Py_ssize_t end, char* memory) noexcept nogil:
    """Loop 4 for some pixels of the only span, and all out channels."""
    cdef Block block
    take_scratch(program, memory, &block)
    block.span = 0
    while first < end:
        block.first = first
        block.pixels = min(program.schedule.pixel_block, end - first)
        run_block(program, &block, 0, True, memory)
        first += block.pixels
