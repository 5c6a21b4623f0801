# Programs: the records that the walk reads, and the layout of each thread's scratch memory.
#
# A program is one or more layers (steps) over the same pixels. For each block of pixels the steps run one after the
# other. A step reads the program's input, or the result of the step before, which may be scratch that never leaves the
# cache.

cdef enum:
    SCRATCH_PAD = 32               # floats behind each row of a scratch map: whole vectors fit, rows are not aligned
    ROW_PAD = 16                   # floats behind each packed row: rows of 1 KiB would share one cache set
    BEHIND_PANELS = 2048           # bytes: matrix registers are loaded whole, also behind the last row of a panel
    SPLIT_K = 64                   # in channels that are split into bfloat16 terms at a time
    SPLIT_ROWS = 32                # rows that are split at a time where A is read row by row


cdef struct Float32Tile:
    # A tile with special values, which is recomputed in float32: panels [channel][column] and the sums.
    float b[SUM_BLOCK * MAX_NR]
    float a[SUM_BLOCK * MAX_MR]
    float partial[MAX_MR * MAX_NR]


cdef union SplitScratch:
    float unsplit[(SPLIT_K + ROW_PAD) * MAX_NR]    # [column][channel] or [channel][column], before the split
    Float32Tile tile


cdef struct Weights:
    # A matrix of weights as it lies in memory, and its bias.
    const char* data
    Py_ssize_t out_step, in_step   # bytes
    Py_ssize_t outs, k             # out channels of all groups, in channels of one group
    const char* bias               # NULL: none


cdef struct Step:
    Plan plan
    Py_ssize_t k, outs             # in and out channels of a group
    Py_ssize_t groups
    const FeatureMap* x            # the maps that make up the input, in the order of their channels
    int x_parts                    # 0: the step reads the result of the step before
    FeatureMap y
    bint y_is_scratch              # y has no array: it starts `y_at` bytes into a thread's memory
    bint y_pixels_last             # scratch: [channel][pixel]; else [pixel][channel]
    size_t y_at
    FeatureMap residual            # data is NULL where there is none
    const float* weights           # packed as the plan asks
    Py_ssize_t group_stride        # floats from group to group
    uint32_t* special_outs         # not zero for out channels whose weights have special values; see split.h
    Weights raw                    # the same weights before they were packed
    int precision                  # as in kernels.h
    int out_kind                   # of a scratch map
    const float* bias              # tables of channel_pitch floats a group, from which whole vectors can be loaded
    const float* scale
    Py_ssize_t channel_pitch
    Py_ssize_t scale_span          # floats from span to span; 0 where all images share one scale
    const float* in_scale          # NULL where x has no scale, shift or activation
    const float* in_shift
    Py_ssize_t in_scale_span, in_shift_span
    activation_t before, after
    bint plain                     # the epilogue is bias and clip
    bint transformed               # x has an input scale, shift or activation


cdef enum:
    HEAD_NONE, HEAD_VALUES, HEAD_BEST, HEAD_INDICATORS, HEAD_PROBABILITIES, HEAD_RESIZED


cdef struct Resize:
    # Logits and labels differ in height and width. A block is a band of lines of logits and the line behind it.
    Py_ssize_t height, width, out_height, out_width, band
    const int32_t* left            # tables for a line of labels, as in resize_t
    const int32_t* right
    const float* across


cdef struct Head:
    # Consumes the scratch map of the last step: stores its values where pixels count, labels, or probabilities.
    int code
    int link                       # of probabilities
    bint binary                    # the logits are 0 and a single one
    Py_ssize_t places              # labels for every pixel; 0: values or probabilities
    FeatureMap out                 # labels: integers of any size; else float32
    FeatureMap values              # best: the logits; data is NULL if they are not wanted
    FeatureMap mask                # bool: does a pixel count? data is NULL if all do
    bint fills                     # a pixel with NaN does not count either
    int32_t fill_label             # for pixels that do not count
    float fill
    Resize resize


cdef struct Program:
    Step* steps
    int count
    Head head
    float* unpacked                # receives the packed weights of the only step first; NULL: they are packed already,
    bint packs_panels              # or when a panel of them is multiplied
    Py_ssize_t pixels              # in a span
    Schedule schedule
    size_t strips_at, panels_at, partial_at, residual_at, special_at, split_at, weights_at
    size_t counts_at, head_at, thread_bytes


cdef struct Strip:
    # Where a tile reads its pixels: in the map itself, or in a panel.
    const char* at
    Py_ssize_t step
    Py_ssize_t next                # bytes to the next tile's,
    Py_ssize_t alike               # and how many tiles from this one on are as tall and as far from each other


cdef struct Block:
    # The state of a thread: a block of pixels, a block of one group's out channels, a block of K.
    Py_ssize_t span, first, pixels
    Py_ssize_t group, first_out_tile, end_out_tile
    Py_ssize_t first_k, k
    Tiling tiling                  # of the pixels
    const FeatureMap* x
    int x_parts
    const FeatureMap* y
    Strip* strips
    float* panels
    float* partial                 # the sums of one tile; of all tiles of the block if there are several blocks of K
    float* residual
    float* weights                 # of one panel, which is packed when it is multiplied; NULL: all are packed already
    uint32_t* special_pixels       # not zero for pixels with special values; see split.h
    SplitScratch* split


