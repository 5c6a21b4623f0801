# The cost model: expected cycles of a plan on one thread.
#
# Cycles of a core that starts two vector loads and, as measured, one, two or four vector FMAs a cycle, each FMA ready
# after four. The other constants are those of a few CPUs (Zen 3 with vectors of up to 32 bytes, Zen 5 with AVX-512).

cdef inline StepCycles step_cycles(const kernel_set_t* kernels, Py_ssize_t isa) noexcept nogil:
    """FMAs of float32 were measured; how fast bfloat16 is multiplied, the kernel set says."""
    cdef StepCycles cycles
    cycles.fma = 0.5 * kernels.half_cycles if kernels.terms else 1.0 / core_of(isa).fmas
    cycles.broadcast = 0.5 * kernels.broadcast_half_cycles
    # Vectors of 32 bytes that are multiplied as two halves are broadcast so, too (measured on Zen 1).
    cycles.row = 1.22 if cycles.fma >= 1.0 and kernels.lanes == 8 and not kernels.terms else 0.0
    return cycles


cdef inline double tile_cycles(StepCycles step, Py_ssize_t mr, int vectors, double near) noexcept nogil:
    """One step of a tile: bound by FMAs, broadcasts, loads, latency of few sums, or the cache that holds B."""
    return (max(step.fma * mr * vectors, step.row * mr, 0.5 * (mr + vectors), 4.0, near * vectors)
            + step.broadcast * mr + 0.06 * (mr + vectors) + 0.25)


cdef double panel_cycles(StepCycles step, const Tiling* a, int vectors, double near,
                         double far) noexcept nogil:
    """One step of all tiles of a panel of B.

    `near`: cycles to load a vector of B for each tile; `far`: to load it for the first tile. The panel is prefetched
    during the panel before, or during its first tile where A has few tiles (see plan_prefetch).
    """
    cdef double first = tile_cycles(step, a.mr + (a.taller > 0), vectors, near)
    cdef double all = (a.taller * tile_cycles(step, a.mr + 1, vectors, near)
                       + (a.tiles - a.taller) * tile_cycles(step, a.mr, vectors, near))
    return max(all, far * vectors) if a.tiles >= vectors else all + max(0.0, far * vectors - first)


cdef double cycles_per_row(const Plan* plan, Py_ssize_t rows) noexcept nogil:
    """One step for each of so many columns of A: tiles of smaller MR take longer per column."""
    cdef Tiling a = a_tiling(rows, plan.kernels.mr[plan.vectors])
    return panel_cycles(plan.step_cycles, &a, plan.vectors, 0.0, 0.0) / rows


