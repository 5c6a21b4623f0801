"""The arguments of a call of one layer: shapes resolved, arrays checked."""

import math
import operator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments.arrays import Float32Array, as_array, float32_array, map_of, maps_of
from pwconv.arguments.dtypes import check_out_dtype
from pwconv.arguments.layouts import NAMED_LAYOUTS, channel_axis, named_layout, spatial_letters
from pwconv.arguments.memory import check_result
from pwconv.arguments.spec import Spec, resolve_rank
from pwconv.scalars import positive_int, type_name


class Shapes(NamedTuple):
    """Resolved shapes of a call: layouts in letters, one stride per spatial axis, and the shape of the result."""

    layout: str
    out_layout: str
    stride: tuple[int, ...]
    out_shape: tuple[int, ...]


class Call(NamedTuple):
    """A checked call: layouts and strides are resolved for the rank of `x`; tables are float32.

    In a chain only the first layer has an `x`. It is None for the others, whose inputs do not exist yet. `mask`, with
    the layout of `x` and a C axis of length 1, is True for pixels that count; `fill` is what the others get. Without
    both, all pixels count.
    """

    x: NDArray[Any] | list[NDArray[Any]]
    layout: str
    out_layout: str
    stride: tuple[int, ...]
    out_shape: tuple[int, ...]
    input_scale: Float32Array | None = None
    input_shift: Float32Array | None = None
    output_scale: Float32Array | None = None
    residual: NDArray[Any] | None = None
    out: NDArray[Any] | None = None
    num_threads: int | None = None
    mask: NDArray[np.bool_] | None = None
    fill: float | None = None


def check_call(
    spec: Spec,
    weight_shape: tuple[int, int],
    x: Any,
    input_scale: Any = None,
    input_shift: Any = None,
    output_scale: Any = None,
    residual: Any = None,
    out: Any = None,
    num_threads: Any = None,
    weight: Any = None,
    bias: Any = None,
) -> Call:
    """Check a call of a layer whose matrix has `weight_shape`.

    `weight` and `bias` are given by the function form, which reads the caller's arrays in place: `out` must share no
    memory with them.

    Raises TypeError for types and dtypes, ValueError for shapes, layouts and overlaps, MemoryError for a result that
    no address space can hold. Each message names the argument, what was expected and what was given.
    """
    maps = maps_of(x)
    shapes = resolve_shapes(spec, weight_shape, maps.shapes)
    out_channels, in_channels = weight_shape[0], weight_shape[1] * spec.groups
    batch = shapes.out_shape[shapes.out_layout.index("N")] if "N" in shapes.out_layout else 1
    call = Call(
        maps.source,
        *shapes,
        input_scale=_per_channel(input_scale, "input_scale", batch, in_channels),
        input_shift=_per_channel(input_shift, "input_shift", batch, in_channels),
        output_scale=_per_channel(output_scale, "output_scale", batch, out_channels),
        residual=residual_of(residual, "residual", shapes),
        out=receiver_of(out, "out", shapes, spec),
        num_threads=parse_num_threads(num_threads),
    )
    readable = maps.named | {
        "weight": weight,
        "bias": bias,
        "input_scale": input_scale,
        "input_shift": input_shift,
        "output_scale": output_scale,
        "residual": call.residual,
    }
    check_result(call.out, out, "out", shapes.out_shape, readable, in_place="residual")
    return call


def check_shape(spec: Spec, weight_shape: tuple[int, int], shape: Any, num_threads: Any = None) -> Call:
    """Check a call by the shape of `x` alone; the `x` of the returned call is an array that takes no memory."""
    return check_call(spec, weight_shape, array_of_shape(shape), num_threads=num_threads)


def array_of_shape(shape: Any) -> Float32Array:
    """Return an array of this shape that takes no memory: one element, broadcast."""
    if not isinstance(shape, list | tuple):
        raise TypeError(f"shape must be a tuple of integers, got {type_name(shape)}")
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must not be negative, got {sizes}")
    return np.broadcast_to(np.float32(0), sizes)


