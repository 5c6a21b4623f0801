"""Arguments as NumPy arrays: views without a copy, and weights of other libraries."""

import sys
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pwconv.scalars import type_name

Float32Array: TypeAlias = NDArray[np.float32]

_FLOAT32 = np.dtype(np.float32)
# Numbers that `x` may hold. bfloat16 is the dtype of a package that may be missing, so it is known by name only.
_INPUT_DTYPES = tuple(map(np.dtype, ("float32", "uint8", "int8", "uint16", "int16", "float16")))


class Maps(NamedTuple):
    """The arrays of `x`: by the names that messages give them, in the form of `x` (one or a list), and their shapes."""

    named: dict[str, NDArray[Any]]
    source: NDArray[Any] | list[NDArray[Any]]
    shapes: tuple[tuple[int, ...], ...]


def maps_of(x: Any) -> Maps:
    """View `x`, or each map of a list `x`, as an array of a dtype that the engine reads."""
    values = {f"x[{i}]": value for i, value in enumerate(x)} if isinstance(x, list | tuple) else {"x": x}
    if not values:
        raise ValueError(f"x must be an array or a list of at least one, got an empty {type_name(x)}")
    named = {name: map_of(value, name) for name, value in values.items()}
    arrays = list(named.values())
    return Maps(named, arrays if "x" not in named else arrays[0], tuple(array.shape for array in arrays))


def map_of(value: Any, name: str) -> NDArray[Any]:
    """View `value` as an array of a dtype that the engine reads, in either byte order."""
    array = as_array(value, name)
    if array.dtype == _FLOAT32:
        return array
    if array.dtype.newbyteorder("=") not in _INPUT_DTYPES and array.dtype.name != "bfloat16":
        raise TypeError(
            f"{name} must be {', '.join(map(str, _INPUT_DTYPES))} or bfloat16, got {array.dtype}: "
            f"convert it with {name}.astype(numpy.float32)"
        )
    return array


def float32_array(value: Any, name: str) -> Float32Array:
    """View `value` as a float32 array; only another byte order is converted."""
    array = as_array(value, name)
    if array.dtype == _FLOAT32:
        return array
    if array.dtype == _FLOAT32.newbyteorder() and not name.startswith("out"):
        return array.astype(np.float32)
    advice = "" if name.startswith("out") else f": convert it with {name}.astype(numpy.float32)"
    raise TypeError(f"{name} must be float32, got {array.dtype}{advice}")


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Return `value` as a base-class array over the same memory."""
    if type(value) is np.ndarray:
        return value
    refuse_hidden(value, name)
    # type() and not isinstance(): a proxy object reports another class as its __class__.
    if not issubclass(type(value), np.ndarray):
        if isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a float32 array, got {type_name(value)}")
        if getattr(value, "requires_grad", False):
            raise TypeError(f"{name} must be a float32 array, got one that records gradients: use {name}.detach()")
        if not any(hasattr(value, attribute) for attribute in ("__array__", "__array_interface__", "__array_struct__")):
            return _array_from_export(value, name)
    try:
        array = np.asanyarray(value)
    except OverflowError as error:  # an array interface whose shape or strides exceed the machine's integers
        raise ValueError(f"{name} must be a float32 array, got {type_name(value)} ({error})") from error
    except (RuntimeError, TypeError) as error:  # a dtype that NumPy does not have, or memory of another device
        raise TypeError(f"{name} must be a float32 array, got {type_name(value)} ({error})") from error
    refuse_hidden(array, name)  # __array__ of other objects may return a masked array
    return np.asarray(array)


def hidden_elements(value: Any) -> NDArray[np.bool_] | None:
    """Return the mask of a masked array, True for hidden elements, if it hides any; else None."""
    ma = sys.modules.get("numpy.ma")  # there is no masked array before this module is imported
    if ma is None or not issubclass(type(value), ma.MaskedArray):
        return None
    mask = ma.getmask(value)
    return mask if mask.dtype == bool and mask.any() else None  # fields of a record have masks of their own


def refuse_hidden(value: Any, name: str) -> None:
    """Raise TypeError for a masked array that hides elements."""
    if hidden_elements(value) is not None:
        advice = (
            f"give {name}.data"
            if name.startswith("out")
            else f"fill them with {name}.filled(value), or give mask= to a method that takes it"
        )
        raise TypeError(f"{name} must not hide values behind a mask: {advice}")


def _array_from_export(value: Any, name: str) -> NDArray[Any]:
    """View an object that exports its memory by DLPack or the buffer protocol."""
    try:
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        return np.asarray(memoryview(value))
    except (AttributeError, BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name} must be a float32 array, got {type_name(value)} ({error})") from error


def foreign_array(value: Any, name: str) -> Float32Array:
    """Return weights of another library as a float32 array: rounded, detached from an autograd graph, on the CPU."""
    return foreign_numbers(value, name).astype(np.float32)


def foreign_numbers(value: Any, name: str) -> NDArray[Any]:
    """Return numbers of another library as an array of integers or floats."""
    refuse_hidden(value, name)
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()  # float64 represents every float dtype of torch, and NumPy has it
    try:
        array = np.asarray(value)
    except OverflowError as error:  # integers that no NumPy dtype represents
        raise ValueError(f"{name} must hold real numbers, got {type_name(value)} ({error})") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    return array
