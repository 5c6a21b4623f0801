# Storing tiles that a micro-kernel cannot store by itself: the rest of the epilogue, and any strides of the result.

cdef void put_rectangle(const isa_t* isa, const FeatureMap* m, Py_ssize_t span, const float* src, Py_ssize_t pitch,
                        bint pixels_in_rows, Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t channel,
                        Py_ssize_t channels) noexcept nogil:
    """Stores float32 from scratch into a feature map, rounded to its type, wherever its pixels lie.

    Each row of scratch holds the pixels of one channel, or (`pixels_in_rows` False) the channels of one pixel.
    """
    cdef Py_ssize_t done = 0, n
    cdef unpack_t unpack
    cdef Run run
    unpack.far = m.far
    unpack.kind = m.kind
    unpack.pitch = pitch
    while done < pixels:
        run = run_from(m, pixel + done)
        n = min(run.count, pixels - done)
        unpack.y = run.at + span * m.span_step + channel * m.channel_step
        if pixels_in_rows:
            unpack.src = src + done
            unpack.channels = channels
            unpack.pixels = n
            unpack.channel_step = m.channel_step
            unpack.step = run.step
        else:                      # transposed: the kernel's planes are pixels
            unpack.src = src + done * pitch
            unpack.channels = n
            unpack.pixels = channels
            unpack.channel_step = run.step
            unpack.step = m.channel_step
        isa.unpack(&unpack)
        done += n


cdef void get_rectangle(const isa_t* isa, const FeatureMap* m, Py_ssize_t span, float* dst, Py_ssize_t pitch,
                        bint pixels_in_rows, Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t channel,
                        Py_ssize_t channels) noexcept nogil:
    """The reverse of put_rectangle(): copies a rectangle of a feature map into scratch, widened to float32."""
    cdef Run run
    cdef pack_t pack
    pack.kind = m.kind
    pack.channel_step = m.channel_step
    pack.k = channels
    pack.dst = dst
    pack.width = pitch
    pack.panel = 0
    pack.scale = pack.shift = NULL
    pack.at = 0
    while pack.at < pixels:
        run = run_from(m, pixel + pack.at)
        pack.src = run.at + span * m.span_step + channel * m.channel_step
        pack.step = run.step
        pack.count = min(run.count, pixels - pack.at)
        if pixels_in_rows:
            isa.pack(&pack)
        else:
            isa.pack_rows(&pack)
        pack.at += pack.count


cdef void apply_epilogue(const Step* step, const Block* block, float* sum, Py_ssize_t pitch, int vectors,
                         bint pixels_in_rows, Py_ssize_t pixel, Py_ssize_t pixels, Py_ssize_t out,
                         Py_ssize_t outs) noexcept nogil:
    """Applies the epilogue to sums in scratch, laid out as for put_rectangle(); `out`: the first, within its group."""
    cdef const Plan* plan = &step.plan
    cdef epilogue_t epilogue
    epilogue.sum = sum
    epilogue.rows = outs if pixels_in_rows else pixels
    epilogue.vectors = vectors
    epilogue.pitch = pitch
    epilogue.bias = step.bias + block.group * step.channel_pitch + out
    epilogue.scale = step.scale + block.span * step.scale_span + block.group * step.channel_pitch + out
    epilogue.channels_in_b = not pixels_in_rows
    epilogue.residual = NULL
    epilogue.activation = step.after
    if step.residual.data != NULL:
        get_rectangle(plan.isa, &step.residual, block.span, block.residual, pitch, pixels_in_rows, pixel, pixels,
                      block.group * step.outs + out, outs)
        epilogue.residual = block.residual
    plan.isa.epilogue(&epilogue)


cdef void store_tile(const Step* step, const Block* block, float* sum, Py_ssize_t pixel, Py_ssize_t pixels,
                     Py_ssize_t out, Py_ssize_t outs, int vectors, bint finished) noexcept nogil:
    """Applies the epilogue to a tile in scratch, unless the micro-kernel `finished` it, and stores it."""
    cdef const Plan* plan = &step.plan
    cdef Py_ssize_t pitch = vectors * plan.kernels.lanes
    if not finished:
        apply_epilogue(step, block, sum, pitch, vectors, plan.pixels_in_b, pixel, pixels, out, outs)
    put_rectangle(plan.isa, block.y, block.span, sum, pitch, plan.pixels_in_b, pixel, pixels,
                  block.group * step.outs + out, outs)
