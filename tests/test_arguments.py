"""Arguments: every error with its message, and unusual arguments that are accepted."""

from __future__ import annotations

import array
import math
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from numpy.exceptions import TooHardError
from numpy.lib.stride_tricks import as_strided

import pwconv

CALL = {"x", "input_scale", "input_shift", "output_scale", "residual", "out", "num_threads"}
OUT_SHAPE = (2, 4, 5, 7)
LARGEST = 2**30 - 1


def good_call(rng):
    """Valid arguments: two images, 6 -> 4 channels in 2 groups, and an `out` inside a larger guard array."""

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "x": normal(2, 6, 5, 7),
        "weight": normal(4, 3),
        "bias": normal(4),
        "groups": 2,
        "input_scale": normal(6),
        "input_shift": normal(2, 6),
        "output_scale": normal(2, 4),
        "residual": normal(*OUT_SHAPE),
        "out": np.full(OUT_SHAPE, 7, np.float32),
    }


def as_function(backend, arguments):
    return pwconv.pointwise_conv(**({"backend": backend} | arguments))


def as_layer(backend, arguments):
    arguments = {"backend": backend} | arguments
    layer = pwconv.PointwiseConv(**{name: value for name, value in arguments.items() if name not in CALL})
    return layer(**{name: value for name, value in arguments.items() if name in CALL})


forms = pytest.mark.parametrize("form", [as_function, as_layer])
backends = pytest.mark.parametrize("backend", ["native", "numpy"])


class RecordsGradients:
    requires_grad = True

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("an array on an autograd graph must not be converted")


class Copies:
    """An object whose `__array__` returns a new array each time."""

    def __array__(self, dtype=None, copy=None):
        return np.zeros(OUT_SHAPE, np.float32)


class Unsupported:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("no such dtype")


class Refuses:
    def __dlpack__(self, **_):
        raise BufferError("it lives on another device")

    def __dlpack_device__(self):
        return (1, 0)


def read_only(shape):
    result = np.zeros(shape, np.float32)
    result.setflags(write=False)
    return result


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def array_errors(name):
    """Cases for one argument that are not arrays."""
    wrong = {"number": 1.5, "str": "text", "object": object()}
    return {
        f"{name} {kind}": ({name: value}, TypeError, rf"^{name} must be .*got {type(value).__name__}")
        for kind, value in wrong.items()
    } | {f"{name} on a graph": ({name: RecordsGradients()}, TypeError, rf"^{name} must be .*use {name}\.detach\(\)$")}


# Maps may be narrower than float32; only what is read may have the other byte order.
MAPS = ("residual", "out")
FOREIGN_DTYPES = {"residual": ("uint32",), "out": ("uint32", ">f4")}


def float32_errors(name, *shape):
    """Further wrong cases for an argument that is one float32 array of this shape."""
    return {
        **array_errors(name),
        f"{name} list": ({name: [1.0, 2.0]}, TypeError, rf"^{name} must be a float32 array, got list$"),
        f"{name} tuple": ({name: (1.0, 2.0)}, TypeError, rf"^{name} must be a float32 array, got tuple$"),
        **({} if name in MAPS else {f"{name} bytes": ({name: b"\0\0\0\0"}, TypeError, f"^{name} must be .*got uint8")}),
        **{
            f"{name} {dtype}": ({name: np.zeros(shape, dtype)}, TypeError, rf"^{name} must be float32.*, got {dtype}")
            for dtype in ("float64", "complex64", "bool", "int64", "object", *FOREIGN_DTYPES.get(name, ("float16",)))
        },
    }


