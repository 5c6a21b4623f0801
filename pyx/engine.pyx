# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, binding=True
"""The compiled engine: buffers in, a plan, blocked loops over all threads, a NumPy array out.

A good call stays in this module from argument to kernel. What is not plainly good goes to pwconv.arguments, which
explains what is wrong or returns the arguments in their simplest form.
"""

import os
import time

import numpy

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release
from cpython.exc cimport PyErr_Clear
from cpython.long cimport PyLong_CheckExact
from cython.parallel cimport parallel, prange
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strchr


cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    # Failure is an answer here, not an exception.
    int PyObject_GetBuffer(object exporter, Py_buffer* view, int flags)


cdef extern from "isa.h" nogil:
    enum:
        SUM_BLOCK
        MAX_VECTORS
        ACT_NONE
        ACT_CLIP
        KIND_FLOAT32
        KIND_UINT8
        KIND_INT8
        KIND_UINT16
        KIND_INT16
        KIND_FLOAT16
        KIND_BFLOAT16

    ctypedef struct activation_t:
        int code
        float low, high

    ctypedef struct tile_t:
        const char* a
        const char* b
        Py_ssize_t a_step, b_step, depth
        bint first, last
        float* partial
        const char* ahead
        Py_ssize_t ahead_step
        char* y
        Py_ssize_t y_step
        const float* bias
        bint bias_on_lanes
        float low, high

    ctypedef struct pack_t:
        const char* src
        int kind
        Py_ssize_t step, channel_step, count, depth
        float* dst
        Py_ssize_t width, panel, at
        const float* scale
        const float* shift
        activation_t activation

    ctypedef struct finish_t:
        float* sum
        Py_ssize_t rows, vectors, pitch
        const float* bias
        const float* scale
        bint channels_on_lanes
        const float* residual
        activation_t activation

    ctypedef struct head_t:
        float* logits
        Py_ssize_t pitch, classes, pixels, k
        int32_t* labels
        float* values

    ctypedef struct resize_t:
        const float* above
        const float* below
        Py_ssize_t pitch, classes, width
        float down
        Py_ssize_t out_width
        const int32_t* left
        const int32_t* right
        const float* across
        float* line
        int32_t* ranks
        int32_t* labels

    ctypedef void (*tile_kernel)(const tile_t*) noexcept nogil

    ctypedef struct isa_t:
        const char* name
        int lanes
        int rows[7]
        tile_kernel kernel[2][7][15]
        void (*pack)(const pack_t*) noexcept nogil
        void (*pack_rows)(const pack_t*) noexcept nogil
        void (*finish)(const finish_t*) noexcept nogil
        void (*best)(const head_t*) noexcept nogil
        void (*softmax)(const head_t*) noexcept nogil
        void (*best_resized)(const resize_t*) noexcept nogil
        void (*copy)(char*, Py_ssize_t, Py_ssize_t, const char*, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                     Py_ssize_t) noexcept nogil
        double (*fma_chain)(long) noexcept nogil
        double (*sweep)(int, char*, const char*, size_t) noexcept nogil


cdef extern from "cpu.h" nogil:
    ctypedef struct cpu_facts_t:
        uint32_t leaf1_ecx, leaf7_ebx
        uint64_t xcr0

    cpu_facts_t pwconv_cpu_facts()
    int pwconv_isa_count()
    const isa_t* pwconv_isa(int index)
    bint pwconv_isa_supported(int index, const cpu_facts_t* facts)
    size_t pwconv_cache_bytes(int level)
    uint64_t pwconv_float_enter()
    void pwconv_float_leave(uint64_t before)
    const char* pwconv_compiler()


cdef extern from "threads.h" nogil:
    int PWCONV_OPENMP
    int omp_get_max_threads()
    int omp_get_thread_num()


include "featuremap.pxi"
include "plan.pxi"
include "blocks.pxi"


# Memory ---------------------------------------------------------------------------------------------------------------

