# Packing weights: into panels [group][out tile][in channel][out channel], as float32 or split into bfloat16 terms.

cdef enum:
    PACKED_BY_ONE = 1 << 14        # floats of weights that one thread packs before others could start
    BLOCKS_THAT_PACK = 2           # blocks of pixels for each of which weights may be packed again, panel by panel
    ROWS_AT_ONCE = 32              # in channels of all tiles that are packed at a time


cdef Py_ssize_t packed_floats(const Plan* plan, Py_ssize_t k) noexcept nogil:
    """Floats of a group's packed weights."""
    cdef const Tiling* tiling = &plan.out_tiling
    cdef Py_ssize_t columns = tiling.extent, last
    if not plan.pixels_in_b:
        last = tile_start(tiling, tiling.tiles - 1)
        columns = last + vectors_for(plan.kernels, tiling.extent - last) * plan.kernels.lanes
    return columns * column_floats(plan.kernels, k)


cdef size_t packed_bytes(const Plan* plan, Py_ssize_t k, Py_ssize_t groups) noexcept nogil:
    """Bytes of all packed weights and, where they are split, of the marks of out channels with special values."""
    cdef size_t bytes = packed_floats(plan, k) * groups * sizeof(float)
    if plan.kernels.terms:
        bytes += BEHIND_PANELS + groups * plan.out_tiling.extent * sizeof(uint32_t)
    return aligned(bytes)


cdef uint32_t* special_outs_of(const Plan* plan, Py_ssize_t k, Py_ssize_t groups, const float* packed) noexcept nogil:
    """The marks of out channels with special values, behind the packed weights; NULL if weights are not split."""
    if plan.kernels.terms == 0:
        return NULL
    return <uint32_t*> (<char*> (packed + packed_floats(plan, k) * groups) + BEHIND_PANELS)


cdef inline bint packed_in_panels(const Plan* plan, const Schedule* schedule, Py_ssize_t k) noexcept nogil:
    """Are weights that are used once packed panel by panel, right before a panel is multiplied?

    Where they are too many for the second-level cache, and used for few blocks of pixels, they need not go through the
    caches beyond as packed weights, too.
    """
    return (not plan.streamed and not plan.pixels_in_b and not plan.kernels.terms
            and schedule.spans * schedule.pixel_blocks <= BLOCKS_THAT_PACK
            and weights_exceed_l2(plan.kernels, k, plan.out_tiling.extent))


cdef inline bint packed_in_rows(const Plan* plan, const Weights* weights) noexcept nogil:
    """Are an in channel's weights adjacent in memory? Then it is packed for all tiles before later in channels are."""
    return plan.kernels.terms == 0 and weights.out_step == sizeof(float) and weights.outs > 1


cdef inline Py_ssize_t share_k(const Plan* plan, const Weights* weights) noexcept nogil:
    """In channels that are packed at a time; all if weights are split, since an out channel has one mark for all."""
    if plan.kernels.terms:
        return max(<Py_ssize_t> 1, weights.k)
    return ROWS_AT_ONCE if packed_in_rows(plan, weights) else SUM_BLOCK


cdef inline Py_ssize_t shares_of_weights(const Plan* plan, const Weights* weights, Py_ssize_t groups) noexcept nogil:
    """How many shares can be packed independently: share_k() in channels of all out channels, or of those of a tile."""
    return groups * ceil_div(weights.k, share_k(plan, weights)) * (
        1 if packed_in_rows(plan, weights) else plan.out_tiling.tiles)