def int_errors(name):
    return {
        f"{name} zero": ({name: 0}, ValueError, rf"^{name} must be from 1 to {LARGEST}, got 0$"),
        f"{name} negative": ({name: -1}, ValueError, rf"^{name} must be from 1 to {LARGEST}, got -1$"),
        f"{name} huge": ({name: LARGEST + 1}, ValueError, rf"^{name} must be from 1 to {LARGEST}, got {LARGEST + 1}$"),
        f"{name} float": ({name: 1.0}, TypeError, rf"^{name} must be an integer, got float$"),
        f"{name} str": ({name: "1"}, TypeError, rf"^{name} must be an integer, got str$"),
        f"{name} bool": ({name: True}, TypeError, rf"^{name} must be an integer, got bool$"),
        f"{name} numpy bool": ({name: np.True_}, TypeError, rf"^{name} must be an integer, got bool$"),
    }


def name_errors(name, wrong):
    return {
        f"{name} unknown": ({name: wrong}, ValueError, rf"^{name} must be one of '.*', got '{wrong}'$"),
        f"{name} number": ({name: 3}, TypeError, rf"^{name} must be a str, got int$"),
        f"{name} None": ({name: None}, TypeError, rf"^{name} must be a str, got NoneType$"),
    }


def activation_errors(name):
    def case(value, error, message):
        return {name: value}, error, message

    return {
        f"{name} unknown": case("swish", ValueError, rf"^{name} must be None, 'relu', .*got 'swish'"),
        f"{name} number": case(3, TypeError, rf"^{name} must be None, 'relu', .*got int$"),
        f"{name} list": case(["relu"], TypeError, rf"^{name} must be None, 'relu', .*got list$"),
        f"{name} empty": case((), TypeError, rf"^{name} must be None, 'relu', .*got tuple$"),
        f"{name} name only": case("clip", ValueError, rf"^{name} must be .*got 'clip'$"),
        f"{name} one bound": case(("clip", 1), ValueError, rf"^{name} must be .*got 'clip' with 1 parameters$"),
        f"{name} parameter too many": case(
            ("relu", 1), ValueError, rf"^{name} must be .*got 'relu' with 1 parameters$"
        ),
        f"{name} bounds swapped": case(("clip", 2, 1), ValueError, rf"^{name} .* needs lo <= hi, got lo=2.0, hi=1.0$"),
        f"{name} NaN bound": case(
            ("clip", math.nan, 1), ValueError, rf"^{name} .* needs lo <= hi, got lo=nan, hi=1.0$"
        ),
        f"{name} str bound": case(("clip", "0", 1), TypeError, rf"^a bound of {name} must be a number, got str$"),
        f"{name} bool bound": case(("clip", False, 1), TypeError, rf"^a bound of {name} must be a number, got bool$"),
        f"{name} huge bound": case(("clip", 0, 10**400), ValueError, rf"^a bound of {name} must fit a float"),
        f"{name} str slope": case(("leaky_relu", "x"), TypeError, rf"^the slope of {name} must be a number, got str$"),
        f"{name} NaN slope": case(("leaky_relu", math.nan), ValueError, rf"^the slope of {name} must be finite .*nan$"),
        f"{name} huge slope": case(("leaky_relu", 1e39), ValueError, rf"^the slope of {name} must be finite .*1e\+39$"),
    }