cdef bint evict_each_other(Py_ssize_t step, Py_ssize_t lines, Py_ssize_t way) noexcept nogil:
    """Do so many cache lines, `step` floats apart, map to so few sets of a cache that they evict each other?

    Sets repeat after way / gcd(step, way) lines, where `way` is the bytes of one way; a set is taken to hold eight.
    """
    cdef Py_ssize_t bytes = length_of(step) * <Py_ssize_t> sizeof(float), divisor = way, rest
    while bytes:
        rest = divisor % bytes
        divisor = bytes
        bytes = rest
    return 8 * (way // max(divisor, <Py_ssize_t> 64)) < lines


cdef double expected_packing(const Problem* problem, const Plan* plan) noexcept nogil:
    """Expected cycles to pack the pixels of a group once: runs are copied, squares transposed, or elements moved."""
    cdef size_t vector_bytes = plan.kernels.lanes * sizeof(float)
    cdef bint long_vectors = vector_bytes >= 64
    cdef double vector = 2.0 * plan.kernels.lanes
    if plan.rowwise or problem.x_step == 1:
        vector = 6.0 if long_vectors else vector_bytes * (1.5 / 32)
        if not long_vectors and not plan.rowwise and plan.prefetch_distance == 0 and (
                evict_each_other(problem.x_channel_step, problem.k, L2_WAY)):
            vector = vector_bytes * (4.5 / 32)     # short runs that nothing prefetches come from beyond the cache
    elif problem.x_channel_step == 1:
        vector = vector_bytes * (6.0 / 32)
    vector += (3.0 if problem.transformed else 0.0) + (6.0 if plan.kernels.terms else 0.0)
    return vector * problem.pixels * problem.k / plan.kernels.lanes


cdef double expected_cycles(const Problem* problem, const Plan* plan) noexcept nogil:
    """Expected cycles of the whole layer on one thread."""
    cdef const kernel_set_t* kernels = plan.kernels
    cdef Tiling pixels = pixel_tiling(plan, problem.pixels)
    cdef Tiling outs = plan.out_tiling
    cdef const Tiling* b = &pixels if plan.pixels_in_b else &outs
    cdef const Tiling* a = &outs if plan.pixels_in_b else &pixels
    cdef int last_vectors = vectors_for(kernels, b.extent - (b.tiles - 1) * b.nr)
    cdef size_t vector_bytes = kernels.lanes * sizeof(float)
    cdef bint long_vectors = vector_bytes >= 64      # a whole cache line
    cdef Py_ssize_t column = column_floats(kernels, plan.kc)
    cdef Py_ssize_t weights = weight_bytes(kernels, problem.k, problem.outs)
    # A panel of B too big for the first-level cache comes from the second one, at about 30 bytes a cycle (15 where
    # vectors are shorter). If all B is too big for that, panels come from beyond, at about 12.
    cdef size_t panel = column * plan.vectors * vector_bytes
    cdef bint lines_apart = not plan.packed and not plan.rowwise and problem.x_channel_step >= 16
    if plan.pixels_in_b and lines_apart and not long_vectors:
        # Channels of pixels that are read in place are on cache lines of their own, of which a tile has a part.
        panel += column * (64 - sizeof(float))
    cdef bint panel_exceeds_l1 = 4 * panel >= 3 * cache_bytes[1]
    cdef double near = vector_bytes / (30.0 if long_vectors else 15.0) if panel_exceeds_l1 else 0.0
    cdef bint b_exceeds_l2 = 2 * b.extent * column_floats(kernels, problem.k) * sizeof(float) > cache_bytes[2]
    cdef double far = vector_bytes / 12.0 if b_exceeds_l2 else 0.0
    cdef double step = ((b.tiles - 1) * panel_cycles(plan.step_cycles, a, plan.vectors, near, far)
                        + panel_cycles(plan.step_cycles, a, last_vectors, near, far))
    cdef double vectors_out = <double> a.extent * ceil_div(b.extent, kernels.lanes)
    cdef double vectors_in = <double> problem.pixels * problem.k / kernels.lanes
    cdef double cycles = ceil_div(problem.k, kernels.k_step) * step + 40.0 * b.tiles * a.tiles
    cdef bint y_along_b = (problem.y_step if plan.pixels_in_b else problem.y_channel_step) == problem.y_item
    # Vectors that are multiplied at half the rate are shuffled at half the rate, too.
    cdef double shuffle = 1.0 if plan.step_cycles.fma >= 1.0 and not kernels.terms else 0.5
    # A tile is stored in place if y is contiguous along B. Else it is transposed, in runs of MR.
    cycles += vectors_out * ((1.0 if y_along_b else 2.0 + 12.0 * shuffle * kernels.lanes * a.tiles / a.extent)
                             + (0.0 if problem.plain else 5.0))
    if plan.pixels_in_b:
        # Rows of different channels lie on different pages: tiles with large NR visit each page less often.
        cycles += b.tiles * (a.extent * (1.5 if problem.y_channel_step >= 4096 else 0.0)
                             + problem.k * (1.5 if not plan.packed and problem.x_channel_step >= 1024 else 0.0))
    elif not plan.packed and not plan.rowwise and (
            problem.x_channel_step >= 1024 or evict_each_other(problem.x_channel_step, plan.kc, L1_WAY)):
        # Each tile reads a part of its cache lines, and the lines are evicted before the next tile reads on.
        cycles += a.tiles * problem.k * 3.0
        if panel_exceeds_l1 and evict_each_other(problem.x_channel_step, plan.kc // 4, L1_WAY):
            # Neither operand of a tile is in the first-level cache.
            cycles += 0.8 * a.tiles * b.tiles * problem.k
    if not plan.pixels_in_b and lines_apart and panel + 64 * column > cache_bytes[1] and 16 > a.mr:
        # The same where pixels are columns of A: the more of them are in a line, the less of the cache is wasted. Where
        # long vectors are multiplied at half the rate, the lines arrive meanwhile.
        cycles += <double> a.tiles * b.tiles * problem.k * (16.0 / a.mr - 1.0) * min(
            1.0, 1.0 / plan.step_cycles.fma - 1.0)
    if not plan.pixels_in_b and not plan.rowwise and not long_vectors:
        # Measured: tiles of few pixels that are not read row by row are slower than tiles of as many out channels.
        cycles += (0.45 if plan.packed else 0.6) * a.tiles * b.tiles * plan.vectors * problem.k
    if plan.rowwise and not plan.packed and problem.x_step % 1024 == 0:
        # Rows that are whole pages apart share sets of the first-level cache, from which they evict each other: more of
        # them than a set has ways before their lines are read to the end.
        cycles += (0.7 * a.mr if a.mr > <Py_ssize_t> cache_bytes[1] // L1_WAY else 0.4) * a.tiles * b.tiles * problem.k
    # Tiles across the end of a run are packed, and stored through scratch.
    if problem.x_run < problem.pixels and not plan.packed:
        cycles += vectors_in * 6.0 * min(1.0, <double> problem.pixels / pixels.tiles / problem.x_run)
    if problem.y_run < problem.pixels:
        cycles += vectors_out * 5.0 * min(1.0, <double> problem.pixels / pixels.tiles / problem.y_run)
    if plan.packed and problem.k > 0:
        # Again for each block of out channels.
        cycles += expected_packing(problem, plan) * out_blocks_for(
            problem.k, problem.outs, plan, min(problem.pixels, cache_share() // column))
    elif not plan.rowwise:
        # Each pass over a strip reads K lines, which may be far apart and map to few sets of the cache.
        cycles += vectors_in * ((a.tiles if plan.pixels_in_b else b.tiles) - 1) * (
            4.0 if evict_each_other(problem.x_channel_step, plan.kc, L2_WAY)
            else 0.0 if not plan.pixels_in_b
            else 0.6 if evict_each_other(problem.x_channel_step, plan.kc, L1_WAY) else 0.1)
    if plan.pixels_in_b and weights > <Py_ssize_t> cache_bytes[2]:
        # Weights beyond the cache are operand A, which is not prefetched; once for each block of pixels.
        cycles += (<double> weights / vector_bytes * (3.0 if weights_are_far(problem, kernels) else 0.5)
                   * ceil_div(problem.pixels * column, cache_share()))
    if problem.weights_step:
        cycles += <double> problem.outs * problem.k / kernels.lanes * (
            2.0 if problem.weights_step == sizeof(float) else 6.0)
    return cycles * problem.groups * problem.spans
