# Sums over pixels of the products of two maps' channels: X^T Y, for gradients of weights and covariances.
#
# The pixels take the place of in channels, and both operands of a tile hold channels: rows (out channels) and columns
# (in channels) of the result, or those of a single map with itself. Panels [pixel][channel] are packed from any layout,
# so that every layout runs the same micro-kernels; operand A is read in place where they can.
#
# The order of summation depends on the numbers of pixels and channels alone. Pixels, in the order of the layout's
# letters, are cut into blocks of at most SUMMED_PIXELS. Within a block the rule of tile.h holds: chains of SUM_BLOCK
# pixels in float32, added in ascending order. Blocks are added in float64, in ascending order within a segment of
# consecutive blocks; then segments, in ascending order. So threads may take segments in any order. Sums of the channels
# themselves are those of sum_panel() in sums.h within a block.

cdef enum:
    SUMMED_PIXELS = 4 * SUM_BLOCK
    SEGMENTS = 32                  # at most
    SEGMENT_SUMS = 1 << 19         # sums of all segments together, at most, if there are several
    PACKED_SUMS = 1 << 16          # floats of a block of B
    PACKED_TILES = 8               # tiles of A that are packed at a time, whose lines are then read once
    READINGS_IN_PLACE = 8          # of each row of B, by as many tiles of A, that are as fast as packing it first
    FEW_PIXELS = SUM_BLOCK         # below it, storing sums across the rows of the result takes as long as the products
    TASK_SUMS = 1 << 17            # sums that a task holds where there is one segment
    PACKING = 4                    # cycles to pack a vector of channels


cdef struct Channels:
    # One side of the product: the channels of a map, or of the maps of a list in their order.
    const FeatureMap* maps
    int parts
    Py_ssize_t count               # channels of a group
    bint pixels_adjacent           # a channel's pixels are adjacent in memory; else rather the channels of a pixel


cdef struct Sums:
    const isa_t* isa
    const kernel_set_t* kernels
    int threads
    Channels a, b
    bint symmetric                 # a is b: only sums on and above the diagonal are computed
    bint with_ones                 # the sums of B's channels are wanted, as if A had one more row, of ones
    Py_ssize_t groups, pixels, block, blocks, segments
    int vectors                    # NR in vectors
    Tiling a_tiling, b_tiling
    Py_ssize_t panel_tiles         # symmetric: tiles of A in a panel of B
    Py_ssize_t a_parts, b_parts    # blocks of tiles; symmetric: b_parts of both
    Py_ssize_t part_tiles          # tiles of the largest part
    Py_ssize_t parts               # pairs of blocks, of all groups
    const float* shift             # per channel, whole vectors; NULL: nothing is subtracted
    FeatureMap mask                # data is NULL where all pixels count
    char* out                      # float32, or float64 if out_wide
    char* ones_out
    Py_ssize_t out_a_step, out_b_step, out_group_step, ones_step
    bint out_wide
    bint at_once                   # one block, whose sums are the result: no totals of products are kept
    double* totals                 # of a task where there are several segments, else of a thread
    Py_ssize_t kc
    # What else is computed from the pixels of a block while they are in cache, if all products are one part:
    const Sums* ones_apart         # the sums of A's channels, with the same blocks; NULL: none
    const Program* layer           # a layer of the same pixels; NULL: none
    char* memory                   # of all threads
    size_t panels_at, a_at, partial_at, counts_at, totals_at, ones_at, layer_at, thread_bytes


cdef struct Part:
    # A rectangle of tiles of a group's product.
    Py_ssize_t group, first_a, end_a, first_b, end_b
    bint diagonal                  # symmetric: both operands are the same channels
    bint ones                      # the row of ones belongs to it


cdef struct Place:
    # Where channels of pixels lie in memory; steps in bytes. One of the steps is an element's.
    const char* at
    Py_ssize_t pixel_step, channel_step
    bint rowwise                   # a channel's pixels are adjacent


# Added to a sum, -0 leaves all bits as they are.
cdef float[MAX_NR] no_bias
for _i in range(MAX_NR):
    no_bias[_i] = -0.0


cdef inline Py_ssize_t wide_part(Py_ssize_t tiles, Py_ssize_t parts, Py_ssize_t i) noexcept nogil:
    """The first tile of the i-th of so many nearly equal parts."""
    return tiles * i // parts


cdef inline Py_ssize_t a_start(const Sums* sums, Py_ssize_t tile) noexcept nogil:
    """The first channel of a tile of A. Those of a symmetric product lie within panels of B."""
    cdef Tiling inner
    cdef Py_ssize_t panel
    if not sums.symmetric:
        return tile_start(&sums.a_tiling, tile)
    panel = tile // sums.panel_tiles
    if panel >= sums.b_tiling.tiles:
        return sums.b.count
    inner = a_tiling(min(sums.b_tiling.nr, sums.b.count - panel * sums.b_tiling.nr), sums.kernels.mr[sums.vectors])
    return panel * sums.b_tiling.nr + tile_start(&inner, tile % sums.panel_tiles)


cdef inline Py_ssize_t b_vectors(const Sums* sums, Py_ssize_t tile) noexcept nogil:
    return vectors_for(sums.kernels, min(sums.b_tiling.nr, sums.b.count - tile * sums.b_tiling.nr))