ERRORS = {
    # x
    **array_errors("x"),
    **{
        f"x {dtype}": (
            {"x": np.zeros((2, 6, 5, 7), dtype)},
            TypeError,
            rf"^x must be float32, uint8, int8, uint16, int16, float16 or bfloat16, got {dtype}: .*x\.astype",
        )
        for dtype in ("float64", "complex64", "bool", "uint32", "int64", "object", ">f8", ">i4")
    },
    "x bytes": ({"x": b"\0\0\0\0"}, ValueError, r"^x must have 4 axes for layout 'NCHW', got 1$"),
    "x list of numbers": ({"x": [1.0, 2.0]}, TypeError, r"^x\[0\] must be a float32 array, got float"),
    "x nested list": ({"x": [ones(2, 6, 5, 7), [ones(2, 6, 5, 7)]]}, TypeError, r"^x\[1\] must be .*, got list$"),
    "x list of arrays on a graph": ({"x": [RecordsGradients()]}, TypeError, r"^x\[0\] must .*use x\[0\]\.detach\(\)$"),
    "x list with a wrong dtype": (
        {"x": [ones(2, 3, 5, 7), ones(2, 3, 5, 7, dtype=np.int32)]},
        TypeError,
        r"^x\[1\] must be float32, uint8, .* got int32: convert it with x\[1\]\.astype",
    ),
    "x empty list": ({"x": []}, ValueError, r"^x must be an array or a list of at least one, got an empty list$"),
    "x empty tuple": ({"x": ()}, ValueError, r"^x must be an array or a list of at least one, got an empty tuple$"),
    "x generator": ({"x": (ones(2, 6, 5, 7) for _ in "x")}, TypeError, r"^x must be a float32 array, got generator"),
    "x maps of two sizes": (
        {"x": [ones(2, 3, 5, 7), ones(2, 3, 5, 6)]},
        ValueError,
        r"^x\[1\] must have the shape \(2, 3, 5, 7\) of x\[0\], but for axis 1 .*, got \(2, 3, 5, 6\)$",
    ),
    "x maps of two ranks": (
        {"x": [ones(2, 3, 5, 7), ones(2, 3, 5)]},
        ValueError,
        r"^x\[1\] must have the shape \(2, 3, 5, 7\) of x\[0\], .*got \(2, 3, 5\)$",
    ),
    "x maps of which one has no channels": (
        {"x": [ones(2, 5, 7, 3), ones(2, 5, 7)], "layout": "NHWC"},
        ValueError,
        r"^x\[1\] must have the shape \(2, 5, 7, 3\) of x\[0\], .*got \(2, 5, 7\)$",
    ),
    "x maps with too many channels": (
        {"x": [ones(2, 3, 5, 7), ones(2, 4, 5, 7)]},
        ValueError,
        r"^x must have 6 channels on axis 1 .* say, got shapes \(2, 3, 5, 7\), \(2, 4, 5, 7\)$",
    ),
    "x None": ({"x": None}, TypeError, r"^x must be a float32 array, got NoneType"),
    "x on another device": ({"x": Refuses()}, TypeError, r"^x must be .*got Refuses \(it lives on another device\)$"),
    "x of another dtype": ({"x": Unsupported()}, TypeError, r"^x must be .*got Unsupported \(no such dtype\)$"),
    "x no axis": ({"x": np.float32(1)}, ValueError, r"^x must have 4 axes for layout 'NCHW', got 0$"),
    "x without a batch axis": (
        {"x": ones(6, 5, 7)},
        ValueError,
        r"^x must have 4 axes for layout 'NCHW', got 3: a map without a batch axis has layout 'CHW'$",
    ),
    "x 5 axes": ({"x": ones(2, 6, 5, 7, 1)}, ValueError, r"^x must have 4 axes for layout 'NCHW', got 5$"),
    "x channels": (
        {"x": ones(2, 5, 5, 7)},
        ValueError,
        r"^x must have 6 channels on axis 1 of layout 'NCHW', as weight and groups=2 say, got shape \(2, 5, 5, 7\)$",
    ),
    "x channels last": (
        {"layout": "NHWC"},
        ValueError,
        r"^x must have 6 channels on axis 3 of layout 'NHWC', .*got shape \(2, 6, 5, 7\): it fits layout 'NCHW'$",
    ),
    # weight and bias
    **float32_errors("weight", 4, 3),
    "weight None": ({"weight": None}, TypeError, r"^weight must be a float32 array, got NoneType"),
    "weight vector": ({"weight": ones(12)}, ValueError, r"^weight must have shape \(C_out, .*got shape \(12,\)$"),
    "weight 3x3": ({"weight": ones(4, 3, 3, 3)}, ValueError, r"^weight must have shape .*got shape \(4, 3, 3, 3\)$"),
    "weight of Keras as OI": (
        {"weight": ones(1, 1, 3, 4)},
        ValueError,
        r"^weight must .*'OI'.*\(1, 1, 3, 4\): it fits weight_layout='IO'$",
    ),
    "weight of PyTorch as IO": (
        {"weight": ones(4, 3, 1, 1), "weight_layout": "IO"},
        ValueError,
        r"^weight must have shape \(\.\.\., 1, C_in .*weight_layout='IO'.*\(4, 3, 1, 1\): it fits weight_layout='OI'$",
    ),
    **float32_errors("bias", 4),
    "bias length": ({"bias": ones(5)}, ValueError, r"^bias must have shape \(C_out,\) = \(4,\), got \(5,\)$"),
    "bias column": ({"bias": ones(4, 1)}, ValueError, r"^bias must have shape \(C_out,\) = \(4,\), got \(4, 1\)$"),
    # stride and groups
    **int_errors("stride"),
    "stride None": ({"stride": None}, TypeError, r"^stride must be an integer, got NoneType$"),
    "stride for one axis": ({"stride": (2,)}, ValueError, r"^stride must .*one per spatial axis .*\(2\), got \(2,\)$"),
    "stride for 3 axes": ({"stride": (1, 1, 1)}, ValueError, r"^stride must .*axis .*'NCHW' \(2\), got \(1, 1, 1\)$"),
    "stride zero on an axis": ({"stride": (1, 0)}, ValueError, r"^stride\[1\] must be from 1 to \d+, got 0$"),
    "stride float on an axis": ({"stride": (1.0, 2)}, TypeError, r"^stride\[0\] must be an integer, got float$"),
    "stride of a named layout": (
        {"stride": (1, 2, 3), "layout": "channels_first"},
        ValueError,
        r"^stride must be an int or hold one per spatial axis of layout 'NCHW' \(2\), got \(1, 2, 3\)$",
    ),
    **int_errors("groups"),
    "groups that do not divide": (
        {"groups": 3},
        ValueError,
        r"^groups must divide the output channels of weight, got groups=3, C_out=4$",
    ),
    "groups for fewer channels": ({"groups": 1}, ValueError, r"^x must have 3 channels .*groups=1 say, got shape .*6"),
    # names
    "layout number": ({"layout": 4}, TypeError, r"^layout must be a str, got int$"),
    "layout None": ({"layout": None}, TypeError, r"^layout must be a str, got NoneType$"),
    **{
        f"layout {layout!r}": ({"layout": layout}, ValueError, rf"^layout must name every axis .*got '{layout}'$")
        for layout in (
            "",
            "NHW",
            "CNHW",
            "NCHH",
            "NNCH",
            "NCCH",
            "nchw",
            "NCH1",
            "NCH ",
            "NC\u00c4W",
            "channels first",
            "NCABDEFGHIJKLMOPQ",
        )
    },
    "layout of another rank": ({"layout": "CHW"}, ValueError, r"^x must have 3 axes for layout 'CHW', got 4$"),
    "layout without a batch": (
        {"x": ones(6), "layout": "channels_last"},
        ValueError,
        r"^x must have 2 \(batch, channels\) to 16 axes for layout 'channels_last', got 1$",
    ),
    "layout of too many axes": (
        {"x": ones(*[1] * 16, 6), "layout": "channels_last"},
        ValueError,
        r"^x must have 2 \(batch, channels\) to 16 axes for layout 'channels_last', got 17$",
    ),
    "out_layout number": ({"out_layout": 4}, TypeError, r"^out_layout must be a str, got int$"),
    **{
        f"out_layout {layout!r} of {given}": (
            {"out_layout": layout, "layout": given},
            ValueError,
            rf"^out_layout must be a permutation of the letters of layout 'NCHW'.*got '{layout}'$",
        )
        for layout in ("", "NCH", "NCHWD", "NCHX", "NCHH", "nhwc", "channels")
        for given in ("NCHW", "channels_first")
    },
    **name_errors("weight_layout", "HWIO"),
    **activation_errors("input_activation"),
    **activation_errors("activation"),
    **name_errors("precision", "low"),
    **name_errors("backend", "gpu"),
    # scales and shifts
    **{
        case: error
        for name, channels in (("input_scale", 6), ("input_shift", 6), ("output_scale", 4))
        for case, error in {
            **float32_errors(name, channels),
            **{
                f"{name} of shape {shape}": (
                    {name: ones(*shape)},
                    ValueError,
                    rf"^{name} must have shape \({channels},\) or \(2, {channels}\), got \(.*\)$",
                )
                for shape in ((), (1,), (channels + 1,), (1, channels), (3, channels), (2, channels, 1, 1))
            },
        }.items()
    },
    # residual and out
    **float32_errors("residual", *OUT_SHAPE),
    "residual shape": (
        {"residual": ones(2, 4, 5, 1)},
        ValueError,
        r"^residual must have shape \(2, 4, 5, 7\) \(layout 'NCHW'\), got \(2, 4, 5, 1\)$",
    ),
    "residual in the layout of x": (
        {"out_layout": "NHWC", "out": None},
        ValueError,
        r"^residual must have shape \(2, 5, 7, 4\) \(layout 'NHWC'\), got \(2, 4, 5, 7\)$",
    ),
    **float32_errors("out", *OUT_SHAPE),
    "out shape": ({"out": ones(2, 4, 7, 5)}, ValueError, r"^out must have shape \(2, 4, 5, 7\) .*got \(2, 4, 7, 5\)$"),
    "out for another stride": (
        {"stride": (2, 3), "residual": None},
        ValueError,
        r"^out must have shape \(2, 4, 3, 3\) .*got \(2, 4, 5, 7\)$",
    ),
    "out read-only": ({"out": read_only(OUT_SHAPE)}, ValueError, r"^out must be writable, got a read-only array$"),
    "out that is a copy": ({"out": Copies()}, TypeError, r"^out must be .*memory NumPy can share, got Copies$"),
    "out broadcast": (
        {"out": as_strided(ones(2, 4, 1, 7), OUT_SHAPE, (112, 28, 0, 4))},
        ValueError,
        r"^out must reach every element once, got .*strides \(112, 28, 0, 4\)",
    ),
    "out overlapping": (
        {"out": as_strided(ones(2, 4, 8, 7), OUT_SHAPE, (896, 224, 28, 2))},
        ValueError,
        r"^out must reach every element once, got .*strides \(896, 224, 28, 2\)",
    ),
    "out overlapping itself in windows": (
        {"out": as_strided(ones(2, 4, 8, 7), OUT_SHAPE, (896, 224, 8, 4))},
        ValueError,
        r"^out must reach every element once, got .*strides \(896, 224, 8, 4\)",
    ),
    **int_errors("num_threads"),
}


