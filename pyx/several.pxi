# Several layers over the same pixels in one pass: chains and branches.

cdef enum:
    MIN_BLOCK_OF_STEPS = 48        # pixels; smaller blocks waste more lanes of tiles than the cache saves


cdef Py_ssize_t block_for_steps(const Program* program, int threads) noexcept:
    """Pixels in a block whose maps between the steps, and the panels beside them, stay in the second-level cache."""
    cdef Py_ssize_t floats = 0, packed = 0, blocks, block, i
    for i in range(program.count):
        if program.steps[i].y_is_scratch:
            floats += program.steps[i].groups * program.steps[i].outs
        packed = max(packed, min(program.steps[i].k, 2 * SUM_BLOCK))
    block = max(MIN_BLOCK_OF_STEPS, 2 * cache_share() // max(1, floats + packed))
    blocks = ceil_div(program.pixels, block)
    if blocks < 4 * threads:
        blocks = ceil_div(blocks, threads) * threads
    block = ceil_div(program.pixels, blocks)
    return ceil_div(block, 16) * 16 if block >= MIN_BLOCK_OF_STEPS else block


def run_layers(tuple layers, x, tuple residuals, tuple outs, bint branched, num_threads):
    """Runs layers over the same pixels in one pass: each feeds the next, or all read x (`branched`).

    `residuals` and `outs` have one array or None per layer. Where out is None, the layer's result is scratch for the
    next layer only. The caller has checked all arguments.
    """
    cdef int count = len(layers), threads = threads_for(num_threads), i
    cdef Memory made = Memory(), memory
    cdef Buffers* buffers
    cdef Program program
    cdef Input inputs
    made.reserve(count * (aligned(sizeof(Step)) + sizeof(Buffers)))
    memset(made.data, 0, made.size)
    program.steps = <Step*> made.data
    program.count = count
    program.head.code = HEAD_NONE
    program.unpacked = NULL
    buffers = <Buffers*> (made.data + count * aligned(sizeof(Step)))
    inputs.held = 0
    inputs.map = &inputs.one_map
    try:
        if not hold_input(&inputs, x) or threads == 0:
            raise TypeError("x or num_threads was not checked")
        for i in range(count):
            if not hold(&buffers[i], RESIDUAL, residuals[i]) or not hold(&buffers[i], OUT, outs[i]):
                raise TypeError(f"residual or out of layer {i} was not checked")
        if not describe_steps(&program, layers, &inputs, buffers, branched):
            raise ValueError("shapes of x, residuals or outs were not checked")
        if program.pixels > 0:
            _kept = plan_steps(&program, layers, threads)
            memory = take_memory(program.schedule.threads * program.thread_bytes)
            run_released(&program, memory)
    finally:
        for i in range(count):
            release(&buffers[i])
        release_input(&inputs)


cdef bint describe_steps(Program* program, tuple layers, Input* x, Buffers* buffers, bint branched) except -1:
    """Sets all fields that do not depend on plans; False if a shape does not fit."""
    cdef Py_ssize_t shape[MAX_AXES]
    cdef Py_ssize_t channels, size
    cdef EngineSpec spec, first
    cdef Layer layer
    cdef Step* step
    cdef Axes y
    cdef int i, axis
    layer = layers[0]
    first = layer.engine_spec.of_rank(x.view[0].ndim)
    if first is None:
        return False
    channels = channels_of(first, x)
    program.pixels = 1
    program.schedule.spans = 1
    for i in range(first.x_axes.pixel_axes):
        program.pixels *= ceil_div(x.view[0].shape[first.x_axes.pixel[i]], first.stride[i])
    for i in range(program.count):
        layer = layers[i]
        spec = layer.engine_spec.of_rank(x.view[0].ndim)
        if spec is None or layer.weights.k * spec.groups != channels:
            return False
        step = &program.steps[i]
        describe_step(step, spec, layer, &layer.weights)
        if i == 0 or branched:
            if spec.layout != first.layout or memcmp(spec.stride, first.stride, sizeof(first.stride)) != 0:
                return False
            if i == 0:
                read_input(step, first, x, False)
            step.x = x.map
            step.x_parts = x.count
        locate_axes(spec.out_layout, first.layout, &y)
        size = shape_of_result(first, &x.view[0], &y, layer.weights.outs, shape)
        step.y_is_scratch = not buffers[i].held[OUT]
        step.y_pixels_last = not (x.map[0].channel_step == x.map[0].item)
        if size < 0 or (step.y_is_scratch and (branched or i == program.count - 1)):
            return False
        for axis in (RESIDUAL, OUT):
            if buffers[i].held[axis] and not has_shape(&buffers[i].view[axis], shape, y.rank):
                return False
        if not step.y_is_scratch:
            map_of(&buffers[i].view[OUT], KIND_FLOAT32, &y, NULL, False, &step.y)
        if buffers[i].held[RESIDUAL]:
            map_of(&buffers[i].view[RESIDUAL], KIND_FLOAT32, &y, NULL, False, &step.residual)
            step.plain = False
        if not branched:
            channels = layer.weights.outs
    return True


cdef list plan_steps(Program* program, tuple layers, int threads):
    """Cuts the pixels into blocks and plans every step; returns the packed weights, to be kept meanwhile."""
    cdef Schedule alone
    cdef double cycles = 0.0
    cdef const FeatureMap* x = NULL
    cdef Step* step
    cdef list kept = []
    cdef int i, wanted = free_threads(threads)
    cdef Resize* size = &program.head.resize
    program.schedule.pixel_block = block_for_steps(program, wanted)
    program.schedule.pixel_blocks = ceil_div(program.pixels, program.schedule.pixel_block)
    if program.head.code == HEAD_RESIZED:
        # Bands of lines; the line behind each band is computed twice, so bands have at least 8 lines.
        size.band = max(min(8, size.height), program.schedule.pixel_block // size.width)
        program.schedule.pixel_blocks = ceil_div(size.height, size.band)
        program.schedule.pixel_block = (size.band + 1) * size.width
    for i in range(program.count):
        step = &program.steps[i]
        if step.y_is_scratch:
            place_scratch_map(step, program.pixels, program.schedule.pixel_block)
        if step.outs:              # else there is nothing to compute, and the next layer has no in channels
            plan_step(step, step.x if step.x_parts else x, program.schedule.spans, program.pixels, 0, 1, &alone)
            step.plan.out_blocks = out_blocks_for(step.k, step.outs, &step.plan, program.schedule.pixel_block)
            cycles += step.plan.cycles
            kept.append(use_layer(step, layers[i]))
        x = &step.y
    program.schedule.out_parts = 1
    program.schedule.tasks = program.schedule.spans * program.schedule.pixel_blocks
    program.schedule.threads = <int> max(1, min(min(<double> wanted, cycles / cycles_per_thread()),
                                                program.schedule.tasks))
    program.schedule.threads = pwconv_startable(program.schedule.threads, forked)
    lay_out(program)
    return kept
