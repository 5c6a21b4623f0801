# Feature maps: from arrays and layout letters to records of strides. No other part knows layouts (NCHW, NHWC, ...).
#
# A feature map has a byte stride from channel to channel, and pixel axes (batch and space) with a byte stride each.
# Axes that are evenly spaced in memory are merged, so that the pixels of a whole channels-last batch are one axis.

cdef enum:
    MAX_AXES = 16


cdef struct Axes:
    int rank
    int channel
    int batch                      # -1: none
    int pixel_axes
    int pixel[MAX_AXES]            # the array's axis of each pixel axis, in the order of the input's layout


cdef struct FeatureMap:
    char* data
    int kind                       # of its elements
    Py_ssize_t item                # bytes of one
    Py_ssize_t channels
    Py_ssize_t channel_step        # bytes
    Py_ssize_t span_step           # bytes from image to image if each image is a span, else 0
    bint far                       # too large to stay in a cache: stored past the caches
    bint slack                     # scratch: whole vectors may be read and written beyond the last pixel
    int axes                       # pixel axes after merging, outermost first
    Py_ssize_t size[MAX_AXES]
    Py_ssize_t step[MAX_AXES]      # bytes


cdef struct Run:
    char* at
    Py_ssize_t step
    Py_ssize_t count               # pixels that follow at this step, `at` included


cdef int locate_axes(str letters, str order, Axes* axes) except -1:
    """Finds the axes of an array with these layout letters; pixel axes in the order of the letters `order`."""
    cdef Py_UCS4 letter
    axes.rank = len(letters)
    axes.channel = letters.index("C")
    axes.batch = letters.find("N")
    axes.pixel_axes = 0
    for letter in order:
        if letter != u"C":
            axes.pixel[axes.pixel_axes] = letters.index(letter)
            axes.pixel_axes += 1
    return 0


cdef int element_kind(const Py_buffer* view) noexcept:
    """The element type of a buffer with a format of one letter and maybe a byte order; -1: another."""
    cdef const char* form = view.format
    cdef int swapped = 0
    if form == NULL:
        return -1
    if form[0] == c">" or form[0] == c"!":
        swapped = KIND_SWAPPED
    if swapped or form[0] == c"@" or form[0] == c"=" or form[0] == c"<":
        form += 1
    if form[0] == 0 or form[1] != 0:
        return -1
    if form[0] == c"f":
        return KIND_FLOAT32 | swapped
    if form[0] == c"B":
        return KIND_UINT8
    if form[0] == c"b":
        return KIND_INT8
    if form[0] == c"H":
        return KIND_UINT16 | swapped
    if form[0] == c"h":
        return KIND_INT16 | swapped
    if form[0] == c"e":
        return KIND_FLOAT16 | swapped
    return -1


cdef bint holds_integers(const Py_buffer* view) noexcept:
    """Native integers of any size, signed or not."""
    cdef const char* form = view.format
    if form == NULL:
        return False
    if form[0] == c"@" or form[0] == c"=" or form[0] == c"<":
        form += 1
    return form[0] != 0 and strchr(b"bBhHiIlLqQ", form[0]) != NULL and form[1] == 0


cdef void map_of(const Py_buffer* view, int kind, const Axes* axes, const Py_ssize_t* stride, bint per_image,
                 FeatureMap* m) noexcept:
    """The record of an array, every stride[i]-th element of its i-th pixel axis (NULL: every one).

    `per_image`: each image is a span, so the batch is no pixel axis.
    """
    cdef int i, axis, last = -1
    cdef Py_ssize_t size, step, every
    m.data = <char*> view.buf
    m.kind = kind
    m.item = view.itemsize
    m.channels = view.shape[axes.channel]
    m.channel_step = view.strides[axes.channel]
    if m.channels <= 1:            # an unused stride may be any number, but plans ask whether channels come last
        m.channel_step = m.item if axes.channel == axes.rank - 1 else 0
    m.span_step = view.strides[axes.batch] if per_image else 0
    m.slack = False
    m.far = False
    for i in range(axes.pixel_axes):
        axis = axes.pixel[i]
        every = stride[i] if stride != NULL else 1
        size = (view.shape[axis] + every - 1) // every
        if size == 1 or (per_image and axis == axes.batch):
            continue
        step = view.strides[axis] * every  # of an axis of length 1, it may be any number
        if last >= 0 and m.step[last] == size * step:
            m.size[last] *= size
            m.step[last] = step
        else:
            last += 1
            m.size[last] = size
            m.step[last] = step
    if last < 0:
        last = 0
        m.size[0] = 1
        m.step[0] = m.item
    m.axes = last + 1


cdef inline Run run_from(const FeatureMap* m, Py_ssize_t pixel) noexcept nogil:
    """The address of a pixel's first channel, and how many pixels follow at one step."""
    cdef Run run
    cdef int axis = m.axes - 1
    cdef Py_ssize_t place = pixel % m.size[axis] if axis else pixel
    run.step = m.step[axis]
    run.count = m.size[axis] - place
    run.at = m.data + place * run.step
    while axis > 0:
        pixel //= m.size[axis]
        axis -= 1
        run.at += pixel % m.size[axis] * m.step[axis]
    return run