@forms
@backends
@pytest.mark.parametrize(("change", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_raises_and_nothing_is_written(form, backend, change, error, message):
    arguments = good_call(np.random.default_rng(1))
    out = arguments["out"]
    with pytest.raises(error, match=message):
        form(backend, arguments | change)
    assert np.all(out == 7)


@backends
@forms
@pytest.mark.parametrize("name", ["x", "input_scale", "input_shift", "output_scale", "residual"])
def test_out_may_not_share_memory_with_what_is_read(form, backend, name):
    arguments = good_call(np.random.default_rng(2))
    shared = np.full(2000, 7, np.float32)
    arguments["out"] = shared[1:281].reshape(OUT_SHAPE)
    size, shape = arguments[name].size, arguments[name].shape
    arguments[name] = shared[:size].reshape(shape)
    with pytest.raises(ValueError, match=rf"^out must not share memory with {name}$"):
        form(backend, arguments)
    assert np.all(shared == 7)


@backends
@forms
def test_out_may_not_share_memory_with_a_part_of_x(form, backend):
    arguments = good_call(np.random.default_rng(2))
    parts = [ones(2, 2, 5, 7, dtype=np.uint8), np.full((2, 4, 5, 7), 7, np.float32)]
    arguments |= {"x": parts, "out": parts[1]}
    with pytest.raises(ValueError, match=r"^out must not share memory with x\[1\]$"):
        form(backend, arguments)
    assert np.all(parts[1] == 7)


@backends
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_out_may_not_share_memory_with_the_weights_of_a_function_call(backend, name):
    arguments = good_call(np.random.default_rng(3))
    arguments[name] = arguments["out"].reshape(-1)[-arguments[name].size :].reshape(arguments[name].shape)
    with pytest.raises(ValueError, match=rf"^out must not share memory with {name}$"):
        as_function(backend, arguments)
    assert np.all(arguments["out"] == 7)


@backends
def test_residual_on_the_memory_of_out_needs_the_same_strides(backend):
    arguments = good_call(np.random.default_rng(4))
    arguments["residual"] = arguments["out"][:, :, ::-1]
    with pytest.raises(ValueError, match=r"^out must not share memory with residual$"):
        as_function(backend, arguments)


@forms
@backends
def test_overlap_that_cannot_be_decided_in_bounded_time_raises(form, backend):
    """Whether two views share an element is NP-complete to decide, so the search is bounded and the call raises."""
    shape = (2, *(3,) * 11)
    out_steps = (1068065, 357407, 128128, 33782, 8876, 2164, 569, 199, 43, 17, 3, 1)
    x_steps = (68706, 54290, 136603, 118582, 133691, 85237, 129738, 148214, 100942, 110542, 177190, 153301)
    memory = np.full(1 << 22, 7, np.float32)
    out = as_strided(memory, shape, [4 * step for step in out_steps])
    x = as_strided(memory[1:], shape, [4 * step for step in x_steps])
    with pytest.raises(TooHardError):
        np.shares_memory(out, x, max_work=100_000)
    with pytest.raises(ValueError, match=r"^out must not share memory with x$"):
        form(backend, {"x": x, "weight": ones(3, 3), "layout": "channels_first", "out": out})
    assert np.all(memory == 7)


@forms
@backends
@pytest.mark.parametrize("size", [(2**45, 1), (2**59, 1), (2**59, 0)])
def test_result_that_no_memory_holds(form, backend, size):
    x = np.broadcast_to(np.float32(1), (1, 2, *size))
    with pytest.raises(MemoryError):
        form(backend, {"x": x, "weight": ones(64, 2)})


@backends
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_layout": "NCHX"}, "^out_layout must be a permutation"),
        ({"stride": (1, 2, 3)}, "^stride must be an int or hold one per spatial axis"),
    ],
)
def test_the_constructor_checks_its_arguments(backend, change, message):
    with pytest.raises(ValueError, match=message):
        pwconv.PointwiseConv(ones(4, 3), layout="NHWC", backend=backend, **change)


