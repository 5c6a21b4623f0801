"""The arguments of `pwconv.PixelClassifier` and its methods."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments.arrays import Float32Array, as_array, maps_of, refuse_hidden
from pwconv.arguments.call import Call, optional_like_result
from pwconv.arguments.layouts import spatial_letters, without
from pwconv.arguments.memory import check_result, check_size
from pwconv.arguments.pixels import counted_pixels, index_fill, name_fill, value_fill, without_masks
from pwconv.arguments.several import check_chain
from pwconv.scalars import integer, positive_int, type_name


def class_names(classes: Any, count: int) -> NDArray[Any] | None:
    """Return a read-only array of the names of classes."""
    if not count:
        raise ValueError("weight must have a row for each class, got none")
    if classes is None:
        return None
    refuse_hidden(classes, "classes")
    names = np.array(classes)
    if names.shape != (count,):
        raise ValueError(f"classes must hold a name for each of {count} classes, got shape {names.shape}")
    names.setflags(write=False)
    return names


class Labelling(NamedTuple):
    """A checked call for labels.

    `call` is that of the logits; its mask and fill (an index) say which pixels count. `labels` and `values` receive
    results, or are None. `names` is None or what indices stand for, including `fill`.
    """

    call: Call
    labels: NDArray[Any] | None
    values: Float32Array | None
    names: NDArray[Any] | None


def check_predict(
    layers: tuple[Any, ...],
    link: str | None,
    classes: NDArray[Any] | None,
    x: Any,
    size: Any = None,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: Any = None,
) -> Labelling:
    """Check a call of `predict`. The call's `out_shape` is that of logits, resized to `size`."""
    count = len(layers[-1].matrix)
    call = _call_of(layers, x, mask, None, num_threads)
    if size is not None:
        call = call._replace(out_shape=_resized(call, size))
    shape = without(call.out_layout.index("C"), call.out_shape)
    if link == "multilabel":
        if size is not None:
            raise ValueError(f"size needs a classifier whose classes exclude each other, got link={link!r}")
        classes, count, shape = None, 2, call.out_shape
    labels = _labels(out, "out", shape, count, _readable(call))
    return _filled(Labelling(call, labels, None, classes), fill, count)


def check_top_k(
    layers: tuple[Any, ...],
    classes: NDArray[Any] | None,
    x: Any,
    k: Any,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: Any = None,
) -> Labelling:
    """Check a call of `top_k`. The call's `out_shape` has k channels."""
    count = len(layers[-1].matrix)
    places = integer(k, "k", 1, count)
    call = _call_of(layers, x, mask, None, num_threads)
    axis = call.out_layout.index("C")
    call = call._replace(out_shape=(*call.out_shape[:axis], places, *call.out_shape[axis + 1 :]))
    if out is None:
        return _filled(Labelling(call, None, None, classes), fill, count)
    if not isinstance(out, list | tuple) or len(out) != 2:
        raise TypeError(f"out must be None or a pair of arrays, for labels and logits, got {type_name(out)}")
    readable = _readable(call)
    values = optional_like_result(as_array(out[1], "out[1]"), "out[1]", call)
    check_result(values, out[1], "out[1]", call.out_shape, readable)
    labels = _labels(out[0], "out[0]", call.out_shape, count, readable | {"out[1]": values})
    return _filled(Labelling(call, labels, values, classes), fill, count)


def check_probabilities(
    layers: tuple[Any, ...],
    link: str | None,
    x: Any,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: Any = None,
) -> Call:
    """Check a call of `predict_proba`; a classifier with link=None has none."""
    if link is None:
        raise AttributeError("this classifier has no predict_proba: it was made with link=None")
    call = _call_of(layers, x, mask, None, num_threads)
    array = optional_like_result(out, "out", call)
    check_result(array, out, "out", call.out_shape, _readable(call))
    return call._replace(out=array, fill=value_fill(fill, call.mask is not None, "float32"))


def check_values(
    layers: tuple[Any, ...], x: Any, mask: Any = None, fill: Any = None, out: Any = None, num_threads: Any = None
) -> Call:
    """Check a call of layers, one behind the other, of whose results only those of pixels that count are wanted."""
    call = _call_of(layers, x, mask, out, num_threads)
    dtype = layers[-1].spec.out_dtype if call.out is None else call.out.dtype.name
    return call._replace(fill=value_fill(fill, call.mask is not None, dtype))


def _call_of(layers: tuple[Any, ...], x: Any, mask: Any, out: Any, num_threads: Any) -> Call:
    """Check a call of layers that compute logits: return the result of the last, with the input of the first."""
    x, hidden = without_masks(x)
    calls, _ = check_chain(layers, x, out=out, num_threads=num_threads)
    first = calls[0]
    shape = (first.x[0] if isinstance(first.x, list) else first.x).shape
    axis = first.layout.index("C")
    counted = counted_pixels(mask, hidden, axis, shape)
    if counted is not None:
        counted = np.expand_dims(counted, axis)
        check_result(calls[-1].out, out, "out", calls[-1].out_shape, {"mask": counted})
    return calls[-1]._replace(x=first.x, layout=first.layout, stride=first.stride, mask=counted)


def _readable(call: Call) -> dict[str, Any]:
    """Return the arrays that a call of a classifier reads, by name."""
    return maps_of(call.x).named | {"mask": call.mask}


def _filled(labelling: Labelling, fill: Any, count: int) -> Labelling:
    """Set the index of pixels that do not count, and the names of indices with that of these pixels."""
    call, labels, _, classes = labelling
    masked = call.mask is not None
    if classes is None or labels is not None:
        dtype = np.dtype(np.int32) if labels is None else labels.dtype
        index = index_fill(fill, masked, count, dtype, named=classes is not None)
        return labelling._replace(call=call._replace(fill=index))
    names = name_fill(fill, masked, classes)
    return labelling._replace(call=call._replace(fill=count if len(names) > count else None), names=names)


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
