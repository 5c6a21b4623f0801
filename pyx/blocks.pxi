# Walking a plan: blocks of pixels and out channels, panels, tiles. Nothing here knows layouts or makes a choice.
#
# A program is one or more layers (steps) over the same pixels. For each block of pixels the steps run one after the
# other; a step reads the program's input or what the step before it wrote, which may be scratch that never leaves the
# cache.

cdef enum:
    PACKED_ALONE = 1 << 14         # floats of weights that are packed before other threads could help
    SCRATCH_PAD = 32               # floats after each line of a scratch map: room for whole vectors, and uneven lines
    BEHIND_PANELS = 2048           # bytes: tiles of matrix units are read whole, whatever lies behind their last row
    CUT_DEPTH = 64                 # in channels that are cut into pieces at a time
    CUT_COLUMNS = 32               # rows that are cut at a time where they are read row by row


cdef struct Exact:
    # A tile that is computed in float32 instead.
    float lanes[SUM_BLOCK * MAX_LANES]
    float rows[SUM_BLOCK * MAX_ROWS]
    float partial[MAX_ROWS * MAX_LANES]


cdef union Staging:
    float columns[(CUT_DEPTH + ROW_PAD) * MAX_LANES]   # to be cut into pieces
    Exact exact


cdef struct Weights:
    # A matrix of weights as it lies in memory, and its bias.
    const char* data
    Py_ssize_t out_step, in_step   # bytes
    Py_ssize_t outs, depth         # out channels of all groups, in channels of one
    const char* bias               # NULL: none


cdef struct Step:
    Plan plan
    Py_ssize_t depth, outs         # in and out channels of a group
    Py_ssize_t groups
    const FeatureMap* x            # the maps that make up the input, in the order of their channels
    int x_parts                    # 0: reads what the step before wrote
    FeatureMap y
    bint y_is_scratch              # y has no array: its place is `y_at` bytes into a thread's memory
    bint y_pixels_last             # scratch: lines of pixels, one for each channel, or the other way round
    size_t y_at
    FeatureMap residual            # data is NULL where there is none
    const float* weights           # packed as the plan wants them
    Py_ssize_t group_weights       # floats from group to group
    uint32_t* odd_outs             # out channels whose weights cannot be told in pieces: not zero
    Weights raw                    # the same weights before they were packed
    int precision                  # as in isa.h
    const float* bias              # tables of channel_pitch floats a group, so that whole vectors can be loaded
    const float* scale
    Py_ssize_t channel_pitch
    Py_ssize_t scale_span          # floats from span to span: 0 where all images share one scale
    const float* in_scale          # NULL where x is taken as it is
    const float* in_shift
    Py_ssize_t in_scale_span, in_shift_span
    activation_t before, after
    bint plain                     # bias and clip are all that happens at the end
    bint transformed               # something happens to x before


cdef enum:
    HEAD_NONE, HEAD_BEST, HEAD_SOFTMAX, HEAD_RESIZED


cdef struct Between:
    # Where an output line or column lies between two of the input: at the `first`, `part` of the way to the `second`.
    Py_ssize_t first, second
    float part


cdef struct Resize:
    # Logits and labels have lines of different number and length. A block is a band of lines, and the line behind it.
    Py_ssize_t height, width, out_height, out_width, band
    const int32_t* left            # tables for a line of labels
    const int32_t* right
    const float* across


cdef struct Head:
    # What becomes of the last step's scratch map, if anything.
    int code
    Py_ssize_t places              # best: classes for every pixel
    FeatureMap out                 # best: integers of any size; softmax: float32
    FeatureMap values              # best: the logits; data is NULL if they are not wanted
    Resize resize


cdef struct Program:
    Step* steps
    int count
    Head head
    float* unpacked                # where the only step's weights are packed to before all else; NULL: they are
    Py_ssize_t pixels              # in a span
    Schedule schedule
    size_t strips_at, panels_at, partial_at, residual_at, odd_at, staging_at, head_at, thread_bytes


cdef struct Strip:
    # Where a tile finds its pixels: in the map itself, or in a panel.
    const char* at
    Py_ssize_t step


cdef struct Block:
    Py_ssize_t span, first, pixels
    Py_ssize_t group, first_out_tile, end_out_tile
    Py_ssize_t channel, depth      # the channels of the group that are summed now
    Side side                      # its pixel tiles
    const FeatureMap* x
    int x_parts
    const FeatureMap* y
    Strip* strips
    float* panels
    float* partial                 # one tile's sums, or all tiles' of a block
    float* residual
    uint32_t* odd                  # pixels that cannot be told in pieces: not zero
    Staging* staging               # what is cut into pieces, or multiplied in float32 instead


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + 63) & ~<size_t> 63


cdef inline Py_ssize_t row_floats(Py_ssize_t depth) noexcept nogil:
    """The room of a packed row: long ones are kept out of each other's cache sets, short ones side by side."""
    return depth if depth < ROW_PAD else depth + ROW_PAD


cdef inline Py_ssize_t tile_floats(const Plan* p) noexcept nogil:
    return p.unit.rows[p.vectors] * p.vectors * p.unit.lanes


cdef void place_scratch_map(Step* step, Py_ssize_t pixels, Py_ssize_t pixel_block) noexcept nogil:
    """The strides of a map that holds one block of pixels at a time, in lines of pixels or of channels."""
    step.y.slack = True
    step.y.kind = KIND_FLOAT32
    step.y.item = sizeof(float)
    step.y.channels = step.groups * step.outs
    step.y.span_step = 0
    step.y.axes = 1
    step.y.size[0] = pixels
    if step.y_pixels_last:
        step.y.channel_step = (pixel_block + SCRATCH_PAD) * sizeof(float)
        step.y.step[0] = sizeof(float)
    else:
        step.y.channel_step = sizeof(float)
        step.y.step[0] = (step.y.channels + SCRATCH_PAD) * sizeof(float)