cdef class Memory:
    """A block of bytes that starts on a cache line, owned by this object."""

    cdef void* block
    cdef char* data
    cdef size_t size

    def __dealloc__(self):
        free(self.block)

    cdef int reserve(self, size_t size) except -1:
        """Makes sure of `size` bytes; what was in them is lost."""
        if size <= self.size and self.block != NULL:
            return 0
        free(self.block)
        self.size = 0
        self.block = malloc(size + 64) if size <= <size_t> PY_SSIZE_T_MAX - 64 else NULL
        if self.block == NULL:
            raise MemoryError(f"no {size} bytes of memory for packing")
        self.data = <char*> ((<uintptr_t> self.block + 63) & ~<uintptr_t> 63)
        self.size = size
        return 0


cdef enum:
    IDLE_BLOCKS = 4
    IDLE_BYTES = 64 << 20          # a larger block is given back at once

# Scratch memory that no call uses now. list.pop and list.append are atomic.
cdef list idle_memory = []


cdef Memory take_memory(size_t size):
    cdef Memory memory = idle_memory.pop() if idle_memory else Memory()
    memory.reserve(size)
    return memory


cdef int give_back(Memory memory) except -1:
    if len(idle_memory) < IDLE_BLOCKS and memory.size <= IDLE_BYTES:
        idle_memory.append(memory)
    return 0


# What a layer is told once --------------------------------------------------------------------------------------------

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

    def __cinit__(self, spec, resolved=None):
        cdef int i
        self.spec = spec
        self.groups = spec.groups
        self.before.code, self.before.low, self.before.high = spec.input_activation
        self.after.code, self.after.low, self.after.high = spec.activation
        self.on_numpy = spec.backend == "numpy"
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
        if self.rank == rank:
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


cdef struct Weights:
    # A matrix of weights as it lies in memory, and its bias.
    const char* data
    Py_ssize_t out_step, in_step   # bytes
    Py_ssize_t outs, depth         # out channels of all groups, in channels of one
    const char* bias               # NULL: none


cdef inline Py_ssize_t channel_pitch(Py_ssize_t channels) noexcept nogil:
    """Floats of a group in a table of one value per channel, with room to load whole vectors at its end."""
    return (channels + 31) & ~<Py_ssize_t> 15


cdef void fill_table(float* table, const float* values, float otherwise, Py_ssize_t groups,
                     Py_ssize_t channels) noexcept:
    """One value per channel, group by group; `otherwise` throughout where there are no values."""
    cdef Py_ssize_t pitch = channel_pitch(channels), group, i
    for group in range(groups):
        for i in range(pitch):
            table[group * pitch + i] = (
                otherwise if values == NULL else values[group * channels + i] if i < channels else 0.0
            )


# A call ---------------------------------------------------------------------------------------------------------------

cdef enum:
    WEIGHT, BIAS, INPUT_SCALE, INPUT_SHIFT, OUTPUT_SCALE, RESIDUAL, OUT, BUFFERS


cdef struct Buffers:
    Py_buffer view[BUFFERS]
    bint held[BUFFERS]


cdef struct Input:
    # One map, or several that follow each other along the channels.
    int count, held
    Py_buffer* view
    FeatureMap* map
    Py_buffer one_view
    FeatureMap one_map


cdef bint has_strides(const Py_buffer* view) noexcept:
    """Some exporters (ctypes) leave strides out though they were asked for them."""
    return view.ndim <= MAX_AXES and (view.ndim == 0 or (view.shape != NULL and view.strides != NULL))


cdef bint hold(Buffers* buffers, int which, object exporter) noexcept:
    """Takes an array's buffer; False unless it holds float32. None is no array, and fine."""
    cdef int flags = PyBUF_STRIDES | PyBUF_FORMAT
    if exporter is None:
        return True
    if PyObject_GetBuffer(exporter, &buffers.view[which], flags | PyBUF_WRITABLE if which == OUT else flags) != 0:
        PyErr_Clear()
        return False
    buffers.held[which] = True
    return has_strides(&buffers.view[which]) and element_kind(&buffers.view[which]) == KIND_FLOAT32


