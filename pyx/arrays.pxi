# Memory and arrays of a call: scratch memory, and the buffers of its arguments with their checks.

cdef object ndarray = numpy.ndarray


cdef class Memory:
    """A block of bytes that starts on a cache line, owned by this object."""

    cdef void* block
    cdef char* data
    cdef size_t size

    def __dealloc__(self):
        free(self.block)

    cdef int reserve(self, size_t size) except -1:
        """Makes the block at least `size` bytes large; its contents are lost."""
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
    IDLE_BYTES = 64 << 20          # a larger block is freed at once

# Scratch memory that no call uses at present. list.pop and list.append are atomic.
cdef list idle_memory = []


cdef Memory take_memory(size_t size):
    cdef Memory memory = idle_memory.pop() if idle_memory else Memory()
    memory.reserve(size)
    return memory


cdef int give_back(Memory memory) except -1:
    if len(idle_memory) < IDLE_BLOCKS and memory.size <= IDLE_BYTES:
        idle_memory.append(memory)
    return 0


cdef enum:
    WEIGHT, BIAS, INPUT_SCALE, INPUT_SHIFT, OUTPUT_SCALE, RESIDUAL, OUT, BUFFERS


cdef struct Buffers:
    Py_buffer view[BUFFERS]
    int kind[BUFFERS]              # of the elements
    bint held[BUFFERS]


cdef struct Input:
    # The map x, or the maps of a list x in the order of their channels.
    int count, held
    Py_buffer* view
    FeatureMap* map
    Py_buffer one_view
    FeatureMap one_map


cdef bint has_strides(const Py_buffer* view) noexcept:
    """Some exporters (ctypes) leave out the strides although they were requested."""
    return view.ndim <= MAX_AXES and (view.ndim == 0 or (view.shape != NULL and view.strides != NULL))


cdef int take_buffer(object exporter, Py_buffer* view, bint writable) except -2:
    """Takes an array's buffer and returns the kind of its elements; -1, without a buffer, if no kernel reads them."""
    cdef int flags = PyBUF_STRIDES | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
    cdef int kind
    if type(exporter) is not ndarray and hasattr(exporter, "mask"):
        return -1                  # a masked array, whose mask must not be ignored
    if PyObject_GetBuffer(exporter, view, flags) != 0:
        PyErr_Clear()
        # bfloat16 arrays export no buffer of their own.
        if getattr(getattr(exporter, "dtype", None), "name", None) != "bfloat16":
            return -1
        kind = take_buffer(exporter.view(numpy.uint16), view, writable)
        if kind == KIND_UINT16:
            return KIND_BFLOAT16
        if kind >= 0:
            PyBuffer_Release(view)
        return -1
    kind = element_kind(view) if has_strides(view) else -1
    if kind < 0:
        PyBuffer_Release(view)
    return kind


cdef bint hold(Buffers* buffers, int which, object exporter) except -1:
    """Takes an array's buffer; False if it needs checking. None is an absent array: True.

    Results and residuals may be of any native kind, all other arrays are float32.
    """
    if exporter is None:
        return True
    buffers.kind[which] = take_buffer(exporter, &buffers.view[which], which == OUT)
    buffers.held[which] = buffers.kind[which] >= 0
    if which == OUT:
        return buffers.kind[which] >= 0 and buffers.kind[which] < KIND_SWAPPED
    if which == RESIDUAL:
        return buffers.kind[which] >= 0
    return buffers.kind[which] == KIND_FLOAT32


cdef bint hold_other(Buffers* buffers, int which, object exporter) noexcept:
    """Takes the buffer of an array whose elements the caller looks at; False if there is none."""
    cdef int flags = PyBUF_STRIDES | PyBUF_FORMAT
    if PyObject_GetBuffer(exporter, &buffers.view[which], flags | PyBUF_WRITABLE if which == OUT else flags) != 0:
        PyErr_Clear()
        return False
    buffers.held[which] = True
    return has_strides(&buffers.view[which])


