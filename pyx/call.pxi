# One layer, once: from arguments to a result.

cdef object convolve(Recipe recipe, Layer layer, weight, bias, x, input_scale, input_shift, output_scale, residual, out,
                     num_threads):
    """A call: as it stands if all is plainly good, else once more with what pwconv.arguments makes of it."""
    y = attempt(recipe, layer, weight, bias, x, input_scale, input_shift, output_scale, residual, out, num_threads,
                False)
    if y is not None:
        return y
    if layer is None:
        matrix = explain().weight_matrix(weight, recipe.spec)
        vector = explain().bias_vector(bias, matrix.shape[0])
        call = explain().check_call(recipe.spec, matrix.shape, x, input_scale, input_shift, output_scale, residual,
                                    out, num_threads, weight, bias)
        recipe = recipe if recipe.spec.weight_layout == "OI" else Recipe(recipe.spec._replace(weight_layout="OI"))
    else:
        matrix = vector = None
        call = explain().check_call(recipe.spec, layer.matrix.shape, x, input_scale, input_shift, output_scale,
                                    residual, out, num_threads)
    y = attempt(recipe, layer, matrix, vector, call.x, call.input_scale, call.input_shift, call.output_scale,
                call.residual, call.out, call.num_threads, True)
    if y is None:
        raise SystemError("pwconv: arguments that were found good cannot be computed; please report this")
    return y if out is None else out


cdef object attempt(Recipe recipe, Layer layer, weight, bias, x, input_scale, input_shift, output_scale, residual, out,
                    num_threads, bint checked):
    """Computes the call if its arguments are plainly good (`checked`: out's memory is known to be apart); else None."""
    cdef Buffers buffers
    cdef Input inputs
    memset(buffers.held, 0, sizeof(buffers.held))
    inputs.held = 0
    inputs.map = &inputs.one_map
    try:
        if not (hold_input(&inputs, x) and hold(&buffers, WEIGHT, weight) and hold(&buffers, BIAS, bias)
                and hold(&buffers, INPUT_SCALE, input_scale) and hold(&buffers, INPUT_SHIFT, input_shift)
                and hold(&buffers, OUTPUT_SCALE, output_scale) and hold(&buffers, RESIDUAL, residual)
                and hold(&buffers, OUT, out)):
            return None
        return compute(recipe, layer, &inputs, &buffers, out, num_threads, checked)
    finally:
        release(&buffers)
        release_input(&inputs)


cdef Py_ssize_t channels_of(Recipe recipe, const Input* x) noexcept:
    """The channels of all maps together; -1 if the maps differ in another axis, or do not fit the layout."""
    cdef Py_ssize_t channels = 0
    cdef int i, axis
    for i in range(x.count):
        if x.view[i].ndim != recipe.rank:
            return -1
        for axis in range(recipe.rank):
            if axis != recipe.x_axes.channel and x.view[i].shape[axis] != x.view[0].shape[axis]:
                return -1
        channels += x.view[i].shape[recipe.x_axes.channel]
    return channels


cdef Py_ssize_t shape_of_result(Recipe recipe, const Py_buffer* x, const Axes* y, Py_ssize_t outs,
                                Py_ssize_t* shape) noexcept:
    """Fills in the result's shape and returns its elements; -1 if no address space can hold them."""
    cdef Py_ssize_t size = outs
    cdef int i, axis
    shape[y.channel] = outs
    for i in range(recipe.x_axes.pixel_axes):
        axis = y.pixel[i]
        shape[axis] = ceil_div(x.shape[recipe.x_axes.pixel[i]], recipe.stride[i])
        if size and shape[axis] > PY_SSIZE_T_MAX // <Py_ssize_t> sizeof(float) // size:
            return -1
        size *= shape[axis]
    return size


