"""Layers of torch and Keras as constructor arguments. Only attributes are read; neither library is imported."""

from collections.abc import Iterable, Sequence
from typing import Any

from pwconv.arguments import foreign_array

_SPATIAL = {1: "L", 2: "HW", 3: "DHW"}
_KERAS_ACTIVATIONS = {
    "linear": None,
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
}


def kind_of(model: Any, known: Iterable[str], method: str) -> str | None:
    """Return the name of the class, among `known`, whose `method` a model has; None if a subclass has its own."""
    for cls in type(model).__mro__:
        if cls.__name__ in known:
            return cls.__name__
        if method in vars(cls):
            return None
    return None


def from_torch(module: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the `pwconv.PointwiseConv` that equals a torch module; `options` override its own."""
    is_conv, is_linear = hasattr(module, "kernel_size"), hasattr(module, "in_features")
    if not (is_conv or is_linear) or not hasattr(module, "weight"):
        raise TypeError(f"module must be a Conv1d, Conv2d, Conv3d or Linear, got {type(module).__name__}")
    kwargs = _weights(module.weight, module.bias)
    if is_linear:
        return kwargs | {"layout": "channels_last"} | options
    if getattr(module, "transposed", False):
        raise ValueError(f"module must not be a transposed convolution, got {type(module).__name__}")
    _check_kernel("module", kwargs["weight"].shape[2:])
    padding = module.padding
    if not isinstance(padding, str) and any(padding):  # "same" and "valid" pad nothing for a kernel of one pixel
        raise ValueError(f"module must not pad a kernel of one pixel, got padding={padding}")
    spatial = _SPATIAL[kwargs["weight"].ndim - 2]
    kwargs |= {"layout": f"NC{spatial}", "groups": module.groups}
    return kwargs | {"stride": _stride(module.stride, spatial, options)} | options


def from_keras(layer: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the `pwconv.PointwiseConv` that equals a Keras layer; `options` override its own."""
    is_conv, is_dense = hasattr(layer, "kernel_size"), hasattr(layer, "units")
    if not (is_conv or is_dense) or not hasattr(layer, "kernel"):
        raise TypeError(f"layer must be a built Conv1D, Conv2D, Conv3D or Dense, got {type(layer).__name__}")
    kwargs = _weights(layer.kernel, layer.bias) | {"weight_layout": "IO"}
    if "activation" not in options:
        kwargs["activation"] = keras_activation(layer.activation)
    if is_dense:
        return kwargs | {"layout": "channels_last"} | options
    if hasattr(layer, "output_padding") or hasattr(layer, "depth_multiplier"):
        raise ValueError(f"layer must not be a transposed or depthwise convolution, got {type(layer).__name__}")
    _check_kernel("layer", kwargs["weight"].shape[:-2])
    spatial = _SPATIAL[kwargs["weight"].ndim - 2]
    layout = f"NC{spatial}" if layer.data_format == "channels_first" else f"N{spatial}C"
    kwargs |= {"layout": layout, "groups": layer.groups}
    return kwargs | {"stride": _stride(layer.strides, spatial, options)} | options


def _weights(weight: Any, bias: Any) -> dict[str, Any]:
    return {
        "weight": foreign_array(weight, "weight"),
        "bias": None if bias is None else foreign_array(bias, "bias"),
    }


def _check_kernel(name: str, kernel: tuple[int, ...]) -> None:
    if any(length != 1 for length in kernel):
        raise ValueError(f"{name} must have a kernel of one pixel, got {' x '.join(map(str, kernel))}")


def _stride(steps: int | Sequence[int], spatial: str, options: dict[str, Any]) -> int | tuple[int, ...]:
    """Return the strides of the axes `spatial`, in the order of `options["layout"]` if it names these axes."""
    if isinstance(steps, int):
        return steps
    if len(set(steps)) == 1:
        return steps[0]
    by_letter = dict(zip(spatial, steps, strict=True))
    wanted = [letter for letter in options.get("layout", "") if letter in by_letter]
    return tuple(by_letter[letter] for letter in wanted) if sorted(wanted) == sorted(spatial) else tuple(steps)


def keras_activation(function: Any) -> str | None:
    """Return the name of an activation function of Keras."""
    name = "linear" if function is None else getattr(function, "__name__", type(function).__name__)
    if name not in _KERAS_ACTIVATIONS:
        raise ValueError(
            f"layer must have one of the activations {', '.join(_KERAS_ACTIVATIONS)}, got {name}: "
            "give activation= for what stands for it"
        )
    return _KERAS_ACTIVATIONS[name]