cdef void lay_out(Program* g) noexcept nogil:
    """Divides a thread's scratch memory: what steps use one after the other is shared, scratch maps are not."""
    cdef size_t strips = 0, panels = 0, partial = 0, residual = 0, odd = 0, staging = 0, at
    cdef Py_ssize_t pixels = g.schedule.pixel_block, tiles, i
    cdef const Plan* p
    cdef Step* step
    cdef Side side
    for i in range(g.count):
        step = &g.steps[i]
        if step.outs == 0:
            continue
        p = &step.plan
        side = pixel_side(p, pixels)
        tiles = side.tiles * ceil_div(p.out_side.tiles, p.out_blocks) if p.depth_block < step.depth else 1
        strips = max(strips, side.tiles * sizeof(Strip))
        if p.pixels_on_lanes:
            panels = max(panels, (side.tiles * p.vectors * p.unit.lanes * column_floats(p.unit, p.depth_block)
                                  * sizeof(float)))
        else:
            panels = max(panels, pixels * row_floats(column_floats(p.unit, p.depth_block)) * sizeof(float))
        if p.unit.pieces:
            odd = max(odd, (pixels + MAX_LANES) * sizeof(uint32_t))
            staging = max(staging, sizeof(Staging))
        partial = max(partial, tiles * tile_floats(p) * sizeof(float))
        residual = max(residual, tile_floats(p) * sizeof(float))
    g.strips_at = 0
    g.panels_at = aligned(strips)
    g.partial_at = g.panels_at + aligned(panels) + BEHIND_PANELS
    g.residual_at = g.partial_at + aligned(partial)
    g.odd_at = g.residual_at + aligned(residual)
    g.staging_at = g.odd_at + aligned(odd)
    at = g.staging_at + aligned(staging)
    for i in range(g.count):
        step = &g.steps[i]
        if step.y_is_scratch:
            step.y_at = at
            at += aligned(max(step.groups * step.outs * step.y.channel_step, pixels * step.y.step[0]))
    g.head_at = at
    if g.head.code == HEAD_BEST:
        at += aligned(2 * g.head.places * (pixels + SCRATCH_PAD) * sizeof(float))
    if g.head.code == HEAD_RESIZED:
        at += aligned((g.head.resize.width + 2 * g.head.resize.out_width + 3 * SCRATCH_PAD) * sizeof(float))
    g.thread_bytes = at


cdef void gather_pixels(const Step* t, const Block* b, bint by_rows, Py_ssize_t pixel, Py_ssize_t count,
                        Py_ssize_t width, float* dst) noexcept nogil:
    """Copies `count` pixels from `pixel` on into panels `width` pixels wide (row by row: rows `width` floats long)."""
    cdef pack_t pack
    cdef Run run
    cdef Py_ssize_t channel = b.group * t.depth + b.channel, done = 0, start = 0, i
    cdef const FeatureMap* x
    pack.width = width
    pack.panel = width * b.depth
    pack.activation = t.before
    for i in range(b.x_parts):
        x = &b.x[i]
        if start + x.channels > channel + done and done < b.depth:
            # This part holds the next channels.
            pack.depth = min(x.channels - (channel + done - start), b.depth - done)
            pack.kind = x.kind
            pack.channel_step = x.channel_step
            pack.dst = dst + (done if by_rows else done * width)
            pack.scale = pack.shift = NULL
            if t.in_scale != NULL:
                pack.scale = t.in_scale + b.span * t.in_scale_span + channel + done
                pack.shift = t.in_shift + b.span * t.in_shift_span + channel + done
            pack.at = 0
            while pack.at < count:
                run = run_from(x, pixel + pack.at)
                pack.src = run.at + b.span * x.span_step + (channel + done - start) * x.channel_step
                pack.step = run.step
                pack.count = min(run.count, count - pack.at)
                if by_rows:
                    t.plan.isa.pack_rows(&pack)
                else:
                    t.plan.isa.pack(&pack)
                pack.at += pack.count
            done += pack.depth
        start += x.channels


cdef inline bint cuts_rows(const Plan* p, bint rows, Py_ssize_t channel_step) noexcept nogil:
    """Are columns cut into pieces one after the other, or channels?"""
    cdef Py_ssize_t together = p.unit.together[rows]
    if rows and p.rowwise:
        return True
    # Where channels lie side by side they are read so if as many stay together as fill a vector.
    return together > 4 or (together >= p.unit.lanes and channel_step == sizeof(float))


cdef void cut(const Plan* p, bint rows, bint by_rows, const char* src, Py_ssize_t step, Py_ssize_t channel_step,
              Py_ssize_t columns, Py_ssize_t depth, Py_ssize_t width, float* panel, Py_ssize_t column,
              Py_ssize_t channel, uint32_t* odd) noexcept nogil:
    """Cuts a rectangle of float32 into pieces, at a column and a channel of a panel of rows or lanes.

    `width`: the panel's columns; the floats of a row where it is read row by row. `odd`: one for each column.
    """
    cdef split_t s
    s.src = src
    s.step = step
    s.channel_step = channel_step
    s.columns = columns
    s.depth = depth
    s.by_rows = by_rows
    s.room = ceil_div(depth, p.unit.channels) * p.unit.channels
    s.odd = odd
    if rows and p.rowwise:
        s.together = s.room
        s.column_step = width * sizeof(float)
        s.pitch = s.apart = 0
        s.dst = <char*> (panel + column * width) + channel * sizeof(uint16_t)
    else:
        s.together = p.unit.together[rows]
        s.column_step = s.together * sizeof(uint16_t)
        s.apart = width * s.column_step
        s.pitch = p.unit.pieces * s.apart
        s.dst = <char*> panel + channel // s.together * s.pitch + column * s.column_step
    p.unit.split(&s)