@backends
def test_unknown_and_missing_arguments(backend):
    x, weight = ones(1, 3, 2, 2), ones(4, 3)
    layer = pwconv.PointwiseConv(weight, backend=backend)
    with pytest.raises(TypeError, match="dilation"):
        pwconv.pointwise_conv(x, weight, dilation=2)
    with pytest.raises(TypeError, match="dilation"):
        pwconv.PointwiseConv(weight, dilation=2)
    with pytest.raises(TypeError, match="dilation"):
        layer(x, dilation=2)
    with pytest.raises(TypeError):
        layer()
    with pytest.raises(TypeError):
        layer(x, ones(3))


# Accepted arguments ---------------------------------------------------------------------------------------------------


def expect(result, arguments):
    """Compare a result with the definition in float64."""
    truth = oracle.pointwise(**{name: value for name, value in arguments.items() if name not in ("out", "num_threads")})
    assert result.dtype == np.float32
    assert result.shape == truth.value.shape
    assert truth.accepts(result), truth.explain(result)


@forms
@backends
def test_everything_at_once(form, backend):
    arguments = good_call(np.random.default_rng(5)) | {"input_activation": "relu", "activation": ("clip", -1, 2.5)}
    result = form(backend, arguments)
    assert result is arguments["out"]
    expect(result, arguments)


