# Several layers over the same pixels in one pass: chains and branches, and classifiers behind them.

cdef enum:
    MIN_BLOCK_OF_STEPS = 48        # pixels; smaller blocks waste more lanes of tiles than the cache saves
    VALUES = RESIDUAL              # the buffers of a head: logits of the best classes, the mask, and the result (OUT)
    MASK = WEIGHT


LINKS = {
    "softmax": LINK_SOFTMAX,
    "one_vs_rest": LINK_ONE_VS_REST,
    "modified_huber": LINK_MODIFIED_HUBER,
    "multilabel": LINK_MULTILABEL,
}


def run_layers(tuple layers, x, tuple residuals, tuple outs, bint branched, mask, fill, num_threads):
    """Runs layers over the same pixels in one pass: each feeds the next, or all read x (`branched`).

    `residuals` and `outs` have one array or None per layer. Where out is None, the layer's result is scratch for the
    next layer only. `mask` and `fill` as in classify(); they apply to the last layer of a chain. The caller has checked
    all arguments.
    """
    cdef Py_ssize_t last = len(layers) - 1
    cdef bint counted = mask is not None or fill is not None
    cdef Pass run = Pass(layers, x, residuals, (*outs[:last], None) if counted else outs, branched, num_threads)
    if counted:
        run.add_head(HEAD_VALUES, 0, outs[last], None, mask, fill)
    run.run()


def classify(tuple layers, x, out, values, int places, mask, fill, num_threads):
    """The best classes of a chain's result (out: integers, C = places).

    `out` and `values` (float32, or None) have the out_layout of the last layer. `mask` is None or bool, with the layout
    of x and C = 1: True for pixels that count. `fill` is None or what pixels get that do not count; then pixels with a
    NaN logit do not count either. The caller has checked all arguments.
    """
    cdef Pass run = Pass(layers, x, (None,) * len(layers), (None,) * len(layers), False, num_threads)
    run.add_head(HEAD_BEST, places, out, values, mask, fill)
    run.run()


def indicate(tuple layers, x, out, mask, fill, num_threads):
    """1 where the result of a chain is above 0, else 0 (out: integers); the arguments are those of classify()."""
    cdef Pass run = Pass(layers, x, (None,) * len(layers), (None,) * len(layers), False, num_threads)
    cdef Layer last = layers[len(layers) - 1]
    run.add_head(HEAD_INDICATORS, last.weights.outs, out, None, mask, fill)
    run.run()


def probabilities(tuple layers, x, out, str link, bint binary, mask, fill, num_threads):
    """The probabilities (out float32) of a chain's result by a link other than None; `binary`: channel 0 is always 0.

    The other arguments are those of classify().
    """
    cdef Pass run = Pass(layers, x, (None,) * len(layers), (None,) * len(layers), False, num_threads)
    run.add_head(HEAD_PROBABILITIES, 0, out, None, mask, fill)
    run.program.head.link = LINKS[link]
    run.program.head.binary = binary
    run.run()


def classify_resized(tuple layers, x, out, mask, fill, num_threads):
    """The best class of every pixel of the bilinearly resized logits; `out`: integers, C = 1, of the wanted size.

    `out` has the out_layout of the last layer, with two spatial axes. A label does not count if a logit that it is
    interpolated from does not. The caller has checked all arguments.
    """
    cdef Pass run = Pass(layers, x, (None,) * len(layers), (None,) * len(layers), False, num_threads)
    run.add_head(HEAD_RESIZED, 1, out, None, mask, fill)
    run.run()


