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
    """Check maps and a mask: return the maps with channels first, the pixels that count (None: all), and threads."""
    parsed = parse_layout(layout)
    maps = maps_of(x)
    axis = channel_axis(layout_letters(parsed, len(maps.shapes[0])), maps.shapes)
    pixels = without(axis, maps.shapes[0])
    counted = None if mask is None else as_array(mask, "mask")
    if counted is not None:
        if counted.dtype != bool:
            raise TypeError(f"mask must be bool, got {counted.dtype}")
        try:
            counted = np.broadcast_to(counted, pixels)
        except ValueError:
            raise ValueError(f"mask must have shape {pixels}, or broadcast to it, got {counted.shape}") from None
    return [np.moveaxis(array, axis, 0) for array in maps.named.values()], counted, parse_num_threads(num_threads)
