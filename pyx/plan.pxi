# How a layer is computed for one shape: chosen once by a small cost model, then only walked.
#
# Every layer is a product of two sides, pixels and out channels. One of them lies along the vectors (lanes), the other
# is broadcast (rows); a tile is some rows times some lanes. A unit of work is one block of pixels times one block of
# out channels (of one group, of one span of images).

cdef enum:
    MAX_TILES = 64                 # pixel tiles in a block
    FEW_OUTS = 24                  # fewer, or fewer in channels, do not pay for cutting pixels into bfloat16
    FEW_CHANNELS = 16
    FEW_PIXELS = 48                # in a block, where all in channels at once would leave even less
    MANY_PIXELS = 256              # the same, where weights come from afar for each block
    L1_WAY = 1 << 12               # bytes of one way of the first-level and of the second-level cache: usual ones
    L2_WAY = 1 << 16
    ROW_PAD = 16                   # floats between packed rows: keeps rows of 1 KiB out of one cache set


cdef struct Problem:
    # What a plan depends on; compared byte by byte, so every field is as wide as a Py_ssize_t.
    Py_ssize_t isa, precision, threads
    Py_ssize_t thread_cycles       # work that is worth another thread
    Py_ssize_t spans, pixels, groups, depth, outs      # pixels per span; depth and outs per group
    Py_ssize_t x_run, x_step, x_channel_step           # pixels in a run; items between pixels, channels (0: not whole)
    Py_ssize_t y_run, y_step, y_channel_step           # bytes
    Py_ssize_t plain               # bias and clip are all that happens at the end
    Py_ssize_t transformed         # something happens to x before
    Py_ssize_t in_parts            # x is not one float32 map, so it cannot be read in place
    Py_ssize_t weights_step        # 0: packed before; else bytes between in channels


cdef struct Side:
    Py_ssize_t n, tiles
    Py_ssize_t width               # lanes: of every tile but the last
    Py_ssize_t base, extra         # rows: `extra` tiles of base + 1, then tiles of base


cdef struct Plan:
    # How one layer's tiles lie.
    const isa_t* isa
    const unit_t* unit
    bint pixels_on_lanes
    bint packed                    # pixels are copied into panels
    bint rowwise                   # the broadcast operand is read row by row (channels-last pixels)
    int vectors
    Side out_side                  # of a group
    Py_ssize_t depth_block
    Py_ssize_t out_blocks          # of a group
    int tiles_ahead                # how far behind a tile of pixels the next ones are fetched, where they lie on lanes
    double cycles                  # what the cost model expects of one thread


cdef struct Schedule:
    # How the work is cut up. Pixels and out channels of all groups in `pixel_blocks` x `parts` units for each span.
    Py_ssize_t spans, pixel_block, pixel_blocks
    Py_ssize_t parts
    Py_ssize_t units
    int threads


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t tile_start(const Side* side, Py_ssize_t tile) noexcept nogil:
    if tile >= side.tiles:
        return side.n
    if side.width:
        return tile * side.width
    return tile * side.base + min(tile, side.extra)


cdef inline Py_ssize_t column_floats(const unit_t* unit, Py_ssize_t depth) noexcept nogil:
    """The packed size of a column, which is a pixel or an out channel, of so many in channels."""
    return ceil_div(depth, unit.channels) * unit.channels * unit.pieces // 2 if unit.pieces else depth


cdef inline Py_ssize_t step_bytes(const unit_t* unit) noexcept nogil:
    """What a step of the sum reads of a column."""
    return column_floats(unit, unit.channels) * sizeof(float)


cdef inline Py_ssize_t weight_bytes(const unit_t* unit, Py_ssize_t depth, Py_ssize_t outs) noexcept nogil:
    """The packed size of a group's weights, but for what pads the last lanes."""
    return outs * column_floats(unit, depth) * <Py_ssize_t> sizeof(float)


cdef inline int vectors_for(const unit_t* unit, Py_ssize_t lanes) noexcept nogil:
    """The fewest vectors of a tile that hold so many lanes."""
    cdef int vectors = <int> ceil_div(lanes, unit.lanes)
    while unit.rows[vectors] == 0:
        vectors += 1
    return vectors


