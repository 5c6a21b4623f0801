# Walking a plan: blocks of pixels and out channels, panels, tiles. Nothing here knows layouts or makes a choice.

cdef struct Task:
    FeatureMap x, y, residual      # residual.data is NULL where there is none
    Py_ssize_t depth, outs         # in and out channels of a group
    Py_ssize_t groups
    const float* weights           # packed as the plan wants them
    Py_ssize_t group_weights       # floats from group to group
    const float* bias              # tables of channel_pitch floats a group, so that whole vectors can be loaded
    const float* scale
    Py_ssize_t channel_pitch
    Py_ssize_t scale_span          # floats from span to span: 0 where all images share one scale
    const float* in_scale          # NULL where x is taken as it is
    const float* in_shift
    Py_ssize_t in_scale_span, in_shift_span
    activation_t before, after
    bint plain                     # bias and clip are all that happens at the end


cdef struct Strip:
    # Where a tile finds its pixels: in the map itself, or in a panel.
    const char* at
    Py_ssize_t step


cdef struct Block:
    Py_ssize_t span, group
    Py_ssize_t first_pixel_tile, end_pixel_tile
    Py_ssize_t first_out_tile, end_out_tile
    Py_ssize_t channel, depth      # the channels of the group that are summed now


cdef struct Scratch:
    Strip* strips
    float* panels
    float* partial                 # one tile's sums, or all tiles' of a block
    float* residual


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + 63) & ~<size_t> 63


cdef inline Py_ssize_t tile_floats(const Plan* p) noexcept nogil:
    cdef Py_ssize_t rows = (p.out_side.base + 1) if p.pixels_on_lanes else (p.pixel_side.base + 1)
    return rows * p.vectors * p.isa.lanes


cdef inline Py_ssize_t panel_floats(const Plan* p) noexcept nogil:
    """Room for a block's pixels when all of its tiles are packed."""
    if p.pixels_on_lanes:
        return p.pixel_tiles * p.vectors * p.isa.lanes * p.depth_block
    return p.pixel_tiles * (p.pixel_side.base + 1) * (p.depth_block + ROW_PAD)


cdef Scratch lay_out_scratch(const Task* t, const Plan* p, char* memory, size_t* size) noexcept nogil:
    """Divides a thread's scratch memory; with memory = NULL only `size` is of use."""
    cdef Scratch s
    cdef Py_ssize_t tiles = p.pixel_tiles * p.out_tiles if p.depth_block < t.depth else 1
    cdef size_t at = aligned(p.pixel_tiles * sizeof(Strip))
    s.strips = <Strip*> memory
    s.panels = <float*> (memory + at)
    at += aligned(panel_floats(p) * sizeof(float))
    s.partial = <float*> (memory + at)
    at += aligned(tiles * tile_floats(p) * sizeof(float))
    s.residual = <float*> (memory + at)
    at += aligned(tile_floats(p) * sizeof(float))
    size[0] = at
    return s


cdef void pack_pixels(const Task* t, const Plan* p, const Block* b, Py_ssize_t pixel, Py_ssize_t count,
                      Py_ssize_t width, float* dst) noexcept nogil:
    """Copies `count` pixels from `pixel` on into panels `width` pixels wide (row by row: rows `width` floats long)."""
    cdef pack_t pack
    cdef Run run
    cdef Py_ssize_t channel = b.group * t.depth + b.channel
    pack.channel_step = t.x.channel_step
    pack.depth = b.depth
    pack.dst = dst
    pack.width = width
    pack.panel = width * b.depth
    pack.scale = pack.shift = NULL
    if t.in_scale != NULL:
        pack.scale = t.in_scale + b.span * t.in_scale_span + channel
        pack.shift = t.in_shift + b.span * t.in_shift_span + channel
    pack.activation = t.before
    pack.at = 0
    while pack.at < count:
        run = run_from(&t.x, pixel + pack.at)
        pack.src = run.at + b.span * t.x.span_step + channel * t.x.channel_step
        pack.step = run.step
        pack.count = min(run.count, count - pack.at)
        if p.rowwise:
            p.isa.pack_rows(&pack)
        else:
            p.isa.pack(&pack)
        pack.at += pack.count


