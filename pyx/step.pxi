# Describing a step of a program: its layer's parameters, its input, its plan, its tables and packed weights.

cdef void read_input(Step* step, EngineSpec spec, Input* x, bint per_image) noexcept:
    """Makes the maps of x the input of a step."""
    cdef int i
    for i in range(x.count):
        map_of(&x.view[i], x.map[i].kind, &spec.x_axes, spec.stride, per_image, &x.map[i])
    step.x = x.map
    step.x_parts = x.count


cdef void describe_step(Step* step, EngineSpec spec, Layer layer, const Weights* weights) noexcept:
    """Sets the fields that depend on constructor arguments only; `layer` is None for the function."""
    step.raw = weights[0]
    step.precision = spec.precision
    step.out_kind = spec.out_kind
    step.k = weights.k
    step.groups = spec.groups
    step.outs = weights.outs // spec.groups
    step.channel_pitch = channel_pitch(step.outs)
    step.before = spec.before
    step.after = spec.after
    step.plain = step.after.code <= ACT_CLIP and (layer is None or not layer.scales_output)
    step.transformed = step.before.code != ACT_NONE or (layer is not None and layer.input_scale != NULL)
    step.scale_span = step.in_scale_span = step.in_shift_span = 0
    step.in_scale = step.in_shift = NULL
    step.residual.data = NULL


cdef int plan_step(Step* step, const FeatureMap* x, Py_ssize_t spans, Py_ssize_t pixels, Py_ssize_t weights_step,
                   int threads, Schedule* schedule) except -1:
    """Plans a step that reads the map x, and schedules it as if it were the only one."""
    cdef const PlanSlot* slot
    cdef Problem problem
    cdef Choice choice
    problem.isa = active_isa
    problem.precision = step.precision
    problem.threads = threads
    problem.forked = forked
    problem.spans = spans
    problem.pixels = pixels
    problem.groups = step.groups
    problem.k = step.k
    problem.outs = step.outs
    problem.x_run = x.size[x.axes - 1]
    problem.x_step = x.step[x.axes - 1] // x.item if x.step[x.axes - 1] % x.item == 0 else 0
    problem.x_channel_step = x.channel_step // x.item if x.channel_step % x.item == 0 else 0
    problem.y_run = step.y.size[step.y.axes - 1]
    problem.y_step = step.y.step[step.y.axes - 1]
    problem.y_channel_step = step.y.channel_step
    problem.y_item = step.y.item
    step.y.far = not step.y_is_scratch and (
        <double> spans * pixels * step.groups * step.outs * step.y.item >= FAR_BYTES)
    problem.plain = step.plain and step.y.kind == KIND_FLOAT32
    problem.finished = step.plain
    problem.transformed = step.transformed or x.kind >= KIND_SWAPPED
    problem.x_parts = step.x_parts
    problem.in_parts = step.x_parts > 1 or x.kind != KIND_FLOAT32
    problem.weights_step = weights_step
    slot = plan_for(&problem)
    step.plan = slot.plan
    step.group_stride = packed_floats(&step.plan, step.k)
    schedule[0] = slot.schedule
    if watched is not None:
        choice = choice_of(&problem, slot)
        note_choice(words_of(&problem, sizeof(Problem)), words_of(&choice, sizeof(Choice)))
    return 0


cdef void use_weights(Step* step, const float* packed) noexcept:
    """Points a planned step to its packed weights."""
    step.weights = packed
    step.special_outs = special_outs_of(&step.plan, step.k, step.groups, packed)


cdef Memory use_layer(Step* step, Layer layer):
    """Points a planned step to its layer's tables and packed weights; returns what must be kept meanwhile."""
    cdef Memory packed = layer.packed_for(&step.plan)
    use_weights(step, <const float*> packed.data)
    step.bias = layer.bias
    step.scale = layer.output_scale
    step.in_scale = layer.input_scale
    step.in_shift = layer.input_shift
    return packed


cdef size_t bytes_of_weights(const Program* program) noexcept:
    """Bytes of the weights that are packed for one call, and of their tables."""
    cdef const Step* step = program.steps
    cdef size_t packed = 0 if program.packs_panels else packed_bytes(&step.plan, step.k, step.groups)
    return packed + 2 * aligned(step.groups * step.channel_pitch * sizeof(float))


cdef void place_weights(Program* program, const Py_buffer* bias, char* data, size_t* at) noexcept:
    """Points the only step to where its weights will be packed, at `data + at`, and to its tables; moves `at` past."""
    cdef Step* step = program.steps
    program.unpacked = NULL
    if not program.packs_panels:
        program.unpacked = <float*> (data + at[0])
        at[0] += packed_bytes(&step.plan, step.k, step.groups)
    use_weights(step, program.unpacked)
    step.bias = fill_tables(bias, 0.0, step.groups, step.outs, data, at, NULL)
    step.scale = fill_tables(NULL, 1.0, step.groups, step.outs, data, at, NULL)
