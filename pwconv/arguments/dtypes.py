"""Element types of results."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULT_DTYPES = ("float32", "uint8", "int8", "uint16", "int16", "float16", "bfloat16")


def parse_out_dtype(value: Any) -> str:
    """Return the name of a result's dtype: of None (float32), a name, a NumPy dtype or a scalar type."""
    if value is None:
        return "float32"
    if isinstance(value, str) and value in RESULT_DTYPES:
        return str(value)
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"out_dtype must be one of {', '.join(RESULT_DTYPES)}, got {value!r}") from None
    if dtype.name not in RESULT_DTYPES or not dtype.isnative:
        raise TypeError(f"out_dtype must be one of {', '.join(RESULT_DTYPES)}, got {dtype}")
    return dtype.name


def is_result_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether results are stored in this dtype."""
    return dtype.name in RESULT_DTYPES and dtype.isnative


def empty_result(shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return a new array for a result. ImportError for bfloat16 without ml_dtypes."""
    return np.empty(shape, numpy_dtype(name))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype with this name. ImportError for bfloat16 without ml_dtypes, which NumPy does not have."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes  # optional: NumPy has no bfloat16 of its own
    except ImportError as error:
        raise ImportError("out_dtype='bfloat16' needs ml_dtypes: pip install ml-dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)


def check_out_dtype(array: NDArray[Any], name: str, wanted: str) -> None:
    """Check the dtype of an array that receives a result; `wanted` is the layer's out_dtype."""
    if not is_result_dtype(array.dtype):
        raise TypeError(f"{name} must be {', '.join(RESULT_DTYPES)}, got {array.dtype}")
    if wanted not in ("float32", array.dtype.name):
        raise TypeError(f"{name} must be {wanted} as out_dtype says, got {array.dtype}")


def rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round numbers to a result's dtype: integers to the nearest (ties to even) within their range, NaN as 0."""
    if dtype.kind not in "iu":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.nan_to_num(np.clip(np.rint(values), limits.min, limits.max), nan=0.0).astype(dtype)
