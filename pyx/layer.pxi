# Layers: parsed constructor arguments in the engine's form, and weights that are packed once.

cdef object arguments_module = None


cdef object arguments():
    """pwconv.arguments, imported when a layer is first made: it imports this module."""
    global arguments_module
    if arguments_module is None:
        from pwconv import arguments as module
        arguments_module = module
    return arguments_module


cdef dict KINDS = {
    "float32": KIND_FLOAT32,
    "uint8": KIND_UINT8,
    "int8": KIND_INT8,
    "uint16": KIND_UINT16,
    "int16": KIND_INT16,
    "float16": KIND_FLOAT16,
    "bfloat16": KIND_BFLOAT16,
}


cdef class EngineSpec:
    """Parsed constructor arguments in the form that a call needs: axes and strides as numbers."""

    cdef object spec               # the pwconv.arguments.Spec
    cdef str layout, out_layout
    cdef int rank                  # of x; 0: any rank, see by_rank
    cdef dict by_rank
    cdef Axes x_axes, y_axes
    cdef Py_ssize_t stride[MAX_AXES]
    cdef Py_ssize_t groups
    cdef activation_t before, after
    cdef bint on_numpy
    cdef int precision             # as in kernels.h
    cdef int out_kind              # of a result that the engine allocates

    def __cinit__(self, spec, resolved=None):
        cdef int i
        self.spec = spec
        self.groups = spec.groups
        self.before.code, self.before.low, self.before.high = spec.input_activation
        self.after.code, self.after.low, self.after.high = spec.activation
        self.on_numpy = spec.backend == "numpy"
        self.precision = arguments().PRECISIONS.index(spec.precision)
        self.out_kind = KINDS[spec.out_dtype]
        if resolved is None:
            if spec.layout in arguments().NAMED_LAYOUTS:
                self.by_rank = {}
                return
            resolved = arguments().resolve_rank(spec, len(spec.layout))
        layout, out_layout, strides = resolved
        self.rank = len(layout)
        self.layout = layout
        self.out_layout = out_layout
        locate_axes(layout, layout, &self.x_axes)
        locate_axes(out_layout, layout, &self.y_axes)
        for i in range(self.x_axes.pixel_axes):
            self.stride[i] = 1
        for i in range(len(strides)):
            self.stride[i + (self.x_axes.batch >= 0)] = strides[i]

    cdef EngineSpec of_rank(self, int rank):
        """The same arguments for arrays of this rank; None if they do not fit that rank."""
        if self.rank == rank and rank > 0:
            return self
        if self.rank or rank < 2 or rank > MAX_AXES:
            return None
        spec = self.by_rank.get(rank)
        if spec is None:
            try:
                spec = EngineSpec(self.spec, arguments().resolve_rank(self.spec, rank))
            except ValueError:
                return None
            self.by_rank[rank] = spec
        return spec


cdef inline Py_ssize_t channel_pitch(Py_ssize_t channels) noexcept nogil:
    """Floats of a group in a table of one value per channel; whole vectors can be loaded from its end."""
    return (channels + 31) & ~<Py_ssize_t> 15


cdef void fill_table(float* table, const char* values, float otherwise, Py_ssize_t groups,
                     Py_ssize_t channels) noexcept:
    """One value per channel, group by group, from floats at any address; `otherwise` throughout if values is NULL."""
    cdef Py_ssize_t pitch = channel_pitch(channels), group, i
    for group in range(groups):
        for i in range(pitch):
            table[group * pitch + i] = otherwise if values == NULL else 0.0
        if values != NULL:
            memcpy(table + group * pitch, values + group * channels * sizeof(float), channels * sizeof(float))


cdef object read_only_float32(values):
    """A C-contiguous copy that cannot be written to; None stays None."""
    if values is None:
        return None
    copy = numpy.array(values, dtype=numpy.float32, order="C", copy=True)
    copy.setflags(write=False)
    return copy


