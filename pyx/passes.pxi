# Several layers over the same pixels in one pass, and classifiers, whose result never is whole in memory.

cdef enum:
    MIN_BLOCK = 48                 # pixels; below that tiles waste more than the cache gives


cdef Py_ssize_t block_for_steps(const Program* g, int threads) noexcept:
    """Pixels in a block whose maps between the steps, and the panels beside them, stay in the second-level cache."""
    cdef Py_ssize_t floats = 0, packed = 0, blocks, block, i
    for i in range(g.count):
        if g.steps[i].y_is_scratch:
            floats += g.steps[i].groups * g.steps[i].outs
        packed = max(packed, min(g.steps[i].depth, 2 * SUM_BLOCK))
    block = max(MIN_BLOCK, 2 * cache_room() // max(1, floats + packed))
    blocks = ceil_div(g.pixels, block)
    if blocks < 4 * threads:
        blocks = ceil_div(blocks, threads) * threads
    block = ceil_div(g.pixels, blocks)
    return ceil_div(block, 16) * 16 if block >= MIN_BLOCK else block


def classify(Layer layer, x, out, values, int places, num_threads):
    """The softmax of a layer's result (places=0, out float32), or its best classes (out: integers, C = places).

    `out` and `values` (float32, or None) have the layer's out_layout and were checked before.
    """
    run_head_of(layer, x, out, values, HEAD_BEST if places else HEAD_SOFTMAX, places, num_threads)


def classify_resized(Layer layer, x, out, num_threads):
    """The best class of every pixel of the bilinearly resized logits; `out`: integers, C = 1, of the wanted size.

    `out` has the layer's out_layout, with two spatial axes, and was checked before.
    """
    run_head_of(layer, x, out, None, HEAD_RESIZED, 1, num_threads)


cdef int run_head_of(Layer layer, x, out, values, int head, int places, num_threads) except -1:
    cdef Memory tables = Memory(), memory
    cdef int threads = threads_for(num_threads)
    cdef Buffers buffers
    cdef Recipe recipe
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
        recipe = layer.recipe.of_rank(inputs.view[0].ndim)
        if recipe is None or not describe_head(&program, recipe, layer, &inputs, &buffers, tables):
            raise ValueError("shapes were not checked")
        if program.pixels > 0:
            _kept = plan_steps(&program, (layer,), threads)
            memory = take_memory(program.schedule.threads * program.thread_bytes + tables_of_steps(&program))
            fill_steps(&program, memory)
            run_released(&program, memory)
    finally:
        release(&buffers)
        release_input(&inputs)
    return 0


cdef bint describe_head(Program* g, Recipe recipe, Layer layer, Input* x, Buffers* buffers, Memory tables) except -1:
    """A step into scratch with pixels last, and a head behind it; False if a shape does not fit."""
    cdef bint resized = g.head.code == HEAD_RESIZED
    cdef bint apart = resized and recipe.x_axes.batch >= 0
    cdef const Py_buffer* out = &buffers.view[OUT]
    cdef Py_ssize_t shape[MAX_AXES]
    cdef int i, which
    if channels_of(recipe, x) != layer.weights.depth * recipe.groups or g.head.places > layer.weights.outs:
        return False
    if shape_of_result(recipe, &x.view[0], &recipe.y_axes, g.head.places or layer.weights.outs, shape) < 0:
        return False
    g.schedule.spans = shape[recipe.y_axes.batch] if apart else 1
    g.pixels = 1 if layer.weights.outs and g.schedule.spans else 0
    for i in range(apart, recipe.x_axes.pixel_axes):
        g.pixels *= shape[recipe.y_axes.pixel[i]]
    describe_step(g.steps, recipe, &layer.weights)
    read_input(g.steps, recipe, x, apart)
    g.steps.y_is_scratch = True
    g.steps.y_pixels_last = True
    if resized:
        if recipe.x_axes.pixel_axes - apart != 2 or out.ndim != recipe.rank:
            return False
        describe_resize(g, shape[recipe.y_axes.pixel[apart]], shape[recipe.y_axes.pixel[apart + 1]],
                        out.shape[recipe.y_axes.pixel[apart]], out.shape[recipe.y_axes.pixel[apart + 1]], tables)
        for i in range(apart, apart + 2):
            shape[recipe.y_axes.pixel[i]] = out.shape[recipe.y_axes.pixel[i]]
    for which in (OUT, RESIDUAL):
        if buffers.held[which] and not has_shape(&buffers.view[which], shape, recipe.rank):
            return False
    map_of(out, KIND_FLOAT32, &recipe.y_axes, NULL, apart, &g.head.out)
    g.head.values.data = NULL
    if buffers.held[RESIDUAL]:
        map_of(&buffers.view[RESIDUAL], KIND_FLOAT32, &recipe.y_axes, NULL, apart, &g.head.values)
    return True


cdef int describe_resize(Program* g, Py_ssize_t height, Py_ssize_t width, Py_ssize_t out_height, Py_ssize_t out_width,
                         Memory tables) except -1:
    """Sizes, and where every column of the labels lies between two columns of the logits."""
    cdef Resize* size = &g.head.resize
    cdef Py_ssize_t padded = out_width + SCRATCH_PAD, x
    cdef int32_t* left
    cdef int32_t* right
    cdef float* across
    cdef Between columns
    size.height = height
    size.width = width
    size.out_height = out_height
    size.out_width = out_width
    if out_height == 0 or out_width == 0:
        g.pixels = 0
    if g.pixels == 0:
        return 0
    tables.reserve(3 * padded * sizeof(float))
    left = <int32_t*> tables.data
    right = left + padded
    across = <float*> (right + padded)
    for x in range(padded):
        columns = between(min(x, out_width - 1), width, out_width)
        left[x] = <int32_t> columns.first
        right[x] = <int32_t> columns.second
        across[x] = columns.part
    size.left = left
    size.right = right
    size.across = across
    return 0


def run_layers(tuple layers, x, tuple residuals, tuple outs, bint branched, num_threads):
    """Runs layers over the same pixels in one pass: each feeds the next, or all read x (`branched`).

    `residuals` and `outs` have one array or None per layer, checked before; where out is None the layer's result is
    kept in scratch memory for the next layer only.
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
            memory = take_memory(program.schedule.threads * program.thread_bytes + tables_of_steps(&program))
            fill_steps(&program, memory)
            run_released(&program, memory)
    finally:
        for i in range(count):
            release(&buffers[i])
        release_input(&inputs)


cdef bint describe_steps(Program* g, tuple layers, Input* x, Buffers* buffers, bint branched) except -1:
    """Fills in all that does not depend on plans; False if a shape does not fit."""
    cdef Py_ssize_t shape[MAX_AXES]
    cdef Py_ssize_t channels, size
    cdef Recipe recipe, first
    cdef Layer layer
    cdef Step* step
    cdef Axes y
    cdef int i, axis
    layer = layers[0]
    first = layer.recipe.of_rank(x.view[0].ndim)
    if first is None:
        return False
    channels = channels_of(first, x)
    g.pixels = 1
    g.schedule.spans = 1
    for i in range(first.x_axes.pixel_axes):
        g.pixels *= ceil_div(x.view[0].shape[first.x_axes.pixel[i]], first.stride[i])
    for i in range(g.count):
        layer = layers[i]
        recipe = layer.recipe.of_rank(x.view[0].ndim)
        if recipe is None or layer.weights.depth * recipe.groups != channels:
            return False
        step = &g.steps[i]
        describe_step(step, recipe, &layer.weights)
        if i == 0 or branched:
            if recipe.layout != first.layout or memcmp(recipe.stride, first.stride, sizeof(first.stride)) != 0:
                return False
            if i == 0:
                read_input(step, first, x, False)
            step.x = x.map
            step.x_parts = x.count
        locate_axes(recipe.out_layout, first.layout, &y)
        size = shape_of_result(first, &x.view[0], &y, layer.weights.outs, shape)
        step.y_is_scratch = not buffers[i].held[OUT]
        step.y_pixels_last = not (x.map[0].channel_step == x.map[0].item)
        if size < 0 or (step.y_is_scratch and (branched or i == g.count - 1)):
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


cdef list plan_steps(Program* g, tuple layers, int threads):
    """Cuts the pixels into blocks and plans every step; returns what must be kept meanwhile."""
    cdef Schedule alone
    cdef double cycles = 0.0
    cdef const FeatureMap* x = NULL
    cdef Step* step
    cdef list kept = []
    cdef int i, wanted = free_threads(threads)
    cdef Resize* size = &g.head.resize
    g.schedule.pixel_block = block_for_steps(g, wanted)
    g.schedule.pixel_blocks = ceil_div(g.pixels, g.schedule.pixel_block)
    if g.head.code == HEAD_RESIZED:
        # Bands of lines; each is summed with the line behind it, so they should not be too thin.
        size.band = max(min(8, size.height), g.schedule.pixel_block // size.width)
        g.schedule.pixel_blocks = ceil_div(size.height, size.band)
        g.schedule.pixel_block = (size.band + 1) * size.width
    for i in range(g.count):
        step = &g.steps[i]
        if step.y_is_scratch:
            place_scratch_map(step, g.pixels, g.schedule.pixel_block)
        if step.outs:              # else nothing is computed, and the next layer reads no channel
            plan_step(step, step.x if step.x_parts else x, g.schedule.spans, g.pixels, 0, 1, &alone)
            step.plan.out_blocks = sums_blocks(step.depth, step.outs, &step.plan, g.schedule.pixel_block)
            cycles += step.plan.cycles
            kept.append(use_layer(step, layers[i]))
        x = &step.y
    g.schedule.parts = 1
    g.schedule.units = g.schedule.spans * g.schedule.pixel_blocks
    g.schedule.threads = <int> max(1, min(min(<double> wanted, cycles / cycles_per_thread()), g.schedule.units))
    g.schedule.threads = pwconv_startable(g.schedule.threads, forked)
    lay_out(g)
    return kept


cdef size_t tables_of_steps(const Program* g) noexcept:
    """Bytes of the neutral scales and shifts of layers that transform their input by an activation only."""
    cdef size_t bytes = 0
    cdef int i
    for i in range(g.count):
        if g.steps[i].transformed:
            bytes += 2 * aligned(channel_pitch(g.steps[i].depth * g.steps[i].groups) * sizeof(float))
    return bytes


cdef void fill_steps(Program* g, Memory memory) noexcept:
    cdef size_t at = g.schedule.threads * g.thread_bytes
    cdef Step* step
    cdef int i
    for i in range(g.count):
        step = &g.steps[i]
        if step.transformed:
            step.in_scale = fill_tables(NULL, NULL, 1.0, 1, step.depth * step.groups, memory.data, &at, NULL)
            step.in_shift = fill_tables(NULL, NULL, 0.0, 1, step.depth * step.groups, memory.data, &at, NULL)
