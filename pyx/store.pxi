# Storing tiles that a micro-kernel cannot store by itself: the rest of the epilogue, and any strides of the result.

cdef void copy_tile(const Plan* plan, const FeatureMap* m, Py_ssize_t span, bint to_map, float* tile, Py_ssize_t pitch,
                    Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t out, Py_ssize_t outs) noexcept nogil:
    """Copies a tile into a feature map (y), or from it (the residual), wherever its pixels lie."""
    cdef Py_ssize_t done = 0, n, row_step, column_step, rows, columns
    cdef char* in_map
    cdef char* in_tile
    cdef Run run
    while done < pixels:
        run = run_from(m, pixel + done)
        n = min(run.count, pixels - done)
        in_map = run.at + span * m.span_step + out * m.channel_step
        if plan.pixels_in_b:
            in_tile = <char*> (tile + done)
            row_step = m.channel_step
            column_step = run.step
            rows = outs
            columns = n
        else:
            in_tile = <char*> (tile + done * pitch)
            row_step = run.step
            column_step = m.channel_step
            rows = n
            columns = outs
        if to_map:
            plan.isa.copy(in_map, row_step, column_step, in_tile, pitch * sizeof(float), sizeof(float), rows, columns)
        else:
            plan.isa.copy(in_tile, pitch * sizeof(float), sizeof(float), in_map, row_step, column_step, rows, columns)
        done += n


cdef void store_tile(const Step* step, const Block* block, float* sum, Py_ssize_t pixel, Py_ssize_t pixels,
                     Py_ssize_t out, Py_ssize_t outs, int vectors, bint finished) noexcept nogil:
    """Applies the epilogue to a tile in scratch, unless the micro-kernel `finished` it, and stores it."""
    cdef const Plan* plan = &step.plan
    cdef Py_ssize_t pitch = vectors * plan.kernels.lanes
    cdef Py_ssize_t channel = block.group * step.outs + out
    cdef epilogue_t epilogue
    if not finished:
        epilogue.sum = sum
        epilogue.rows = outs if plan.pixels_in_b else pixels
        epilogue.vectors = vectors
        epilogue.pitch = pitch
        epilogue.bias = step.bias + block.group * step.channel_pitch + out
        epilogue.scale = step.scale + block.span * step.scale_span + block.group * step.channel_pitch + out
        epilogue.channels_in_b = not plan.pixels_in_b
        epilogue.residual = NULL
        epilogue.activation = step.after
        if step.residual.data != NULL:
            copy_tile(plan, &step.residual, block.span, False, block.residual, pitch, pixel, pixels, channel, outs)
            epilogue.residual = block.residual
        plan.isa.epilogue(&epilogue)
    copy_tile(plan, block.y, block.span, True, sum, pitch, pixel, pixels, channel, outs)
