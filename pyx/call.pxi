# A call of one layer: from arguments to a result.

cdef struct Arguments:
    # The arguments of a call; the references are borrowed from the caller. `array` is indexed by WEIGHT to OUT.
    PyObject* x
    PyObject* array[BUFFERS]
    PyObject* num_threads


cdef object convolve(EngineSpec spec, Layer layer, const Arguments* given):
    """Computes a call on the fast path, or else again with the arguments that pwconv.arguments has checked.

    `layer` is None for the function, whose weights are among the arguments.
    """
    cdef Arguments checked
    y = fast_path(spec, layer, given, False)
    if y is not None:
        return y
    matrix = vector = None
    if layer is None:
        matrix = arguments().weight_matrix(<object> given.array[WEIGHT], spec.spec)
        vector = arguments().bias_vector(<object> given.array[BIAS], matrix.shape[0])
    call = arguments().check_call(
        spec.spec, matrix.shape if layer is None else layer.matrix.shape, <object> given.x,
        <object> given.array[INPUT_SCALE], <object> given.array[INPUT_SHIFT], <object> given.array[OUTPUT_SCALE],
        <object> given.array[RESIDUAL], <object> given.array[OUT], <object> given.num_threads,
        <object> given.array[WEIGHT], <object> given.array[BIAS])
    if layer is None and spec.spec.weight_layout != "OI":
        spec = EngineSpec(spec.spec._replace(weight_layout="OI"))
    x, input_scale, input_shift, output_scale = call.x, call.input_scale, call.input_shift, call.output_scale
    residual, out, num_threads = call.residual, call.out, call.num_threads
    checked.x = <PyObject*> x
    checked.array[:] = [<PyObject*> matrix, <PyObject*> vector, <PyObject*> input_scale, <PyObject*> input_shift,
                        <PyObject*> output_scale, <PyObject*> residual, <PyObject*> out]
    checked.num_threads = <PyObject*> num_threads
    y = fast_path(spec, layer, &checked, True)
    if y is None:
        raise SystemError("pwconv: arguments that were found good cannot be computed; please report this")
    return y if out is None else <object> given.array[OUT]


cdef object fast_path(EngineSpec spec, Layer layer, const Arguments* call, bint checked):
    """Computes a call if its arguments need no checking; else None. `checked`: out is known to overlap no operand."""
    cdef Buffers buffers
    cdef Input x
    cdef int which
    memset(buffers.held, 0, sizeof(buffers.held))
    x.held = 0
    x.map = &x.one_map
    try:
        if not hold_input(&x, <object> call.x):
            return None
        for which in range(BUFFERS):
            if not hold(&buffers, which, <object> call.array[which]):
                return None
        return compute(spec, layer, &x, &buffers, call, checked)
    finally:
        release(&buffers)
        release_input(&x)


cdef Py_ssize_t channels_of(EngineSpec spec, const Input* x) noexcept:
    """The channels of all maps together; -1 if the maps differ in another axis, or do not fit the layout."""
    cdef Py_ssize_t channels = 0
    cdef int i, axis
    for i in range(x.count):
        if x.view[i].ndim != spec.rank:
            return -1
        for axis in range(spec.rank):
            if axis != spec.x_axes.channel and x.view[i].shape[axis] != x.view[0].shape[axis]:
                return -1
        channels += x.view[i].shape[spec.x_axes.channel]
    return channels


cdef Py_ssize_t shape_of_result(EngineSpec spec, const Py_buffer* x, const Axes* y, Py_ssize_t outs,
                                Py_ssize_t* shape) noexcept:
    """Fills in the result's shape and returns its elements; -1 if no address space can hold them."""
    cdef Py_ssize_t size = outs
    cdef int i, axis
    shape[y.channel] = outs
    for i in range(spec.x_axes.pixel_axes):
        axis = y.pixel[i]
        shape[axis] = ceil_div(x.shape[spec.x_axes.pixel[i]], spec.stride[i])
        if size and shape[axis] > PY_SSIZE_T_MAX // <Py_ssize_t> sizeof(float) // size:
            return -1
        size *= shape[axis]
    return size