cdef inline Py_ssize_t tile_sums(const Sums* sums) noexcept nogil:
    """The largest tile."""
    return sums.kernels.mr[sums.vectors] * sums.b_tiling.nr


cdef inline Py_ssize_t part_sums(const Sums* sums) noexcept nogil:
    """The largest part, in whole tiles."""
    return sums.part_tiles * tile_sums(sums)


cdef Part part_of(const Sums* sums, Py_ssize_t index) noexcept nogil:
    cdef Part part
    cdef Py_ssize_t i
    if sums.symmetric:
        # Pairs of blocks (first, second) with first <= second, row by row.
        i = 0
        while index >= sums.b_parts - i:
            index -= sums.b_parts - i
            i += 1
        part.group = 0
        part.first_a = wide_part(sums.b_tiling.tiles, sums.b_parts, i) * sums.panel_tiles
        part.end_a = wide_part(sums.b_tiling.tiles, sums.b_parts, i + 1) * sums.panel_tiles
        part.first_b = wide_part(sums.b_tiling.tiles, sums.b_parts, i + index)
        part.end_b = wide_part(sums.b_tiling.tiles, sums.b_parts, i + index + 1)
        part.diagonal = index == 0
        part.ones = part.diagonal and sums.with_ones
        return part
    i = index % sums.a_parts
    part.first_a = wide_part(sums.a_tiling.tiles, sums.a_parts, i)
    part.end_a = wide_part(sums.a_tiling.tiles, sums.a_parts, i + 1)
    part.ones = sums.with_ones and i == sums.a_parts - 1
    i = index // sums.a_parts % sums.b_parts
    part.first_b = wide_part(sums.b_tiling.tiles, sums.b_parts, i)
    part.end_b = wide_part(sums.b_tiling.tiles, sums.b_parts, i + 1)
    part.group = index // sums.a_parts // sums.b_parts
    part.diagonal = False
    return part


cdef void gather_channels(const Sums* sums, const Channels* side, Py_ssize_t group, Py_ssize_t channel,
                          Py_ssize_t count, Py_ssize_t pixel, Py_ssize_t k, bint rowwise, Py_ssize_t width,
                          float* dst) noexcept nogil:
    """Copies channels of k pixels as float32 into panels [pixel][channel], or rows [channel][pixel], of this width."""
    cdef pack_t pack
    cdef Py_ssize_t start = 0, first, done
    cdef const FeatureMap* x
    cdef Run run
    cdef int i
    channel += group * side.count
    pack.width = width
    pack.panel = width * k
    pack.scale = pack.shift = NULL
    for i in range(side.parts):
        x = &side.maps[i]
        first = max(channel, start)
        pack.count = min(channel + count, start + x.channels) - first
        if pack.count > 0:
            pack.kind = x.kind
            pack.step = x.channel_step
            pack.at = first - channel
            done = 0
            while done < k:
                run = run_from(x, pixel + done)
                pack.k = min(run.count, k - done)
                pack.src = run.at + (first - start) * x.channel_step
                pack.channel_step = run.step
                pack.dst = dst + (done if rowwise else done * width)
                if rowwise:
                    sums.isa.pack_rows(&pack)
                else:
                    sums.isa.pack(&pack)
                done += pack.k
        start += x.channels


cdef inline bint find_in_place(const Channels* side, Py_ssize_t channel, Py_ssize_t channels, Py_ssize_t pixel,
                               Py_ssize_t k, Place* place) noexcept nogil:
    """Sets where tiles read float32 channels of k pixels in place; False if they cannot."""
    cdef const FeatureMap* x = side.maps
    cdef Run run
    while channel >= x.channels:
        channel -= x.channels
        x += 1
    if x.kind != KIND_FLOAT32 or channel + channels > x.channels:
        return False
    run = run_from(x, pixel)
    if run.count < k:
        return False
    place.rowwise = run.step == sizeof(float)
    if not place.rowwise and x.channel_step != sizeof(float):
        return False
    place.at = run.at + channel * x.channel_step
    place.pixel_step = run.step
    place.channel_step = x.channel_step
    return True


cdef inline void prefetch_rows(const Channels* side, Py_ssize_t channel, Py_ssize_t channels, Py_ssize_t pixels,
                               Py_ssize_t pixel, Py_ssize_t k, tile_t* tile) noexcept nogil:
    """Lets tiles prefetch channels of k pixels from `pixel` on, where a pixel's channels are adjacent.

    No further than the last pixel, for the reason in plan_prefetch().
    """
    cdef Place place
    channels = min(channels, side.count - channel % side.count)
    if pixel < pixels and find_in_place(side, channel, channels, min(pixel, pixels - k), k, &place) and (
            not place.rowwise):
        tile.prefetch = place.at
        tile.prefetch_step = place.pixel_step
        tile.prefetch_next = 64
        tile.prefetch_repeats = channels * <Py_ssize_t> sizeof(float) // 64 + 1