cdef object compute(Recipe recipe, Layer layer, Input* x, Buffers* buffers, out, num_threads, bint checked):
    """The part of attempt() in which all buffers are held."""
    cdef Py_ssize_t groups = recipe.groups
    cdef Py_ssize_t shape[MAX_AXES]
    cdef Py_ssize_t batch, spans, size, in_channels
    cdef int i, threads
    cdef bint apart
    cdef Weights weights

    # Are shapes, tables, threads and memory plainly good?
    recipe = recipe.of_rank(x.view[0].ndim)
    threads = threads_for(num_threads)
    if recipe is None or threads == 0:
        return None
    if layer is None:
        if not weights_are_plain(buffers, recipe.spec.weight_layout, groups):
            return None
        weights = weights_of(buffers, recipe.spec.weight_layout)
    else:
        weights = layer.weights
    in_channels = weights.depth * groups
    if channels_of(recipe, x) != in_channels:
        return None
    batch = x.view[0].shape[recipe.x_axes.batch] if recipe.x_axes.batch >= 0 else 1
    if not (is_table(buffers, INPUT_SCALE, batch, in_channels) and is_table(buffers, INPUT_SHIFT, batch, in_channels)
            and is_table(buffers, OUTPUT_SCALE, batch, weights.outs)):
        return None
    size = shape_of_result(recipe, &x.view[0], &recipe.y_axes, weights.outs, shape)
    if size < 0:
        return None
    for i in (RESIDUAL, OUT):
        if buffers.held[i] and not has_shape(&buffers.view[i], shape, recipe.rank):
            return None
    if buffers.held[OUT] and size and not checked and not out_is_apart(x, buffers):
        return None

    # Weights and scales may have been broadcast: their copies, padded to whole vectors, need not fit any memory.
    if ((<double> weights.outs + 64 * groups) * (weights.depth + 64)
            + 2.0 * batch * (<double> in_channels + weights.outs + 64 * groups) > 1LL << 46):
        raise MemoryError(f"no memory holds a packed weight of shape ({weights.outs}, {weights.depth}) and its scales")

    y = out
    if out is None:
        y = numpy_empty(shape_tuple(shape, recipe.rank), float32)
        if not hold(buffers, OUT, y):
            return None
    if size == 0:
        return y

    # The step, but for what depends on the plan; then the plan.
    apart = batch > 1 and (is_per_image(buffers, INPUT_SCALE) or is_per_image(buffers, INPUT_SHIFT)
                           or is_per_image(buffers, OUTPUT_SCALE))
    spans = batch if apart else 1
    cdef Program program
    cdef Step step
    program.steps = &step
    program.count = 1
    program.head.code = HEAD_NONE
    program.unpacked = NULL
    program.pixels = size // weights.outs // spans
    describe_step(&step, recipe, &weights)
    read_input(&step, recipe, x, apart)
    step.y_is_scratch = False
    map_of(&buffers.view[OUT], KIND_FLOAT32, &recipe.y_axes, NULL, apart, &step.y)
    if buffers.held[RESIDUAL]:
        map_of(&buffers.view[RESIDUAL], KIND_FLOAT32, &recipe.y_axes, NULL, apart, &step.residual)
    step.plain = step.plain and not buffers.held[RESIDUAL] and not buffers.held[OUTPUT_SCALE]
    step.transformed = step.transformed or buffers.held[INPUT_SCALE] or buffers.held[INPUT_SHIFT]
    plan_step(&step, &step.x[0], spans, program.pixels, 0 if layer is not None else weights.in_step,
              free_threads(threads), &program.schedule)
    program.schedule.threads = pwconv_startable(program.schedule.threads, forked)
    lay_out(&program)

    # Memory for all that is made for this call only, then the call.
    cdef size_t at = program.schedule.threads * program.thread_bytes
    cdef size_t weight_bytes = packed_bytes(&step.plan, step.depth, groups)
    cdef size_t table = aligned(groups * step.channel_pitch * sizeof(float))
    cdef size_t bytes = at
    if layer is None:
        bytes += weight_bytes + 2 * table
    if buffers.held[OUTPUT_SCALE]:
        bytes += batch * table
    if step.transformed:
        bytes += batch * 2 * channel_pitch(in_channels) * sizeof(float)
    cdef Memory memory = take_memory(bytes)
    cdef Memory _packed = None     # keeps the layer's packed weights alive
    cdef char* data = memory.data
    if layer is None:
        program.unpacked = <float*> (data + at)
        use_weights(&step, program.unpacked)
        at += weight_bytes
        step.bias = fill_tables(NULL, weights.bias, 0.0, groups, step.outs, data, &at, NULL)
        step.scale = fill_tables(NULL, NULL, 1.0, groups, step.outs, data, &at, NULL)
    else:
        _packed = use_layer(&step, layer)
    if buffers.held[OUTPUT_SCALE]:
        step.scale = fill_tables(&buffers.view[OUTPUT_SCALE], NULL, 1.0, groups, step.outs, data, &at,
                                 &step.scale_span)
    if step.transformed:
        step.in_scale = fill_tables(&buffers.view[INPUT_SCALE] if buffers.held[INPUT_SCALE] else NULL, NULL, 1.0, 1,
                                    in_channels, data, &at, &step.in_scale_span)
        step.in_shift = fill_tables(&buffers.view[INPUT_SHIFT] if buffers.held[INPUT_SHIFT] else NULL, NULL, 0.0, 1,
                                    in_channels, data, &at, &step.in_shift_span)
    run_released(&program, memory)
    return y


