"""Maps whose pixels are samples, as statistics of channels take them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments.arrays import as_array, maps_of
from pwconv.arguments.call import parse_num_threads
from pwconv.arguments.layouts import channel_axis, layout_letters, parse_layout, without


def check_pixels(
    layout: Any, x: Any, mask: Any = None, num_threads: Any = None
) -> tuple[list[NDArray[Any]], NDArray[np.bool_] | None, int | None]:
    """Check maps and a mask: return the maps with channels first, the pixels that count (None: all), and threads.

    Pixels with a channel that a masked array hides do not count.
    """
    parsed = parse_layout(layout)
    parts = x if isinstance(x, list | tuple) else [x]
    bare = [np.ma.getdata(part) if isinstance(part, np.ma.MaskedArray) else part for part in parts]
    maps = maps_of(bare if isinstance(x, list | tuple) else bare[0])
    axis = channel_axis(layout_letters(parsed, len(maps.shapes[0])), maps.shapes)
    pixels = without(axis, maps.shapes[0])
    counted: NDArray[Any] | None = None if mask is None else as_array(mask, "mask")
    if counted is not None:
        if counted.dtype != bool:
            raise TypeError(f"mask must be bool, got {counted.dtype}")
        try:
            counted = np.broadcast_to(counted, pixels)
        except ValueError:
            raise ValueError(f"mask must have shape {pixels}, or broadcast to it, got {counted.shape}") from None
    for part in parts:
        if np.ma.is_masked(part):
            shown: NDArray[Any] = ~np.asarray(np.ma.getmaskarray(part).any(axis=axis))
            counted = shown if counted is None else counted & shown
    return [np.moveaxis(array, axis, 0) for array in maps.named.values()], counted, parse_num_threads(num_threads)