cdef void release(Buffers* buffers) noexcept:
    cdef int i
    for i in range(BUFFERS):
        if buffers.held[i]:
            PyBuffer_Release(&buffers.view[i])
            buffers.held[i] = False


cdef bint hold_map(Input* x, object exporter) noexcept:
    """Takes the next map's buffer; False unless it holds numbers that can be widened to float32."""
    cdef Py_buffer* view = &x.view[x.held]
    if PyObject_GetBuffer(exporter, view, PyBUF_STRIDES | PyBUF_FORMAT) != 0:
        PyErr_Clear()
        return False
    x.map[x.held].kind = element_kind(view) if has_strides(view) else -1
    x.held += 1
    return x.map[x.held - 1].kind >= 0


cdef bint hold_input(Input* x, object value) except -1:
    """Takes the buffers of an array, or of a list of arrays; False unless all of them are plainly good."""
    x.count = 1
    x.held = 0
    x.view = &x.one_view
    x.map = &x.one_map
    if type(value) is not list and type(value) is not tuple:
        if hold_map(x, value):
            return True
        value = (value,)
    elif len(value) > 1:
        x.count = len(value)
        x.map = <FeatureMap*> malloc(x.count * (sizeof(FeatureMap) + sizeof(Py_buffer)))
        if x.map == NULL:
            x.map = &x.one_map
            raise MemoryError("no memory for a list of maps")
        x.view = <Py_buffer*> (x.map + x.count)
    release_input_views(x)
    for part in value:
        if x.held == x.count or not hold_map(x, part):
            # bfloat16 arrays export no buffer of their own.
            if x.held == x.count or getattr(getattr(part, "dtype", None), "name", None) != "bfloat16":
                return False
            if not hold_map(x, part.view(numpy.uint16)):
                return False
            x.map[x.held - 1].kind = KIND_BFLOAT16
    return x.held == x.count


cdef void release_input_views(Input* x) noexcept:
    while x.held > 0:
        x.held -= 1
        PyBuffer_Release(&x.view[x.held])


cdef void release_input(Input* x) noexcept:
    release_input_views(x)
    if x.map != &x.one_map:
        free(x.map)
        x.map = &x.one_map


cdef bint is_table(const Buffers* buffers, int which, Py_ssize_t batch, Py_ssize_t channels) noexcept:
    """Is this one contiguous value per channel, or per image and channel? Or absent?"""
    cdef const Py_buffer* view = &buffers.view[which]
    if not buffers.held[which]:
        return True
    if view.ndim == 2:
        if view.shape[0] != batch or view.strides[0] != channels * <Py_ssize_t> sizeof(float):
            return False
    elif view.ndim != 1:
        return False
    return view.shape[view.ndim - 1] == channels and view.strides[view.ndim - 1] == sizeof(float)


cdef bint reaches_once(const Py_buffer* view) noexcept:
    """Are all elements surely apart? True if, from the smallest stride up, each steps over all that comes before."""
    cdef bint used[MAX_AXES]
    cdef Py_ssize_t span = sizeof(float), step
    cdef int i, _round, least
    memset(used, 0, sizeof(used))
    for _round in range(view.ndim):
        least = -1
        for i in range(view.ndim):
            if not used[i] and (least < 0 or abs(view.strides[i]) < abs(view.strides[least])):
                least = i
        used[least] = True
        step = abs(view.strides[least])
        if view.shape[least] > 1:
            if step < span:
                return False
            span += step * (view.shape[least] - 1)
    return True


cdef void extent(const Py_buffer* view, const char** low, const char** high) noexcept:
    """The bytes between which all elements of a buffer lie."""
    cdef int i
    low[0] = <const char*> view.buf
    high[0] = low[0] + view.itemsize
    for i in range(view.ndim):
        if view.shape[i] == 0:
            high[0] = low[0]
            return
        if view.strides[i] < 0:
            low[0] += view.strides[i] * (view.shape[i] - 1)
        else:
            high[0] += view.strides[i] * (view.shape[i] - 1)


