"""The operation as a function, and its comparison with NumPy."""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv import reference, runtime
from pwconv.arguments import ActivationLike, Float32Array, StrideLike, as_array
from pwconv.classify import PixelClassifier
from pwconv.layers import PointwiseBranches, PointwiseChain, PointwiseConv


def pointwise_conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: StrideLike = 1,
    groups: int = 1,
    layout: str = "NCHW",
    out_layout: str | None = None,
    weight_layout: str = "OI",
    input_scale: Any = None,
    input_shift: Any = None,
    input_activation: ActivationLike = None,
    output_scale: Any = None,
    residual: Any = None,
    activation: ActivationLike = None,
    out: Any = None,
    precision: str = "highest",
    num_threads: int | None = None,
    backend: str = "auto",
) -> Float32Array:
    """Compute a pointwise (1x1) convolution: one matrix product over the channels of every pixel.

    With i an input channel, o an output channel and p a pixel of image n::

        y[n, o, p] = activation(output_scale[n, o] * (sum_i weight[o, i] * u[n, i, p] + bias[o]) + residual[n, o, p])
        u[n, i, p] = input_activation(input_scale[n, i] * x[n, i, p] + input_shift[n, i])

    Arrays are float32 NumPy arrays with any strides, or objects that NumPy views as such without a copy; `x` may hold
    uint8, int8, uint16, int16, float16 or bfloat16 (ml_dtypes) as well, which are widened exactly on the way. Nothing
    is written to except `out`.

    Parameters
    ----------
    x : float32 or a narrower number, one axis per letter of `layout`; or a list of maps that agree in all but their
        channels and dtypes: the result is that of their concatenation along C, which is never built.
    weight : float32, shape (C_out, C_in // groups), with any trailing axes of length 1 (PyTorch, ONNX).
    bias : float32, shape (C_out,).
    stride : int, or one per spatial axis in the order of `layout`. Every stride-th pixel is computed, from the first.
    groups : int that divides both channel counts; each group of outputs sees its own group of inputs.
    layout : "NCHW", "NHWC", "CHW", "HWC", "NCL", "NLC", "NCDHW", "NDHWC", "NC" or the like: a letter per axis, C once,
        N at most once and first, the others spatial. "channels_first" is N C ..., "channels_last" is N ... C.
    out_layout : a permutation of those letters for the result; `layout` if None.
    weight_layout : "OI", or "IO" for a weight of shape (C_in // groups, C_out) with leading axes of length 1 (Keras).
    input_scale, input_shift : float32, shape (C_in,) or (N, C_in).
    input_activation, activation : None, "relu", "relu6", "leaky_relu" (slope 0.01), "sigmoid", "tanh", "silu", "gelu"
        (the erf form), "gelu_tanh", "hardsigmoid", "hardswish", ("leaky_relu", slope) or ("clip", lo, hi).
    output_scale : float32, shape (C_out,) or (N, C_out).
    residual : float32, shape of the result; may be `out` itself.
    out : float32, shape of the result, receives it and is returned. Its memory is not that of another argument.
    precision : "highest" is float32. "high" permits two bfloat16 for each number, "medium" one, where that is faster on
        this machine (`PointwiseConv.plan` says what is used): with K = C_in // groups, errors of a sum stay below
        (2^-15 + 4 K 2^-24) and (2^-7 + 2^-16 + 2 K 2^-24) times sum |weight| |x|, and 2^-126 sum(|weight| + |x| + 6).
        Pixels and rows of weights with infinities or numbers for which there are no such pieces are computed as with
        "highest". tests/oracle.py derives the bounds.
    num_threads : int; None leaves it to `pwconv.set_num_threads` and the environment.
    backend : "native", "numpy" or "auto".

    Returns
    -------
    float32 array in the order of `out_layout`, C-contiguous, its spatial sizes ceil(size / stride); or `out`.

    Raises
    ------
    TypeError for wrong types and dtypes; ValueError for wrong shapes, layouts, names and overlaps; MemoryError.

    Notes
    -----
    The sum runs over blocks of 256 input channels (counted inside a group). Each block is one chain of fused
    multiply-adds from +0 in channel order, and the block sums are added in ascending order. So results are the same
    bit for bit, whatever the threads, layout, batch, view or instruction set with FMA.

    The 1x1 convolution is from Lin, Chen and Yan, "Network In Network" (2013). gelu is v Phi(v), gelu_tanh its
    approximation by tanh (Hendrycks and Gimpel, 2016); hardsigmoid is clip(v / 6 + 1/2, 0, 1) and hardswish v times
    that (Howard et al., "Searching for MobileNetV3", 2019).

    Examples
    --------
    >>> x, weight = np.ones((2, 64, 56, 56), np.float32), np.ones((16, 64), np.float32)
    >>> pwconv.pointwise_conv(x, weight, stride=2, activation="relu").shape
    (2, 16, 28, 28)
    """
    return _compute(
        x,
        weight,
        bias,
        stride,
        groups,
        layout,
        out_layout,
        weight_layout,
        input_scale,
        input_shift,
        input_activation,
        output_scale,
        residual,
        activation,
        out,
        precision,
        num_threads,
        backend,
    )


