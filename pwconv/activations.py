"""Activation functions in NumPy: their definitions for `pwconv.reference`, and their derivatives for gradients."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments
from pwconv.arguments import Activation, ActivationLike, Float32Array


def activate(activation: Activation, v: NDArray[Any]) -> NDArray[Any]:
    """Apply an activation. At infinities the value is the limit; NaN stays NaN."""
    if activation == arguments.NO_ACTIVATION:
        return v
    return _FUNCTIONS[activation.code](v, activation.low, activation.high)


def _clip(v: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    return np.minimum(np.maximum(v, low), high)


def _sigmoid(v: NDArray[Any]) -> NDArray[Any]:
    decay = np.exp(-np.abs(v))  # at most 1, so it never overflows
    return np.where(v < 0, decay, 1) / (1 + decay)


def _hardsigmoid(v: NDArray[Any]) -> NDArray[Any]:
    return _clip(v / 6 + 0.5, 0, 1)


def _gated(v: NDArray[Any], gate: NDArray[Any]) -> NDArray[Any]:
    """Return v * gate, and 0 at -inf, where the gate is 0 and falls faster than |v| grows."""
    return np.where(v == -np.inf, 0, v * gate)


def _gelu_gate(v: NDArray[Any]) -> NDArray[Any]:
    """Return the normal distribution function of v; erfc keeps the tail exact where 1 + erf would cancel."""
    return np.vectorize(math.erfc, otypes=[v.dtype])(v * -math.sqrt(0.5)) / 2


def _gelu_tanh_gate(v: NDArray[Any]) -> NDArray[Any]:
    """Return (1 + tanh(u)) / 2 as sigmoid(2 u), which does not cancel in the tail."""
    return _sigmoid(math.sqrt(8 / math.pi) * (v + 0.044715 * v**3))


_FUNCTIONS: dict[int, Callable[[NDArray[Any], float, float], NDArray[Any]]] = {
    arguments.CLIP: _clip,
    arguments.LEAKY_RELU: lambda v, slope, _: np.where(v < 0, slope * v, v),
    arguments.SIGMOID: lambda v, *_: _sigmoid(v),
    arguments.TANH: lambda v, *_: np.tanh(v),
    arguments.SILU: lambda v, *_: _gated(v, _sigmoid(v)),
    arguments.GELU: lambda v, *_: _gated(v, _gelu_gate(v)),
    arguments.GELU_TANH: lambda v, *_: _gated(v, _gelu_tanh_gate(v)),
    arguments.HARDSIGMOID: lambda v, *_: _hardsigmoid(v),
    arguments.HARDSWISH: lambda v, *_: _gated(v, _hardsigmoid(v)),
}


# Derivatives ----------------------------------------------------------------------------------------------------------

# Smooth activations are evaluated between -_FAR and _FAR only. Beyond, their derivatives equal the limits in float32;
# and infinities, whose products with 0 would be NaN, are left out.
_FAR = 128.0
_SMALL = 1e-30  # below this magnitude gelu(v) / v is taken as 1/2
_CUBE, _SCALE = 0.044715, math.sqrt(8 / math.pi)  # of gelu_tanh(v) = v sigmoid(_SCALE (v + _CUBE v^3))


@np.errstate(all="ignore")
def derivative(
    activation: Activation, v: Float32Array, apply: Callable[[ActivationLike, NDArray[Any]], NDArray[Any]]
) -> Float32Array:
    """Return the derivative of an activation at v; `apply` evaluates activations.

    At a kink the derivative is that of one side, at infinities it is the limit, at NaN it is NaN.
    """
    near = np.clip(v, -_FAR, _FAR)
    # 1 - sigmoid(v) would cancel, so it is computed as sigmoid(-v).
    match activation.code:
        case arguments.CLIP:
            # An infinite bound clips nothing, not even the infinity that equals it.
            low, high = activation.low, activation.high
            slope = ((v > low) | (low == -math.inf)) & ((v < high) | (high == math.inf))
        case arguments.LEAKY_RELU:
            slope = np.where(v > 0, np.float32(1), np.float32(activation.low))
        case arguments.SIGMOID:
            slope = apply("sigmoid", near) * apply("sigmoid", -near)
        case arguments.TANH:
            slope = 1 - np.square(apply("tanh", near))
        case arguments.SILU:
            slope = apply("sigmoid", near) * (1 + near * apply("sigmoid", -near))
        case arguments.GELU:
            # gelu(v) = v P(v) with the normal distribution function P, whose derivative is the normal density.
            normal = np.full_like(near, 0.5)
            np.divide(apply("gelu", near), near, out=normal, where=np.abs(near) > _SMALL)
            slope = normal + near * np.exp(near * near * -0.5) * (1 / math.sqrt(2 * math.pi))
        case arguments.GELU_TANH:
            u = _SCALE * (near + _CUBE * near**3)
            slope = apply("sigmoid", u) * (1 + near * apply("sigmoid", -u) * _SCALE * (1 + 3 * _CUBE * near * near))
        case arguments.HARDSIGMOID:
            slope = np.where(np.abs(v) < 3, np.float32(1 / 6), np.float32(0))
        case arguments.HARDSWISH:
            slope = np.where(np.abs(v) < 3, near / 3 + np.float32(0.5), v > 0)
    return np.where(np.isnan(v), v, slope)