cdef const float* fill_tables(const Py_buffer* view, float otherwise, Py_ssize_t groups, Py_ssize_t channels,
                              char* data, size_t* at, Py_ssize_t* span) noexcept:
    """Copies a table of channels, for all images or one for each, to `data + at`; `otherwise` throughout without one.

    Moves `at` past it; sets `span` to the floats between images.
    """
    cdef float* table = <float*> (data + at[0])
    cdef Py_ssize_t floats = groups * channel_pitch(channels)
    cdef Py_ssize_t images = view.shape[0] if view != NULL and view.ndim == 2 else 1, image
    cdef const char* values = NULL
    for image in range(images):
        if view != NULL:
            values = <const char*> view.buf + image * groups * channels * sizeof(float)
        fill_table(table + image * floats, values, otherwise, groups, channels)
    at[0] += aligned(images * floats * sizeof(float))
    if span != NULL:
        span[0] = floats if images > 1 else 0
    return table


cdef enum:
    PACKINGS = 4                   # different packings of its weights that a layer keeps


cdef class Layer:
    """A matrix of weights, its tables, and the parsed constructor arguments; packs the weights as plans ask.

    `scales` is (input_scale, input_shift, output_scale), each a float32 vector or None.
    """

    cdef readonly object matrix, bias1d, scales, spec
    cdef EngineSpec engine_spec
    cdef Weights weights
    cdef Memory tables
    cdef const float* bias         # in `tables`: one value per out channel, group by group
    cdef const float* output_scale
    cdef const float* input_scale  # one value per in channel; NULL if the input has no scale, shift or activation
    cdef const float* input_shift
    cdef bint scales_output
    cdef dict packed               # (kernel set, pixels_in_b, tiling of out channels) -> Memory
    cdef Buffers buffers           # of matrix, bias1d and scales, held for life

    def __cinit__(self, matrix, bias, spec, scales=(None, None, None), *args, **options):
        self.spec = spec
        self.engine_spec = EngineSpec(spec)
        self.matrix = read_only_float32(matrix)
        self.bias1d = read_only_float32(bias)
        self.scales = tuple([read_only_float32(table) for table in scales])
        if not hold(&self.buffers, WEIGHT, self.matrix) or not hold(&self.buffers, BIAS, self.bias1d):
            raise TypeError("a layer needs float32 weights and bias")
        for i, which in enumerate((INPUT_SCALE, INPUT_SHIFT, OUTPUT_SCALE)):
            if not hold(&self.buffers, which, self.scales[i]):
                raise TypeError("a layer needs float32 scales")
        self.weights = weights_of(&self.buffers, "OI")
        self.packed = {}
        self.fill_tables()

    cdef int fill_tables(self) except -1:
        """Copies bias and scales into tables from which whole vectors can be loaded."""
        cdef Py_ssize_t groups = self.engine_spec.groups, outs = self.weights.outs // groups
        cdef Py_ssize_t ins = self.weights.k * groups
        cdef Py_ssize_t out_floats = groups * channel_pitch(outs), in_floats = channel_pitch(ins)
        cdef bint transformed = (self.engine_spec.before.code != ACT_NONE
                                 or self.buffers.held[INPUT_SCALE] or self.buffers.held[INPUT_SHIFT])
        cdef size_t at = 0
        if out_floats + in_floats > 1LL << 46:
            raise MemoryError(f"no memory holds the tables of {ins} in channels and {self.weights.outs} out channels")
        self.tables = Memory()
        self.tables.reserve(2 * (aligned(out_floats * sizeof(float)) + aligned(in_floats * sizeof(float))))
        self.scales_output = self.buffers.held[OUTPUT_SCALE]
        self.bias = fill_tables(view_of(&self.buffers, BIAS), 0.0, groups, outs, self.tables.data, &at, NULL)
        self.output_scale = fill_tables(view_of(&self.buffers, OUTPUT_SCALE), 1.0, groups, outs, self.tables.data, &at,
                                        NULL)
        self.input_scale = self.input_shift = NULL
        if transformed:
            self.input_scale = fill_tables(view_of(&self.buffers, INPUT_SCALE), 1.0, 1, ins, self.tables.data, &at,
                                           NULL)
            self.input_shift = fill_tables(view_of(&self.buffers, INPUT_SHIFT), 0.0, 1, ins, self.tables.data, &at,
                                           NULL)
        return 0

    def __dealloc__(self):
        release(&self.buffers)

    cdef Memory packed_for(self, const Plan* plan):
        """The weights as a plan asks; packed when they are first asked for so."""
        key = (<uintptr_t> plan.kernels, plan.pixels_in_b, plan.out_tiling.nr, plan.out_tiling.tiles)
        cdef Memory memory = self.packed.get(key)
        cdef Py_ssize_t groups = self.engine_spec.groups, share
        if memory is None:
            memory = Memory()
            memory.reserve(packed_bytes(plan, self.weights.k, groups))
            for share in range(shares_of_weights(plan, &self.weights, groups)):
                pack_share(plan, &self.weights, groups, share, <float*> memory.data)
            if len(self.packed) >= PACKINGS:
                self.packed.clear()
            self.packed[key] = memory
        return memory

    def __call__(self, x, *, input_scale=None, input_shift=None, output_scale=None, residual=None, out=None,
                 num_threads=None):
        cdef Arguments call
        if self.engine_spec.on_numpy:
            from pwconv import reference
            return reference.call_layer(self, x, input_scale=input_scale, input_shift=input_shift,
                                        output_scale=output_scale, residual=residual, out=out, num_threads=num_threads)
        call.x = <PyObject*> x
        call.array[:] = [<PyObject*> None, <PyObject*> None, <PyObject*> input_scale, <PyObject*> input_shift,
                         <PyObject*> output_scale, <PyObject*> residual, <PyObject*> out]
        call.num_threads = <PyObject*> num_threads
        return convolve(self.engine_spec, self, &call)

    def plan(self, shape, num_threads=None):
        """How an input of this shape is computed: an object whose repr describes it."""
        if self.engine_spec.on_numpy:
            from pwconv import reference
            return reference.plan_layer(self, shape, num_threads)
        call = arguments().check_shape(self.spec, self.matrix.shape, shape, num_threads)
        return PlanReport.of(self, call, threads_for(call.num_threads))