cdef bint holds_bool(const Py_buffer* view) noexcept:
    return view.format != NULL and view.format[0] == c"?" and view.format[1] == 0


cdef inline const Py_buffer* view_of(const Buffers* buffers, int which) noexcept:
    """The buffer of an argument; NULL if it is absent."""
    if buffers.held[which]:
        return &buffers.view[which]
    return NULL


cdef void release(Buffers* buffers) noexcept:
    cdef int i
    for i in range(BUFFERS):
        if buffers.held[i]:
            PyBuffer_Release(&buffers.view[i])
            buffers.held[i] = False


cdef bint hold_map(Input* x, object exporter) except -1:
    """Takes the next map's buffer; False unless its elements can be widened to float32."""
    cdef int kind = take_buffer(exporter, &x.view[x.held], False)
    if kind < 0:
        return False
    x.map[x.held].kind = kind
    x.held += 1
    return True


cdef bint hold_input(Input* x, object value) except -1:
    """Takes the buffers of an array, or of a list of arrays; False if one of them needs checking."""
    x.count = 1
    x.held = 0
    x.view = &x.one_view
    x.map = &x.one_map
    if type(value) is not list and type(value) is not tuple:
        return hold_map(x, value)
    if len(value) > 1:
        x.count = len(value)
        x.map = <FeatureMap*> malloc(x.count * (sizeof(FeatureMap) + sizeof(Py_buffer)))
        if x.map == NULL:
            x.map = &x.one_map
            raise MemoryError("no memory for a list of maps")
        x.view = <Py_buffer*> (x.map + x.count)
    for part in value:
        if x.held == x.count or not hold_map(x, part):
            return False
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
    """Is this absent, or one contiguous value per channel, or per image and channel?"""
    cdef const Py_buffer* view = &buffers.view[which]
    if not buffers.held[which]:
        return True
    if view.ndim == 2:
        if view.shape[0] != batch or view.strides[0] != channels * <Py_ssize_t> sizeof(float):
            return False
    elif view.ndim != 1:
        return False
    return view.shape[view.ndim - 1] == channels and view.strides[view.ndim - 1] == sizeof(float)


cdef inline Py_ssize_t length_of(Py_ssize_t step) noexcept nogil:
    """The absolute value; the smallest Py_ssize_t, which has none, stays as it is."""
    return <Py_ssize_t> (0 - <size_t> step) if step < 0 else step


cdef bint reaches_once(const Py_buffer* view) noexcept:
    """Can no two indices reach a common byte? True if each stride exceeds the extent of all smaller ones."""
    cdef bint used[MAX_AXES]
    cdef Py_ssize_t span = view.itemsize, step
    cdef int i, _round, least
    memset(used, 0, sizeof(used))
    for _round in range(view.ndim):
        least = -1
        for i in range(view.ndim):
            if not used[i] and (least < 0 or length_of(view.strides[i]) < length_of(view.strides[least])):
                least = i
        used[least] = True
        step = length_of(view.strides[least])
        if view.shape[least] > 1:
            if step < span:
                return False
            span += step * (view.shape[least] - 1)
    return True


cdef void extent(const Py_buffer* view, const char** low, const char** high) noexcept:
    """The bytes between which all elements of a buffer lie."""
    cdef int i
    low[0] = <const char*> view.buf
    high[0] = low[0]
    for i in range(view.ndim):
        if view.shape[i] == 0:
            return
    high[0] += view.itemsize
    for i in range(view.ndim):
        if view.strides[i] < 0:
            low[0] += view.strides[i] * (view.shape[i] - 1)
        else:
            high[0] += view.strides[i] * (view.shape[i] - 1)


cdef bint same_elements(const Py_buffer* a, const Py_buffer* b) noexcept:
    cdef int i
    if a.buf != b.buf or a.ndim != b.ndim or a.itemsize != b.itemsize:
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


cdef bint out_overlaps_nothing(const Input* x, const Buffers* buffers) noexcept:
    """Does `out` reach no element twice, and none that is read, except by a residual that is `out` itself?"""
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
