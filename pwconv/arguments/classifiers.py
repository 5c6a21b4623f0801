"""The arguments of `pwconv.PixelClassifier` and its methods."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments.arrays import Float32Array, as_array, maps_of
from pwconv.arguments.call import Call, optional_like_result
from pwconv.arguments.layouts import spatial_letters, without
from pwconv.arguments.memory import check_result, check_size
from pwconv.arguments.several import check_chain
from pwconv.scalars import integer, positive_int, type_name


def class_names(classes: Any, count: int) -> NDArray[Any] | None:
    """Return a read-only array of the names of classes."""
    if not count:
        raise ValueError("weight must have a row for each class, got none")
    if classes is None:
        return None
    names = np.array(classes)
    if names.shape != (count,):
        raise ValueError(f"classes must hold a name for each of {count} classes, got shape {names.shape}")
    names.setflags(write=False)
    return names


def check_predict(
    layers: tuple[Any, ...],
    link: str | None,
    x: Any,
    size: Any = None,
    out: Any = None,
    num_threads: Any = None,
) -> tuple[Call, NDArray[Any] | None]:
    """Check a call of `predict`: return the call for the logits (resized to `size`), and the array for labels."""
    call = _call_of(layers, x, None, num_threads)
    if size is not None:
        call = call._replace(out_shape=_resized(call, size))
    if link == "multilabel":
        if size is not None:
            raise ValueError(f"size needs a classifier whose classes exclude each other, got link={link!r}")
        return call, _labels(out, "out", call.out_shape, 2, maps_of(x).named)
    shape = without(call.out_layout.index("C"), call.out_shape)
    return call, _labels(out, "out", shape, len(layers[-1].matrix), maps_of(x).named)


def check_top_k(
    layers: tuple[Any, ...], x: Any, k: Any, out: Any = None, num_threads: Any = None
) -> tuple[Call, NDArray[Any] | None, Float32Array | None]:
    """Check a call of `top_k`: return the call for k channels, and the arrays for labels and logits."""
    classes = len(layers[-1].matrix)
    places = integer(k, "k", 1, classes)
    call = _call_of(layers, x, None, num_threads)
    axis = call.out_layout.index("C")
    call = call._replace(out_shape=(*call.out_shape[:axis], places, *call.out_shape[axis + 1 :]))
    if out is None:
        return call, None, None
    if not isinstance(out, list | tuple) or len(out) != 2:
        raise TypeError(f"out must be None or a pair of arrays, for labels and logits, got {type_name(out)}")
    readable = maps_of(x).named
    logits = optional_like_result(as_array(out[1], "out[1]"), "out[1]", call)
    check_result(logits, out[1], "out[1]", call.out_shape, readable)
    labels = _labels(out[0], "out[0]", call.out_shape, classes, readable | {"out[1]": logits})
    return call, labels, logits


def check_probabilities(
    layers: tuple[Any, ...], link: str | None, x: Any, out: Any = None, num_threads: Any = None
) -> Call:
    """Check a call of `predict_proba`; a classifier with link=None has none."""
    if link is None:
        raise AttributeError("this classifier has no predict_proba: it was made with link=None")
    return _call_of(layers, x, out, num_threads)


def _call_of(layers: tuple[Any, ...], x: Any, out: Any, num_threads: Any) -> Call:
    """Check a call of layers that compute logits: return the result of the last, with the input of the first."""
    calls, _ = check_chain(layers, x, out=out, num_threads=num_threads)
    first = calls[0]
    return calls[-1]._replace(x=first.x, layout=first.layout, stride=first.stride)


def _resized(call: Call, size: Any) -> tuple[int, ...]:
    """Return the shape of logits that are resized to `size`."""
    spatial = spatial_letters(call.out_layout)
    if len(spatial) != 2:
        raise ValueError(f"size needs a layout with two spatial axes, got {call.layout!r}")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise TypeError(f"size must be a pair of integers, got {size!r}")
    sizes = dict(zip(call.out_layout, call.out_shape, strict=True))
    if not all(sizes[letter] for letter in spatial):
        raise ValueError(f"x must have pixels, or nothing can be resized, got shape {np.shape(call.x)}")
    sizes |= {letter: positive_int(size[i], f"size[{i}]") for i, letter in enumerate(spatial_letters(call.layout))}
    return tuple(sizes.values())


def _labels(
    out: Any, name: str, shape: tuple[int, ...], classes: int, readable: Mapping[str, Any]
) -> NDArray[Any] | None:
    """View the argument that receives labels as an array of integers."""
    if out is None:
        check_size(shape)
        return None
    array = as_array(out, name)
    if array.dtype.kind not in "iu" or not array.dtype.isnative or np.iinfo(array.dtype).max < classes - 1:
        raise TypeError(f"{name} must have integers that hold labels up to {classes - 1}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    check_result(array, out, name, shape, readable)
    return array