cdef bint same_elements(const Py_buffer* a, const Py_buffer* b) noexcept:
    cdef int i
    if a.buf != b.buf or a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i] or (a.strides[i] != b.strides[i] and a.shape[i] > 1):
            return False
    return True


cdef bint meets(const Py_buffer* a, const Py_buffer* b) noexcept:
    """May two buffers share a byte?"""
    cdef const char* a_low
    cdef const char* a_high
    cdef const char* b_low
    cdef const char* b_high
    extent(a, &a_low, &a_high)
    extent(b, &b_low, &b_high)
    return a_low < b_high and b_low < a_high


cdef bint out_is_apart(const Input* x, const Buffers* buffers) noexcept:
    """Does `out` surely reach no element twice and none that is read (but by a residual that is `out` itself)?"""
    cdef const Py_buffer* out = &buffers.view[OUT]
    cdef int i
    if not reaches_once(out):
        return False
    for i in range(x.count):
        if meets(out, &x.view[i]):
            return False
    for i in range(BUFFERS):
        if i == OUT or not buffers.held[i] or (i == RESIDUAL and same_elements(&buffers.view[i], out)):
            continue
        if meets(out, &buffers.view[i]):
            return False
    return True


cdef int thread_setting = 1
cdef int busy_threads = 0          # threads of all calls under way, the callers' own included; guarded by the GIL


cdef bint had_team = False         # has a call used more than one thread?
cdef bint serial = False           # in a child of such a process OpenMP's team is gone, and waiting for it would hang


cdef inline int free_threads(int allowed) noexcept:
    """So many threads of those allowed are not busy with other calls; who finds none free runs alone."""
    return 1 if serial else max(1, allowed - busy_threads)


def after_fork_in_child():
    """Puts in order what other threads of the parent may have held."""
    global busy_threads, serial
    busy_threads = 0
    serial = had_team
    idle_memory.clear()


cdef int threads_for(object num_threads) noexcept:
    """How many threads a call may use; 0 if the argument is not plainly good."""
    cdef Py_ssize_t wanted
    if num_threads is None:
        return min(thread_setting, omp_get_max_threads())
    if not PyLong_CheckExact(num_threads) or not 1 <= num_threads < 1 << 30:
        return 0
    wanted = num_threads
    return <int> min(wanted, 1024)


cdef enum:
    PACKINGS = 4                   # different packings of its weights that a layer keeps


cdef class Layer:
    """Weights that are packed once, and what they were told about their use."""

    cdef readonly object matrix, bias1d, spec
    cdef Recipe recipe
    cdef Weights weights
    cdef Memory tables             # bias, then ones
    cdef dict packed               # (instruction set, side, vectors) -> Memory
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
        self.tables = Memory()
        self.tables.reserve(2 * floats * sizeof(float))
        fill_table(<float*> self.tables.data, <const float*> self.weights.bias, 0.0, self.recipe.groups, outs)
        fill_table(<float*> self.tables.data + floats, NULL, 1.0, self.recipe.groups, outs)

    def __dealloc__(self):
        release(&self.buffers)

    cdef Memory packed_for(self, const Plan* plan):
        """The weights as the plan wants them; packed when they are first wanted so."""
        key = (<uintptr_t> plan.isa, plan.pixels_on_lanes, plan.vectors)
        cdef Memory memory = self.packed.get(key)
        cdef Py_ssize_t groups = self.recipe.groups
        if memory is None:
            memory = Memory()
            memory.reserve(packed_floats(plan, self.weights.depth) * groups * sizeof(float))
            pack_weights(plan, self.weights.data, self.weights.out_step, self.weights.in_step, self.weights.depth,
                         groups, <float*> memory.data)
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
    if buffers.held[OUT] and not checked and not out_is_apart(x, buffers):
        return None

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
    lay_out(&program)

    # Memory for all that is made for this call only, then the call.
    cdef size_t at = program.schedule.threads * program.thread_bytes
    cdef size_t weight_bytes = aligned(step.group_weights * groups * sizeof(float))
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
        pack_weights(&step.plan, weights.data, weights.out_step, weights.in_step, step.depth, groups,
                     <float*> (data + at))
        step.weights = <const float*> (data + at)
        at += weight_bytes
        step.bias = fill_tables(NULL, <const float*> weights.bias, 0.0, groups, step.outs, data, &at, NULL)
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


