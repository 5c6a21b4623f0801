# A layer: what it is told once, its packed weights, and what a plan says.

cdef object arguments = None


cdef object explain():
    """The module pwconv.arguments, imported when it is first needed (it imports this one)."""
    global arguments
    if arguments is None:
        from pwconv import arguments as module
        arguments = module
    return arguments


cdef class Recipe:
    """Parsed constructor arguments in the form that a call needs."""

    cdef object spec
    cdef str layout, out_layout
    cdef int rank                  # 0: any, see by_rank
    cdef dict by_rank
    cdef Axes x_axes, y_axes
    cdef Py_ssize_t stride[MAX_AXES]
    cdef Py_ssize_t groups
    cdef activation_t before, after
    cdef bint on_numpy
    cdef int precision             # as in isa.h

    def __cinit__(self, spec, resolved=None):
        cdef int i
        self.spec = spec
        self.groups = spec.groups
        self.before.code, self.before.low, self.before.high = spec.input_activation
        self.after.code, self.after.low, self.after.high = spec.activation
        self.on_numpy = spec.backend == "numpy"
        self.precision = explain().PRECISIONS.index(spec.precision)
        if resolved is None:
            if spec.layout in explain().NAMED_LAYOUTS:
                self.by_rank = {}
                return
            resolved = explain().resolve_rank(spec, len(spec.layout))
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

    cdef Recipe of_rank(self, int rank):
        """The recipe for arrays of this rank; None where there is none."""
        if self.rank == rank and rank > 0:
            return self
        if self.rank or rank < 2 or rank > MAX_AXES:
            return None
        recipe = self.by_rank.get(rank)
        if recipe is None:
            try:
                recipe = Recipe(self.spec, explain().resolve_rank(self.spec, rank))
            except ValueError:
                return None
            self.by_rank[rank] = recipe
        return recipe


cdef inline Py_ssize_t channel_pitch(Py_ssize_t channels) noexcept nogil:
    """Floats of a group in a table of one value per channel, with room to load whole vectors at its end."""
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


cdef enum:
    PACKINGS = 4                   # different packings of its weights that a layer keeps


cdef class Layer:
    """Weights that are packed once, and what they were told about their use."""

    cdef readonly object matrix, bias1d, spec
    cdef Recipe recipe
    cdef Weights weights
    cdef Memory tables             # bias, then ones
    cdef dict packed               # (unit, side, vectors) -> Memory
    cdef Buffers buffers           # of matrix and bias1d, held for life

    def __cinit__(self, matrix, bias, spec, *args, **options):
        self.spec = spec
        self.recipe = Recipe(spec)
        self.matrix = numpy.array(matrix, dtype=numpy.float32, order="C", copy=True)
        self.matrix.setflags(write=False)
        self.bias1d = None if bias is None else numpy.array(bias, dtype=numpy.float32, order="C", copy=True)
        if bias is not None:
            self.bias1d.setflags(write=False)
        if not hold(&self.buffers, WEIGHT, self.matrix) or not hold(&self.buffers, BIAS, self.bias1d):
            raise TypeError("a layer needs float32 weights and bias")
        self.weights = weights_of(&self.buffers, "OI")
        self.packed = {}
        cdef Py_ssize_t outs = self.weights.outs // self.recipe.groups
        cdef Py_ssize_t floats = self.recipe.groups * channel_pitch(outs)
        if floats > 1LL << 46:
            raise MemoryError(f"no memory holds the bias of {self.weights.outs} out channels")
        self.tables = Memory()
        self.tables.reserve(2 * floats * sizeof(float))
        fill_table(<float*> self.tables.data, self.weights.bias, 0.0, self.recipe.groups, outs)
        fill_table(<float*> self.tables.data + floats, NULL, 1.0, self.recipe.groups, outs)

    def __dealloc__(self):
        release(&self.buffers)

    cdef Memory packed_for(self, const Plan* plan):
        """The weights as the plan wants them; packed when they are first wanted so."""
        key = (<uintptr_t> plan.unit, plan.pixels_on_lanes, plan.vectors)
        cdef Memory memory = self.packed.get(key)
        cdef Py_ssize_t groups = self.recipe.groups, share
        if memory is None:
            memory = Memory()
            memory.reserve(packed_bytes(plan, self.weights.depth, groups))
            for share in range(shares_of_weights(plan, &self.weights, groups)):
                pack_share(plan, &self.weights, groups, share, <float*> memory.data)
            if len(self.packed) >= PACKINGS:
                self.packed.clear()
            self.packed[key] = memory
        return memory

    def __call__(self, x, *, input_scale=None, input_shift=None, output_scale=None, residual=None, out=None,
                 num_threads=None):
        if self.recipe.on_numpy:
            from pwconv import reference
            return reference.call_layer(self, x, input_scale=input_scale, input_shift=input_shift,
                                        output_scale=output_scale, residual=residual, out=out, num_threads=num_threads)
        return convolve(self.recipe, self, None, None, x, input_scale, input_shift, output_scale, residual, out,
                        num_threads)

    def plan(self, shape, num_threads=None):
        """How an input of this shape is computed: an object whose repr says it."""
        if self.recipe.on_numpy:
            from pwconv import reference
            return reference.plan_layer(self, shape, num_threads)
        call = explain().check_shape(self.spec, self.matrix.shape, shape, num_threads)
        return PlanReport.of(self, call, threads_for(call.num_threads))