cdef class Pass:
    """Layers over the same pixels, and all that is held while they run."""

    cdef Program program
    cdef tuple layers
    cdef bint branched
    cdef int threads
    cdef Input x
    cdef Memory records            # the steps of the program, and the buffers
    cdef Buffers* buffers          # of each layer, then of the head
    cdef Memory tables             # of a resizing head

    def __cinit__(self, tuple layers, x, tuple residuals, tuple outs, bint branched, num_threads):
        cdef int count = len(layers), i
        self.layers = layers
        self.branched = branched
        self.threads = threads_for(num_threads)
        self.records = Memory()
        self.records.reserve(count * (aligned(sizeof(Step)) + sizeof(Buffers)) + sizeof(Buffers))
        memset(self.records.data, 0, self.records.size)
        memset(&self.program, 0, sizeof(Program))
        self.program.steps = <Step*> self.records.data
        self.program.count = count
        self.buffers = <Buffers*> (self.records.data + count * aligned(sizeof(Step)))
        self.x.held = 0
        self.x.map = &self.x.one_map
        if not hold_input(&self.x, x) or self.threads == 0:
            raise TypeError("x or num_threads was not checked")
        for i in range(count):
            if not hold(&self.buffers[i], RESIDUAL, residuals[i]) or not hold(&self.buffers[i], OUT, outs[i]):
                raise TypeError(f"residual or out of layer {i} was not checked")

    def __dealloc__(self):
        cdef int i
        if self.records is not None and self.buffers != NULL:
            for i in range(self.program.count + 1):
                release(&self.buffers[i])
            release_input(&self.x)

    cdef int add_head(self, int code, int places, out, values, mask, fill) except -1:
        """Puts a head behind the last layer, whose result becomes scratch."""
        cdef Buffers* buffers = &self.buffers[self.program.count]
        cdef Head* head = &self.program.head
        head.code = code
        head.places = places
        head.fills = fill is not None
        head.fill_label = <int32_t> fill if fill is not None and head.places > 0 else 0
        head.fill = <float> fill if fill is not None and head.places == 0 else NAN
        if not hold(buffers, VALUES, values) or (values is not None and buffers.kind[VALUES] != KIND_FLOAT32):
            raise TypeError("values was not checked")
        if mask is not None and not (hold_other(buffers, MASK, mask) and holds_bool(&buffers.view[MASK])):
            raise TypeError("mask was not checked")
        if places == 0 and not hold(buffers, OUT, out):
            raise TypeError("out was not checked")
        if places > 0 and not (hold_other(buffers, OUT, out) and holds_integers(&buffers.view[OUT])):
            raise TypeError("out was not checked")
        return 0

    cdef int run(self) except -1:
        cdef Memory memory
        if not self.describe_steps() or (self.program.head.code != HEAD_NONE and not self.describe_head()):
            raise ValueError("shapes of x, residuals or outs were not checked")
        if self.program.pixels > 0:
            _kept = self.plan_steps()
            memory = take_memory(self.program.schedule.threads * self.program.thread_bytes)
            run_released(&self.program, memory)
        return 0

    cdef bint describe_steps(self) except -1:
        """Sets all fields that do not depend on plans; False if a shape does not fit."""
        cdef Program* program = &self.program
        cdef const Py_buffer* x = &self.x.view[0]
        cdef Py_ssize_t shape[MAX_AXES]
        cdef Py_ssize_t channels, size
        cdef bint resized = program.head.code == HEAD_RESIZED, per_image
        cdef EngineSpec spec, first
        cdef Layer layer
        cdef Buffers* buffers
        cdef Step* step
        cdef Axes y
        cdef int i, axis
        layer = self.layers[0]
        first = layer.engine_spec.of_rank(x.ndim)
        if first is None:
            return False
        channels = channels_of(first, &self.x)
        # Bands of lines belong to one image, so images are spans where labels are resized.
        per_image = resized and first.x_axes.batch >= 0
        program.pixels = program.schedule.spans = 1
        for i in range(first.x_axes.pixel_axes):
            size = ceil_div(x.shape[first.x_axes.pixel[i]], first.stride[i])
            if per_image and first.x_axes.pixel[i] == first.x_axes.batch:
                program.schedule.spans = size
            else:
                program.pixels *= size
        for i in range(program.count):
            layer = self.layers[i]
            buffers = &self.buffers[i]
            spec = layer.engine_spec.of_rank(x.ndim)
            if spec is None or layer.weights.k * spec.groups != channels:
                return False
            step = &program.steps[i]
            describe_step(step, spec, layer, &layer.weights)
            if i == 0 or self.branched:
                if spec.layout != first.layout or memcmp(spec.stride, first.stride, sizeof(first.stride)) != 0:
                    return False
                if i == 0:
                    read_input(step, first, &self.x, per_image)
                step.x = self.x.map
                step.x_parts = self.x.count
            locate_axes(spec.out_layout, first.layout, &y)
            size = shape_of_result(first, x, &y, layer.weights.outs, shape)
            step.y_is_scratch = not buffers.held[OUT]
            step.y_pixels_last = not (self.x.map[0].channel_step == self.x.map[0].item)
            if size < 0 or (step.y_is_scratch and (self.branched or (i == program.count - 1
                                                                     and program.head.code == HEAD_NONE))):
                return False
            for axis in (RESIDUAL, OUT):
                if buffers.held[axis] and not has_shape(&buffers.view[axis], shape, y.rank):
                    return False
            if not step.y_is_scratch:
                map_of(&buffers.view[OUT], buffers.kind[OUT], &y, NULL, per_image, &step.y)
            if buffers.held[RESIDUAL]:
                map_of(&buffers.view[RESIDUAL], buffers.kind[RESIDUAL], &y, NULL, per_image, &step.residual)
                step.plain = False
            if not self.branched:
                channels = layer.weights.outs
        return True

    cdef bint describe_head(self) except -1:
        """Sets the fields of the head, which reads scratch [channel][pixel]; False if a shape does not fit."""
        cdef Program* program = &self.program
        cdef Head* head = &program.head
        cdef Buffers* buffers = &self.buffers[program.count]
        cdef const Py_buffer* out = &buffers.view[OUT]
        cdef Layer first_layer = self.layers[0], layer = self.layers[program.count - 1]
        cdef EngineSpec first = first_layer.engine_spec.of_rank(self.x.view[0].ndim)
        cdef EngineSpec spec = layer.engine_spec.of_rank(self.x.view[0].ndim)
        cdef Py_ssize_t shape[MAX_AXES]
        cdef bint resized = head.code == HEAD_RESIZED
        cdef bint per_image = resized and first.x_axes.batch >= 0
        cdef int i, which
        cdef Axes y
        # The head reads float32, and rounds values to the type of the result itself.
        program.steps[program.count - 1].y_pixels_last = True
        program.steps[program.count - 1].out_kind = KIND_FLOAT32
        if head.places > layer.weights.outs:
            return False
        if layer.weights.outs == 0 or program.schedule.spans == 0:
            program.pixels = 0
        locate_axes(spec.out_layout, first.layout, &y)
        if shape_of_result(first, &self.x.view[0], &y, head.places or layer.weights.outs, shape) < 0:
            return False
        if buffers.held[MASK] and not is_mask(&buffers.view[MASK], &self.x.view[0], &first.x_axes):
            return False
        if resized:
            if first.x_axes.pixel_axes - per_image != 2 or out.ndim != spec.rank:
                return False
            self.describe_resize(shape[y.pixel[per_image]], shape[y.pixel[per_image + 1]],
                                 out.shape[y.pixel[per_image]], out.shape[y.pixel[per_image + 1]])
            for i in range(per_image, per_image + 2):
                shape[y.pixel[i]] = out.shape[y.pixel[i]]
        for which in (OUT, VALUES):
            if buffers.held[which] and not has_shape(&buffers.view[which], shape, spec.rank):
                return False
        map_of(out, buffers.kind[OUT], &y, NULL, per_image, &head.out)
        if buffers.held[VALUES]:
            map_of(&buffers.view[VALUES], KIND_FLOAT32, &y, NULL, per_image, &head.values)
        if buffers.held[MASK]:
            map_of(&buffers.view[MASK], KIND_UINT8, &first.x_axes, first.stride, per_image, &head.mask)
        return True

    cdef int describe_resize(self, Py_ssize_t height, Py_ssize_t width, Py_ssize_t out_height,
                             Py_ssize_t out_width) except -1:
        """Sets the sizes, and makes the tables of neighbours and weights for the columns of the labels."""
        cdef Resize* size = &self.program.head.resize
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
            self.program.pixels = 0
        if self.program.pixels == 0:
            return 0
        self.tables = Memory()
        self.tables.reserve(3 * padded * sizeof(float))
        left = <int32_t*> self.tables.data
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

    cdef list plan_steps(self):
        """Cuts the pixels into blocks and plans every step; returns the packed weights, to be kept meanwhile."""
        cdef Program* program = &self.program
        cdef Schedule* schedule = &program.schedule
        cdef Schedule alone
        cdef double cycles = 0.0
        cdef const FeatureMap* x = NULL
        cdef Step* step
        cdef list packed = []
        cdef int i, wanted = free_threads(self.threads)
        cdef Resize* size = &program.head.resize
        cdef Py_ssize_t block
        cdef double threads
        cdef tuple key = None, kept = None
        if kept_choices or watched is not None:
            key = self.key(wanted)
            kept = kept_choices.get(key)
        block = block_for_steps(program, wanted) if kept is None else largest_block(program, kept[0])
        schedule.pixel_block = block
        schedule.pixel_blocks = ceil_div(program.pixels, schedule.pixel_block)
        if program.head.code == HEAD_RESIZED:
            # Bands of lines; the line behind each band is computed twice, so bands have at least 8 lines.
            size.band = max(min(8, size.height), schedule.pixel_block // size.width)
            schedule.pixel_blocks = ceil_div(size.height, size.band)
            schedule.pixel_block = (size.band + 1) * size.width
        for i in range(program.count):
            step = &program.steps[i]
            if step.y_is_scratch:
                place_scratch_map(step, program.pixels, schedule.pixel_block)
            if step.outs:          # else there is nothing to compute, and the next layer has no in channels
                plan_step(step, step.x if step.x_parts else x, schedule.spans, program.pixels, 0, 1, &alone)
                step.plan.out_blocks = out_blocks_for(step.k, step.outs, &step.plan, schedule.pixel_block)
                cycles += step.plan.cycles
                packed.append(use_layer(step, self.layers[i]))
            x = &step.y
        schedule.out_parts = 1
        schedule.tasks = schedule.spans * schedule.pixel_blocks
        threads = min(<double> wanted, threads_worth(active_isa, cycles, forked) if kept is None else <double> kept[1])
        schedule.threads = <int> max(1.0, min(threads, <double> schedule.tasks))
        if watched is not None:
            note_choice(key, (block, schedule.threads))
        schedule.threads = pwconv_startable(schedule.threads, forked)
        lay_out(program)
        return packed

    cdef tuple key(self, int threads):
        """What the choice of blocks and threads depends on; see choices.pxi."""
        cdef Program* program = &self.program
        return (active_isa, threads, program.schedule.spans, program.pixels, program.head.code, <int> self.branched,
                tuple([(program.steps[i].k, program.steps[i].outs, program.steps[i].groups)
                       for i in range(program.count)]))


cdef Py_ssize_t largest_block(const Program* program, Py_ssize_t pixels) noexcept:
    """So many pixels, or fewer where the maps between the steps would take too much memory."""
    return max(<Py_ssize_t> 1, min(pixels, min(program.pixels, MAX_BLOCK_FLOATS // floats_between(program))))


cdef Py_ssize_t floats_between(const Program* program) noexcept:
    """Floats of one pixel in all maps between the steps; at least 1."""
    cdef Py_ssize_t floats = 0
    cdef int i
    for i in range(program.count):
        if program.steps[i].y_is_scratch:
            floats += program.steps[i].groups * program.steps[i].outs
    return max(<Py_ssize_t> 1, floats)


cdef Py_ssize_t block_for_steps(const Program* program, int threads) noexcept:
    """Pixels in a block whose maps between the steps, and the panels beside them, stay in the second-level cache."""
    cdef Py_ssize_t packed = 0, blocks, block, i
    for i in range(program.count):
        packed = max(packed, min(program.steps[i].k, 2 * SUM_BLOCK))
    block = max(MIN_BLOCK_OF_STEPS, 2 * cache_share() // (floats_between(program) + packed))
    blocks = ceil_div(program.pixels, block)
    if blocks < 4 * threads:
        blocks = ceil_div(blocks, threads) * threads
    block = ceil_div(program.pixels, blocks)
    return min(ceil_div(block, 16) * 16, program.pixels) if block >= MIN_BLOCK_OF_STEPS else block


cdef bint is_mask(const Py_buffer* mask, const Py_buffer* x, const Axes* axes) noexcept:
    """Has a mask the pixels of x, and one channel?"""
    cdef int axis
    if mask.ndim != x.ndim:
        return False
    for axis in range(mask.ndim):
        if mask.shape[axis] != (1 if axis == axes.channel else x.shape[axis]):
            return False
    return True
