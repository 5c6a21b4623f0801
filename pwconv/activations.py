"""Activation functions in NumPy, and their derivatives."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments
from pwconv.arguments import Activation, ActivationLike, Float32Array


def activate(activation: Activation, v: NDArray[Any]) -> NDArray[Any]:
    """Apply an activation; at infinities it takes its limits, and NaN stays NaN."""
    if activation == arguments.NO_ACTIVATION:
        return v
    return _FUNCTIONS[activation.code](v, activation.low, activation.high)


def _clip(v: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    return np.minimum(np.maximum(v, low), high)


def _sigmoid(v: NDArray[Any]) -> NDArray[Any]:
    decay = np.exp(-np.abs(v))  # never overflows
    return np.where(v < 0, decay, 1) / (1 + decay)


def _hardsigmoid(v: NDArray[Any]) -> NDArray[Any]:
    return _clip(v / 6 + 0.5, 0, 1)


def _gated(v: NDArray[Any], gate: NDArray[Any]) -> NDArray[Any]:
    """Return v * gate, where a gate closes faster than v goes to -inf."""
    return np.where(v == -np.inf, 0, v * gate)


def _gelu_gate(v: NDArray[Any]) -> NDArray[Any]:
    """The normal distribution function; erfc keeps its tail exact where 1 + erf would cancel."""
    return np.vectorize(math.erfc, otypes=[v.dtype])(v * -math.sqrt(0.5)) / 2


def _gelu_tanh_gate(v: NDArray[Any]) -> NDArray[Any]:
    """(1 + tanh(u)) / 2 = sigmoid(2 u), which does not cancel in the tail."""
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

_FAR = 128.0  # from here on smooth activations are their limits in float32, and no product meets an infinity
_SMALL = 1e-30
_CUBE, _SCALE = 0.044715, math.sqrt(8 / math.pi)  # of gelu_tanh(v) = v sigmoid(_SCALE (v + _CUBE v^3))


@np.errstate(all="ignore")
def derivative(
    activation: Activation, v: Float32Array, apply: Callable[[ActivationLike, NDArray[Any]], NDArray[Any]]
) -> Float32Array:
    """Return the derivative of an activation: of one side at a bend, its limits at infinities, NaN at NaN."""
    near = np.clip(v, -_FAR, _FAR)
    # 1 - sigmoid(v), which would cancel, is sigmoid(-v).
    match activation.code:
        case arguments.CLIP:
            # An infinite bound clips nothing.
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
            # gelu(v) = v P(v), with the normal distribution's function P; its density is P's derivative.
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