cdef Side lanes_side(Py_ssize_t n, Py_ssize_t width) noexcept nogil:
    cdef Side side
    side.n = n
    side.width = width
    side.tiles = ceil_div(n, width)
    side.base = side.extra = 0
    return side


cdef Side pixel_side(const Plan* plan, Py_ssize_t pixels) noexcept nogil:
    """The tiles of so many pixels."""
    if plan.pixels_on_lanes:
        return lanes_side(pixels, plan.vectors * plan.unit.lanes)
    return rows_side(pixels, plan.unit.rows[plan.vectors])


cdef Side rows_side(Py_ssize_t n, Py_ssize_t tallest) noexcept nogil:
    """Rows in tiles of nearly equal height: 49 rows are 13 + 12 + 12 + 12, not 14 + 14 + 14 + 7."""
    cdef Side side
    side.n = n
    side.width = 0
    side.tiles = ceil_div(n, tallest)
    side.base = n // side.tiles
    side.extra = n % side.tiles
    return side


# The cost model, in cycles of a core that starts two vector FMAs and two vector loads in a cycle, each FMA ready after
# four. Only ratios matter, so one set of constants serves all CPUs.

cdef inline double tile_cycles(const unit_t* unit, Py_ssize_t rows, int vectors, double near) noexcept nogil:
    """One step of a tile: bound by FMAs, by loads, by the latency of too few sums, or by the cache of its lanes."""
    return (max(0.5 * unit.half_cycles * rows * vectors, 0.5 * (rows + vectors), 4.0, near * vectors)
            + 0.06 * (rows + vectors) + 0.25)


cdef double column_cycles(const unit_t* unit, const Side* rows, int vectors, double near, double far) noexcept nogil:
    """One step of all tiles of a panel of lanes.

    `near`: cycles that a vector of lanes takes to come for each tile; `far`: for the first one. It is fetched ahead
    during the panel before, or during its first tile only where there are few (see fetch_ahead).
    """
    cdef double first = tile_cycles(unit, rows.base + (rows.extra > 0), vectors, near)
    cdef double all = (rows.extra * tile_cycles(unit, rows.base + 1, vectors, near)
                       + (rows.tiles - rows.extra) * tile_cycles(unit, rows.base, vectors, near))
    return max(all, far * vectors) if rows.tiles >= vectors else all + max(0.0, far * vectors - first)


cdef double row_cycles(const Plan* plan, Py_ssize_t rows) noexcept nogil:
    """One step of so many rows, for each of them: short tiles take longer."""
    cdef Side side = rows_side(rows, plan.unit.rows[plan.vectors])
    return column_cycles(plan.unit, &side, plan.vectors, 0.0, 0.0) / rows