cdef int run_released(Program* program, Memory memory) except -1:
    """Runs a program without the GIL, its threads counted as busy, and gives its memory back."""
    global busy_threads
    cdef Running running
    cdef int threads = program.schedule.threads
    cdef bint aside = forked and threads > 1
    running.program = program
    running.memory = memory.data
    busy_threads += threads
    with nogil:
        if not aside:
            run_running(&running)
        elif not pwconv_run_aside(run_running, &running):
            program.schedule.threads = 1
            run_running(&running)
    busy_threads -= threads
    return give_back(memory)


cdef struct Running:
    const Program* program
    char* memory


cdef void run_running(void* running) noexcept nogil:
    run_program((<Running*> running).program, (<Running*> running).memory)


cdef void read_input(Step* step, Recipe recipe, Input* x, bint apart) noexcept:
    """Makes the maps of x the input of a step."""
    cdef int i
    for i in range(x.count):
        map_of(&x.view[i], x.map[i].kind, &recipe.x_axes, recipe.stride, apart, &x.map[i])
    step.x = x.map
    step.x_parts = x.count


cdef void describe_step(Step* step, Recipe recipe, const Weights* weights) noexcept:
    """What a step takes from its layer's constructor arguments."""
    step.raw = weights[0]
    step.precision = recipe.precision
    step.depth = weights.depth
    step.groups = recipe.groups
    step.outs = weights.outs // recipe.groups
    step.channel_pitch = channel_pitch(step.outs)
    step.before = recipe.before
    step.after = recipe.after
    step.plain = step.after.code <= ACT_CLIP
    step.transformed = step.before.code != ACT_NONE
    step.scale_span = step.in_scale_span = step.in_shift_span = 0
    step.in_scale = step.in_shift = NULL
    step.residual.data = NULL


cdef void plan_step(Step* step, const FeatureMap* x, Py_ssize_t spans, Py_ssize_t pixels, Py_ssize_t weights_step,
                    int threads, Schedule* schedule) noexcept:
    """Plans a step that reads the map x, and schedules it as if it were alone."""
    cdef const PlanSlot* slot
    cdef Problem p
    p.isa = active_isa
    p.precision = step.precision
    p.threads = threads
    p.thread_cycles = cycles_per_thread()
    p.spans = spans
    p.pixels = pixels
    p.groups = step.groups
    p.depth = step.depth
    p.outs = step.outs
    p.x_run = x.size[x.axes - 1]
    p.x_step = x.step[x.axes - 1] // x.item if x.step[x.axes - 1] % x.item == 0 else 0
    p.x_channel_step = x.channel_step // x.item if x.channel_step % x.item == 0 else 0
    p.y_run = step.y.size[step.y.axes - 1]
    p.y_step = step.y.step[step.y.axes - 1]
    p.y_channel_step = step.y.channel_step
    p.plain = step.plain
    p.transformed = step.transformed
    p.in_parts = step.x_parts > 1 or x.kind != KIND_FLOAT32
    p.weights_step = weights_step
    slot = plan_for(&p)
    step.plan = slot.plan
    step.group_weights = packed_floats(&step.plan, step.depth)
    schedule[0] = slot.schedule