cdef object compute(EngineSpec spec, Layer layer, Input* x, Buffers* buffers, const Arguments* call, bint checked):
    """The part of fast_path() in which all buffers are held."""
    cdef Py_ssize_t groups = spec.groups
    cdef Py_ssize_t shape[MAX_AXES]
    cdef Py_ssize_t batch, spans, size, in_channels
    cdef int i, threads
    cdef bint per_image
    cdef Weights weights

    # Do shapes, tables, threads and memory need no checking?
    spec = spec.of_rank(x.view[0].ndim)
    threads = threads_for(<object> call.num_threads)
    if spec is None or threads == 0:
        return None
    if layer is None:
        if not weights_need_no_checking(buffers, spec.spec.weight_layout, groups):
            return None
        weights = weights_of(buffers, spec.spec.weight_layout)
    else:
        weights = layer.weights
    in_channels = weights.k * groups
    if channels_of(spec, x) != in_channels:
        return None
    batch = x.view[0].shape[spec.x_axes.batch] if spec.x_axes.batch >= 0 else 1
    if not (is_table(buffers, INPUT_SCALE, batch, in_channels) and is_table(buffers, INPUT_SHIFT, batch, in_channels)
            and is_table(buffers, OUTPUT_SCALE, batch, weights.outs)):
        return None
    size = shape_of_result(spec, &x.view[0], &spec.y_axes, weights.outs, shape)
    if size < 0:
        return None
    for i in (RESIDUAL, OUT):
        if buffers.held[i] and not has_shape(&buffers.view[i], shape, spec.rank):
            return None
    if buffers.held[OUT] and size and not checked and not out_overlaps_nothing(x, buffers):
        return None

    # Weights and scales may be broadcast arrays, whose padded copies no memory can hold.
    if ((<double> weights.outs + 64 * groups) * (weights.k + 64)
            + 2.0 * batch * (<double> in_channels + weights.outs + 64 * groups) > 1LL << 46):
        raise MemoryError(f"no memory holds a packed weight of shape ({weights.outs}, {weights.k}) and its scales")

    y = <object> call.array[OUT]
    if y is None:
        if spec.out_kind == KIND_FLOAT32:
            y = numpy_empty(shape_tuple(shape, spec.rank), float32)
        else:
            y = arguments().empty_result(shape_tuple(shape, spec.rank), spec.spec.out_dtype)
        if not hold(buffers, OUT, y):
            return None
    elif spec.out_kind != KIND_FLOAT32 and spec.out_kind != buffers.kind[OUT]:
        return None
    if size == 0:
        return y

    # The step and its plan. Images with scales of their own are spans, which blocks of pixels do not cross.
    per_image = batch > 1 and (has_batch_axis(buffers, INPUT_SCALE) or has_batch_axis(buffers, INPUT_SHIFT)
                               or has_batch_axis(buffers, OUTPUT_SCALE))
    spans = batch if per_image else 1
    cdef Program program
    cdef Step step
    program.steps = &step
    program.count = 1
    program.head.code = HEAD_NONE
    program.unpacked = NULL
    program.pixels = size // weights.outs // spans
    describe_step(&step, spec, layer, &weights)
    read_input(&step, spec, x, per_image)
    step.y_is_scratch = False
    map_of(&buffers.view[OUT], buffers.kind[OUT], &spec.y_axes, NULL, per_image, &step.y)
    if buffers.held[RESIDUAL]:
        map_of(&buffers.view[RESIDUAL], buffers.kind[RESIDUAL], &spec.y_axes, NULL, per_image, &step.residual)
    step.plain = step.plain and not buffers.held[RESIDUAL] and not buffers.held[OUTPUT_SCALE]
    step.transformed = step.transformed or buffers.held[INPUT_SCALE] or buffers.held[INPUT_SHIFT]
    plan_step(&step, &step.x[0], spans, program.pixels, 0 if layer is not None else weights.in_step,
              free_threads(threads), &program.schedule)
    program.schedule.threads = pwconv_startable(program.schedule.threads, forked)
    program.packs_panels = layer is None and packed_in_panels(&step.plan, &program.schedule, step.k)
    lay_out(&program)

    # Memory for all that is made for this call only, then the call.
    cdef size_t at = program.schedule.threads * program.thread_bytes
    cdef size_t bytes = at
    if layer is None:
        bytes += bytes_of_weights(&program)
    if buffers.held[OUTPUT_SCALE]:
        bytes += batch * aligned(groups * step.channel_pitch * sizeof(float))
    if step.transformed:
        bytes += batch * 2 * channel_pitch(in_channels) * sizeof(float)
    cdef Memory memory = take_memory(bytes)
    cdef Memory _packed = None     # keeps the layer's packed weights alive
    cdef char* data = memory.data
    if layer is None:
        place_weights(&program, view_of(buffers, BIAS), data, &at)
    else:
        _packed = use_layer(&step, layer)
    if buffers.held[OUTPUT_SCALE]:
        step.scale = fill_tables(&buffers.view[OUTPUT_SCALE], 1.0, groups, step.outs, data, &at, &step.scale_span)
    if step.transformed and (step.in_scale == NULL or buffers.held[INPUT_SCALE]):
        step.in_scale = fill_tables(view_of(buffers, INPUT_SCALE), 1.0, 1, in_channels, data, &at, &step.in_scale_span)
    if step.transformed and (step.in_shift == NULL or buffers.held[INPUT_SHIFT]):
        step.in_shift = fill_tables(view_of(buffers, INPUT_SHIFT), 0.0, 1, in_channels, data, &at, &step.in_shift_span)
    run_released(&program, memory)
    return y


