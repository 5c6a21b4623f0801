# Arrays to records: the only place that knows layouts.
#
# A feature map is its channels and its pixels, each a byte stride away from the next. Pixels have several axes (batch
# and space); those that follow each other at one step in memory are merged, so that a whole channels-last batch is one.

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
    Py_ssize_t span_step           # bytes from an image to the next where images are computed apart, else 0
    bint slack                     # whole vectors may be read and written at an edge: scratch, no array
    int axes                       # pixel axes after merging, slowest first
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
    """Which numbers a buffer holds, whatever their alignment; -1: none that is known.

    A letter alone, or after a sign for native or little-endian order.
    """
    cdef const char* form = view.format
    if form == NULL:
        return -1
    if form[0] == c"@" or form[0] == c"=" or form[0] == c"<":
        form += 1
    if form[0] == 0 or form[1] != 0:
        return -1
    if form[0] == c"f":
        return KIND_FLOAT32
    if form[0] == c"B":
        return KIND_UINT8
    if form[0] == c"b":
        return KIND_INT8
    if form[0] == c"H":
        return KIND_UINT16
    if form[0] == c"h":
        return KIND_INT16
    if form[0] == c"e":
        return KIND_FLOAT16
    return -1


cdef bint holds_integers(const Py_buffer* view) noexcept:
    """Native integers of any size, signed or not."""
    cdef const char* form = view.format
    if form == NULL:
        return False
    if form[0] == c"@" or form[0] == c"=" or form[0] == c"<":
        form += 1
    return form[0] != 0 and strchr(b"bBhHiIlLqQ", form[0]) != NULL and form[1] == 0


cdef void map_of(const Py_buffer* view, int kind, const Axes* axes, const Py_ssize_t* stride, bint apart,
                 FeatureMap* m) noexcept:
    """The record of an array, every stride[i]-th element of its i-th pixel axis (NULL: every one).

    `apart`: images are computed one by one, so the batch is no pixel axis.
    """
    cdef int i, axis, last = -1
    cdef Py_ssize_t size, step, every
    m.data = <char*> view.buf
    m.kind = kind
    m.item = view.itemsize
    m.channels = view.shape[axes.channel]
    m.channel_step = view.strides[axes.channel]
    if m.channels <= 1:            # nobody walks: any number may stand there, but plans ask if channels come last
        m.channel_step = m.item if axes.channel == axes.rank - 1 else 0
    m.span_step = view.strides[axes.batch] if apart else 0
    m.slack = False
    for i in range(axes.pixel_axes):
        axis = axes.pixel[i]
        every = stride[i] if stride != NULL else 1
        size = (view.shape[axis] + every - 1) // every
        if size == 1 or (apart and axis == axes.batch):
            continue
        step = view.strides[axis] * every  # of an axis that nobody walks along, it may be any number
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
    """Where a pixel's first channel lies, and how far one step leads from there."""
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