cdef void prepare_pixels(const Task* t, const Plan* p, const Block* b, const Scratch* s) noexcept nogil:
    """Finds, for every pixel tile of a block, where the kernel can read it; packs what it cannot read in place."""
    cdef const Side* side = &p.pixel_side
    cdef Py_ssize_t first = tile_start(side, b.first_pixel_tile), end = tile_start(side, b.end_pixel_tile)
    cdef Py_ssize_t offset = b.span * t.x.span_step + (b.group * t.depth + b.channel) * t.x.channel_step
    cdef Py_ssize_t tile, start, count, width, whole
    cdef Strip* strip = s.strips
    cdef float* panel
    cdef Run run
    if p.packed and p.rowwise:
        pack_pixels(t, p, b, first, end - first, b.depth + ROW_PAD, s.panels)
    elif p.packed and p.pixels_on_lanes:
        whole = min(end, side.n - side.n % side.width) - first
        if whole > 0:
            pack_pixels(t, p, b, first, whole, side.width, s.panels)
    for tile in range(b.first_pixel_tile, b.end_pixel_tile):
        start = tile_start(side, tile)
        count = tile_start(side, tile + 1) - start
        width = vectors_for(p.isa, count) * p.isa.lanes if p.pixels_on_lanes else count
        if p.rowwise:
            width = b.depth + ROW_PAD
            panel = s.panels + (start - first) * width
        else:
            panel = s.panels + (start - first) * b.depth
        if not p.packed:
            run = run_from(&t.x, start)
            if run.count >= count and (count == width or not p.pixels_on_lanes):
                strip.at = run.at + offset
                strip.step = run.step if p.rowwise else t.x.channel_step
                strip += 1
                continue
        if not p.packed or not (p.rowwise or count == side.width):
            pack_pixels(t, p, b, start, count, width, panel)
        strip.at = <char*> panel
        strip.step = width * sizeof(float)
        strip += 1


cdef void move_tile(const isa_t* isa, const FeatureMap* m, const Plan* p, const Block* b, bint to_map, float* tile,
                    Py_ssize_t pitch, Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t out, Py_ssize_t outs) noexcept nogil:
    """Copies a tile into the feature map (y), or from it (the residual), wherever its pixels lie."""
    cdef Py_ssize_t done = 0, n, row, lane, rows, lanes
    cdef char* at
    cdef char* here
    cdef Run run
    while done < pixels:
        run = run_from(m, pixel + done)
        n = min(run.count, pixels - done)
        at = run.at + b.span * m.span_step + out * m.channel_step
        if p.pixels_on_lanes:
            here = <char*> (tile + done)
            row = m.channel_step
            lane = run.step
            rows = outs
            lanes = n
        else:
            here = <char*> (tile + done * pitch)
            row = run.step
            lane = m.channel_step
            rows = n
            lanes = outs
        if to_map:
            isa.copy(at, row, lane, here, pitch * sizeof(float), sizeof(float), rows, lanes)
        else:
            isa.copy(here, pitch * sizeof(float), sizeof(float), at, row, lane, rows, lanes)
        done += n


cdef void sum_block(const Task* t, const Plan* p, const Block* b, const Scratch* s) noexcept nogil:
    """All tiles of a block, for some of its channels: a panel of lanes stays in the first cache, rows stream past it."""
    cdef const isa_t* isa = p.isa
    cdef bint on_lanes = p.pixels_on_lanes
    cdef Py_ssize_t first_lane_tile = b.first_pixel_tile if on_lanes else b.first_out_tile
    cdef Py_ssize_t end_lane_tile = b.end_pixel_tile if on_lanes else b.end_out_tile
    cdef Py_ssize_t first_row_tile = b.first_out_tile if on_lanes else b.first_pixel_tile
    cdef Py_ssize_t end_row_tile = b.end_out_tile if on_lanes else b.end_pixel_tile
    cdef const float* weights = t.weights + b.group * t.group_weights
    cdef const float* bias = t.bias + b.group * t.channel_pitch
    cdef const float* scale = t.scale + b.span * t.scale_span + b.group * t.channel_pitch
    cdef Py_ssize_t lane_tile, row_tile, pixel_tile, out_tile, pixel, pixels, out, outs, width, pitch
    cdef Py_ssize_t y_lane_step, y_row_step
    cdef float* partial = s.partial
    cdef Strip* strip
    cdef finish_t end
    cdef tile_t tile
    cdef int vectors
    cdef Run run
    tile.depth = b.depth
    tile.first = b.channel == 0
    tile.last = b.channel + b.depth == t.depth
    tile.bias_on_lanes = not on_lanes
    tile.low = t.after.low if t.after.code == ACT_CLIP else -INFINITY
    tile.high = t.after.high if t.after.code == ACT_CLIP else INFINITY
    for lane_tile in range(first_lane_tile, end_lane_tile):
        for row_tile in range(first_row_tile, end_row_tile):
            pixel_tile = lane_tile if on_lanes else row_tile
            out_tile = row_tile if on_lanes else lane_tile
            pixel = tile_start(&p.pixel_side, pixel_tile)
            pixels = tile_start(&p.pixel_side, pixel_tile + 1) - pixel
            out = tile_start(&p.out_side, out_tile)
            outs = tile_start(&p.out_side, out_tile + 1) - out
            vectors = vectors_for(isa, pixels if on_lanes else outs)
            pitch = vectors * isa.lanes
            width = outs if on_lanes else pitch
            strip = s.strips + (pixel_tile - b.first_pixel_tile)
            if on_lanes:
                tile.a = <const char*> (weights + out * t.depth + b.channel * width)
                tile.a_step = width * sizeof(float)
                tile.b = strip.at
                tile.b_step = strip.step
            else:
                tile.a = strip.at
                tile.a_step = strip.step
                tile.b = <const char*> (weights + out * t.depth + b.channel * width)
                tile.b_step = width * sizeof(float)
            tile.ahead = tile.b
            tile.ahead_step = tile.b_step
            tile.partial = partial
            if p.depth_block < t.depth:
                partial += tile_floats(p)
            tile.y = NULL
            if tile.last and t.plain:
                run = run_from(&t.y, pixel)
                y_lane_step = run.step if on_lanes else t.y.channel_step
                y_row_step = t.y.channel_step if on_lanes else run.step
                if run.count >= pixels and y_lane_step == sizeof(float) and (pixels if on_lanes else outs) == pitch:
                    tile.y = run.at + b.span * t.y.span_step + (b.group * t.outs + out) * t.y.channel_step
                    tile.y_step = y_row_step
                    tile.bias = bias + out
            isa.kernel[p.rowwise][vectors][outs if on_lanes else pixels](&tile)
            if not tile.last or tile.y != NULL:
                continue
            end.sum = tile.partial
            end.rows = outs if on_lanes else pixels
            end.vectors = vectors
            end.pitch = pitch
            end.bias = bias + out
            end.scale = scale + out
            end.channels_on_lanes = not on_lanes
            end.residual = NULL
            end.activation = t.after
            if t.residual.data != NULL:
                move_tile(isa, &t.residual, p, b, False, s.residual, pitch, pixel, pixels, b.group * t.outs + out, outs)
                end.residual = s.residual
            isa.finish(&end)
            move_tile(isa, &t.y, p, b, True, end.sum, pitch, pixel, pixels, b.group * t.outs + out, outs)