cdef void use_weights(Step* step, const float* packed) noexcept:
    """Points a planned step to its packed weights."""
    step.weights = packed
    step.odd_outs = odd_outs(&step.plan, step.depth, step.groups, packed)


cdef Memory use_layer(Step* step, Layer layer):
    """Points a planned step to its layer's tables and packed weights, and returns what must be kept meanwhile."""
    cdef Memory packed = layer.packed_for(&step.plan)
    use_weights(step, <const float*> packed.data)
    step.bias = <const float*> layer.tables.data
    step.scale = step.bias + step.groups * step.channel_pitch
    return packed


cdef object numpy_empty = numpy.empty
cdef object float32 = numpy.dtype(numpy.float32)


cdef tuple shape_tuple(const Py_ssize_t* shape, int rank):
    if rank == 4:
        return (shape[0], shape[1], shape[2], shape[3])
    return tuple([shape[i] for i in range(rank)])


cdef bint has_shape(const Py_buffer* view, const Py_ssize_t* shape, int rank) noexcept:
    return view.ndim == rank and memcmp(view.shape, shape, rank * sizeof(Py_ssize_t)) == 0


cdef bint is_per_image(const Buffers* buffers, int which) noexcept:
    return buffers.held[which] and buffers.view[which].ndim == 2


cdef const float* fill_tables(const Py_buffer* view, const char* values, float otherwise, Py_ssize_t groups,
                              Py_ssize_t channels, char* data, size_t* at, Py_ssize_t* span) noexcept:
    """A table of channels for all images, or one each, from a buffer or from `values`, at `data + at`.

    Moves `at` past it, and tells the floats between images.
    """
    cdef float* table = <float*> (data + at[0])
    cdef Py_ssize_t floats = groups * channel_pitch(channels)
    cdef Py_ssize_t images = view.shape[0] if view != NULL and view.ndim == 2 else 1, image
    if view != NULL:
        values = <const char*> view.buf
    for image in range(images):
        fill_table(table + image * floats,
                   values + image * groups * channels * sizeof(float) if values != NULL else NULL, otherwise, groups,
                   channels)
    at[0] += aligned(images * floats * sizeof(float))
    if span != NULL:
        span[0] = floats if images > 1 else 0
    return table


cdef enum:
    RECIPES = 512

cdef dict recipes = {}


cdef bint is_name(object value) noexcept:
    return value is None or type(value) is str


def pointwise_conv(x, weight, bias, stride, groups, layout, out_layout, weight_layout, input_scale, input_shift,
                   input_activation, output_scale, residual, activation, out, precision, num_threads, backend, /):
    """See pwconv.pointwise_conv."""
    cdef Recipe recipe = None
    # Only exact types may stand for what was parsed before: True == 1 == 1.0, yet only one of them is an int.
    cdef bint plain = (
        PyLong_CheckExact(stride) and PyLong_CheckExact(groups) and is_name(layout) and is_name(out_layout)
        and is_name(weight_layout) and is_name(input_activation) and is_name(activation) and is_name(precision)
        and is_name(backend))
    key = None
    if plain:
        key = (stride, groups, layout, out_layout, weight_layout, input_activation, activation, precision, backend)
        recipe = recipes.get(key)
    if recipe is None:
        recipe = Recipe(explain().parse_spec(
            stride=stride, groups=groups, layout=layout, out_layout=out_layout, weight_layout=weight_layout,
            input_activation=input_activation, activation=activation, precision=precision, backend=backend))
        if plain:
            if len(recipes) >= RECIPES:
                recipes.clear()
            recipes[key] = recipe
    if recipe.on_numpy:
        from pwconv import reference
        return reference.pointwise_conv(
            x, weight, bias, stride=stride, groups=groups, layout=layout, out_layout=out_layout,
            weight_layout=weight_layout, input_scale=input_scale, input_shift=input_shift,
            input_activation=input_activation, output_scale=output_scale, residual=residual, activation=activation,
            out=out, precision=precision, num_threads=num_threads, backend=backend)
    return convolve(recipe, None, weight, bias, x, input_scale, input_shift, output_scale, residual, out, num_threads)
