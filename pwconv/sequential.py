"""Sequential modules of torch and Keras as the arguments of layers that follow each other."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pwconv import adapters
from pwconv.adapters import kind_of
from pwconv.arguments import NAMED_LAYOUTS, ActivationLike, foreign_numbers
from pwconv.folding import Activation, Convolution, Folder, Norm, Step, Vector
from pwconv.scalars import real

_OF_THE_LAST = ("out_layout", "out_dtype")  # arguments of a layer that go to the last one
_OF_ALL = ("layout", "precision", "backend")

_TORCH_ACTIVATIONS = {
    "ReLU": "relu",
    "ReLU6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "SiLU": "silu",
    "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish",
}
_TORCH_NORMS = {"BatchNorm1d": 1, "BatchNorm2d": 2, "BatchNorm3d": 3, "SyncBatchNorm": None}
_TORCH_OTHERS = ("Sequential", "LeakyReLU", "GELU", "Hardtanh")
_TORCH_NOTHING = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
_KERAS_NOTHING = (
    *("InputLayer", "Identity", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
)
_SOFTMAX_ADVICE = ": without it, pwconv.PixelClassifier.from_chain(chain).predict_proba computes it"


def from_torch(module: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments that make each `pwconv.PointwiseConv` of a chain; `options` replace the module's own."""
    return _layers(list(_torch_steps(module, "module", options)), options, "module", "channels_first")


