# Special values, which have no exact enough split into bfloat16 terms (see split.h): infinities, and numbers too large
# or too small. The sums of pixels and out channels that hold one are recomputed in float32, and have the bits that
# precision="highest" gives. NaN has a split and needs no recomputation.

cdef inline const uint32_t* special_marks(const Step* step, const Block* block, bint of_pixels) noexcept nogil:
    """The marks of a block's pixels, or of its group's out channels."""
    return block.special_pixels if of_pixels else step.special_outs + block.group * step.outs


cdef bint pixels_have_one_term(const Step* step, const Block* block) noexcept nogil:
    """Does one bfloat16 hold every value of the pixels' type?"""
    cdef int i, kind
    for i in range(block.x_parts):
        kind = block.x[i].kind
        if kind != KIND_UINT8 and kind != KIND_INT8 and kind != KIND_BFLOAT16:
            return False
    return step.in_scale == NULL


cdef bint has_special_values(const Step* step, const Block* block, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t column,
                             Py_ssize_t columns) noexcept nogil:
    """Is any of these columns of A (`rows` of C) or of B marked?"""
    cdef const uint32_t* special_a = special_marks(step, block, not step.plan.pixels_in_b) + row
    cdef const uint32_t* special_b = special_marks(step, block, step.plan.pixels_in_b) + column
    cdef uint32_t special = 0
    cdef Py_ssize_t i
    for i in range(columns):
        special |= special_b[i]
    for i in range(rows):
        special |= special_a[i]
    return special != 0


cdef void gather_operand(const Step* step, const Block* block, bint pixels, Py_ssize_t first, Py_ssize_t count,
                         Py_ssize_t width, float* dst) noexcept nogil:
    """Copies pixels of a block, or out channels, as float32 into a panel."""
    cdef pack_t pack
    if pixels:
        gather_pixels(step, block, False, block.first + first, count, width, dst)
        return
    pack.src = (step.raw.data + (block.group * step.outs + first) * step.raw.out_step
                + block.first_k * step.raw.in_step)
    pack.kind = KIND_FLOAT32
    pack.step = step.raw.out_step
    pack.channel_step = step.raw.in_step
    pack.count = count
    pack.k = block.k
    pack.dst = dst
    pack.width = width
    pack.panel = pack.at = 0
    pack.scale = pack.shift = NULL
    step.plan.isa.pack(&pack)


cdef void recompute_tile(const Step* step, const Block* block, float* sum, Py_ssize_t row, Py_ssize_t rows,
                         Py_ssize_t column, Py_ssize_t columns, int vectors) noexcept nogil:
    """Computes a whole tile in float32, and replaces the sums of its special pixels and out channels."""
    cdef const Plan* plan = &step.plan
    cdef const kernel_set_t* kernels = &plan.isa.float32
    cdef const uint32_t* special_a = special_marks(step, block, not plan.pixels_in_b) + row
    cdef const uint32_t* special_b = special_marks(step, block, plan.pixels_in_b) + column
    cdef Float32Tile* scratch = &block.split.tile
    cdef Py_ssize_t width = vectors * kernels.lanes, i, j, n
    cdef Block part = block[0]
    cdef tile_t tile
    memset(&tile, 0, sizeof(tile_t))
    part.first_k = 0
    while True:
        part.k = min(<Py_ssize_t> SUM_BLOCK, step.k - part.first_k)
        gather_operand(step, &part, plan.pixels_in_b, column, columns, width, scratch.b)
        gather_operand(step, &part, not plan.pixels_in_b, row, rows, rows, scratch.a)
        tile.first = part.first_k == 0
        tile.steps = part.k
        i = 0
        while i < rows:
            n = min(<Py_ssize_t> kernels.mr[vectors], rows - i)
            tile.a = tile.prefetch = <char*> (scratch.a + i)
            tile.a_step = rows * sizeof(float)
            tile.b = <char*> scratch.b
            tile.b_step = width * sizeof(float)
            tile.partial = scratch.partial + i * width
            kernels.micro_kernel[0][vectors][n](&tile)
            i += n
        part.first_k += part.k
        if part.first_k >= step.k:
            break
    for i in range(rows):
        for j in range(columns):
            if special_a[i] or special_b[j]:
                sum[i * width + j] = scratch.partial[i * width + j]