cdef bint crowded(Py_ssize_t step, Py_ssize_t lines, Py_ssize_t way) noexcept nogil:
    """Do so many lines, `step` floats apart, fall on so few sets of a cache that they push each other out?

    They repeat after way / gcd(step, way) lines, `way` being the bytes of one way; a set is taken to hold eight.
    """
    cdef Py_ssize_t bytes = length_of(step) * <Py_ssize_t> sizeof(float), divisor = way, rest
    while bytes:
        rest = divisor % bytes
        divisor = bytes
        bytes = rest
    return 8 * (way // max(divisor, <Py_ssize_t> 64)) < lines


cdef double price(const Problem* p, const Plan* plan) noexcept nogil:
    """Expected cycles of the whole layer on one thread."""
    cdef const unit_t* unit = plan.unit
    cdef Side pixels = pixel_side(plan, p.pixels)
    cdef Side outs = plan.out_side
    cdef const Side* lanes = &pixels if plan.pixels_on_lanes else &outs
    cdef const Side* rows = &outs if plan.pixels_on_lanes else &pixels
    cdef int tail = vectors_for(unit, lanes.n - (lanes.tiles - 1) * lanes.width)
    cdef size_t vector_bytes = unit.lanes * sizeof(float)
    cdef Py_ssize_t block = column_floats(unit, plan.depth_block), weights = weight_bytes(unit, p.depth, p.outs)
    # A panel too big for the first-level cache comes from the second one, at about 30 bytes a cycle; what is too big
    # for that comes from beyond, at about 12.
    cdef bint big = 4 * block * plan.vectors * vector_bytes > 3 * cache_bytes[1]
    cdef double near = vector_bytes / 30.0 if big else 0.0
    cdef bint huge = 2 * lanes.n * column_floats(unit, p.depth) * sizeof(float) > cache_bytes[2]
    cdef double far = vector_bytes / 12.0 if huge else 0.0
    cdef double step = ((lanes.tiles - 1) * column_cycles(unit, rows, plan.vectors, near, far)
                        + column_cycles(unit, rows, tail, near, far))
    cdef double vectors_out = <double> rows.n * ceil_div(lanes.n, unit.lanes)
    cdef double vectors_in = <double> p.pixels * p.depth / unit.lanes
    cdef double cycles = ceil_div(p.depth, unit.channels) * step + 40.0 * lanes.tiles * rows.tiles
    cdef bint lanes_out = (p.y_step if plan.pixels_on_lanes else p.y_channel_step) == sizeof(float)
    # A tile that is stored where it belongs, or transposed on its way: then in runs as long as it has rows.
    cycles += vectors_out * ((1.0 if lanes_out else 2.0 + 6.0 * unit.lanes * rows.tiles / rows.n)
                             + (0.0 if p.plain else 5.0))
    if plan.pixels_on_lanes:
        # Lines of different channels lie on different pages: wide tiles visit them less often.
        cycles += lanes.tiles * (rows.n * (1.5 if p.y_channel_step >= 4096 else 0.0)
                                 + p.depth * (1.5 if not plan.packed and p.x_channel_step >= 1024 else 0.0))
    elif not plan.packed and not plan.rowwise and (
            p.x_channel_step >= 1024 or crowded(p.x_channel_step, plan.depth_block, L1_WAY)):
        # Each tile takes a part of its lines only, and finds them gone when it comes back for the next part.
        cycles += rows.tiles * p.depth * 3.0
        if big and crowded(p.x_channel_step, plan.depth_block // 4, L1_WAY):
            # Neither side of a tile is in the first-level cache.
            cycles += 0.8 * rows.tiles * lanes.tiles * p.depth
    # Tiles that lie across the end of a run are packed, and stored through scratch.
    if p.x_run < p.pixels and not plan.packed:
        cycles += vectors_in * 6.0 * min(1.0, <double> p.pixels / pixels.tiles / p.x_run)
    if p.y_run < p.pixels:
        cycles += vectors_out * 5.0 * min(1.0, <double> p.pixels / pixels.tiles / p.y_run)
    if plan.packed and p.depth > 0:
        # Runs copied, squares transposed, or elements one by one; again for each block of out channels.
        cycles += vectors_in * sums_blocks(p.depth, p.outs, plan, min(p.pixels, cache_room() // block)) * (
            (6.0 if plan.rowwise or p.x_step == 1 else 12.0 if p.x_channel_step == 1 else 2.0 * unit.lanes)
            + (3.0 if p.transformed else 0.0) + (6.0 if unit.pieces else 0.0))
    elif not plan.rowwise:
        # Each pass over a strip walks as many lines as it has channels: far apart, and maybe in few sets of the cache.
        cycles += vectors_in * ((rows.tiles if plan.pixels_on_lanes else lanes.tiles) - 1) * (
            4.0 if crowded(p.x_channel_step, plan.depth_block, L2_WAY) else 0.1 if plan.pixels_on_lanes else 0.0)
    if plan.pixels_on_lanes and weights > <Py_ssize_t> cache_bytes[2]:
        # Rows of weights that come from far are not fetched ahead, once for each block of pixels.
        cycles += <double> weights / vector_bytes * 3.0 * ceil_div(p.pixels * block, cache_room())
    if p.weights_step:
        cycles += <double> p.outs * p.depth / unit.lanes * (2.0 if p.weights_step == sizeof(float) else 6.0)
    return cycles * p.groups * p.spans


cdef inline Py_ssize_t cache_room() noexcept nogil:
    """Floats of one of the things that share the second-level cache while a block is computed."""
    return cache_bytes[2] // 4 // sizeof(float)


cdef inline bint far_weights(const Problem* p, const unit_t* unit) noexcept nogil:
    """Are the weights too many for a private cache, so that each block of pixels gets them from afar?"""
    return weight_bytes(unit, p.depth, p.outs) > 2 * <Py_ssize_t> cache_bytes[2]


cdef inline Py_ssize_t sums_blocks(Py_ssize_t depth, Py_ssize_t outs, const Plan* plan,
                                   Py_ssize_t pixel_block) noexcept nogil:
    """Blocks of out channels that keep the sums in cache that wait from one block of channels to the next."""
    if plan.depth_block >= depth:
        return 1
    return min(plan.out_side.tiles, ceil_div(outs * pixel_block, cache_room()))


cdef Py_ssize_t choose_depth_block(const Problem* p, const unit_t* unit) noexcept nogil:
    """All in channels at once, or even blocks of them of which the cache holds enough pixels for a few tiles.

    Where weights come from afar for each block of pixels, a block holds more pixels. Where lines of a map push each
    other out of the cache, fewer of them are read at once.
    """
    cdef Py_ssize_t enough = max(<Py_ssize_t> FEW_PIXELS, min(p.pixels, MANY_PIXELS) if far_weights(p, unit) else 0)
    cdef Py_ssize_t sums = cache_room() // enough // column_floats(unit, SUM_BLOCK), blocks
    cdef Py_ssize_t most = max(<Py_ssize_t> 1, sums) * SUM_BLOCK
    if p.x_step == 1:
        while most > SUM_BLOCK and crowded(p.x_channel_step, min(most, p.depth), L2_WAY):
            most -= SUM_BLOCK
    blocks = ceil_div(p.depth, most)
    return p.depth if blocks <= 1 else ceil_div(ceil_div(p.depth, blocks), SUM_BLOCK) * SUM_BLOCK


cdef const unit_t* unit_for(const Problem* p) noexcept nogil:
    """What multiplies: by precision, channels and machine only, so that nothing else changes bits."""
    cdef const unit_t* unit = pwconv_unit(<int> p.isa, <int> p.precision)
    if unit.pieces and (p.depth < max(unit.channels, <int> FEW_CHANNELS) or p.outs < FEW_OUTS):
        return pwconv_unit(<int> p.isa, HIGHEST)
    return unit


cdef Plan choose_plan(const Problem* p) noexcept nogil:
    """The cheapest of: which side lies on the lanes, how wide a tile, pixels read where they lie or packed."""
    cdef Plan best, plan
    cdef int on_lanes, packed, vectors
    memset(&plan, 0, sizeof(Plan))
    plan.isa = pwconv_isa(<int> p.isa)
    plan.unit = unit_for(p)
    plan.depth_block = choose_depth_block(p, plan.unit)
    plan.out_blocks = 1
    # From memory it takes longer than from a cache.
    plan.tiles_ahead = 2 if 2.0 * p.spans * p.groups * p.pixels * p.depth * sizeof(float) > cache_bytes[3] else 1
    plan.cycles = -1.0
    best = plan
    for on_lanes in range(2):
        for vectors in range(1, MAX_VECTORS + 1):
            if plan.unit.rows[vectors] == 0:
                continue
            for packed in range(2):
                plan.pixels_on_lanes = on_lanes
                plan.vectors = vectors
                plan.packed = packed
                plan.rowwise = not on_lanes and p.x_channel_step == 1 and plan.unit.kernel[1][vectors][1] != NULL
                if not packed and (plan.unit.pieces or p.transformed or p.in_parts
                                   or not (plan.rowwise or p.x_step == 1)):
                    continue
                if on_lanes:
                    plan.out_side = rows_side(p.outs, plan.unit.rows[vectors])
                else:
                    plan.out_side = lanes_side(p.outs, vectors * plan.unit.lanes)
                plan.cycles = price(p, &plan)
                if best.cycles < 0 or plan.cycles < best.cycles:
                    best = plan
    return best


cdef Schedule choose_schedule(const Problem* p, Plan* plan) noexcept nogil:
    """Blocks that stay in the second-level cache, then as many as it takes to keep all threads busy."""
    cdef Schedule s
    cdef Side side = pixel_side(plan, p.pixels)
    cdef Py_ssize_t grain = side.width if plan.pixels_on_lanes else ceil_div(p.pixels, side.tiles)
    cdef Py_ssize_t threads = <Py_ssize_t> min(<double> p.threads, max(1.0, plan.cycles / p.thread_cycles))
    cdef Py_ssize_t few = ceil_div(FEW_PIXELS, max(1, grain))
    # Pixels of the next block are fetched as they are, and may take more room than packed ones.
    cdef Py_ssize_t tiles = max(few, min(MAX_TILES, cache_room() // max(1, plan.depth_block * grain)))
    cdef Py_ssize_t blocks = ceil_div(side.tiles, tiles)
    cdef Py_ssize_t best_blocks, best_outs, b, o, block
    cdef Py_ssize_t turns
    cdef double busy, shorter, best_busy = 0.0, whole = <double> p.spans * p.groups * p.pixels * plan.out_side.tiles
    # More blocks mean that the weights are read again, or x, which may be packed again: shares of the whole work.
    # The weights' share is the larger, the fewer pixels there are.
    cdef bint near = weight_bytes(plan.unit, p.depth, p.outs) <= <Py_ssize_t> cache_bytes[2]
    cdef double weights_again = max(0.002, (0.5 if near else 2.5) / p.pixels)
    cdef double x_again = 0.006 if plan.packed else 0.002
    plan.out_blocks = sums_blocks(p.depth, p.outs, plan, min(p.pixels, tiles * grain))
    best_blocks = blocks
    best_outs = plan.out_blocks
    if threads > 1:
        for b in range(blocks, min(side.tiles, blocks + 4 * threads) + 1):
            block = min(p.pixels, block_pixels(plan, p.pixels, b))
            shorter = 1.0 if plan.pixels_on_lanes else row_cycles(plan, p.pixels) / row_cycles(plan, block)
            for o in range(plan.out_blocks, min(plan.out_side.tiles, plan.out_blocks + 2 * threads) + 1):
                if p.transformed and o > plan.out_blocks and side.tiles >= threads:
                    break          # x would be transformed more than once
                # An even share against the busiest thread's, if units were dealt out in turn. Some turns are better
                # than one: threads are not equally fast.
                turns = ceil_div(p.spans * p.groups * ceil_div(p.pixels, block) * o, threads)
                busy = shorter * whole / threads / (<double> turns * block * ceil_div(plan.out_side.tiles, o))
                busy -= weights_again * (b - blocks) + x_again * (o - plan.out_blocks) + 0.015 / turns
                if busy > best_busy:
                    best_busy = busy
                    best_blocks = b
                    best_outs = o
    plan.out_blocks = best_outs
    s.pixel_block = block_pixels(plan, p.pixels, best_blocks)
    s.pixel_blocks = ceil_div(p.pixels, s.pixel_block)
    s.spans = p.spans
    s.parts = p.groups * plan.out_blocks
    s.units = p.spans * s.pixel_blocks * s.parts
    s.threads = <int> min(threads, s.units)
    return s


cdef Py_ssize_t block_pixels(const Plan* plan, Py_ssize_t pixels, Py_ssize_t blocks) noexcept nogil:
    """Pixels of each of so many blocks: whole tiles, so that only the last block has an edge; few rows just evenly."""
    cdef Py_ssize_t even = ceil_div(pixels, blocks), rows = plan.unit.rows[plan.vectors]
    if plan.pixels_on_lanes:
        return ceil_div(even, plan.vectors * plan.unit.lanes) * plan.vectors * plan.unit.lanes
    return ceil_div(even, rows) * rows if even >= 8 * rows else even


# A direct-mapped cache: bounded, and a collision only costs making the plan again. Guarded by the GIL.
cdef enum:
    PLAN_SLOTS = 256

cdef struct PlanSlot:
    bint used
    Problem problem
    Plan plan
    Schedule schedule

cdef PlanSlot plan_slots[PLAN_SLOTS]


cdef const PlanSlot* plan_for(const Problem* p) noexcept:
    cdef const Py_ssize_t* words = <const Py_ssize_t*> p
    cdef uint64_t mixed = 0
    cdef size_t i
    for i in range(sizeof(Problem) // sizeof(Py_ssize_t)):
        mixed = (mixed ^ <uint64_t> words[i]) * 0x9E3779B97F4A7C15ULL
        mixed ^= mixed >> 29
    cdef PlanSlot* slot = &plan_slots[mixed % PLAN_SLOTS]
    if not slot.used or memcmp(&slot.problem, p, sizeof(Problem)) != 0:
        slot.problem = p[0]
        slot.plan = choose_plan(p)
        slot.schedule = choose_schedule(p, &slot.plan)
        slot.used = True
    return slot