cdef void pack_share(const Plan* plan, const Weights* weights, Py_ssize_t groups, Py_ssize_t share,
                     float* dst) noexcept nogil:
    """Packs one share of the weights; the columns that pad the last tile of B are zero."""
    cdef Py_ssize_t k = share_k(plan, weights), blocks = ceil_div(weights.k, k), tiles = plan.out_tiling.tiles
    cdef Py_ssize_t channel = share % blocks * k
    k = min(k, weights.k - channel)
    share //= blocks
    if packed_in_rows(plan, weights):
        pack_tiles(plan, weights, groups, share, channel, k, dst)
    else:
        pack_tile(plan, weights, groups, share // tiles, share % tiles, channel, k, dst)


cdef void pack_tiles(const Plan* plan, const Weights* weights, Py_ssize_t groups, Py_ssize_t group, Py_ssize_t channel,
                     Py_ssize_t k, float* dst) noexcept nogil:
    """Packs k in channels for all out channels of a group, which are adjacent in memory."""
    cdef const Tiling* tiling = &plan.out_tiling
    cdef Py_ssize_t tile = 0, end, width, out
    while tile < tiling.tiles:
        out = tile_start(tiling, tile)
        end = end_of_alike(tiling, tile)
        width = tile_start(tiling, tile + 1) - out
        if width < tiling.nr:      # of B, and not whole
            pack_tile(plan, weights, groups, group, tile, channel, k, dst)
            return
        plan.isa.pack_columns(
            dst + group * packed_floats(plan, weights.k) + out * weights.k + channel * width, width * weights.k,
            weights.data + (group * tiling.extent + out) * weights.out_step + channel * weights.in_step,
            weights.in_step, k, width, end - tile)
        tile = end


cdef void pack_tile(const Plan* plan, const Weights* weights, Py_ssize_t groups, Py_ssize_t group, Py_ssize_t tile,
                    Py_ssize_t channel, Py_ssize_t k, float* dst) noexcept nogil:
    """Packs k in channels for the out channels of one tile to their place among all packed weights."""
    cdef Py_ssize_t out = tile_start(&plan.out_tiling, tile), first = group * plan.out_tiling.extent + out
    cdef pack_t pack = tile_of_weights(plan, weights, group, tile, channel, k)
    pack.dst = (dst + group * packed_floats(plan, weights.k) + out * column_floats(plan.kernels, weights.k)
                + column_floats(plan.kernels, channel) * pack.width)
    if pack.count < pack.width:
        memset(pack.dst, 0, pack.width * column_floats(plan.kernels, pack.k) * sizeof(float))
    if plan.kernels.terms:
        split_weights(plan, &pack, special_outs_of(plan, weights.k, groups, dst) + first)
    else:
        plan.isa.pack(&pack)


cdef void pack_panel(const Plan* plan, const Weights* weights, Py_ssize_t group, Py_ssize_t tile, Py_ssize_t channel,
                     Py_ssize_t k, float* panel) noexcept nogil:
    """Packs k in channels, as float32, for the out channels of one tile into a panel of their own."""
    cdef pack_t pack = tile_of_weights(plan, weights, group, tile, channel, k)
    pack.dst = panel
    if packed_in_rows(plan, weights) and pack.count == pack.width:
        plan.isa.pack_columns(panel, 0, pack.src, weights.in_step, k, pack.width, 1)
        return
    if pack.count < pack.width:
        memset(panel, 0, pack.width * k * sizeof(float))
    plan.isa.pack(&pack)


cdef pack_t tile_of_weights(const Plan* plan, const Weights* weights, Py_ssize_t group, Py_ssize_t tile,
                            Py_ssize_t channel, Py_ssize_t k) noexcept nogil:
    """The weights of k in channels and the out channels of one tile; but not where they are packed."""
    cdef Py_ssize_t out = tile_start(&plan.out_tiling, tile)
    cdef pack_t pack
    memset(&pack, 0, sizeof(pack_t))
    pack.kind = KIND_FLOAT32
    pack.step = weights.out_step
    pack.channel_step = weights.in_step
    pack.k = k
    pack.count = tile_start(&plan.out_tiling, tile + 1) - out
    pack.width = pack.count
    if not plan.pixels_in_b:
        pack.width = vectors_for(plan.kernels, pack.count) * plan.kernels.lanes
    pack.src = weights.data + (group * plan.out_tiling.extent + out) * weights.out_step + channel * weights.in_step
    return pack


cdef void split_weights(const Plan* plan, const pack_t* panel, uint32_t* special) noexcept nogil:
    """Splits a panel of weights in the engine's floating-point state, whatever the caller's rounding mode is."""
    cdef bint along_k = splits_along_k(plan, plan.pixels_in_b, panel.channel_step)
    cdef float unsplit[(SPLIT_K + ROW_PAD) * MAX_NR]
    cdef uint32_t marks[2 * MAX_NR]    # whole vectors of marks reach beyond the panel's out channels
    cdef Py_ssize_t channel = 0
    cdef pack_t pack = panel[0]
    cdef uint64_t before = pwconv_float_enter()
    memset(marks, 0, sizeof(marks))
    pack.dst = unsplit
    pack.width = pack.panel = SPLIT_K + ROW_PAD if along_k else pack.count
    while channel < panel.k:
        pack.src = panel.src + channel * panel.channel_step
        pack.k = min(<Py_ssize_t> SPLIT_K, panel.k - channel)
        if along_k:
            plan.isa.pack_rows(&pack)
        else:
            plan.isa.pack(&pack)
        split_rectangle(plan, plan.pixels_in_b, along_k, <char*> unsplit,
                        (pack.width if along_k else 1) * sizeof(float), (1 if along_k else pack.width) * sizeof(float),
                        pack.count, pack.k, panel.width, panel.dst, 0, channel, marks)
        channel += pack.k
    pwconv_float_leave(before)
    memcpy(special, marks, panel.count * sizeof(uint32_t))
