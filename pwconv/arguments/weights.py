"""Weights, biases and the vectors of a batch norm."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments.arrays import Float32Array, float32_array, foreign_numbers
from pwconv.arguments.spec import Spec


def weight_matrix(weight: Any, spec: Spec) -> Float32Array:
    """View a kernel as its matrix of shape (C_out, C_in // groups), with any strides."""
    array = float32_array(weight, "weight")
    if array.ndim == 2 and spec.weight_layout == "OI" and spec.groups == 1:
        return array
    parts = {
        "OI": ("(C_out, C_in // groups, 1, ...)", array.shape[:2], array.shape[2:]),
        "IO": ("(..., 1, C_in // groups, C_out)", array.shape[-2:], array.shape[:-2]),
    }
    expected, matrix_shape, ones = parts[spec.weight_layout]
    if array.ndim < 2 or any(length != 1 for length in ones):
        fits = [name for name, (*_, others) in parts.items() if array.ndim > 2 and all(size == 1 for size in others)]
        raise ValueError(
            f"weight must have shape {expected} for weight_layout={spec.weight_layout!r}, with any number of axes of "
            f"length 1, got shape {array.shape}" + "".join(f": it fits weight_layout={name!r}" for name in fits)
        )
    matrix = array.reshape(matrix_shape)
    if spec.weight_layout == "IO":
        matrix = matrix.T
    if len(matrix) % spec.groups:
        raise ValueError(
            f"groups must divide the output channels of weight, got groups={spec.groups}, C_out={len(matrix)}"
        )
    return matrix


def as_kernel(matrix: NDArray[Any], weight_layout: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a matrix (C_out, C_in // groups) in the layout and shape of the weight that it was made from."""
    return (matrix if weight_layout == "OI" else matrix.T).reshape(shape)


def bias_vector(bias: Any, out_channels: int) -> Float32Array | None:
    """Return the bias as a contiguous vector of shape (C_out,)."""
    if bias is None:
        return None
    array = float32_array(bias, "bias")
    if array.shape != (out_channels,):
        raise ValueError(f"bias must have shape (C_out,) = ({out_channels},), got {array.shape}")
    return np.ascontiguousarray(array)


def norm_vector(value: Any, name: str, out_channels: int) -> NDArray[np.float64]:
    """Return a vector of the batch norm that follows a layer, in float64."""
    vector = foreign_numbers(value, name).astype(np.float64)
    if vector.shape != (out_channels,):
        raise ValueError(f"{name} must have shape (C_out,) = ({out_channels},), got {vector.shape}")
    return vector