cdef int run_released(const Program* program, Memory memory) except -1:
    """Runs a program without the GIL, its threads counted as busy, and gives its memory back."""
    global busy_threads, had_team
    cdef char* data = memory.data
    busy_threads += program.schedule.threads
    had_team = had_team or program.schedule.threads > 1
    with nogil:
        run_program(program, data)
    busy_threads -= program.schedule.threads
    return give_back(memory)


cdef void read_input(Step* step, Recipe recipe, Input* x, bint apart) noexcept:
    """Makes the maps of x the input of a step."""
    cdef int i
    for i in range(x.count):
        map_of(&x.view[i], x.map[i].kind, &recipe.x_axes, recipe.stride, apart, &x.map[i])
    step.x = x.map
    step.x_parts = x.count


cdef void describe_step(Step* step, Recipe recipe, const Weights* weights) noexcept:
    """What a step takes from its layer's constructor arguments."""
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
    p.threads = threads
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


cdef Memory use_layer(Step* step, Layer layer):
    """Points a planned step to its layer's tables and packed weights, and returns what must be kept meanwhile."""
    cdef Memory packed = layer.packed_for(&step.plan)
    step.weights = <const float*> packed.data
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


cdef const float* fill_tables(const Py_buffer* view, const float* values, float otherwise, Py_ssize_t groups,
                              Py_ssize_t channels, char* data, size_t* at, Py_ssize_t* span) noexcept:
    """A table of channels for all images, or one each, from a buffer or from `values`, at `data + at`.

    Moves `at` past it, and tells the floats between images.
    """
    cdef float* table = <float*> (data + at[0])
    cdef Py_ssize_t floats = groups * channel_pitch(channels)
    cdef Py_ssize_t images = view.shape[0] if view != NULL and view.ndim == 2 else 1, image
    if view != NULL:
        values = <const float*> view.buf
    for image in range(images):
        fill_table(table + image * floats, values + image * groups * channels if values != NULL else NULL, otherwise,
                   groups, channels)
    at[0] += aligned(images * floats * sizeof(float))
    if span != NULL:
        span[0] = floats if images > 1 else 0
    return table


# Several layers in one pass -------------------------------------------------------------------------------------------

cdef enum:
    MIN_BLOCK = 48                 # pixels; below that tiles waste more than the cache gives