cdef inline bint find_rows_of_b(const Sums* sums, const Part* part, Py_ssize_t pixel, Py_ssize_t k,
                                Place* place) noexcept nogil:
    """Sets where tiles read B's channels of k pixels in place; False if they cannot, or should not.

    Tiles load whole vectors, of channels that are adjacent. Packed panels would be read faster, but not often; tiles of
    short vectors load twice as often, and were slower. A map whose pixels are the rows of one panel is packed already.
    """
    cdef Py_ssize_t nr = sums.b_tiling.nr, first = part.first_b * nr, last = part.end_b - 1
    cdef Py_ssize_t end = min(part.end_b * nr, sums.b.count)
    if sums.shift != NULL or b_vectors(sums, last) * sums.kernels.lanes != end - last * nr or not find_in_place(
            &sums.b, part.group * sums.b.count + first, end - first, pixel, k, place) or place.rowwise:
        return False
    if sums.b_tiling.tiles == 1 and place.pixel_step == sums.b.count * <Py_ssize_t> sizeof(float):
        return True
    return sums.kernels.lanes == 16 and not part.ones and part.end_a - part.first_a <= READINGS_IN_PLACE


cdef const float* panels_of_b(const Sums* sums, Py_ssize_t group, Py_ssize_t first, Py_ssize_t end, Py_ssize_t pixel,
                              Py_ssize_t k, const uint32_t* counts, float* dst) noexcept nogil:
    """Packs tiles of B, `first` to `end`, for k pixels; centred, and without pixels that do not count."""
    cdef Py_ssize_t nr = sums.b_tiling.nr, tile, width
    cdef Py_ssize_t whole = min(end, sums.b.count // nr)
    cdef Place place
    if whole > first and find_in_place(&sums.b, group * sums.b.count + first * nr, (whole - first) * nr, pixel, k,
                                       &place) and not place.rowwise:
        sums.isa.pack_columns(dst, nr * k, place.at, place.pixel_step, k, nr, whole - first)
    elif whole > first:
        gather_channels(sums, &sums.b, group, first * nr, (whole - first) * nr, pixel, k, False, nr, dst)
    if whole < end:
        width = b_vectors(sums, whole) * sums.kernels.lanes
        gather_channels(sums, &sums.b, group, whole * nr, sums.b.count - whole * nr, pixel, k, False, width,
                        dst + (whole - first) * nr * k)
    if sums.shift != NULL:
        for tile in range(first, end):
            sums.isa.centre(dst + (tile - first) * nr * k, k, b_vectors(sums, tile) * sums.kernels.lanes,
                            sums.shift + tile * nr, counts)
    return dst


cdef Py_ssize_t prepare_rows(const Sums* sums, const Part* part, Py_ssize_t first, Py_ssize_t pixel, Py_ssize_t k,
                             float* panels, tile_t* tile, bint* rowwise) noexcept nogil:
    """Sets where tiles of A from `first` on are read, and what they prefetch; returns how many, which are alike."""
    cdef Py_ssize_t row = tile_start(&sums.a_tiling, first), channel = part.group * sums.a.count + row
    cdef Py_ssize_t mr = sums.a_tiling.mr + (first < sums.a_tiling.taller), width
    cdef Py_ssize_t tiles = min(<Py_ssize_t> PACKED_TILES, min(end_of_alike(&sums.a_tiling, first), part.end_a) - first)
    cdef Place place
    tile.mr = mr
    tile.prefetch_step = tile.prefetch_next = 0
    tile.prefetch = NULL
    if not find_in_place(&sums.a, channel, tiles * mr, pixel, k, &place) or (
            place.rowwise and evict_each_other(place.channel_step // <Py_ssize_t> sizeof(float), mr + 4, L1_WAY)):
        rowwise[0] = sums.a.pixels_adjacent
        width = row_floats(k) if rowwise[0] else mr
        gather_channels(sums, &sums.a, part.group, row, tiles * mr, pixel, k, rowwise[0], width, panels)
        tile.a = <const char*> panels
        tile.a_step = width * sizeof(float)
        tile.a_next = (width if rowwise[0] else k) * mr * sizeof(float)
        return tiles
    rowwise[0] = place.rowwise
    if place.rowwise:
        tile.a = place.at
        tile.a_step = place.channel_step
        tile.a_next = mr * place.channel_step
        return tiles
    # Channels of pixels in place cost misses: steps across pages are not followed by hardware, and those of powers of
    # two share few sets of a cache. Behind the last tile, the next pixels follow.
    sums.isa.pack_columns(panels, mr * k, place.at, place.pixel_step, k, mr, tiles)
    tile.a = <const char*> panels
    tile.a_step = mr * sizeof(float)
    tile.a_next = mr * k * sizeof(float)
    if first + tiles < part.end_a:
        prefetch_rows(&sums.a, channel + tiles * mr, tiles * mr, sums.pixels, pixel, k, tile)
    else:
        prefetch_rows(&sums.a, part.group * sums.a.count + tile_start(&sums.a_tiling, part.first_a), tiles * mr,
                      sums.pixels, pixel + k, k, tile)
    return tiles


cdef bint sum_block(const Sums* sums, const Part* part, Py_ssize_t pixel, Py_ssize_t pixels, bint first,
                    double* totals, char* memory) noexcept nogil:
    """Adds the products of one block of pixels to the totals of a part's tiles; False if no pixel counts."""
    cdef const kernel_set_t* kernels = sums.kernels
    cdef Py_ssize_t lanes = kernels.lanes, nr = sums.b_tiling.nr, done = 0, a_tile, b_tile, row, panel, k, tiles, i
    cdef Py_ssize_t sums_of_tile = tile_sums(sums), place, next_place, columns, width, b_channel
    cdef float* a_panels = <float*> (memory + sums.a_at)
    cdef float* partial = <float*> (memory + sums.partial_at)
    cdef const float* panels
    cdef const float* panels_of_a = NULL
    cdef uint32_t* counts = <uint32_t*> (memory + sums.counts_at)
    cdef bint rowwise = False, in_place, at_once, kept = sums.kc < pixels
    cdef Place rows
    cdef int vectors, skipped
    cdef tile_t tile
    if sums.mask.data == NULL:
        counts = NULL
    elif not read_mask(&sums.mask, 0, pixel, pixels, counts):
        return False
    tile.prefetch_whole_row = False
    tile.channels_in_b = True
    tile.bias = no_bias
    tile.low = -INFINITY
    tile.high = INFINITY
    while done < pixels:
        k = min(sums.kc, pixels - done)
        tile.steps = k
        tile.first = done == 0
        tile.last = done + k == pixels
        in_place = find_rows_of_b(sums, part, pixel + done, k, &rows)
        if in_place:
            panels = <const float*> rows.at
        else:
            panels = panels_of_b(sums, part.group, part.first_b, part.end_b, pixel + done, k,
                                 counts + done if counts != NULL else NULL, <float*> (memory + sums.panels_at))
        if sums.symmetric:
            panels_of_a = panels
            if not part.diagonal:
                panels_of_a = panels_of_b(
                    sums, part.group, part.first_a // sums.panel_tiles, part.end_a // sums.panel_tiles,
                    pixel + done, k, counts + done if counts != NULL else NULL, a_panels)
        place = 0
        a_tile = part.first_a
        while a_tile < part.end_a:
            row = a_start(sums, a_tile)
            panel = 0
            tiles = 1
            next_place = 1         # of the next tile of A with the same panel of B
            if sums.symmetric:
                tile.mr = a_start(sums, a_tile + 1) - row
                if tile.mr == 0:   # the last panel of a symmetric product may have fewer tiles
                    a_tile += 1
                    continue
                panel = row // nr
                tile.a_step = b_vectors(sums, panel) * lanes * sizeof(float)
                tile.a = <const char*> (panels_of_a + (panel - part.first_a // sums.panel_tiles) * nr * k + row % nr)
                tile.prefetch = NULL
            else:
                tiles = prepare_rows(sums, part, a_tile, pixel + done, k, a_panels, &tile, &rowwise)
                next_place = part.end_b - part.first_b
            for b_tile in range(part.first_b, part.end_b):
                vectors = <int> b_vectors(sums, b_tile)
                skipped = 0
                if sums.symmetric:
                    if b_tile < panel:
                        continue
                    if b_tile == panel:
                        skipped = <int> (row % nr // lanes)
                if tile.prefetch == NULL or b_tile > part.first_b:
                    tile.prefetch = <const char*> panels
                    tile.prefetch_step = tile.prefetch_next = 0
                    b_channel = part.group * sums.b.count + b_tile * nr
                    if sums.symmetric and a_tile < part.first_a + 2:
                        prefetch_rows(&sums.b, b_channel, nr, sums.pixels, pixel + done + k, k, &tile)
                        tile.prefetch += (a_tile - part.first_a) * 64
                    elif a_tile == part.first_a:
                        prefetch_rows(&sums.b, b_channel - (nr if b_tile > part.first_b else 0), nr, sums.pixels,
                                      pixel + done + k, k, &tile)
                width = vectors * lanes
                tile.b_step = rows.pixel_step if in_place else width * sizeof(float)
                tile.b = <const char*> (panels + (b_tile - part.first_b) * nr * (1 if in_place else k)
                                        + skipped * lanes)
                vectors -= skipped
                width -= skipped * lanes
                columns = min(nr, sums.b.count - b_tile * nr)
                at_once = (tile.last and sums.at_once and sums.out_b_step == sizeof(float)
                           and columns > width - lanes)
                tile.y = NULL
                if at_once:
                    tile.y = (sums.out + part.group * sums.out_group_step + row * sums.out_a_step
                              + b_tile * nr * sums.out_b_step)
                    tile.y_step = sums.out_a_step
                    tile.nr = columns
                tile.partial = partial + (place * sums_of_tile if kept else 0)
                tile.partial_next = next_place * sums_of_tile if kept else sums_of_tile
                tile.more = tiles - 1
                kernels.micro_kernel[rowwise][vectors][tile.mr](&tile)
                for i in range(tiles if tile.last and not at_once else 0):
                    if sums.at_once:
                        sums.isa.store_sums(
                            sums.out + part.group * sums.out_group_step + (row + i * tile.mr) * sums.out_a_step
                            + b_tile * nr * sums.out_b_step, sums.out_a_step, sums.out_b_step,
                            tile.partial + i * tile.partial_next, width, tile.mr, columns)
                    else:
                        sums.isa.add_sums(totals + (place + i * next_place) * sums_of_tile,
                                          tile.partial + i * tile.partial_next, tile.mr * width, first)
                place += 1
            place += (tiles - 1) * next_place
            a_tile += tiles
        if part.ones:
            for b_tile in range(part.first_b, part.end_b):
                if first and done == 0:
                    memset(totals + place * sums_of_tile, 0, nr * sizeof(double))
                sums.isa.sum_panel(totals + place * sums_of_tile, panels + (b_tile - part.first_b) * nr * k, k,
                                   b_vectors(sums, b_tile) * lanes)
                place += 1
        done += k
    return True


cdef void store_sum(const Sums* sums, char* at, double value) noexcept nogil:
    cdef float narrow = <float> value
    if sums.out_wide:
        memcpy(at, &value, sizeof(double))
    else:
        memcpy(at, &narrow, sizeof(float))


cdef void store_part(const Sums* sums, const Part* part, const double* totals) noexcept nogil:
    """Stores the sums of a part's tiles in the result; on both sides of the diagonal of a symmetric one."""
    cdef Py_ssize_t lanes = sums.kernels.lanes, nr = sums.b_tiling.nr
    cdef Py_ssize_t sums_of_tile = tile_sums(sums)
    cdef Py_ssize_t a_tile, b_tile, row, mr, width, column, columns, skipped, r, c, place = 0
    cdef char* out = sums.out + part.group * sums.out_group_step
    cdef const double* line
    for a_tile in range(part.first_a, part.end_a):
        row = a_start(sums, a_tile)
        mr = a_start(sums, a_tile + 1) - row
        if mr == 0:
            continue
        for b_tile in range(part.first_b, part.end_b):
            skipped = 0
            if sums.symmetric:
                if b_tile < row // nr:
                    continue
                if b_tile == row // nr:
                    skipped = row % nr // lanes * lanes
            width = b_vectors(sums, b_tile) * lanes - skipped
            column = b_tile * nr + skipped
            columns = min(width, sums.b.count - column)
            if sums.at_once:
                mr = 0             # stored
            elif not sums.symmetric and not sums.out_wide:
                sums.isa.store_totals(out + row * sums.out_a_step + column * sums.out_b_step, sums.out_a_step,
                                      sums.out_b_step, totals + place * sums_of_tile, width, mr, columns)
                place += 1
                continue
            for r in range(row, row + mr):
                line = totals + place * sums_of_tile + (r - row) * width
                for c in range(max(0, r - column) if sums.symmetric else 0, columns):
                    store_sum(sums, out + r * sums.out_a_step + (column + c) * sums.out_b_step, line[c])
                    if sums.symmetric:
                        store_sum(sums, out + (column + c) * sums.out_a_step + r * sums.out_b_step, line[c])
            place += 1
    if part.ones:
        for b_tile in range(part.first_b, part.end_b):
            line = totals + place * sums_of_tile
            for c in range(b_tile * nr, min((b_tile + 1) * nr, sums.b.count)):
                store_sum(sums, sums.ones_out + (part.group * sums.b.count + c) * sums.ones_step, line[c - b_tile * nr])
            place += 1


cdef inline double* totals_of(const Sums* sums, Py_ssize_t task, char* memory) noexcept nogil:
    if sums.segments == 1:
        return <double*> (memory + sums.totals_at)
    return sums.totals + task * part_sums(sums)


cdef void run_sums_task(const Sums* sums, Py_ssize_t task, char* memory) noexcept nogil:
    """One segment of one part, and what else is computed from its pixels."""
    cdef Py_ssize_t segment = task % sums.segments, block, pixel, pixels
    cdef Part part = part_of(sums, task // sums.segments), part_of_ones
    cdef double* totals = totals_of(sums, task, memory)
    cdef const Sums* ones = sums.ones_apart
    cdef char* ones_memory = memory + sums.ones_at
    cdef bint first = True
    if ones != NULL:
        part_of_ones = part_of(ones, 0)
    for block in range(wide_part(sums.blocks, sums.segments, segment),
                       wide_part(sums.blocks, sums.segments, segment + 1)):
        pixel = block * sums.block
        pixels = min(sums.block, sums.pixels - pixel)
        if sums.layer != NULL:
            run_pixels(sums.layer, pixel, pixel + pixels, memory + sums.layer_at)
        if ones != NULL:
            sum_block(ones, &part_of_ones, pixel, pixels, first, totals_of(ones, task, ones_memory), ones_memory)
        if sum_block(sums, &part, pixel, pixels, first, totals, memory):
            first = False
    if first:
        memset(totals, 0, part_sums(sums) * sizeof(double))
    if sums.segments == 1:
        store_part(sums, &part, totals)
        if ones != NULL:
            store_part(ones, &part_of_ones, totals_of(ones, task, ones_memory))


cdef void join_segments(const Sums* sums, Py_ssize_t index) noexcept nogil:
    """Adds up the segments of one part and stores their sums."""
    cdef Py_ssize_t segment
    cdef double* totals = sums.totals + index * sums.segments * part_sums(sums)
    cdef Part part = part_of(sums, index)
    for segment in range(1, sums.segments):
        sums.isa.add_totals(totals, totals + segment * part_sums(sums), part_sums(sums))
    store_part(sums, &part, totals)
    if sums.ones_apart != NULL:
        join_segments(sums.ones_apart, 0)


cdef void run_sums(void* running) noexcept nogil:
    cdef const Sums* sums = <const Sums*> running
    cdef Py_ssize_t task
    cdef uint64_t before = 0
    if sums.layer != NULL:
        pack_all_weights(sums.layer)
    if sums.threads == 1:
        before = enter(NULL)
        for task in range(sums.parts * sums.segments):
            run_sums_task(sums, task, sums.memory)
        if sums.segments > 1:
            for task in range(sums.parts):
                join_segments(sums, task)
        leave(NULL, before)
        return
    pwconv_let_workers_sleep()
    with parallel(num_threads=sums.threads):
        before = enter(NULL)
        for task in prange(sums.parts * sums.segments, schedule="dynamic"):
            run_sums_task(sums, task, sums.memory + omp_get_thread_num() * sums.thread_bytes)
        if sums.segments > 1:
            pwconv_wait_for_all()
            for task in prange(sums.parts, schedule="dynamic"):
                join_segments(sums, task)
        leave(NULL, before)


cdef void tile_channels(Sums* sums, int vectors) noexcept nogil:
    sums.vectors = vectors
    memset(&sums.a_tiling, 0, sizeof(Tiling))
    if sums.a.count > 0:
        sums.a_tiling = a_tiling(sums.a.count, sums.kernels.mr[vectors])
    sums.b_tiling = b_tiling(sums.b.count, vectors * sums.kernels.lanes)
    sums.panel_tiles = ceil_div(sums.b_tiling.nr, sums.kernels.mr[vectors])


cdef double sums_cycles(const Sums* sums) noexcept nogil:
    """Expected cycles of all products on one thread."""
    cdef double cycles = sums.b_tiling.tiles * (
        panel_cycles(step_cycles(sums.kernels, active_isa), &sums.a_tiling, sums.vectors, 0.0, 0.0)
        # Measured: many rows that are read in place evict each other, and each needs an address.
        + (0.08 * sums.a.count if sums.a.pixels_adjacent and sums.vectors == 1 else 0.0)
        + sums.vectors * (2.0 + 0.5 * sums.a_tiling.tiles))
    return cycles * sums.pixels * sums.groups * (0.5 if sums.symmetric else 1.0)


cdef void divide_among_threads(Sums* sums, double cycles, int threads) noexcept:
    """Chooses the parts of A and of B, at least as many as they are, by the expected time of the busiest thread.

    B is packed again for each part of A, and A for each part of B. `cycles`: expected for all products.
    """
    cdef Py_ssize_t fewest_a = sums.a_parts, fewest_b = sums.b_parts, tasks = sums.groups * sums.segments
    cdef Py_ssize_t a_tiles, b_tiles, a_parts, b_parts, most = fewest_a * fewest_b + 4 * threads
    cdef double tile = cycles / tasks / (sums.a_tiling.tiles * sums.b_tiling.tiles)
    cdef double pixels = <double> sums.pixels / sums.segments, expected, best = -1.0
    cdef double pack_a = 0.0 if sums.a.pixels_adjacent else pixels * sums.a_tiling.mr * PACKING / sums.kernels.lanes
    cdef double pack_b = pixels * sums.vectors * PACKING
    for b_parts in range(fewest_b, min(sums.b_tiling.tiles, fewest_b + threads) + 1):
        b_tiles = ceil_div(sums.b_tiling.tiles, b_parts)
        for a_parts in range(fewest_a, min(sums.a_tiling.tiles, most // b_parts) + 1):
            a_tiles = ceil_div(sums.a_tiling.tiles, a_parts)
            expected = ceil_div(tasks * a_parts * b_parts, threads) * (
                tile * a_tiles * b_tiles + pack_a * a_tiles + pack_b * b_tiles)
            if best < 0.0 or expected < 0.99 * best:
                best = expected
                sums.a_parts = a_parts
                sums.b_parts = b_parts


cdef void plan_sums(Sums* sums, bint with_products, int threads) noexcept:
    """Chooses the partition of the pixels, which shapes alone decide, then tiles and tasks."""
    cdef Py_ssize_t results = sums.groups * sums.a.count * sums.b.count
    cdef Py_ssize_t a_tiles, b_tiles
    cdef double cycles, best = -1.0
    cdef int vectors, chosen = 1
    sums.blocks = ceil_div(sums.pixels, SUMMED_PIXELS)
    if sums.blocks > 1:
        # An even number, so that few blocks keep two threads busy.
        sums.block = ceil_div(ceil_div(sums.pixels, ceil_div(sums.blocks, 4) * 4), 16) * 16
        sums.blocks = ceil_div(sums.pixels, sums.block)
    else:
        sums.block = sums.pixels
    sums.segments = max(<Py_ssize_t> 1, min(min(sums.blocks, <Py_ssize_t> SEGMENTS), SEGMENT_SUMS // results))
    if not with_products:
        sums.a.count = 0
    for vectors in range(1, MAX_VECTORS + 1):
        if sums.kernels.mr[vectors] == 0 or (sums.symmetric and vectors > 2):
            continue
        tile_channels(sums, vectors)
        cycles = sums_cycles(sums)
        if best < 0.0 or cycles < best:
            best = cycles
            chosen = vectors
    tile_channels(sums, chosen)
    threads = <int> min(<double> threads, threads_worth(active_isa, best, forked))
    # Blocks of B whose panels stay in the second-level cache.
    sums.b_parts = ceil_div(sums.b_tiling.tiles * sums.b_tiling.nr, PACKED_SUMS // SUM_BLOCK)
    sums.b_parts = min(sums.b_parts, sums.b_tiling.tiles)
    sums.a_parts = 1
    b_tiles = ceil_div(sums.b_tiling.tiles, sums.b_parts)
    if sums.symmetric:
        sums.parts = sums.b_parts * (sums.b_parts + 1) // 2
        sums.part_tiles = (b_tiles * sums.panel_tiles + 1) * b_tiles
    else:
        if sums.segments == 1:
            a_tiles = max(<Py_ssize_t> 1, TASK_SUMS // (b_tiles * sums.b_tiling.nr * sums.kernels.mr[chosen]))
            sums.a_parts = max(<Py_ssize_t> 1, ceil_div(sums.a_tiling.tiles, a_tiles))
        if with_products:
            divide_among_threads(sums, best, threads)
        b_tiles = ceil_div(sums.b_tiling.tiles, sums.b_parts)
        sums.parts = sums.groups * sums.a_parts * sums.b_parts
        sums.part_tiles = (ceil_div(sums.a_tiling.tiles, sums.a_parts) + sums.with_ones) * b_tiles
    sums.kc = SUM_BLOCK            # so that the lines of a tile of A stay in cache where it is packed, too
    if sums.a.pixels_adjacent:
        sums.kc = max(sums.kc, PACKED_SUMS // (b_tiles * sums.b_tiling.nr) // SUM_BLOCK * SUM_BLOCK)
    sums.threads = pwconv_startable(<int> min(<Py_ssize_t> threads, sums.parts * sums.segments), forked)
    sums.at_once = sums.blocks == 1 and not sums.symmetric and not sums.out_wide
    lay_out_sums(sums, b_tiles)


cdef void lay_out_sums(Sums* sums, Py_ssize_t b_tiles) noexcept:
    """Divides a thread's scratch memory."""
    cdef Py_ssize_t k = min(sums.kc, sums.block), panels = b_tiles * sums.b_tiling.nr * k
    sums.panels_at = 0
    sums.a_at = aligned(panels * sizeof(float))
    sums.partial_at = sums.a_at + aligned(
        (panels if sums.symmetric else PACKED_TILES * sums.kernels.mr[sums.vectors] * row_floats(k))
        * sizeof(float))
    sums.counts_at = sums.partial_at + aligned(
        (sums.part_tiles if sums.kc < sums.block else <Py_ssize_t> PACKED_TILES) * tile_sums(sums) * sizeof(float))
    sums.totals_at = sums.counts_at + (aligned(sums.block * sizeof(uint32_t)) if sums.mask.data != NULL else 0)
    sums.thread_bytes = sums.totals_at
    if sums.segments == 1:
        sums.thread_bytes += aligned(part_sums(sums) * sizeof(double))


cdef int hold_channels(Input* x, maps, Axes* axes, Channels* side, Py_ssize_t groups, Py_ssize_t* pixels) except -1:
    """Takes the buffers of maps with channels on the first axis."""
    cdef int i, rank, axis
    if not hold_input(x, maps) or x.view[0].ndim < 1:
        raise TypeError("maps were not checked")
    rank = x.view[0].ndim
    axes.rank = rank
    axes.channel = 0
    axes.batch = -1
    axes.pixel_axes = rank - 1
    pixels[0] = 1
    for axis in range(1, rank):
        axes.pixel[axis - 1] = axis
        pixels[0] *= x.view[0].shape[axis]
    side.maps = x.map
    side.parts = x.count
    side.count = 0
    for i in range(x.count):
        map_of(&x.view[i], x.map[i].kind, axes, NULL, False, &x.map[i])
        side.count += x.map[i].channels
    side.count //= groups
    side.pixels_adjacent = length_of(x.map[0].step[x.map[0].axes - 1]) <= length_of(x.map[0].channel_step)
    return 0


# The arguments of a layer with nothing but weights.
cdef EngineSpec plain_spec = None


cdef int plan_layer(const Sums* sums, const Channels* rows, const Axes* axes, const Buffers* layer, Program* program,
                    Step* step) except -1:
    """Makes the product of a map with the weights of `layer` a program of all pixels, for one thread."""
    global plain_spec
    cdef Weights weights = weights_of(layer, "OI")
    if plain_spec is None:
        plain_spec = EngineSpec(arguments().parse_spec(
            stride=1, groups=1, layout="NCHW", out_layout=None, weight_layout="OI", input_activation=None,
            activation=None, precision="highest", backend="auto"))
    program.steps = step
    program.count = 1
    program.head.code = HEAD_NONE
    program.packs_panels = False
    program.pixels = sums.pixels
    describe_step(step, plain_spec, None, &weights)
    step.x = rows.maps
    step.x_parts = rows.parts
    step.y_is_scratch = False
    map_of(&layer.view[OUT], layer.kind[OUT], axes, NULL, False, &step.y)
    plan_step(step, &step.x[0], 1, program.pixels, weights.in_step, 1, &program.schedule)
    program.schedule.out_parts = 1     # all out channels of a block of pixels, one part after the other
    lay_out(program)
    return 0


def sums_of_products(rows, columns, out, ones, Py_ssize_t groups, shift, mask, num_threads, weight=None, product=None):
    """out[o, i] = the sum over pixels of rows[o] * columns[i], for o and i of the same group.

    `rows` and `columns` are lists of maps with channels on their first axis and the same pixels on the others. `out`
    has a row for each of `rows` and a column for each of a group's `columns`; `ones` receives the sums of `rows`. Both
    are float32 or both float64; one may be None. `columns` may be None: the products of `rows` with themselves, in one
    group. Then `shift` (float32, behind it 64 zeros) is subtracted from the channels first, and pixels count where
    `mask` (bool, C = 1; or None) is true. There are pixels and channels; the caller has checked all arguments.

    The map `product` (float32, channels first) receives the product of `weight` with `rows`, of one group, where that
    saves reading `rows` from memory again: all sums are one part. Returns whether it did.
    """
    cdef Sums sums, apart
    cdef Program program
    cdef Step step
    cdef Input first, second
    cdef Buffers buffers, layer
    cdef Axes axes
    cdef Memory memory
    cdef Py_ssize_t pixels = 0
    cdef size_t at, apart_at, weights_at
    cdef int threads = threads_for(num_threads), which
    cdef bint rows_in_b, ones_left = False
    memset(&sums, 0, sizeof(Sums))
    memset(buffers.held, 0, sizeof(buffers.held))
    memset(layer.held, 0, sizeof(layer.held))
    first.held = second.held = 0
    first.map = &first.one_map
    second.map = &second.one_map
    try:
        hold_channels(&first, rows, &axes, &sums.b, groups, &sums.pixels)
        sums.isa = pwconv_isa(active_isa)
        sums.kernels = &sums.isa.float32
        sums.groups = groups
        sums.symmetric = columns is None
        sums.with_ones = ones is not None
        for which, array in ((OUT, out), (BIAS, ones)):
            if array is not None and not hold_other(&buffers, which, array):
                raise TypeError("out or ones was not checked")
        if out is not None:
            sums.out_wide = buffers.view[OUT].itemsize == sizeof(double)
            sums.out = <char*> buffers.view[OUT].buf
            sums.out_a_step = buffers.view[OUT].strides[1]
            sums.out_b_step = buffers.view[OUT].strides[0]
            sums.out_group_step = sums.b.count * buffers.view[OUT].strides[0]
        if ones is not None:
            sums.out_wide = buffers.view[BIAS].itemsize == sizeof(double)
            sums.ones_out = <char*> buffers.view[BIAS].buf
            sums.ones_step = buffers.view[BIAS].strides[0]
        threads = free_threads(threads)
        if sums.symmetric:
            sums.a = sums.b
            if not hold(&buffers, INPUT_SHIFT, shift):
                raise TypeError("shift was not checked")
            sums.shift = <const float*> buffers.view[INPUT_SHIFT].buf
            if mask is not None:
                if not hold_other(&buffers, RESIDUAL, mask):
                    raise TypeError("mask was not checked")
                map_of(&buffers.view[RESIDUAL], KIND_UINT8, &axes, NULL, False, &sums.mask)
        else:
            hold_channels(&second, columns, &axes, &sums.a, groups, &pixels)
            # Of adjacent channels, B's are packed in longer runs; of adjacent pixels, A's are read in place. Rows of
            # tiles should be rows of the result where it takes as long to store as to compute. Ones sum up B.
            rows_in_b = (sums.b.count <= sums.a.count) == (sums.a.pixels_adjacent and sums.b.pixels_adjacent)
            if out is None:
                rows_in_b = True
            elif sums.pixels <= FEW_PIXELS and sums.a.count >= 4 * sums.isa.float32.lanes:
                rows_in_b = sums.out_b_step == sizeof(float)
            apart = sums
            if not rows_in_b:
                sums.a, sums.b = sums.b, sums.a
                sums.out_a_step, sums.out_b_step = sums.out_b_step, sums.out_a_step
                ones_left = sums.with_ones
                sums.with_ones = False
        plan_sums(&sums, out is not None, threads)
        if ones_left and sums.parts == 1:
            plan_sums(&apart, False, threads)
            if apart.parts == 1:
                sums.ones_apart = &apart
                ones_left = False
        if (product is not None and sums.parts == 1
                and <double> sizeof(float) * sums.pixels * first.map[0].channels > one_pass_bytes):
            if not hold(&layer, WEIGHT, weight) or not hold(&layer, OUT, product):
                raise TypeError("weight or product was not checked")
            plan_layer(&sums, &apart.b, &axes, &layer, &program, &step)
            sums.layer = &program

        # Scratch memory of each thread, then totals, then weights.
        if sums.ones_apart != NULL:
            sums.ones_at = sums.thread_bytes
            sums.thread_bytes += apart.thread_bytes
        if sums.layer != NULL:
            sums.layer_at = sums.thread_bytes
            sums.thread_bytes += program.thread_bytes
        at = sums.thread_bytes * sums.threads
        if sums.segments > 1:
            at += aligned(sums.parts * sums.segments * part_sums(&sums) * sizeof(double))
        apart_at = at
        if sums.ones_apart != NULL and sums.segments > 1:
            at += aligned(apart.segments * part_sums(&apart) * sizeof(double))
        weights_at = at
        if sums.layer != NULL:
            at += bytes_of_weights(&program)
        memory = take_memory(at)
        sums.memory = memory.data
        sums.totals = <double*> (memory.data + sums.thread_bytes * sums.threads)
        apart.totals = <double*> (memory.data + apart_at)
        if sums.layer != NULL:
            place_weights(&program, NULL, memory.data, &weights_at)
        release_and_run(run_sums, &sums, &sums.threads)
        give_back(memory)
    finally:
        release(&buffers)
        release(&layer)
        release_input(&first)
        release_input(&second)
    if ones_left:
        sums_of_products(rows, columns, None, ones, groups, None, None, num_threads)
    return sums.layer != NULL
