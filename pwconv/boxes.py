"""Boxes: parts of an array that are cut by its shape alone."""

import math
from collections.abc import Iterator

import numpy as np


def boxes_of(shape: tuple[int, ...], limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into boxes of at most `limit` elements, as long as possible on the last axes."""
    if not math.prod(shape):
        return
    axis, whole = len(shape), 1
    while axis and whole * shape[axis - 1] <= limit:
        axis -= 1
        whole *= shape[axis]
    rest = (slice(None),) * (len(shape) - axis)
    if not axis:
        yield rest
        return
    length = shape[axis - 1]
    pieces = -(-length // (limit // whole))
    for outer in np.ndindex(shape[: axis - 1]):
        for i in range(pieces):
            cut = slice(length * i // pieces, length * (i + 1) // pieces)
            yield (*(slice(place, place + 1) for place in outer), cut, *rest)