def from_keras(model: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments that make each `pwconv.PointwiseConv` of a chain; `options` replace the model's own."""
    return _layers(list(_keras_steps(model, "model", options)), options, "model", "channels_last")


def _refusal(place: str, module: Any, why: str = "") -> ValueError:
    return ValueError(
        f"{place} must be a pointwise convolution, a fully connected layer, a batch norm, an activation that a layer "
        f"has, dropout, identity or a Sequential of these, got {type(module).__name__}{why}"
    )


# torch ----------------------------------------------------------------------------------------------------------------


def _torch_steps(module: Any, place: str, options: dict[str, Any]) -> Iterator[Step]:
    known = (*_TORCH_ACTIVATIONS, *_TORCH_NORMS, *_TORCH_OTHERS, *_TORCH_NOTHING)
    kind = kind_of(module, known, "forward")
    if hasattr(module, "has_uninitialized_params") and module.has_uninitialized_params():
        raise _refusal(place, module, " that has no weights yet")
    if kind == "Sequential":
        for name, child in module.named_children():
            yield from _torch_steps(child, f"{place}[{name}]" if name.isdigit() else f"{place}.{name}", options)
    elif kind in _TORCH_NORMS:
        yield _torch_norm(module, place, _TORCH_NORMS[kind])
    elif kind in _TORCH_ACTIVATIONS:
        yield Activation(place, _TORCH_ACTIVATIONS[kind])
    elif kind == "LeakyReLU":
        yield Activation(place, ("leaky_relu", module.negative_slope))
    elif kind == "GELU":
        yield Activation(place, "gelu" if module.approximate == "none" else "gelu_tanh")
    elif kind == "Hardtanh":
        yield Activation(place, ("clip", module.min_val, module.max_val))
    elif kind is None:
        advice = _SOFTMAX_ADVICE if "Softmax" in type(module).__name__ else ""
        yield _convolution(module, place, adapters.from_torch, "weight", options, advice)


def _torch_norm(module: Any, place: str, axes: int | None) -> Norm:
    if module.running_mean is None or module.running_var is None:
        raise ValueError(f"{place} must have statistics of its own, got {type(module).__name__} that takes a batch's")
    if module.training:
        raise ValueError(f"{place} must be in evaluation mode, got {type(module).__name__} in training: call eval()")
    return _norm(place, module.weight, module.bias, module.running_mean, module.running_var, module.eps, axes)


# Keras ----------------------------------------------------------------------------------------------------------------


def _keras_steps(layer: Any, place: str, options: dict[str, Any]) -> Iterator[Step]:
    kind = kind_of(
        layer, (*_KERAS_NOTHING, "Sequential", "BatchNormalization", "Activation", "ReLU", "LeakyReLU"), "call"
    )
    if kind == "Sequential":
        for i, child in enumerate(layer.layers):
            yield from _keras_steps(child, f"{place}.layers[{i}]", options)
    elif kind == "BatchNormalization":
        axis = int(layer.axis[0] if isinstance(layer.axis, Sequence) else layer.axis)
        axes = getattr(getattr(layer, "input_spec", None), "ndim", None)
        if axis >= 0 and axes is not None:
            axis -= axes
        statistics = layer.moving_mean, layer.moving_variance, layer.epsilon
        yield _norm(place, layer.gamma, layer.beta, *statistics, None)._replace(axis=axis)
    elif kind == "Activation":
        yield Activation(place, _keras_activation(layer, place))
    elif kind == "ReLU":
        yield Activation(place, _keras_relu(layer, place))
    elif kind == "LeakyReLU":
        slope = layer.negative_slope if hasattr(layer, "negative_slope") else layer.alpha
        yield Activation(place, ("leaky_relu", float(slope)))
    elif kind is None:
        yield _convolution(layer, place, adapters.from_keras, "kernel", options | {"activation": None}, "")
        activation = _keras_activation(layer, place)
        if activation is not None:
            yield Activation(place, activation)


def _keras_activation(layer: Any, place: str) -> str | None:
    try:
        return adapters.keras_activation(layer.activation)
    except ValueError as error:
        advice = _SOFTMAX_ADVICE if getattr(layer.activation, "__name__", "") == "softmax" else ""
        raise ValueError(f"{place}: {str(error).partition(': give')[0]}{advice}") from None


def _keras_relu(layer: Any, place: str) -> ActivationLike:
    slope, threshold = float(layer.negative_slope or 0), float(layer.threshold or 0)
    if threshold or (slope and layer.max_value is not None):
        raise ValueError(f"{place} must be a ReLU without a threshold, and with a slope or a maximum, got both or one")
    if slope:
        return ("leaky_relu", slope)
    return "relu" if layer.max_value is None else ("clip", 0.0, float(layer.max_value))


# Both -----------------------------------------------------------------------------------------------------------------


def _convolution(
    module: Any, place: str, adapter: Any, weight: str, options: dict[str, Any], advice: str
) -> Convolution:
    try:
        arguments_read = adapter(module, options)
    except TypeError:
        raise _refusal(place, module, advice) from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    kernel = foreign_numbers(getattr(module, weight), f"weight of {place}").astype(np.float64)
    matrix = kernel.reshape(kernel.shape[:2]) if weight == "weight" else kernel.reshape(kernel.shape[-2:]).T
    bias = np.zeros(len(matrix))
    if module.bias is not None:
        bias = foreign_numbers(module.bias, f"bias of {place}").astype(np.float64)
    # The layout that the module itself takes, whatever is asked for.
    layout = adapter(module, {"activation": None})["layout"]
    return Convolution(place, matrix, bias, layout, arguments_read.get("groups", 1), arguments_read.get("stride", 1))


def _norm(place: str, gamma: Any, beta: Any, mean: Any, var: Any, eps: Any, axes: int | None) -> Norm:
    def vector(value: Any, name: str) -> Vector:
        return foreign_numbers(value, f"{name} of {place}").astype(np.float64).reshape(-1)

    spread = vector(var, "variance") + real(eps, f"epsilon of {place}")
    if not (spread > 0).all():
        raise ValueError(f"variance + epsilon of {place} must be positive, got {spread.min()}")
    scale = (1.0 if gamma is None else vector(gamma, "gamma")) / np.sqrt(spread)
    centre = vector(mean, "mean")
    return Norm(place, scale, centre, np.zeros(len(centre)) if beta is None else vector(beta, "beta"), axes)


def _layers(steps: list[Step], options: dict[str, Any], place: str, layout: str) -> list[dict[str, Any]]:
    """Fold steps into layers; `layout` is that of steps without a convolution."""
    unknown = options.keys() - {*_OF_ALL, *_OF_THE_LAST}
    if unknown:
        raise TypeError(f"a chain of a module has no argument {', '.join(sorted(unknown))}")
    convolutions = [step for step in steps if isinstance(step, Convolution)]
    layout = convolutions[0].layout if convolutions else layout
    for step in steps:
        _check_layout(step, layout)
    folder = Folder()
    for step in steps:
        folder.add(step)
    folder.flush()
    if not folder.layers:
        raise ValueError(f"{place} must have a convolution, a fully connected layer or a batch norm, got none")
    common = {"layout": layout} | {name: value for name, value in options.items() if name in _OF_ALL}
    layers = [common | layer for layer in folder.layers]
    layers[-1] |= {name: value for name, value in options.items() if name in _OF_THE_LAST}
    return layers


def _check_layout(step: Step, layout: str) -> None:
    """Check that a step takes its channels on the axis of `layout`."""
    if isinstance(step, Convolution) and step.layout != layout:
        raise ValueError(f"{step.place} must take maps of layout {layout!r} as those before it, got {step.layout!r}")
    if isinstance(step, Norm):
        named = layout in NAMED_LAYOUTS
        channels = {"channels_last": -1, "channels_first": 1}.get(layout, layout.find("C"))
        if step.axis is not None and step.axis != channels and (named or step.axis != channels - len(layout)):
            raise ValueError(f"{step.place} must norm the channels of layout {layout!r}, got axis {step.axis}")
        axes = 1 if named else len(layout) - 2
        if step.axes is not None and layout != "channels_first" and step.axes != axes:
            raise ValueError(f"{step.place} must norm maps of layout {layout!r}, got BatchNorm{step.axes}d")