cdef inline Py_ssize_t summed_offset(const Step* t, const Block* b) noexcept nogil:
    """Bytes from a pixel of the first span to the block's span and the first of the channels that are summed now."""
    return b.span * b.x.span_step + (b.group * t.depth + b.channel) * b.x.channel_step


cdef void cut_pixels(const Step* t, const Block* b, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t width,
                     float* dst) noexcept nogil:
    """pack_pixels() for a unit that multiplies pieces."""
    cdef const Plan* p = &t.plan
    cdef bint rows = not p.pixels_on_lanes
    cdef bint by_rows = cuts_rows(p, rows, b.x.channel_step)
    cdef bint in_place = b.x_parts == 1 and b.x.kind == KIND_FLOAT32 and t.in_scale == NULL
    cdef Py_ssize_t panel = width * column_floats(p.unit, b.depth), channel = 0, channel_step, done, n
    cdef Py_ssize_t at_once = CUT_COLUMNS if p.rowwise else width
    # Some channels of all panels, then the next ones, where pixels lie side by side: so a map is read in long runs.
    cdef Py_ssize_t depth = b.depth if in_place and by_rows and b.x.channel_step == sizeof(float) else CUT_DEPTH
    cdef Block some = b[0]
    cdef Run run
    while channel < b.depth:
        some.channel = b.channel + channel
        some.depth = min(depth, b.depth - channel)
        done = 0
        while done < count:
            n = min(at_once - done % at_once, count - done)
            run = run_from(b.x, pixel + done)
            if in_place and (b.x.channel_step if by_rows else run.step) == sizeof(float):
                n = min(n, run.count)
                run.at += summed_offset(t, &some)
                channel_step = b.x.channel_step
            else:
                gather_pixels(t, &some, by_rows, pixel + done, n, CUT_DEPTH + ROW_PAD if by_rows else n,
                              b.staging.columns)
                run.at = <char*> b.staging.columns
                run.step = (CUT_DEPTH + ROW_PAD if by_rows else 1) * sizeof(float)
                channel_step = (1 if by_rows else n) * sizeof(float)
            cut(p, rows, by_rows, run.at, run.step, channel_step, n, some.depth, width,
                dst if p.rowwise else dst + done // width * panel, done if p.rowwise else done % width, channel,
                &b.odd[pixel + done - b.first])
            done += n
        channel += some.depth


cdef inline void pack_pixels(const Step* t, const Block* b, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t width,
                             float* dst) noexcept nogil:
    """Copies `count` pixels from `pixel` on into panels `width` pixels wide (row by row: rows `width` floats long)."""
    if t.plan.unit.pieces:
        cut_pixels(t, b, pixel, count, width, dst)
    else:
        gather_pixels(t, b, t.plan.rowwise, pixel, count, width, dst)


cdef void prepare_pixels(const Step* t, const Block* b) noexcept nogil:
    """Finds, for every pixel tile of a block, where the kernel can read it; packs what it cannot read in place."""
    cdef const Plan* p = &t.plan
    cdef Py_ssize_t offset = summed_offset(t, b)
    cdef Py_ssize_t column = column_floats(p.unit, b.depth), tile, start, count, width, whole
    cdef Strip* strip = b.strips
    cdef float* panel
    cdef Run run
    if p.unit.pieces and b.channel == 0:
        memset(b.odd, 0, b.pixels * sizeof(uint32_t))
    if p.packed and p.rowwise:
        pack_pixels(t, b, b.first, b.pixels, row_floats(column), b.panels)
    elif p.packed and p.pixels_on_lanes:
        whole = b.pixels - b.pixels % b.side.width
        if whole > 0:
            pack_pixels(t, b, b.first, whole, b.side.width, b.panels)
    for tile in range(b.side.tiles):
        start = tile_start(&b.side, tile)
        count = tile_start(&b.side, tile + 1) - start
        width = vectors_for(p.unit, count) * p.unit.lanes if p.pixels_on_lanes else count
        if p.rowwise:
            width = row_floats(column)
            panel = b.panels + start * width
        else:
            panel = b.panels + start * column
        if not p.packed:
            run = run_from(b.x, b.first + start)
            if run.count >= count and (count == width or b.x.slack or not p.pixels_on_lanes):
                strip.at = run.at + offset
                strip.step = run.step if p.rowwise else b.x.channel_step
                strip += 1
                continue
        if not p.packed or not (p.rowwise or count == b.side.width):
            pack_pixels(t, b, b.first + start, count, width, panel)
        strip.at = <char*> panel
        strip.step = width * (sizeof(float) if p.rowwise else step_bytes(p.unit))
        strip += 1


cdef void move_tile(const Plan* p, const FeatureMap* m, Py_ssize_t span, bint to_map, float* tile, Py_ssize_t pitch,
                    Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t out, Py_ssize_t outs) noexcept nogil:
    """Copies a tile into the feature map (y), or from it (the residual), wherever its pixels lie."""
    cdef Py_ssize_t done = 0, n, row, lane, rows, lanes
    cdef char* at
    cdef char* here
    cdef Run run
    while done < pixels:
        run = run_from(m, pixel + done)
        n = min(run.count, pixels - done)
        at = run.at + span * m.span_step + out * m.channel_step
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
            p.isa.copy(at, row, lane, here, pitch * sizeof(float), sizeof(float), rows, lanes)
        else:
            p.isa.copy(here, pitch * sizeof(float), sizeof(float), at, row, lane, rows, lanes)
        done += n


