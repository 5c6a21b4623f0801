"""The memory that receives results: its size, and what it may share memory with."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.exceptions import TooHardError
from numpy.typing import NDArray

from pwconv.arguments.arrays import Float32Array, as_array
from pwconv.scalars import type_name


def check_result(
    array: NDArray[Any] | None,
    given: Any,
    name: str,
    shape: tuple[int, ...],
    readable: Mapping[str, Any],
    in_place: str | None = None,
) -> None:
    """Check that a result of this shape can be allocated, or written to `array`.

    Parameters
    ----------
    array : the array that receives the result, or None for a new one.
    given : the argument that `array` is a view of.
    name : the argument's name.
    shape : shape of the result.
    readable : arrays that the call reads, by name. `array` must share no memory with them.
    in_place : the name of the one readable array that may be `array` itself.

    Raises
    ------
    TypeError if `given` only hands out copies; ValueError if `array` is read-only, reaches an element twice or shares
    memory with a readable array; MemoryError if no address space holds the result.
    """
    if array is None:
        check_size(shape)
        return
    # An object's __array__ may return a new copy each time; what is written to a copy would be lost.
    if not isinstance(given, np.ndarray) and array.size and not np.may_share_memory(array, as_array(given, name)):
        raise TypeError(f"{name} must be an array whose memory NumPy can share, got {type_name(given)}")
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    if _overlaps_itself(array):
        raise ValueError(
            f"{name} must reach every element once, got shape {array.shape} with strides {array.strides} in bytes"
        )
    for other_name, other in readable.items():
        if other is None or (other_name == in_place and _same_elements(array, other)):
            continue
        if _share_memory(array, as_array(other, other_name)):
            raise ValueError(f"{name} must not share memory with {other_name}")


def check_size(shape: tuple[int, ...]) -> None:
    """Raise MemoryError if no address space holds a float32 result of this shape."""
    # NumPy's own rule: an empty axis counts as 1, so no other axis may exceed the address space either.
    if math.prod(size or 1 for size in shape) > sys.maxsize // np.dtype(np.float32).itemsize:
        raise MemoryError(f"a result of shape {shape} does not fit into memory")


def _same_elements(a: Float32Array, b: Float32Array) -> bool:
    """Return whether two arrays of one shape have the same elements at the same indices."""
    strides = ((s, t) for length, s, t in zip(a.shape, a.strides, b.strides, strict=True) if length > 1)
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0] and all(s == t for s, t in strides)


def _share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays have a byte in common; a question that would take too long counts as yes."""
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # the stub knows only the constants
    except TooHardError:
        return True


def _overlaps_itself(array: Float32Array) -> bool:
    """Return whether two indices of an array reach a common byte."""
    if array.size < 2:
        return False
    axes = sorted(
        (abs(stride), length) for stride, length in zip(array.strides, array.shape, strict=True) if length > 1
    )
    reach, nested = array.itemsize, True
    for stride, length in axes:
        nested &= stride >= reach
        reach += (length - 1) * stride
    # Slices and transposes of contiguous arrays are nested: the step of an axis exceeds the extent of all faster axes.
    if nested:
        return False
    if array.nbytes > reach:
        return True
    offsets = np.zeros(1, np.intp)
    for stride, length in axes:
        offsets = np.add.outer(np.arange(length, dtype=np.intp) * stride, offsets).ravel()
    return bool((np.diff(np.sort(offsets)) < array.itemsize).any())