cdef Py_ssize_t block_for_steps(const Program* g, int threads) noexcept:
    """Pixels in a block whose maps between the steps, and the panels beside them, stay in the second-level cache."""
    cdef Py_ssize_t floats = 0, packed = 0, blocks, block, i
    for i in range(g.count):
        if g.steps[i].y_is_scratch:
            floats += g.steps[i].groups * g.steps[i].outs
        packed = max(packed, min(g.steps[i].depth, 2 * SUM_BLOCK))
    block = max(MIN_BLOCK, 2 * cache_room() // (floats + packed))
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
        plan_step(step, step.x if step.x_parts else x, g.schedule.spans, g.pixels, 0, 1, &alone)
        limit_sums(step.depth, step.outs, &step.plan, g.schedule.pixel_block)
        cycles += step.plan.cycles
        kept.append(use_layer(step, layers[i]))
        x = &step.y
    g.schedule.parts = 1
    g.schedule.units = g.schedule.spans * g.schedule.pixel_blocks
    g.schedule.threads = <int> max(1, min(min(<double> wanted, cycles / THREAD_CYCLES), g.schedule.units))
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


# What plans say -------------------------------------------------------------------------------------------------------

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
            isa=p.isa.name.decode(), pixels_on_lanes=bool(p.pixels_on_lanes), packed=bool(p.packed),
            tile_rows=rows.base + (rows.extra > 0), tile_lanes=p.vectors * p.isa.lanes, depth_block=p.depth_block,
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


# Instruction sets, threads, caches, limits ----------------------------------------------------------------------------

cdef int active_isa = 0
cdef size_t[4] cache_bytes


def isa_built():
    """Names of the instruction sets in this build, slowest first."""
    return tuple([pwconv_isa(i).name.decode() for i in range(pwconv_isa_count())])


def isa_supported(facts=None):
    """Those of them that this machine has; or one with other facts (CPUID 1 ECX, CPUID 7 EBX, XCR0)."""
    cdef cpu_facts_t f = pwconv_cpu_facts()
    if facts is not None:
        f.leaf1_ecx, f.leaf7_ebx, f.xcr0 = facts
    return tuple([pwconv_isa(i).name.decode() for i in range(pwconv_isa_count()) if pwconv_isa_supported(i, &f)])


def isa_active():
    """The name of the instruction set in use."""
    return pwconv_isa(active_isa).name.decode()


def set_isa(name):
    """Uses the named instruction set from now on. ValueError if it is not supported here."""
    global active_isa
    if name not in isa_supported():
        raise ValueError(f"instruction set {name!r} is not supported here; there are {', '.join(isa_supported())}")
    active_isa = isa_built().index(name)


def set_thread_setting(int n):
    """How many threads a call without num_threads may use, OpenMP's maximum permitting."""
    global thread_setting
    thread_setting = n


def get_threads():
    """How many threads a call without num_threads may use now."""
    return threads_for(None)


def openmp():
    """Is OpenMP in this build, which version (its date), and how many threads does it offer the calling thread?"""
    return {"enabled": PWCONV_OPENMP > 0, "version": PWCONV_OPENMP, "max_threads": omp_get_max_threads()}


def compiler():
    """The compiler of this build."""
    return pwconv_compiler().decode()


def caches():
    """Bytes of a core's data caches as plans assume them."""
    return {"l1d": cache_bytes[1], "l2": cache_bytes[2], "l3": cache_bytes[3]}


def fma_peak(str isa, double seconds):
    """GFLOP/s of one core that does nothing but independent FMAs: the best of what fits into `seconds`."""
    cdef const isa_t* set = pwconv_isa(isa_built().index(isa))
    cdef double best = 0.0, operations, start, end
    cdef double stop = time.perf_counter() + seconds
    cdef long turns = 200000
    while True:
        start = time.perf_counter()
        with nogil:
            operations = set.fma_chain(turns)
        end = time.perf_counter()
        best = max(best, operations / (end - start))
        if end > stop:
            return best * 1e-9


def bandwidth(str isa, str kind, size_t nbytes, double seconds):
    """GB/s of one core that reads, writes or copies `nbytes` again and again: the best of what fits into `seconds`."""
    cdef const isa_t* set = pwconv_isa(isa_built().index(isa))
    cdef int code = ("read", "write", "copy").index(kind)
    cdef double best = 0.0, start, end
    cdef double stop = time.perf_counter() + seconds
    cdef size_t round_bytes = max(<size_t> 1, nbytes // 512) * 512
    cdef size_t repeat = 1 + (1 << 22) // round_bytes, _turn
    cdef Memory source = Memory(), target = Memory()
    source.reserve(round_bytes)
    memset(source.data, 0, round_bytes)
    target.reserve(round_bytes)
    memset(target.data, 0, round_bytes)
    while True:
        start = time.perf_counter()
        with nogil:
            for _turn in range(repeat):
                set.sweep(code, target.data, source.data, round_bytes)
        end = time.perf_counter()
        best = max(best, <double> round_bytes * repeat / (end - start))
        if end > stop:
            return best * 1e-9


cdef int start_up() except -1:
    cdef size_t usual[4]
    cdef int level
    usual[:] = [0, 32 << 10, 512 << 10, 0]
    for level in range(1, 4):
        cache_bytes[level] = pwconv_cache_bytes(level) or usual[level]
    *_, best = isa_supported()
    set_isa(best)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=after_fork_in_child)
    return 0


start_up()