cdef void finish_tile(const Step* t, const Block* b, float* sum, Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t out,
                      Py_ssize_t outs, int vectors, bint finished) noexcept nogil:
    """The end of a tile that its kernel cannot store: any place, and any epilogue unless the kernel did a plain one."""
    cdef const Plan* p = &t.plan
    cdef Py_ssize_t pitch = vectors * p.unit.lanes
    cdef Py_ssize_t channel = b.group * t.outs + out
    cdef finish_t end
    if finished:
        move_tile(p, b.y, b.span, True, sum, pitch, pixel, pixels, channel, outs)
        return
    end.sum = sum
    end.rows = outs if p.pixels_on_lanes else pixels
    end.vectors = vectors
    end.pitch = pitch
    end.bias = t.bias + b.group * t.channel_pitch + out
    end.scale = t.scale + b.span * t.scale_span + b.group * t.channel_pitch + out
    end.channels_on_lanes = not p.pixels_on_lanes
    end.residual = NULL
    end.activation = t.after
    if t.residual.data != NULL:
        move_tile(p, &t.residual, b.span, False, b.residual, pitch, pixel, pixels, channel, outs)
        end.residual = b.residual
    p.isa.finish(&end)
    move_tile(p, b.y, b.span, True, sum, pitch, pixel, pixels, channel, outs)


cdef inline const uint32_t* marks(const Step* t, const Block* b, bint pixels) noexcept nogil:
    """Which of a block's pixels, or of its group's out channels, cannot be told in pieces."""
    return b.odd if pixels else t.odd_outs + b.group * t.outs


cdef bint pixels_in_one(const Step* t, const Block* b) noexcept nogil:
    """Is one bfloat16 enough for any number that the pixels can hold?"""
    cdef int i, kind
    for i in range(b.x_parts):
        kind = b.x[i].kind
        if kind != KIND_UINT8 and kind != KIND_INT8 and kind != KIND_BFLOAT16:
            return False
    return t.in_scale == NULL


cdef bint is_odd(const Step* t, const Block* b, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t lane,
                 Py_ssize_t lanes) noexcept nogil:
    """Is there a pixel or an out channel in this tile, or in these tiles, that cannot be told in pieces?"""
    cdef const uint32_t* odd_lanes = marks(t, b, t.plan.pixels_on_lanes) + lane
    cdef const uint32_t* odd_rows = marks(t, b, not t.plan.pixels_on_lanes) + row
    cdef uint32_t odd = 0
    cdef Py_ssize_t i
    for i in range(lanes):
        odd |= odd_lanes[i]
    for i in range(rows):
        odd |= odd_rows[i]
    return odd != 0


cdef void mend_tile(const Step* t, const Block* b, float* sum, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t lane,
                    Py_ssize_t lanes, int vectors) noexcept nogil:
    """Takes the sums of odd pixels and out channels of a tile from float32, which the whole tile is computed in."""
    cdef const Plan* p = &t.plan
    cdef const unit_t* unit = &p.isa.unit
    cdef bint on_lanes = p.pixels_on_lanes
    cdef const uint32_t* odd_lanes = marks(t, b, on_lanes) + lane
    cdef const uint32_t* odd_rows = marks(t, b, not on_lanes) + row
    cdef Exact* exact = &b.staging.exact
    cdef Py_ssize_t width = vectors * unit.lanes, i, j, n
    cdef Block some = b[0]
    cdef tile_t tile
    memset(&tile, 0, sizeof(tile_t))
    some.channel = 0
    while True:
        some.depth = min(<Py_ssize_t> SUM_BLOCK, t.depth - some.channel)
        gather_side(t, &some, on_lanes, lane, lanes, width, exact.lanes)
        gather_side(t, &some, not on_lanes, row, rows, rows, exact.rows)
        tile.first = some.channel == 0
        tile.steps = some.depth
        i = 0
        while i < rows:
            n = min(<Py_ssize_t> unit.rows[vectors], rows - i)
            tile.a = tile.ahead = <char*> (exact.rows + i)
            tile.a_step = rows * sizeof(float)
            tile.b = <char*> exact.lanes
            tile.b_step = width * sizeof(float)
            tile.partial = exact.partial + i * width
            unit.kernel[0][vectors][n](&tile)
            i += n
        some.channel += some.depth
        if some.channel >= t.depth:
            break
    for i in range(rows):
        for j in range(lanes):
            if odd_rows[i] or odd_lanes[j]:
                sum[i * width + j] = exact.partial[i * width + j]


cdef void gather_side(const Step* t, const Block* b, bint pixels, Py_ssize_t first, Py_ssize_t count, Py_ssize_t width,
                      float* dst) noexcept nogil:
    """Some pixels of a block, or out channels, as float32 in a panel."""
    cdef pack_t pack
    if pixels:
        gather_pixels(t, b, False, b.first + first, count, width, dst)
        return
    pack.src = t.raw.data + (b.group * t.outs + first) * t.raw.out_step + b.channel * t.raw.in_step
    pack.kind = KIND_FLOAT32
    pack.step = t.raw.out_step
    pack.channel_step = t.raw.in_step
    pack.count = count
    pack.depth = b.depth
    pack.dst = dst
    pack.width = width
    pack.panel = pack.at = 0
    pack.scale = pack.shift = NULL
    t.plan.isa.pack(&pack)


cdef struct Ahead:
    # What the tiles of a panel fetch for later: the next panel of lanes, shared out among the rows of this one. A line
    # of some channels at a time, all at once in the first tiles where there are few.
    const char* at
    Py_ssize_t step                # bytes from a fetch to the next one of the same tile
    Py_ssize_t lines               # side by side
    Py_ssize_t apart               # bytes to the next such lines
    Py_ssize_t shares              # how many tiles it takes; 0: nothing is fetched
    bint rows                      # pixels that are rows instead: they follow each other, tile after tile