cdef Weights weights_of(const Buffers* buffers, str layout) noexcept:
    """The matrix in the last (IO) or first (OI) two axes of the weights' buffer."""
    cdef const Py_buffer* view = &buffers.view[WEIGHT]
    cdef int out_axis = 0, in_axis = 1
    cdef Weights weights
    if layout == "IO":
        in_axis = view.ndim - 2
        out_axis = view.ndim - 1
    weights.data = <const char*> view.buf
    weights.outs = view.shape[out_axis]
    weights.k = view.shape[in_axis]
    weights.out_step = view.strides[out_axis]
    weights.in_step = view.strides[in_axis]
    weights.bias = <const char*> buffers.view[BIAS].buf if buffers.held[BIAS] else NULL
    return weights


cdef bint weights_need_no_checking(const Buffers* buffers, str layout, Py_ssize_t groups) noexcept:
    """Have the weights two axes besides axes of length 1, and the bias one contiguous value per out channel?"""
    cdef const Py_buffer* view = &buffers.view[WEIGHT]
    cdef Py_ssize_t outs
    cdef int i
    if not buffers.held[WEIGHT] or view.ndim < 2:
        return False
    for i in range(view.ndim - 2):
        if view.shape[i if layout == "IO" else i + 2] != 1:
            return False
    outs = view.shape[view.ndim - 1 if layout == "IO" else 0]
    if outs % groups:
        return False
    view = &buffers.view[BIAS]
    return not buffers.held[BIAS] or (
        view.ndim == 1 and view.shape[0] == outs and (view.strides[0] == sizeof(float) or outs == 1))
