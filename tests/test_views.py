"""Views are computed in place: no call copies the map that it reads."""

from __future__ import annotations

import gc
import sys

import numpy as np
import process
import pytest

import pwconv

# A map of 100 MB for each layout, of which the tests take views.
WHOLE = {"NCHW": (1, 64, 625, 625), "NHWC": (1, 625, 625, 64)}
LIMIT = 8 * 2**20

# Peak memory is counted for a whole process, so every view gets a fresh one. A first, small call of the same kind loads
# code, and starts threads with their packing buffers, which stay.
PROGRAM = """
import numpy as np
import process
import pwconv

layout, shape = {layout!r}, {shape!r}
weight = np.ones((4, 64), np.float32)
whole = np.ones(shape, np.float32)
x = whole{view}
small = np.zeros(np.minimum(shape, 64), np.float32)
pwconv.pointwise_conv(small{view}, weight, layout=layout)
before = process.bytes_of("resident")
y = {call}
extra = process.bytes_of("peak") - before - y.nbytes
assert y.size and (y == 64).all()
print(extra)
"""
CALL = "pwconv.pointwise_conv(x, weight, layout=layout)"

VIEWS = {
    "crop": {"NCHW": "[:, :, 10:-10, 10:-10]", "NHWC": "[:, 10:-10, 10:-10]"},
    "stepped": {"NCHW": "[:, :, ::2, ::2]", "NHWC": "[:, ::2, ::2]"},
    "stepped in one axis": {"NCHW": "[..., ::2]", "NHWC": "[:, :, ::2]"},
    "transposed": {"NCHW": ".swapaxes(2, 3)", "NHWC": ".swapaxes(1, 2)"},
    "backwards": {"NCHW": "[:, ::-1, ::-1, ::-1]", "NHWC": "[:, ::-1, ::-1, ::-1]"},
    "channels elsewhere": {"NCHW": ".transpose(0, 2, 1, 3)[:, :64]", "NHWC": ".transpose(0, 3, 2, 1)[..., :64]"},
}


def extra_memory(layout, view, call=CALL):
    """The peak of resident bytes during a call, beyond its arguments and its result."""
    program = PROGRAM.format(layout=layout, shape=WHOLE[layout], view=view, call=call)
    return int(process.python(program))


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc, which is Linux's")


@pytest.mark.measures
@needs_proc
@pytest.mark.parametrize("layout", WHOLE)
@pytest.mark.parametrize("kind", VIEWS)
def test_views_are_not_copied(layout, kind):
    assert extra_memory(layout, VIEWS[kind][layout]) < LIMIT


@pytest.mark.measures
@needs_proc
@pytest.mark.parametrize("layout", WHOLE)
def test_the_measurement_sees_a_copy(layout):
    view = VIEWS["crop"][layout]
    assert extra_memory(layout, view, CALL.replace("(x", "(x.copy()")) > 5 * LIMIT


def test_a_buffer_is_not_copied_and_is_released():
    """Any object with the buffer protocol is read and written in place, and released, after an error, too."""
    values = np.arange(24, dtype=np.float32)
    x = memoryview(bytearray(values.tobytes())).cast("f", (1, 2, 3, 4))
    out = memoryview(bytearray(4 * 12)).cast("f", (1, 1, 3, 4))
    assert pwconv.pointwise_conv(x, np.ones((1, 2), np.float32), out=out) is out
    np.testing.assert_array_equal(np.asarray(out), values.reshape(1, 2, 3, 4).sum(1, keepdims=True))
    with pytest.raises(ValueError, match="weight"):
        pwconv.pointwise_conv(x, np.ones((1, 3), np.float32), out=out)
    gc.collect()  # the traceback of the error
    x.release()  # raises BufferError while a reference to the buffer is held
    out.release()