cdef inline float lower_bound(const Step* step) noexcept nogil:
    """The bounds of the clip that kernels apply to sums; infinite without one."""
    return step.after.low if step.after.code == ACT_CLIP else -INFINITY


cdef inline float upper_bound(const Step* step) noexcept nogil:
    return step.after.high if step.after.code == ACT_CLIP else INFINITY


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + 63) & ~<size_t> 63


cdef inline Py_ssize_t row_floats(Py_ssize_t k) noexcept nogil:
    """The size of a packed row with its padding. Short rows need none."""
    return k if k < ROW_PAD else k + ROW_PAD


cdef inline Py_ssize_t tile_floats(const Plan* plan) noexcept nogil:
    return plan.kernels.mr[plan.vectors] * plan.vectors * plan.kernels.lanes


cdef inline Py_ssize_t item_bytes(int kind) noexcept nogil:
    """Bytes of an element of a native kind."""
    return 4 if kind == KIND_FLOAT32 else 1 if kind == KIND_UINT8 or kind == KIND_INT8 else 2


cdef void place_scratch_map(Step* step, Py_ssize_t pixels, Py_ssize_t pixel_block) noexcept nogil:
    """Sets the strides of a scratch map, which holds one block of pixels at a time."""
    step.y.kind = step.out_kind
    step.y.item = item_bytes(step.out_kind)
    step.y.slack = step.out_kind == KIND_FLOAT32
    step.y.far = False
    step.y.channels = step.groups * step.outs
    step.y.span_step = 0
    step.y.axes = 1
    step.y.size[0] = pixels
    if step.y_pixels_last:
        step.y.channel_step = (pixel_block + SCRATCH_PAD) * step.y.item
        step.y.step[0] = step.y.item
    else:
        step.y.channel_step = step.y.item
        step.y.step[0] = (step.y.channels + SCRATCH_PAD) * step.y.item


cdef void lay_out(Program* program) noexcept nogil:
    """Divides a thread's scratch memory. Steps share all of it but their scratch maps."""
    cdef size_t strips = 0, panels = 0, partial = 0, residual = 0, special = 0, split = 0, at
    cdef Py_ssize_t pixels = program.schedule.pixel_block, tiles, i
    cdef const Plan* plan
    cdef Step* step
    cdef Tiling tiling
    for i in range(program.count):
        step = &program.steps[i]
        if step.outs == 0:
            continue
        plan = &step.plan
        if plan.streamed and plan.rowwise:
            continue
        if plan.streamed:
            panels = max(panels, plan.kc * stream_pitch(plan.chunk) * sizeof(float))
            partial = max(partial, step.outs * stream_pitch(stream_held(plan, step.k)) * sizeof(float))
            residual = max(residual, step.outs * stream_pitch(stream_held(plan, step.k)) * sizeof(float))
            continue
        tiling = pixel_tiling(plan, pixels)
        tiles = tiling.tiles * ceil_div(plan.out_tiling.tiles, plan.out_blocks) if plan.kc < step.k else 1
        strips = max(strips, tiling.tiles * sizeof(Strip))
        if plan.pixels_in_b:
            panels = max(panels, (tiling.tiles * plan.vectors * plan.kernels.lanes
                                  * column_floats(plan.kernels, plan.kc) * sizeof(float)))
        else:
            panels = max(panels, pixels * row_floats(column_floats(plan.kernels, plan.kc)) * sizeof(float))
        if plan.kernels.terms:
            special = max(special, (pixels + MAX_NR) * sizeof(uint32_t))
            split = max(split, sizeof(SplitScratch))
        partial = max(partial, tiles * tile_floats(plan) * sizeof(float))
        residual = max(residual, tile_floats(plan) * sizeof(float))
    program.strips_at = 64         # behind the counter of tasks, which has a cache line of its own
    program.panels_at = program.strips_at + aligned(strips)
    program.partial_at = program.panels_at + aligned(panels) + BEHIND_PANELS
    program.residual_at = program.partial_at + aligned(partial)
    program.special_at = program.residual_at + aligned(residual)
    program.split_at = program.special_at + aligned(special)
    program.weights_at = program.split_at + aligned(split)
    at = program.weights_at
    if program.packs_panels:
        plan = &program.steps[0].plan
        at += aligned(plan.vectors * plan.kernels.lanes * min(plan.kc, program.steps[0].k) * sizeof(float))
    for i in range(program.count):
        step = &program.steps[i]
        if step.y_is_scratch:
            step.y_at = at
            at += aligned(max(step.groups * step.outs * step.y.channel_step, pixels * step.y.step[0]))
    program.counts_at = at
    if program.head.code != HEAD_NONE:
        at += aligned((pixels + SCRATCH_PAD) * sizeof(uint32_t))
    program.head_at = at
    if program.head.code in (HEAD_BEST, HEAD_INDICATORS):
        at += aligned(2 * program.head.places * (pixels + SCRATCH_PAD) * sizeof(float))
    if program.head.code == HEAD_RESIZED:
        at += aligned((program.head.resize.width + 2 * program.head.resize.out_width + 3 * SCRATCH_PAD)
                      * sizeof(float))
    program.thread_bytes = at