def via_dlpack(values):
    return SimpleNamespace(__dlpack__=values.__dlpack__, __dlpack_device__=values.__dlpack_device__)


class ViaArray:
    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class ViaInterface:
    def __init__(self, values):
        self.__array_interface__ = values.__array_interface__
        self.values = values


class Subclass(np.ndarray):
    pass


CONTAINERS = {
    "memoryview": memoryview,
    "ctypes": np.ctypeslib.as_ctypes,
    "__dlpack__": via_dlpack,
    "__array__": ViaArray,
    "__array_interface__": ViaInterface,
    "subclass": lambda values: values.view(Subclass),
}


@forms
@backends
@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_objects_that_share_their_memory(form, backend, container):
    arguments = good_call(np.random.default_rng(6))
    wrapped = {name: container(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
    result = form(backend, wrapped)
    assert result is wrapped["out"]
    expect(arguments["out"], arguments)


@backends
def test_memory_mapped_map(backend, tmp_path):
    arguments = good_call(np.random.default_rng(7)) | {"out": None}
    np.save(tmp_path / "x.npy", arguments["x"])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expect(as_function(backend, arguments | {"x": mapped}), arguments)


@backends
def test_bias_in_a_python_array(backend):
    arguments = good_call(np.random.default_rng(8))
    bias = array.array("f", arguments["bias"].tolist())
    expect(as_function(backend, arguments | {"bias": bias}), arguments)


@forms
@backends
def test_numpy_integers(form, backend):
    arguments = good_call(np.random.default_rng(9)) | {"out": None, "residual": None}
    numbers = {"stride": [np.int64(2), np.uint8(3)], "groups": np.int32(2), "num_threads": np.int16(1)}
    expect(form(backend, arguments | numbers), arguments | {"stride": (2, 3)})


@forms
@backends
@pytest.mark.parametrize(
    ("weight_layout", "shape"),
    [
        ("OI", (4, 3)),
        ("OI", (4, 3, 1)),
        ("OI", (4, 3, 1, 1)),
        ("IO", (3, 4)),
        ("IO", (1, 3, 4)),
        ("IO", (1, 1, 1, 3, 4)),
    ],
)
def test_shapes_of_kernels(form, backend, weight_layout, shape):
    rng = np.random.default_rng(10)
    weight = rng.standard_normal(shape, dtype=np.float32)
    arguments = good_call(rng) | {"weight": weight, "weight_layout": weight_layout}
    expect(form(backend, arguments), arguments)


@forms
@backends
@pytest.mark.parametrize(
    ("layout", "out_layout", "letters", "out_letters"),
    [
        ("channels_first", None, "NCHW", "NCHW"),
        ("channels_last", None, "NHWC", "NHWC"),
        ("channels_first", "channels_last", "NCHW", "NHWC"),
        ("channels_first", "NWHC", "NCHW", "NWHC"),
        ("NWHC", "channels_first", "NWHC", "NCWH"),
        ("channels_first", "NLC", "NCL", "NLC"),
        ("NHCW", "channels_last", "NHCW", "NHWC"),
        ("NHWC", "CWHN", "NHWC", "CWHN"),
        ("NXCY", "CYXN", "NXCY", "CYXN"),
    ],
)
def test_layouts_by_name_and_by_letters(form, backend, layout, out_layout, letters, out_letters):
    rng = np.random.default_rng(11)
    sizes = {"N": 2, "C": 6}
    x = rng.standard_normal([sizes.get(letter, 5 + axis) for axis, letter in enumerate(letters)], dtype=np.float32)
    stride = tuple(range(2, len(letters)))
    arguments = {"x": x, "weight": rng.standard_normal((4, 6), dtype=np.float32), "stride": stride}
    result = form(backend, arguments | {"layout": layout, "out_layout": out_layout})
    assert result.flags.c_contiguous
    expect(result, arguments | {"layout": letters, "out_layout": out_letters})


@forms
@backends
@pytest.mark.parametrize(
    ("shape", "layout", "letters"),
    [
        ((2, 6), "channels_first", "NC"),
        ((2, 6), "channels_last", "NC"),
        ((2, 9, 6), "channels_last", "NLC"),
        ((2, 6, 3, 4, 5), "channels_first", "NCDHW"),
        ((2, 2, 3, 4, 3, 6), "channels_last", "NTDHWC"),
        ((2, 6, *[1] * 12, 2, 3), "channels_first", "NCPQRSTUVXYZADHW"),
        ((6, 4, 5), "CHW", "CHW"),
        ((4, 5, 6), "HWC", "HWC"),
        ((6,), "C", "C"),
    ],
)
def test_ranks(form, backend, shape, layout, letters):
    rng = np.random.default_rng(12)
    x = rng.standard_normal(shape, dtype=np.float32)
    arguments = {"x": x, "weight": rng.standard_normal((4, 6), dtype=np.float32)}
    expect(form(backend, arguments | {"layout": layout}), arguments | {"layout": letters})


@forms
@backends
def test_stride_beyond_the_map_keeps_the_first_pixel(form, backend):
    arguments = good_call(np.random.default_rng(13)) | {"stride": (LARGEST, 7), "out": None, "residual": None}
    result = form(backend, arguments)
    assert result.shape == (2, 4, 1, 1)
    expect(result, arguments)


@forms
@backends
def test_per_image_scales_without_a_batch_axis(form, backend):
    rng = np.random.default_rng(14)
    arguments = good_call(rng) | {"layout": "CHW", "residual": None, "out": None}
    arguments |= {"x": arguments["x"][0], "input_shift": arguments["input_shift"][:1], "output_scale": None}
    expect(form(backend, arguments), arguments | {"input_shift": arguments["input_shift"][0]})


@forms
@backends
def test_residual_may_be_out(form, backend):
    arguments = good_call(np.random.default_rng(15))
    arguments["residual"] = arguments["out"]
    before = arguments | {"residual": arguments["out"].copy()}
    expect(form(backend, arguments), before)


@forms
@backends
def test_channel_slices_of_one_buffer(form, backend):
    """`x` and `out` are interleaved channels of one buffer and share none; the other channels do not change."""
    rng = np.random.default_rng(16)
    buffer = rng.standard_normal((2, 5, 7, 12), dtype=np.float32)
    before = buffer.copy()
    arguments = {"x": buffer[..., ::2], "weight": rng.standard_normal((3, 6), dtype=np.float32), "layout": "NHWC"}
    result = form(backend, arguments | {"out": buffer[..., 1:6:2]})
    expect(result, arguments | {"x": before[..., ::2]})
    untouched = [channel for channel in range(12) if channel not in (1, 3, 5)]
    assert np.array_equal(buffer[..., untouched], before[..., untouched])


@forms
@backends
def test_out_with_interlocking_strides(form, backend):
    """Strides of `out` that are not nested, although no two indices share an element."""
    memory = np.zeros(64, np.float32)
    out = as_strided(memory, (1, 1, 3, 2), (4, 4, 8, 12))
    rng = np.random.default_rng(17)
    arguments = {"x": rng.standard_normal((1, 2, 3, 2), dtype=np.float32), "weight": ones(1, 2), "out": out}
    assert form(backend, arguments) is out
    expect(out, arguments)


@forms
@backends
@pytest.mark.parametrize(
    ("shape", "weight_shape"),
    [
        ((0, 3, 2, 2), (4, 3)),
        ((2, 3, 0, 2), (4, 3)),
        ((2, 0, 3, 2), (4, 0)),
        ((2, 3, 2, 2), (0, 3)),
        ((0, 0, 0, 0), (0, 0)),
    ],
)
def test_empty(form, backend, shape, weight_shape):
    rng = np.random.default_rng(18)
    arguments = {
        "x": ones(*shape),
        "weight": ones(*weight_shape),
        "bias": rng.standard_normal(weight_shape[0]).astype("f"),
    }
    expect(form(backend, arguments), arguments)
