# Classifiers: a layer whose logits are consumed by a head and never exist as a whole map.

def classify(Layer layer, x, out, values, int places, num_threads):
    """The softmax of a layer's result (places=0, out float32), or its best classes (out: integers, C = places).

    `out` and `values` (float32, or None) have the layer's out_layout. The caller has checked all arguments.
    """
    run_head_of(layer, x, out, values, HEAD_BEST if places else HEAD_SOFTMAX, places, num_threads)


def classify_resized(Layer layer, x, out, num_threads):
    """The best class of every pixel of the bilinearly resized logits; `out`: integers, C = 1, of the wanted size.

    `out` has the layer's out_layout, with two spatial axes. The caller has checked all arguments.
    """
    run_head_of(layer, x, out, None, HEAD_RESIZED, 1, num_threads)


cdef int run_head_of(Layer layer, x, out, values, int head, int places, num_threads) except -1:
    cdef Memory tables = Memory(), memory
    cdef int threads = threads_for(num_threads)
    cdef Buffers buffers
    cdef EngineSpec spec
    cdef Program program
    cdef Input inputs
    cdef Step step
    memset(&buffers, 0, sizeof(Buffers))
    memset(&step, 0, sizeof(Step))
    memset(&program, 0, sizeof(Program))
    program.steps = &step
    program.count = 1
    program.head.code = head
    program.head.places = places
    inputs.held = 0
    inputs.map = &inputs.one_map
    try:
        if not hold_input(&inputs, x) or not hold(&buffers, RESIDUAL, values) or threads == 0:
            raise TypeError("x, values or num_threads were not checked")
        hold(&buffers, OUT, out)
        if not buffers.held[OUT] or not has_strides(&buffers.view[OUT]):
            raise TypeError("out was not checked")
        if not (element_kind(&buffers.view[OUT]) == KIND_FLOAT32 if head == HEAD_SOFTMAX
                else holds_integers(&buffers.view[OUT])):
            raise TypeError("out was not checked")
        spec = layer.engine_spec.of_rank(inputs.view[0].ndim)
        if spec is None or not describe_head(&program, spec, layer, &inputs, &buffers, tables):
            raise ValueError("shapes were not checked")
        if program.pixels > 0:
            _kept = plan_steps(&program, (layer,), threads)
            memory = take_memory(program.schedule.threads * program.thread_bytes)
            run_released(&program, memory)
    finally:
        release(&buffers)
        release_input(&inputs)
    return 0


cdef bint describe_head(Program* program, EngineSpec spec, Layer layer, Input* x, Buffers* buffers,
                        Memory tables) except -1:
    """A step into scratch, [channel][pixel], and a head behind it; False if a shape does not fit."""
    cdef bint resized = program.head.code == HEAD_RESIZED
    cdef bint per_image = resized and spec.x_axes.batch >= 0
    cdef const Py_buffer* out = &buffers.view[OUT]
    cdef Py_ssize_t shape[MAX_AXES]
    cdef int i, which
    if channels_of(spec, x) != layer.weights.k * spec.groups or program.head.places > layer.weights.outs:
        return False
    if shape_of_result(spec, &x.view[0], &spec.y_axes, program.head.places or layer.weights.outs, shape) < 0:
        return False
    program.schedule.spans = shape[spec.y_axes.batch] if per_image else 1
    program.pixels = 1 if layer.weights.outs and program.schedule.spans else 0
    for i in range(per_image, spec.x_axes.pixel_axes):
        program.pixels *= shape[spec.y_axes.pixel[i]]
    describe_step(program.steps, spec, layer, &layer.weights)
    read_input(program.steps, spec, x, per_image)
    program.steps.y_is_scratch = True
    program.steps.y_pixels_last = True
    if resized:
        if spec.x_axes.pixel_axes - per_image != 2 or out.ndim != spec.rank:
            return False
        describe_resize(program, shape[spec.y_axes.pixel[per_image]], shape[spec.y_axes.pixel[per_image + 1]],
                        out.shape[spec.y_axes.pixel[per_image]], out.shape[spec.y_axes.pixel[per_image + 1]], tables)
        for i in range(per_image, per_image + 2):
            shape[spec.y_axes.pixel[i]] = out.shape[spec.y_axes.pixel[i]]
    for which in (OUT, RESIDUAL):
        if buffers.held[which] and not has_shape(&buffers.view[which], shape, spec.rank):
            return False
    map_of(out, KIND_FLOAT32, &spec.y_axes, NULL, per_image, &program.head.out)
    program.head.values.data = NULL
    if buffers.held[RESIDUAL]:
        map_of(&buffers.view[RESIDUAL], KIND_FLOAT32, &spec.y_axes, NULL, per_image, &program.head.values)
    return True


cdef int describe_resize(Program* program, Py_ssize_t height, Py_ssize_t width, Py_ssize_t out_height,
                         Py_ssize_t out_width, Memory tables) except -1:
    """Sets the sizes, and makes the tables of neighbours and weights for the columns of the labels."""
    cdef Resize* size = &program.head.resize
    cdef Py_ssize_t padded = out_width + SCRATCH_PAD, x
    cdef int32_t* left
    cdef int32_t* right
    cdef float* across
    cdef Neighbours columns
    size.height = height
    size.width = width
    size.out_height = out_height
    size.out_width = out_width
    if out_height == 0 or out_width == 0:
        program.pixels = 0
    if program.pixels == 0:
        return 0
    tables.reserve(3 * padded * sizeof(float))
    left = <int32_t*> tables.data
    right = left + padded
    across = <float*> (right + padded)
    for x in range(padded):
        columns = neighbours_of(min(x, out_width - 1), width, out_width)
        left[x] = <int32_t> columns.first
        right[x] = <int32_t> columns.second
        across[x] = columns.weight
    size.left = left
    size.right = right
    size.across = across
    return 0