def _by_numpy(x: Any, weight: Any, bias: Any, *options: Any) -> NDArray[Any]:
    """Take the arguments as the engine does, all by position."""
    return reference.pointwise_conv(x, weight, bias, **dict(zip(_OPTIONS, options, strict=True)))


_OPTIONS = tuple(inspect.signature(pointwise_conv).parameters)[3:]

# Chosen once, so that a call costs no look-up. (For backend="numpy" the engine itself turns to the reference.)
_compute = _by_numpy if runtime.engine is None else runtime.engine.pointwise_conv


@dataclass(frozen=True, repr=False)
class Report:
    """How a result compares with NumPy's, and the seconds that both took (the second of two runs)."""

    max_error: float
    relative_error: float  # to the largest finite value of NumPy's result
    where: tuple[int, ...] | None  # index of the largest error; None if the result is empty
    backend: str
    native_seconds: float
    numpy_seconds: float

    def __repr__(self) -> str:
        place = "in an empty result" if self.where is None else f"at {self.where}"
        return (
            f"Report(largest error {self.max_error:.3g} {place}, {self.relative_error:.3g} of the largest value; "
            f"{self.backend} {_milliseconds(self.native_seconds)}, NumPy {_milliseconds(self.numpy_seconds)})"
        )


def verify(target: Any, x: Any, *arguments: Any, **call: Any) -> Report:
    """Run `target` on `x`, and NumPy's twin in float32, and compare the results.

    `target` is a layer, a chain, branches, a method of a classifier (the classifier itself stands for its
    `decision_function`), or `pwconv.pointwise_conv`. Takes what the call itself takes and raises what it raises. Two
    NaNs are equal, and so are two infinities of one sign; where only one of two values is finite, the error is
    infinite. Names of classes that differ count as 1. Where there are several results, the place of the largest error
    starts with the number of its result.

    Examples
    --------
    >>> layer = pwconv.PointwiseConv(np.ones((16, 64), np.float32))
    >>> pwconv.verify(layer, np.ones((1, 64, 9, 9), np.float32)).max_error
    0.0
    """
    if isinstance(target, PixelClassifier):
        target = target.decision_function
    twin, backend = _twin(target, call)
    # NumPy's turn comes first and leaves `out` alone, since `residual` may be `out`.
    spare, other_spare = (call | {"out": _spare(call.get("out"))} for _ in range(2))
    twin(x, *arguments, **spare)
    expected, numpy_seconds = _timed(lambda: twin(x, *arguments, **spare))
    target(x, *arguments, **other_spare)
    result, seconds = _timed(lambda: target(x, *arguments, **call))
    max_error, relative_error, where = _compare(result, expected)
    return Report(max_error, relative_error, where, backend, seconds, numpy_seconds)


def _twin(target: Any, call: dict[str, Any]) -> tuple[Callable[..., Any], str]:
    """Return what computes `target` with NumPy, and the backend that `target` itself uses."""
    if isinstance(target, PointwiseConv):
        return partial(reference.call_layer, target), target.spec.backend
    if isinstance(target, PointwiseChain):
        return partial(reference.call_chain, target), target.backend
    if isinstance(target, PointwiseBranches):
        return partial(reference.call_branches, target), target.backend
    if target is pointwise_conv:
        return reference.pointwise_conv, runtime.resolve_backend(call.get("backend", "auto"))
    if isinstance(classifier := getattr(target, "__self__", None), PixelClassifier):
        return partial(getattr(reference, target.__name__), classifier), classifier.backend
    raise TypeError(f"verify takes a layer, layers, a classifier or a function, got {type(target).__name__}")


def _spare(out: Any) -> Any:
    """Return arrays of their own for results that are to be written to `out`."""
    if isinstance(out, list | tuple):
        return tuple(_spare(one) for one in out)
    return out if out is None or isinstance(out, str) else as_array(out, "out").copy()


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _compare(result: Any, expected: Any) -> tuple[float, float, tuple[int, ...] | None]:
    """Return the largest error, its share of the largest expected value, and its index."""
    if isinstance(expected, tuple):
        each = [_compare(*pair) for pair in zip(result, expected, strict=True)]
        number, (max_error, relative_error, place) = max(enumerate(each), key=lambda one: one[1][0])
        return max_error, relative_error, None if place is None else (number, *place)
    result, expected = np.asarray(result), np.asarray(expected)
    if not expected.size:
        return 0.0, 0.0, None
    if not np.issubdtype(expected.dtype, np.number):
        result, expected = (result != expected).astype(int), np.zeros(expected.shape, int)
    with np.errstate(invalid="ignore"):
        errors = np.abs(np.subtract(result, expected, dtype=np.float64))
    same = (result == expected) | (np.isnan(result) & np.isnan(expected))
    errors = np.where(same, 0.0, np.where(np.isnan(errors), np.inf, errors))
    where = np.unravel_index(np.argmax(errors), errors.shape)
    largest = float(np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0))
    max_error = float(errors[where])
    relative_error = max_error / largest if largest else (math.inf if max_error else 0.0)
    return max_error, relative_error, tuple(int(index) for index in where)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
