"""Boxes: rectangular parts of an array, cut by its shape alone, so that sums over them do not depend on threads."""

import math
from collections.abc import Iterator

import numpy as np


def boxes_of(shape: tuple[int, ...], limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into boxes of at most `limit` elements; the last axes are left whole as far as possible."""
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
    count = -(-length // (limit // whole))
    for outer in np.ndindex(shape[: axis - 1]):
        for i in range(count):
            cut = slice(length * i // count, length * (i + 1) // count)
            yield (*(slice(index, index + 1) for index in outer), cut, *rest)
