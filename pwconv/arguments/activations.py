"""Activation functions as arguments: their names, codes and parameters."""

import math
from typing import NamedTuple, TypeAlias

import numpy as np

from pwconv.scalars import real, type_name

ActivationLike: TypeAlias = str | tuple[str | float, ...] | None


class Activation(NamedTuple):
    """A parsed activation function, as the kernels take it: a code and up to two parameters."""

    code: int
    low: float = 0.0  # the lower bound of CLIP, or the slope of LEAKY_RELU
    high: float = 0.0  # the upper bound of CLIP


NO_ACTIVATION = Activation(0)
CLIP, LEAKY_RELU, SIGMOID, TANH, SILU, GELU, GELU_TANH, HARDSIGMOID, HARDSWISH = range(1, 10)
ACTIVATIONS = {
    "relu": Activation(CLIP, 0.0, math.inf),
    "relu6": Activation(CLIP, 0.0, 6.0),
    "leaky_relu": Activation(LEAKY_RELU, 0.01),
    "sigmoid": Activation(SIGMOID),
    "tanh": Activation(TANH),
    "silu": Activation(SILU),
    "gelu": Activation(GELU),
    "gelu_tanh": Activation(GELU_TANH),
    "hardsigmoid": Activation(HARDSIGMOID),
    "hardswish": Activation(HARDSWISH),
}
_ACTIVATION_FORMS = f"None, {', '.join(map(repr, ACTIVATIONS))}, ('leaky_relu', slope) or ('clip', lo, hi)"


def parse_activation(value: ActivationLike, name: str) -> Activation:
    """Parse an activation: None, a name, or a tuple of a name and its parameters."""
    if value is None:
        return NO_ACTIVATION
    function, *parameters = value if isinstance(value, tuple) and value else (value,)
    if not isinstance(function, str):
        raise TypeError(f"{name} must be {_ACTIVATION_FORMS}, got {type_name(value)}")
    if function in ACTIVATIONS and not parameters:
        return ACTIVATIONS[function]
    if function == "leaky_relu" and len(parameters) == 1:
        slope = real(parameters[0], f"the slope of {name}")
        if not abs(slope) <= float(np.finfo(np.float32).max):
            raise ValueError(f"the slope of {name} must be finite in float32, got {slope}")
        return Activation(LEAKY_RELU, slope)
    if function == "clip" and len(parameters) == 2:
        low, high = (real(bound, f"a bound of {name}") for bound in parameters)
        if not low <= high:
            raise ValueError(f"{name} ('clip', lo, hi) needs lo <= hi, got lo={low}, hi={high}")
        return Activation(CLIP, low, high)
    extent = f" with {len(parameters)} parameters" if parameters else ""
    raise ValueError(f"{name} must be {_ACTIVATION_FORMS}, got {function!r}{extent}")