cdef void run_unit(const Task* t, const Plan* p, Py_ssize_t unit, char* memory) noexcept nogil:
    """One block of pixels times one block of out channels, over all in channels."""
    cdef size_t size
    cdef Scratch s = lay_out_scratch(t, p, memory, &size)
    cdef Py_ssize_t out_block = unit % p.out_blocks
    unit //= p.out_blocks
    cdef Py_ssize_t pixel_block = unit % p.pixel_blocks
    unit //= p.pixel_blocks
    cdef Block b
    b.group = unit % t.groups
    b.span = unit // t.groups
    b.first_pixel_tile = pixel_block * p.pixel_side.tiles // p.pixel_blocks
    b.end_pixel_tile = (pixel_block + 1) * p.pixel_side.tiles // p.pixel_blocks
    b.first_out_tile = out_block * p.out_side.tiles // p.out_blocks
    b.end_out_tile = (out_block + 1) * p.out_side.tiles // p.out_blocks
    b.channel = 0
    while True:
        b.depth = min(p.depth_block, t.depth - b.channel)
        prepare_pixels(t, p, &b, &s)
        sum_block(t, p, &b, &s)
        b.channel += b.depth
        if b.channel >= t.depth:
            return


cdef void run_plan(const Task* t, const Plan* p, char* memory, size_t scratch) noexcept nogil:
    """All units, on as many threads as the plan wants; `memory` holds `scratch` bytes for each."""
    cdef uint64_t before
    cdef Py_ssize_t unit
    if p.threads == 1:
        before = pwconv_float_enter()
        for unit in range(p.units):
            run_unit(t, p, unit, memory)
        pwconv_float_leave(before)
        return
    with parallel(num_threads=p.threads):
        before = pwconv_float_enter()
        for unit in prange(p.units, schedule="dynamic"):
            run_unit(t, p, unit, memory + omp_get_thread_num() * scratch)
        pwconv_float_leave(before)


cdef Py_ssize_t packed_floats(const Plan* p, Py_ssize_t depth) noexcept nogil:
    """Floats of a group's packed weights."""
    cdef const Side* side = &p.out_side
    cdef Py_ssize_t last
    if p.pixels_on_lanes:
        return side.n * depth
    last = tile_start(side, side.tiles - 1)
    return (last + vectors_for(p.isa, side.n - last) * p.isa.lanes) * depth


cdef void pack_weights(const Plan* p, const char* weights, Py_ssize_t out_step, Py_ssize_t in_step,
                       Py_ssize_t depth, Py_ssize_t groups, float* dst) noexcept nogil:
    """Weights as panels [group][out tile][in channel][out channel]; what pads the last tile of lanes is zero."""
    cdef Py_ssize_t group_floats = packed_floats(p, depth)
    cdef Py_ssize_t group, tile, out
    cdef pack_t pack
    pack.step = out_step
    pack.channel_step = in_step
    pack.depth = depth
    pack.panel = 0
    pack.at = 0
    pack.scale = pack.shift = NULL
    for group in range(groups):
        for tile in range(p.out_side.tiles):
            out = tile_start(&p.out_side, tile)
            pack.count = tile_start(&p.out_side, tile + 1) - out
            pack.width = pack.count if p.pixels_on_lanes else vectors_for(p.isa, pack.count) * p.isa.lanes
            pack.src = weights + (group * p.out_side.n + out) * out_step
            pack.dst = dst + group * group_floats + out * depth
            if pack.count < pack.width:
                memset(pack.dst, 0, pack.width * depth * sizeof(float))
            p.isa.pack(&pack)