cdef inline Ahead look_ahead(const Step* t, const Block* b, const char* panel, Py_ssize_t lane) noexcept nogil:
    """Chooses what is fetched during a panel of lanes: pixels or weights that come from far, never both."""
    cdef const Plan* p = &t.plan
    cdef Py_ssize_t lanes = p.vectors * p.unit.lanes, behind
    # What the next block reads may not be there yet, or not in one place.
    cdef bint pixels_known = not p.packed or t.x_parts == 1
    cdef Ahead ahead
    cdef Run run
    ahead.at = panel
    ahead.step = ahead.apart = 0
    ahead.lines = ahead.shares = 0
    ahead.rows = False
    if p.pixels_on_lanes:
        # Pixels behind this tile; those of the next block where this block's are packed already.
        behind = b.pixels if p.packed else p.tiles_ahead * lanes
        run = run_from(b.x, b.first + lane + behind)
        if pixels_known and run.count > 0 and run.step == sizeof(float):
            ahead.at = run.at + summed_offset(t, b)
            ahead.lines = ceil_div(lanes * sizeof(float), 64)
            ahead.apart = b.x.channel_step
            ahead.shares = p.unit.channels // p.unit.fetches * ahead.lines
            ahead.step = p.unit.channels // p.unit.fetches * ahead.apart
    elif (p.packed and not p.rowwise) or (
            weight_bytes(p.unit, t.depth, t.outs) > <Py_ssize_t> cache_bytes[2] // 2):
        ahead.at = panel + column_floats(p.unit, t.depth) * lanes * sizeof(float)
        ahead.step = lanes * step_bytes(p.unit) // p.unit.fetches
        ahead.lines = ahead.shares = ceil_div(ahead.step, 64)
    else:
        ahead.rows = pixels_known and lane == 0
        ahead.step = b.x.channel_step
        if p.rowwise:
            # Some way into the pixels that a tile holds, which lie one behind the other.
            ahead.step = (p.unit.rows[p.vectors] * b.x.step[b.x.axes - 1]
                          // max(<Py_ssize_t> 1, ceil_div(b.depth, p.unit.channels) * p.unit.fetches))
    return ahead


cdef inline void fetch_ahead(const Step* t, const Block* b, const Ahead* ahead, tile_t* tile, Py_ssize_t row,
                             Py_ssize_t row_tile, Py_ssize_t row_tiles, Py_ssize_t share) noexcept nogil:
    """This tile's share; where it has none, it fetches what it reads anyway. `share`: row_tile modulo ahead.shares."""
    cdef const Plan* p = &t.plan
    cdef Run run
    tile.ahead_all = False
    if ahead.shares and row_tiles >= ahead.shares:
        tile.ahead = ahead.at + share % ahead.lines * 64 + share // ahead.lines * ahead.apart
        tile.ahead_step = ahead.step
        return
    tile.ahead = tile.b
    tile.ahead_step = 0
    if ahead.rows:
        # Those of the next block where this block's are packed already.
        run = run_from(b.x, b.first + row + (b.pixels if p.packed else tile.rows))
        if run.count > 0:
            tile.ahead = run.at + summed_offset(t, b)
            tile.ahead_step = ahead.step
    elif row_tile * ahead.lines < ahead.shares:
        tile.ahead = ahead.at + row_tile * ahead.apart
        tile.ahead_step = ahead.step
        tile.ahead_all = True


cdef void sum_block(const Step* t, const Block* b) noexcept nogil:
    """All tiles of a block, for some of its channels: a panel of lanes stays in the first cache, rows stream by."""
    cdef const Plan* p = &t.plan
    cdef const unit_t* unit = p.unit
    cdef bint on_lanes = p.pixels_on_lanes
    cdef const Side* lane_side = &b.side if on_lanes else &p.out_side
    cdef const Side* row_side = &p.out_side if on_lanes else &b.side
    cdef Py_ssize_t first_lane_tile = 0 if on_lanes else b.first_out_tile
    cdef Py_ssize_t end_lane_tile = b.side.tiles if on_lanes else b.end_out_tile
    cdef Py_ssize_t first_row_tile = b.first_out_tile if on_lanes else 0
    cdef Py_ssize_t end_row_tile = b.end_out_tile if on_lanes else b.side.tiles
    cdef const float* weights = t.weights + b.group * t.group_weights
    cdef const float* bias = t.bias + b.group * t.channel_pitch
    cdef Py_ssize_t y_offset = b.span * b.y.span_step + b.group * t.outs * b.y.channel_step
    cdef Py_ssize_t partial_step = tile_floats(p) if p.depth_block < t.depth else 0
    cdef Py_ssize_t column = column_floats(unit, t.depth), above = column_floats(unit, b.channel)
    cdef Py_ssize_t step = step_bytes(unit)
    cdef Py_ssize_t lane_tile, row_tile, lane, lanes, width, row, rows, share
    cdef float* partial = b.partial
    cdef bint whole                # may the kernel store rows of lanes where they belong?
    cdef bint stored, odd, some_odd
    cdef Ahead ahead
    cdef tile_t tile
    cdef int vectors
    cdef Run run
    run.at = NULL
    tile.steps = ceil_div(b.depth, unit.channels)
    tile.first = b.channel == 0
    tile.last = b.channel + b.depth == t.depth
    tile.pixels_in_one = unit.pieces == 2 and pixels_in_one(t, b)
    tile.bias_on_lanes = not on_lanes
    tile.low = t.after.low if t.after.code == ACT_CLIP else -INFINITY
    tile.high = t.after.high if t.after.code == ACT_CLIP else INFINITY
    row = tile_start(row_side, first_row_tile)
    lane = tile_start(lane_side, first_lane_tile)
    some_odd = unit.pieces and tile.last and is_odd(t, b, row, tile_start(row_side, end_row_tile) - row,
                                                    lane, tile_start(lane_side, end_lane_tile) - lane)
    for lane_tile in range(first_lane_tile, end_lane_tile):
        lane = tile_start(lane_side, lane_tile)
        lanes = tile_start(lane_side, lane_tile + 1) - lane
        vectors = p.vectors if lanes == lane_side.width else vectors_for(unit, lanes)
        width = vectors * unit.lanes
        whole = tile.last and t.plain and (lanes > width - unit.lanes or b.y.slack)
        if on_lanes:
            tile.b = b.strips[lane_tile].at
            tile.b_step = b.strips[lane_tile].step
            run = run_from(b.y, b.first + lane)
            whole = whole and run.count >= lanes and run.step == sizeof(float)
        else:
            tile.b_step = width * step
            tile.b = <const char*> (weights + lane * column + above * width)
            whole = whole and b.y.channel_step == sizeof(float)
            tile.bias = bias + lane
        ahead = look_ahead(t, b, tile.b, lane)
        share = 0
        row = tile_start(row_side, first_row_tile)
        for row_tile in range(first_row_tile, end_row_tile):
            rows = row_side.base + (row_tile < row_side.extra)
            tile.y = NULL
            tile.lanes = width if b.y.slack else lanes
            if on_lanes:
                tile.a_step = rows * step
                tile.a = <const char*> (weights + row * column + above * rows)
                tile.bias = bias + row
                if whole:
                    tile.y = run.at + y_offset + row * b.y.channel_step
                    tile.y_step = b.y.channel_step
            else:
                tile.a = b.strips[row_tile].at
                tile.a_step = b.strips[row_tile].step
                if whole:
                    run = run_from(b.y, b.first + row)
                    if run.count >= rows:
                        tile.y = run.at + y_offset + lane * sizeof(float)
                        tile.y_step = run.step
            tile.rows = rows
            fetch_ahead(t, b, &ahead, &tile, row, row_tile - first_row_tile, end_row_tile - first_row_tile, share)
            share = share + 1 if share + 1 < ahead.shares else 0
            tile.a_apart = rows * unit.together[1] * sizeof(uint16_t)
            tile.b_apart = width * unit.together[0] * sizeof(uint16_t)
            tile.partial = partial
            partial += partial_step
            odd = some_odd and is_odd(t, b, row, rows, lane, lanes)
            if odd:
                tile.y = NULL
            stored = tile.y != NULL
            if tile.last and t.plain and not stored and not odd:
                tile.y = <char*> tile.partial
                tile.y_step = width * sizeof(float)
                tile.lanes = width
            unit.kernel[p.rowwise][vectors][rows](&tile)
            if odd:
                mend_tile(t, b, tile.partial, row, rows, lane, lanes, vectors)
            if tile.last and not stored:
                if on_lanes:
                    finish_tile(t, b, tile.partial, b.first + lane, lanes, row, rows, vectors, t.plain and not odd)
                else:
                    finish_tile(t, b, tile.partial, b.first + row, rows, lane, lanes, vectors, t.plain and not odd)
            row += rows


cdef void run_step(const Step* t, Block* b, Py_ssize_t part) noexcept nogil:
    """One part of a step's out channels, over all in channels, for one block of pixels."""
    cdef const Plan* p = &t.plan
    cdef Py_ssize_t out_block = part % p.out_blocks
    b.group = part // p.out_blocks
    b.first_out_tile = out_block * p.out_side.tiles // p.out_blocks
    b.end_out_tile = (out_block + 1) * p.out_side.tiles // p.out_blocks
    b.side = pixel_side(p, b.pixels)
    b.channel = 0
    while True:
        b.depth = min(p.depth_block, t.depth - b.channel)
        prepare_pixels(t, b)
        sum_block(t, b)
        b.channel += b.depth
        if b.channel >= t.depth:
            return


cdef void store_labels(char* at, Py_ssize_t step, Py_ssize_t item, const int32_t* labels, Py_ssize_t n) noexcept nogil:
    """Labels as integers of 1, 2, 4 or 8 bytes, signed or not; memcpy because an array may lie at any address."""
    cdef int64_t wide
    cdef int16_t half
    cdef int8_t byte
    cdef Py_ssize_t i
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


cdef void run_head(const Program* g, const Block* b, char* memory) noexcept nogil:
    """The end of a classifier, for the block of logits that the last step left in scratch."""
    cdef const isa_t* isa = g.steps[0].plan.isa
    cdef Py_ssize_t done, n, place
    cdef head_t head
    cdef Run run
    head.logits = <float*> (b.y.data + b.first * sizeof(float))
    head.pitch = b.y.channel_step // sizeof(float)
    head.classes = b.y.channels
    head.pixels = b.pixels
    head.k = g.head.places
    head.labels = <int32_t*> (memory + g.head_at)
    head.values = <float*> (head.labels + head.k * head.pitch)
    if g.head.code == HEAD_SOFTMAX:
        isa.softmax(&head)
        done = 0
        while done < b.pixels:
            run = run_from(&g.head.out, b.first + done)
            n = min(run.count, b.pixels - done)
            isa.copy(run.at, g.head.out.channel_step, run.step, <char*> (head.logits + done),
                     head.pitch * sizeof(float), sizeof(float), head.classes, n)
            done += n
        return
    if g.head.values.data == NULL:
        head.values = NULL
    isa.best(&head)
    for place in range(head.k):
        done = 0
        while done < b.pixels:
            run = run_from(&g.head.out, b.first + done)
            n = min(run.count, b.pixels - done)
            store_labels(run.at + place * g.head.out.channel_step, run.step, g.head.out.item,
                         head.labels + place * head.pitch + done, n)
            if head.values != NULL:
                run = run_from(&g.head.values, b.first + done)
                n = min(run.count, n)
                isa.copy(run.at + place * g.head.values.channel_step, 0, run.step,
                         <char*> (head.values + place * head.pitch + done), 0, sizeof(float), 1, n)
            done += n


cdef Between between(Py_ssize_t place, Py_ssize_t size, Py_ssize_t out_size) noexcept nogil:
    """Half-pixel centres, as in bilinear interpolation with align_corners=False; the edges are extended."""
    cdef Between b
    cdef float at = max(<float> 0.0, (<float> size / <float> out_size) * (<float> place + <float> 0.5) - <float> 0.5)
    b.first = min(<Py_ssize_t> at, size - 1)
    b.second = min(b.first + 1, size - 1)
    b.part = at - <float> b.first
    return b


cdef void run_resized_head(const Program* g, const Block* b, char* memory) noexcept nogil:
    """The labels of all output lines whose upper neighbour lies in this block's band."""
    cdef const Resize* size = &g.head.resize
    cdef Py_ssize_t band = b.first // size.width, line, done, n
    cdef const float* logits = <float*> (b.y.data + b.first * sizeof(float))
    cdef Between rows
    cdef resize_t r
    cdef Run run
    r.pitch = b.y.channel_step // sizeof(float)
    r.classes = b.y.channels
    r.width = size.width
    r.out_width = size.out_width
    r.left = size.left
    r.right = size.right
    r.across = size.across
    r.line = <float*> (memory + g.head_at)
    r.ranks = <int32_t*> (r.line + size.width + SCRATCH_PAD)
    r.labels = r.ranks + size.out_width + SCRATCH_PAD
    for line in range(size.out_height):
        rows = between(line, size.height, size.out_height)
        if rows.first < band or rows.first >= band + size.band:
            continue
        r.above = logits + (rows.first - band) * size.width
        r.below = logits + (rows.second - band) * size.width
        r.down = rows.part
        g.steps[0].plan.isa.best_resized(&r)
        done = 0
        while done < size.out_width:
            run = run_from(&g.head.out, line * size.out_width + done)
            n = min(run.count, size.out_width - done)
            store_labels(run.at + b.span * g.head.out.span_step, run.step, g.head.out.item, r.labels + done, n)
            done += n


cdef void run_unit(const Program* g, Py_ssize_t unit, char* memory) noexcept nogil:
    """One block of pixels through all steps, or one part of the only step's out channels (if it has parts)."""
    cdef Py_ssize_t first_part = unit % g.schedule.parts, end_part, part, block
    cdef const Step* step
    cdef FeatureMap written[2]     # where this thread finds a scratch y; in turn, as the next step reads the last one
    cdef Block b
    cdef int i
    unit //= g.schedule.parts
    block = unit % g.schedule.pixel_blocks
    b.span = unit // g.schedule.pixel_blocks
    b.first = block * g.schedule.pixel_block
    if g.head.code == HEAD_RESIZED:
        b.first = block * g.head.resize.band * g.head.resize.width
    b.pixels = min(g.schedule.pixel_block, g.pixels - b.first)
    b.strips = <Strip*> (memory + g.strips_at)
    b.panels = <float*> (memory + g.panels_at)
    b.partial = <float*> (memory + g.partial_at)
    b.residual = <float*> (memory + g.residual_at)
    b.odd = <uint32_t*> (memory + g.odd_at)
    b.staging = <Staging*> (memory + g.staging_at)
    b.y = NULL
    for i in range(g.count):
        step = &g.steps[i]
        b.x = step.x if step.x_parts else b.y
        b.x_parts = step.x_parts if step.x_parts else 1
        b.y = &step.y
        if step.y_is_scratch:
            written[i & 1] = step.y
            written[i & 1].data = memory + step.y_at - b.first * step.y.step[0]
            b.y = &written[i & 1]
        end_part = first_part + 1
        if g.schedule.parts == 1:
            end_part = step.groups * step.plan.out_blocks if step.outs else 0
        for part in range(first_part, end_part):
            run_step(step, &b, part)
    if g.head.code == HEAD_RESIZED:
        run_resized_head(g, &b, memory)
    elif g.head.code != HEAD_NONE:
        run_head(g, &b, memory)


cdef const unit_t* unit_to_enter(const Program* g) noexcept nogil:
    """The unit that threads must enter, of which a machine has one kind; NULL: none."""
    cdef int i
    for i in range(g.count):
        if g.steps[i].outs and g.steps[i].plan.unit.enter != NULL:
            return g.steps[i].plan.unit
    return NULL


cdef uint64_t enter(const unit_t* unit) noexcept nogil:
    """What a thread needs around its work; returns what leave() needs to put everything back."""
    if unit != NULL:
        unit.enter()
    return pwconv_float_enter()


cdef void leave(const unit_t* unit, uint64_t before) noexcept nogil:
    if unit != NULL:
        unit.leave()
    pwconv_float_leave(before)


cdef void run_program(const Program* g, char* memory) noexcept nogil:
    """All units, on as many threads as scheduled; each thread has its own part of `memory`."""
    cdef uint64_t before = 0
    cdef const Step* first = &g.steps[0]
    cdef const unit_t* entered = unit_to_enter(g)
    cdef Py_ssize_t unit, share, shares = 0
    if g.unpacked != NULL:
        shares = shares_of_weights(&first.plan, &first.raw, first.groups)
    if g.schedule.threads == 1 or first.group_weights * first.groups < PACKED_ALONE:
        for share in range(shares):
            pack_share(&first.plan, &first.raw, first.groups, share, g.unpacked)
        shares = 0
    if g.schedule.threads == 1:
        before = enter(entered)
        for unit in range(g.schedule.units):
            run_unit(g, unit, memory)
        leave(entered, before)
        return
    pwconv_let_workers_sleep()
    with parallel(num_threads=g.schedule.threads):
        before = enter(entered)
        if shares > 0:
            for share in prange(shares, schedule="static"):
                pack_share(&first.plan, &first.raw, first.groups, share, g.unpacked)
        for unit in prange(g.schedule.units, schedule="dynamic"):
            run_unit(g, unit, memory + omp_get_thread_num() * g.thread_bytes)
        leave(entered, before)


cdef Py_ssize_t packed_floats(const Plan* p, Py_ssize_t depth) noexcept nogil:
    """Floats of a group's packed weights."""
    cdef const Side* side = &p.out_side
    cdef Py_ssize_t columns = side.n, last
    if not p.pixels_on_lanes:
        last = tile_start(side, side.tiles - 1)
        columns = last + vectors_for(p.unit, side.n - last) * p.unit.lanes
    return columns * column_floats(p.unit, depth)


cdef size_t packed_bytes(const Plan* p, Py_ssize_t depth, Py_ssize_t groups) noexcept nogil:
    """Bytes of all packed weights; behind them where pieces are used, which out channels are odd."""
    cdef size_t bytes = packed_floats(p, depth) * groups * sizeof(float)
    if p.unit.pieces:
        bytes += BEHIND_PANELS + groups * p.out_side.n * sizeof(uint32_t)
    return aligned(bytes)


cdef uint32_t* odd_outs(const Plan* p, Py_ssize_t depth, Py_ssize_t groups, const float* packed) noexcept nogil:
    """Where packed weights have a mark for each out channel whose weights pieces cannot stand for; NULL: nowhere."""
    if p.unit.pieces == 0:
        return NULL
    return <uint32_t*> (<char*> (packed + packed_floats(p, depth) * groups) + BEHIND_PANELS)


cdef inline Py_ssize_t shared_depth(const Plan* p, Py_ssize_t depth) noexcept nogil:
    """In channels that are packed at a time: all where an out channel is marked by what any of them holds."""
    return max(<Py_ssize_t> 1, depth) if p.unit.pieces else SUM_BLOCK


cdef inline Py_ssize_t shares_of_weights(const Plan* p, const Weights* w, Py_ssize_t groups) noexcept nogil:
    """How many shares are packed one by one: a tile's out channels by so many in channels."""
    return groups * p.out_side.tiles * ceil_div(w.depth, shared_depth(p, w.depth))


cdef void pack_share(const Plan* p, const Weights* w, Py_ssize_t groups, Py_ssize_t share, float* dst) noexcept nogil:
    """A share of panels [group][out tile][in channel][out channel]; what pads the last tile of lanes is zero."""
    cdef Py_ssize_t depth = shared_depth(p, w.depth), blocks = ceil_div(w.depth, depth)
    cdef Py_ssize_t channel = share % blocks * depth
    cdef Py_ssize_t tile = share // blocks % p.out_side.tiles
    cdef Py_ssize_t group = share // blocks // p.out_side.tiles
    cdef Py_ssize_t out = tile_start(&p.out_side, tile), first = group * p.out_side.n + out
    cdef pack_t pack
    pack.kind = KIND_FLOAT32
    pack.step = w.out_step
    pack.channel_step = w.in_step
    pack.depth = min(depth, w.depth - channel)
    pack.panel = 0
    pack.at = 0
    pack.scale = pack.shift = NULL
    pack.count = tile_start(&p.out_side, tile + 1) - out
    pack.width = pack.count if p.pixels_on_lanes else vectors_for(p.unit, pack.count) * p.unit.lanes
    pack.src = w.data + first * w.out_step + channel * w.in_step
    pack.dst = (dst + group * packed_floats(p, w.depth) + out * column_floats(p.unit, w.depth)
                + column_floats(p.unit, channel) * pack.width)
    if pack.count < pack.width:
        memset(pack.dst, 0, pack.width * column_floats(p.unit, pack.depth) * sizeof(float))
    if p.unit.pieces:
        cut_weights(p, &pack, odd_outs(p, w.depth, groups, dst) + first)
    else:
        p.isa.pack(&pack)


cdef void cut_weights(const Plan* p, const pack_t* panel, uint32_t* odd) noexcept nogil:
    """A panel of weights in pieces, rounded as a unit's own CPU rounds, whatever the caller has asked it for."""
    cdef bint by_rows = cuts_rows(p, p.pixels_on_lanes, panel.channel_step)
    cdef float staging[(CUT_DEPTH + ROW_PAD) * MAX_LANES]
    cdef uint32_t marks[2 * MAX_LANES]   # whole vectors, which may reach into another thread's out channels
    cdef Py_ssize_t channel = 0
    cdef pack_t pack = panel[0]
    cdef uint64_t before = pwconv_float_enter()
    memset(marks, 0, sizeof(marks))
    pack.dst = staging
    pack.width = pack.panel = CUT_DEPTH + ROW_PAD if by_rows else pack.count
    while channel < panel.depth:
        pack.src = panel.src + channel * panel.channel_step
        pack.depth = min(<Py_ssize_t> CUT_DEPTH, panel.depth - channel)
        if by_rows:
            p.isa.pack_rows(&pack)
        else:
            p.isa.pack(&pack)
        cut(p, p.pixels_on_lanes, by_rows, <char*> staging, (pack.width if by_rows else 1) * sizeof(float),
            (1 if by_rows else pack.width) * sizeof(float), pack.count, pack.depth, panel.width, panel.dst, 0, channel,
            marks)
        channel += pack.depth
    pwconv_float_leave(before)
    memcpy(odd, marks, panel.count * sizeof(uint32_t))
