"""Pixels: maps whose pixels are samples, which pixels count, and what the others get."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments.arrays import as_array, hidden_elements, maps_of
from pwconv.arguments.call import parse_num_threads
from pwconv.arguments.layouts import channel_axis, layout_letters, parse_layout, without
from pwconv.scalars import integer, real, type_name

_INT32 = np.iinfo(np.int32)


def without_masks(x: Any) -> tuple[Any, list[NDArray[np.bool_]]]:
    """Return `x`, or a list of maps, with masked arrays as their data, and those masks that hide something."""
    parts = x if isinstance(x, list | tuple) else [x]
    masks = [hidden_elements(part) for part in parts]
    if all(mask is None for mask in masks):
        return x, []
    data = [part if mask is None else np.asarray(part) for part, mask in zip(parts, masks, strict=True)]
    return (data if isinstance(x, list | tuple) else data[0]), [mask for mask in masks if mask is not None]


def hides_elements(x: Any) -> bool:
    """Return whether `x`, or a map of a list `x`, is a masked array that hides something."""
    return any(hidden_elements(part) is not None for part in (x if isinstance(x, list | tuple) else [x]))


def counted_pixels(
    mask: Any, hidden: list[NDArray[np.bool_]], axis: int, shape: tuple[int, ...]
) -> NDArray[np.bool_] | None:
    """Return which pixels of a map count, or None for all of them.

    Parameters
    ----------
    mask : the argument: None, or bool with the shape of the pixels, or one that broadcasts to it.
    hidden : masks of masked arrays; a pixel with a masked channel does not count.
    axis, shape : the channel axis and the shape of the map.
    """
    pixels = without(axis, shape)
    counted: Any = None if mask is None else as_array(mask, "mask")
    if counted is not None:
        if counted.dtype != bool:
            raise TypeError(f"mask must be bool, got {counted.dtype}: mask != 0 makes it so")
        try:
            counted = np.broadcast_to(counted, pixels)
        except ValueError:
            advice = f": mask.all(axis={axis}) has one value per pixel" * (counted.shape == shape)
            raise ValueError(
                f"mask must have shape {pixels}, or broadcast to it, got {counted.shape}{advice}"
            ) from None
    for elements in hidden:
        visible = ~elements.any(axis=axis)
        counted = visible if counted is None else counted & visible
    return counted


def check_pixels(
    layout: Any, x: Any, mask: Any = None, num_threads: Any = None
) -> tuple[list[NDArray[Any]], NDArray[np.bool_] | None, int | None]:
    """Check maps and a mask: return the maps with channels first, the pixels that count (None: all), and threads."""
    parsed = parse_layout(layout)
    x, hidden = without_masks(x)
    maps = maps_of(x)
    axis = channel_axis(layout_letters(parsed, len(maps.shapes[0])), maps.shapes)
    counted = counted_pixels(mask, hidden, axis, maps.shapes[0])
    return [np.moveaxis(array, axis, 0) for array in maps.named.values()], counted, parse_num_threads(num_threads)


def component_count(value: Any, channels: int, pixels: int | None = None) -> int | float | None:
    """Check a number of components: None, an integer, or a share of the variance.

    `pixels` is how many pixels count, if no more will follow; there are no more components than pixels or channels.
    """
    if value is None:
        return None
    if isinstance(value, float | np.floating):
        share = float(value)
        if not 0 < share < 1:
            raise ValueError(
                f"n_components must be None, an integer, or a share of the variance between 0 and 1, got {share}"
            )
        return share
    return integer(value, "n_components", 1, channels if pixels is None else min(channels, pixels))


def components_kept(count: int | float | None, ratios: NDArray[np.float64]) -> int:
    """Return how many components a checked number of them means, of those with these shares of the variance."""
    if count is None:
        return len(ratios)
    if isinstance(count, int):
        return count
    # As sklearn.decomposition.PCA: as few as explain more than this share. A flat image has one.
    reached = int(np.searchsorted(np.cumsum(ratios), count, side="right")) + 1 if ratios.any() else 1
    return min(reached, len(ratios))


def value_fill(fill: Any, needed: bool, dtype: str) -> float | None:
    """Check what pixels get in a result of numbers that do not count; None if all pixels count.

    `needed` says that there is a mask, `dtype` is the name of the result's dtype.
    """
    is_float = dtype in ("float32", "float16", "bfloat16")
    if fill is None:
        if needed and not is_float:
            raise ValueError(
                f"fill must be given where a mask hides pixels: {dtype} has no NaN, but holds other numbers"
            )
        return np.nan if needed else None
    number = real(fill, "fill")
    if is_float:
        if np.isfinite(number) and abs(number) > float(np.finfo(np.float32).max):
            raise ValueError(f"fill must be finite in float32, or infinite, got {number}")
    elif not (number.is_integer() and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max):
        raise ValueError(f"fill must be an integer that {dtype} holds, got {fill}")
    return number


def index_fill(fill: Any, needed: bool, classes: int, dtype: np.dtype[Any], named: bool = False) -> int | None:
    """Check which index pixels get that do not count; None if all pixels count.

    `needed` says that there is a mask, `dtype` is that of the indices, `named` that classes have names.
    """
    low, high = max(np.iinfo(dtype).min, _INT32.min), min(np.iinfo(dtype).max, _INT32.max)
    if fill is None:
        if needed and low == 0:
            raise ValueError(
                f"fill must be given where a mask hides pixels: {dtype} does not hold -1. "
                + (f"It may be from {classes} to {high}" if classes <= high else f"{dtype} holds no index of no class")
            )
        return -1 if needed else None
    if named and isinstance(fill, str | bytes):
        raise TypeError(f"fill must be an integer, since out receives indices, got {type_name(fill)}")
    index = integer(fill, "fill", low, high)
    if 0 <= index < classes:
        raise ValueError(f"fill must be an index of no class, not from 0 to {classes - 1}, got {index}")
    return index


def name_fill(fill: Any, needed: bool, names: NDArray[Any]) -> NDArray[Any]:
    """Return class names with that of pixels that do not count behind them; the names alone if all pixels count."""
    if fill is None:
        if needed:
            raise ValueError("fill must be given where a mask hides pixels, as a name of no class: classes have names")
        return names
    extended = np.empty(len(names) + 1, _dtype_with(fill, names.dtype))
    extended[:-1] = names
    extended[-1] = fill
    if any(name == extended[-1] for name in names):
        raise ValueError(f"fill must be a name of no class, got {fill!r}")
    return extended


def _dtype_with(fill: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype that holds class names of `dtype`, and `fill` too."""
    if dtype.kind == "O":
        return dtype
    scalar = np.asarray(fill)
    if dtype.kind in "iu" and isinstance(fill, int) and scalar.dtype.kind == "O":
        raise ValueError(f"fill must be an integer that fits those of classes, of dtype {dtype}, got {fill!r}")
    kinds = next(group for group in ("iuf", "UT", dtype.kind) if dtype.kind in group)
    if scalar.shape or scalar.dtype.kind not in kinds:
        raise TypeError(f"fill must be a name of no class like those of dtype {dtype}, got {fill!r}")
    if dtype.kind not in "iu" or scalar.dtype.kind not in "iu":
        return np.result_type(dtype, scalar)
    # The smallest dtype of the number, so that uint8 and 255 make uint8; as a scalar it would be an int64.
    both = np.result_type(dtype, np.min_scalar_type(fill))
    if both.kind not in "iu":
        raise ValueError(f"fill must be an integer that fits those of classes, of dtype {dtype}, got {fill!r}")
    return both