cdef Weights weights_of(const Buffers* buffers, str layout) noexcept:
    """The matrix in the last (IO) or first (OI) two axes of the weights' buffer."""
    cdef const Py_buffer* view = &buffers.view[WEIGHT]
    cdef int out_axis = 0, in_axis = 1
    cdef Weights w
    if layout == "IO":
        in_axis = view.ndim - 2
        out_axis = view.ndim - 1
    w.data = <const char*> view.buf
    w.outs = view.shape[out_axis]
    w.depth = view.shape[in_axis]
    w.out_step = view.strides[out_axis]
    w.in_step = view.strides[in_axis]
    w.bias = <const char*> buffers.view[BIAS].buf if buffers.held[BIAS] else NULL
    return w


cdef bint weights_are_plain(const Buffers* buffers, str layout, Py_ssize_t groups) noexcept:
    """Have the weights two axes and else ones, and the bias one contiguous value per out channel?"""
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


class PlanReport:
    """How a layer is computed for one shape. `units` are pieces of work that threads take in turn."""

    def __init__(self, **facts):
        self.__dict__.update(facts)

    def __repr__(self):
        lanes, rows = ("pixels", "out channels") if self.pixels_on_lanes else ("out channels", "pixels")
        source = "packed into panels" if self.packed else "read in place"
        return (f"{self.isa}: tiles of {self.tile_rows} {rows} x {self.tile_lanes} {lanes}, pixels {source}, "
                f"{self.depth_block} in channels at a time; {self.units} units of {self.pixel_block} pixels x "
                f"{-(-self.out_channels // self.out_blocks)} out channels on {self.threads} "
                f"thread{'s' if self.threads > 1 else ''}")

    @classmethod
    def of(cls, Layer layer, call, int threads):
        """The plan for a C-contiguous input of call.x's shape."""
        cdef Recipe recipe = layer.recipe.of_rank(len(call.layout))
        cdef Py_buffer x, y
        cdef Py_ssize_t x_shape[MAX_AXES]
        cdef Py_ssize_t x_strides[MAX_AXES]
        cdef Py_ssize_t y_shape[MAX_AXES]
        cdef Py_ssize_t y_strides[MAX_AXES]
        cdef Py_ssize_t pixels = 1
        cdef Step step
        cdef FeatureMap part
        cdef Schedule schedule
        cdef Side side
        cdef int i
        contiguous(call.x.shape, &x, x_shape, x_strides)
        contiguous(call.out_shape, &y, y_shape, y_strides)
        describe_step(&step, recipe, &layer.weights)
        step.x_parts = 1
        map_of(&x, KIND_FLOAT32, &recipe.x_axes, recipe.stride, False, &part)
        map_of(&y, KIND_FLOAT32, &recipe.y_axes, NULL, False, &step.y)
        for i in range(step.y.axes):
            pixels *= step.y.size[i]
        if pixels == 0 or step.outs == 0:
            raise ValueError(f"there is nothing to plan for a result of shape {call.out_shape}")
        plan_step(&step, &part, 1, pixels, 0, threads, &schedule)
        cdef const Plan* p = &step.plan
        side = pixel_side(p, schedule.pixel_block)
        cdef const Side* rows = &p.out_side if p.pixels_on_lanes else &side
        return cls(
            isa=p.unit.name.decode(), pixels_on_lanes=bool(p.pixels_on_lanes), packed=bool(p.packed),
            tile_rows=rows.base + (rows.extra > 0), tile_lanes=p.vectors * p.unit.lanes, depth_block=p.depth_block,
            pixels=pixels, pixel_block=schedule.pixel_block, pixel_blocks=schedule.pixel_blocks,
            groups=step.groups, out_channels=step.outs, out_tiles=p.out_side.tiles, out_blocks=p.out_blocks,
            units=schedule.units, threads=schedule.threads)


cdef void contiguous(tuple sizes, Py_buffer* view, Py_ssize_t* shape, Py_ssize_t* strides):
    cdef Py_ssize_t step = sizeof(float)
    cdef int i
    view.buf = NULL
    view.itemsize = sizeof(float)
    view.ndim = len(sizes)
    view.shape = shape
    view.strides = strides
    for i in range(view.ndim - 1, -1, -1):
        shape[i] = sizes[i]
        strides[i] = step
        step *= shape[i]
