"""`verify`: a computation compared with its counterpart in `pwconv.reference`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pwconv import reference, runtime
from pwconv.arguments import as_array
from pwconv.classify import PixelClassifier
from pwconv.functional import pointwise_conv
from pwconv.layers import PointwiseConv
from pwconv.several import PointwiseBranches, PointwiseChain


@dataclass(frozen=True, repr=False)
class Report:
    """The largest error of a result against NumPy's, and the seconds of both computations (the second of two runs)."""

    max_error: float
    relative_error: float  # as a share of the largest finite magnitude in NumPy's result
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
    """Run `target` on `x`, run its counterpart in `pwconv.reference` in float32, and compare the results.

    `target` is a layer, a chain, branches, a method of a classifier (a classifier means its `decision_function`), or
    `pwconv.pointwise_conv`. The other arguments are those of the call to `target`, and so are the errors raised.

    Two NaNs count as equal, as do two infinities of the same sign. Where only one of two values is finite, the error is
    infinite. Two different class names count as an error of 1. For several results, the index of the largest error
    starts with the number of the result.

    Examples
    --------
    >>> layer = pwconv.PointwiseConv(np.ones((16, 64), np.float32))
    >>> pwconv.verify(layer, np.ones((1, 64, 9, 9), np.float32)).max_error
    0.0
    """
    if isinstance(target, PixelClassifier):
        target = target.decision_function
    counterpart, backend = _counterpart(target, call)
    # `out` may be `residual`, so only the very last run may write to it: the others get copies.
    numpy_call, first_call = (call | {"out": _copy_of(call.get("out"))} for _ in range(2))
    counterpart(x, *arguments, **numpy_call)
    expected, numpy_seconds = _timed(lambda: counterpart(x, *arguments, **numpy_call))
    target(x, *arguments, **first_call)
    result, seconds = _timed(lambda: target(x, *arguments, **call))
    max_error, relative_error, where = _compare(result, expected)
    return Report(max_error, relative_error, where, backend, seconds, numpy_seconds)


def _counterpart(target: Any, call: dict[str, Any]) -> tuple[Callable[..., Any], str]:
    """Return the function of `pwconv.reference` that computes `target`, and the backend of `target` itself."""
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


def _copy_of(out: Any) -> Any:
    """Copy the arrays of an `out` argument."""
    if isinstance(out, list | tuple):
        return tuple(_copy_of(one) for one in out)
    return out if out is None or isinstance(out, str) else as_array(out, "out").copy()


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the seconds that it took."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _compare(result: Any, expected: Any) -> tuple[float, float, tuple[int, ...] | None]:
    """Return the largest error, the error as a share of the largest expected magnitude, and its index."""
    if isinstance(expected, tuple):
        each = [_compare(*pair) for pair in zip(result, expected, strict=True)]
        number, (max_error, relative_error, place) = max(enumerate(each), key=lambda one: one[1][0])
        return max_error, relative_error, None if place is None else (number, *place)
    result, expected = np.asarray(result), np.asarray(expected)
    if not expected.size:
        return 0.0, 0.0, None
    if np.issubdtype(expected.dtype, np.number) or expected.dtype.name == "bfloat16":
        result, expected = result.astype(np.float64), expected.astype(np.float64)
    else:
        result, expected = (result != expected).astype(float), np.zeros(expected.shape)
    with np.errstate(invalid="ignore"):
        errors = np.abs(result - expected)
    same = (result == expected) | (np.isnan(result) & np.isnan(expected))
    errors = np.where(same, 0.0, np.where(np.isnan(errors), np.inf, errors))
    where = np.unravel_index(np.argmax(errors), errors.shape)
    largest = float(np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0))
    max_error = float(errors[where])
    relative_error = max_error / largest if largest else (math.inf if max_error else 0.0)
    return max_error, relative_error, tuple(int(index) for index in where)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