cdef object numpy_empty = numpy.empty
cdef object float32 = numpy.dtype(numpy.float32)


cdef tuple shape_tuple(const Py_ssize_t* shape, int rank):
    if rank == 4:
        return (shape[0], shape[1], shape[2], shape[3])
    return tuple([shape[i] for i in range(rank)])


cdef bint has_shape(const Py_buffer* view, const Py_ssize_t* shape, int rank) noexcept:
    return view.ndim == rank and memcmp(view.shape, shape, rank * sizeof(Py_ssize_t)) == 0


cdef bint has_batch_axis(const Buffers* buffers, int which) noexcept:
    """Is this a table of one value per image and channel?"""
    return buffers.held[which] and buffers.view[which].ndim == 2


# Parsed constructor arguments of earlier calls of the function, by the arguments.
cdef enum:
    SPECS = 512

cdef dict specs = {}


cdef bint is_name(object value) noexcept:
    return value is None or type(value) is str


def pointwise_conv(x, weight, bias, stride, groups, layout, out_layout, weight_layout, input_scale, input_shift,
                   input_activation, output_scale, residual, activation, out, out_dtype, precision, num_threads,
                   backend, /):
    """See pwconv.pointwise_conv."""
    cdef EngineSpec spec = None
    cdef Arguments call
    # Only exact types are keys: True == 1 == 1.0, yet only 1 is a valid stride.
    cdef bint hashable = (
        PyLong_CheckExact(stride) and PyLong_CheckExact(groups) and is_name(layout) and is_name(out_layout)
        and is_name(weight_layout) and is_name(input_activation) and is_name(activation) and is_name(out_dtype)
        and is_name(precision) and is_name(backend))
    key = None
    if hashable:
        key = (stride, groups, layout, out_layout, weight_layout, input_activation, activation, out_dtype, precision,
               backend)
        spec = specs.get(key)
    if spec is None:
        spec = EngineSpec(arguments().parse_spec(
            stride=stride, groups=groups, layout=layout, out_layout=out_layout, weight_layout=weight_layout,
            input_activation=input_activation, activation=activation, precision=precision, backend=backend,
            out_dtype=out_dtype))
        if hashable:
            if len(specs) >= SPECS:
                specs.clear()
            specs[key] = spec
    if spec.on_numpy:
        from pwconv import reference
        return reference.pointwise_conv(
            x, weight, bias, stride=stride, groups=groups, layout=layout, out_layout=out_layout,
            weight_layout=weight_layout, input_scale=input_scale, input_shift=input_shift,
            input_activation=input_activation, output_scale=output_scale, residual=residual, activation=activation,
            out=out, out_dtype=out_dtype, precision=precision, num_threads=num_threads, backend=backend)
    call.x = <PyObject*> x
    call.array[:] = [<PyObject*> weight, <PyObject*> bias, <PyObject*> input_scale, <PyObject*> input_shift,
                     <PyObject*> output_scale, <PyObject*> residual, <PyObject*> out]
    call.num_threads = <PyObject*> num_threads
    return convolve(spec, None, &call)