@lru_cache(maxsize=1024)
def resolve_shapes(spec: Spec, weight_shape: tuple[int, int], shapes: tuple[tuple[int, ...], ...]) -> Shapes:
    """Return the layouts, strides and result shape of a layer for an `x` of this shape, or a list `x` of several."""
    layout, out_layout, stride = resolve_rank(spec, len(shapes[0]))
    axis = channel_axis(layout, shapes)
    in_channels = weight_shape[1] * spec.groups
    if sum(shape[axis] for shape in shapes) != in_channels:
        raise ValueError(
            f"x must have {in_channels} channels on axis {axis} of layout {layout!r}, as weight and "
            f"groups={spec.groups} say, got shape{'s' * (len(shapes) > 1)} {', '.join(map(str, shapes))}"
            + _layout_hint(in_channels, layout, shapes)
        )
    sizes = dict(zip(layout, shapes[0], strict=True)) | {"C": weight_shape[0]}
    for letter, step in zip(spatial_letters(layout), stride, strict=True):
        sizes[letter] = -(-sizes[letter] // step)
    return Shapes(layout, out_layout, stride, tuple(sizes[letter] for letter in out_layout))


def _layout_hint(in_channels: int, layout: str, shapes: tuple[tuple[int, ...], ...]) -> str:
    """Explain an `x` with the wrong channel count: its channels are on another axis, or the weights span the map."""
    for name in NAMED_LAYOUTS:
        likely = named_layout(name, "N" if "N" in layout else "", spatial_letters(layout))
        if sum(shape[likely.index("C")] for shape in shapes) == in_channels:
            return f": it fits layout {likely!r}"
    pixels = tuple(size for letter, size in zip(layout, shapes[0], strict=True) if letter not in "NC")
    if math.prod(pixels) > 1 and shapes[0][layout.index("C")] * math.prod(pixels) == in_channels:
        return f": weights of a layer behind the whole map are a {' x '.join(map(str, pixels))} kernel"
    return ""


def _per_channel(value: Any, name: str, batch: int, channels: int) -> Float32Array | None:
    """Check a table with one value per channel, for all images or for each."""
    if value is None:
        return None
    array = float32_array(value, name)
    if array.shape not in ((channels,), (batch, channels)):
        raise ValueError(f"{name} must have shape ({channels},) or ({batch}, {channels}), got {array.shape}")
    return np.ascontiguousarray(array)


def table(value: Any, name: str, channels: int) -> Float32Array | None:
    """Check a layer's own table: None, or one value per channel."""
    if value is None:
        return None
    array = float32_array(value, name)
    if array.shape != (channels,):
        raise ValueError(f"{name} must have shape ({channels},), got {array.shape}")
    return np.ascontiguousarray(array)


def residual_of(value: Any, name: str, shapes: Shapes | Call) -> NDArray[Any] | None:
    """View a residual: None, or a map with the shape of the result and any dtype that `x` may have."""
    return None if value is None else _shaped_like_result(map_of(value, name), name, shapes)


def receiver_of(value: Any, name: str, shapes: Shapes | Call, spec: Spec) -> NDArray[Any] | None:
    """View an array that receives the result of a layer: None, or an array of a result's dtype."""
    if value is None:
        return None
    array = as_array(value, name)
    check_out_dtype(array, name, spec.out_dtype)
    return _shaped_like_result(array, name, shapes)


def optional_like_result(value: Any, name: str, shapes: Shapes | Call) -> Float32Array | None:
    """View an argument that is None or has the shape of the result."""
    return None if value is None else like_result(value, name, shapes)


def like_result(value: Any, name: str, shapes: Shapes | Call) -> Float32Array:
    """View a float32 argument that has the shape of the result."""
    return _shaped_like_result(float32_array(value, name), name, shapes)


def _shaped_like_result(array: NDArray[Any], name: str, shapes: Shapes | Call) -> NDArray[Any]:
    if array.shape != shapes.out_shape:
        raise ValueError(f"{name} must have shape {shapes.out_shape} (layout {shapes.out_layout!r}), got {array.shape}")
    return array


def parse_num_threads(num_threads: Any) -> int | None:
    """Check the number of threads of a call; None leaves it to the setting."""
    return None if num_threads is None else positive_int(num_threads, "num_threads")
