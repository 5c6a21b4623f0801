# Plans for people to read.

class PlanReport:
    """How a layer is computed for one shape. `tasks` are the parts of the work that threads take in turn.

    `chunk` is 0 where the layer is computed in tiles.
    """

    def __init__(self, **facts):
        self.__dict__.update(facts)

    def __repr__(self):
        b, a = ("pixels", "out channels") if self.pixels_in_b else ("out channels", "pixels")
        source = "packed into panels" if self.packed else "read in place"
        way = f"tiles of MR = {self.mr} {a} x NR = {self.nr} {b}, pixels {source}, K in blocks of {self.kc}"
        if self.chunk:
            way = f"streamed in chunks of {self.chunk} pixels"
        return (f"{self.isa}: {way}; {self.tasks} tasks of {self.pixel_block} pixels x "
                f"{-(-self.out_channels // self.out_blocks)} out channels on {self.threads} "
                f"thread{'s' if self.threads > 1 else ''}")

    @classmethod
    def of(cls, Layer layer, call, int threads):
        """The plan for a C-contiguous input of call.x's shape."""
        cdef EngineSpec spec = layer.engine_spec.of_rank(len(call.layout))
        cdef Py_buffer x, y
        cdef Py_ssize_t x_shape[MAX_AXES]
        cdef Py_ssize_t x_strides[MAX_AXES]
        cdef Py_ssize_t y_shape[MAX_AXES]
        cdef Py_ssize_t y_strides[MAX_AXES]
        cdef Py_ssize_t pixels = 1
        cdef Step step
        cdef FeatureMap part
        cdef Schedule schedule
        cdef Tiling tiling
        cdef int i
        contiguous(call.x.shape, KIND_FLOAT32, &x, x_shape, x_strides)
        contiguous(call.out_shape, spec.out_kind, &y, y_shape, y_strides)
        describe_step(&step, spec, layer, &layer.weights)
        step.x_parts = 1
        map_of(&x, KIND_FLOAT32, &spec.x_axes, spec.stride, False, &part)
        map_of(&y, spec.out_kind, &spec.y_axes, NULL, False, &step.y)
        for i in range(step.y.axes):
            pixels *= step.y.size[i]
        if pixels == 0 or step.outs == 0:
            raise ValueError(f"there is nothing to plan for a result of shape {call.out_shape}")
        plan_step(&step, &part, 1, pixels, 0, threads, &schedule)
        cdef const Plan* plan = &step.plan
        tiling = pixel_tiling(plan, schedule.pixel_block)
        cdef const Tiling* a = &plan.out_tiling if plan.pixels_in_b else &tiling
        return cls(
            isa=plan.kernels.name.decode(), pixels_in_b=bool(plan.pixels_in_b), packed=bool(plan.packed),
            chunk=plan.chunk, mr=a.mr + (a.taller > 0), nr=plan.vectors * plan.kernels.lanes, kc=plan.kc,
            pixels=pixels, pixel_block=schedule.pixel_block, pixel_blocks=schedule.pixel_blocks,
            groups=step.groups, out_channels=step.outs, out_tiles=plan.out_tiling.tiles, out_blocks=plan.out_blocks,
            tasks=schedule.tasks, threads=schedule.threads)


cdef void contiguous(tuple sizes, int kind, Py_buffer* view, Py_ssize_t* shape, Py_ssize_t* strides):
    """Describes a C-contiguous array that has no memory."""
    cdef Py_ssize_t step = item_bytes(kind)
    cdef int i
    view.buf = NULL
    view.itemsize = step
    view.ndim = len(sizes)
    view.shape = shape
    view.strides = strides
    for i in range(view.ndim - 1, -1, -1):
        shape[i] = sizes[i]
        strides[i] = step
        step *= shape[i]
