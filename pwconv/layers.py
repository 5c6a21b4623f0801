"""Layers: operations that keep their weights, packed once."""

import inspect
import operator
import pickle
import zlib
from collections.abc import Callable
from typing import Any, Self, SupportsIndex

import numpy as np

from pwconv import runtime
from pwconv.arguments import (
    ActivationLike,
    Float32Array,
    Spec,
    StrideLike,
    bias_vector,
    float32_array,
    parse_spec,
    weight_matrix,
)

if runtime.engine is None:
    from pwconv.reference import Layer
else:
    from pwconv._engine import Layer  # type: ignore[assignment]


class PointwiseConv(Layer):
    """A pointwise (1x1) convolution that packs its weights once.

    Called as `layer(x, *, input_scale=None, input_shift=None, output_scale=None, residual=None, out=None,
    num_threads=None)`, it computes what `pwconv.pointwise_conv` defines, with the same bits, dtypes and errors.

    A layer is immutable: it copies its weights, and its attributes can only be read. It may be called from many threads
    at once, and pickled (the weights travel once, packing is redone).

    Parameters
    ----------
    weight : float32, shape (C_out, C_in // groups), trailing axes of length 1 allowed; or, with `weight_layout="IO"`,
        (C_in // groups, C_out), leading axes of length 1 allowed.
    bias : float32, shape (C_out,), or None.
    stride, groups, layout, out_layout, weight_layout, input_activation, activation, precision, backend :
        as in `pwconv.pointwise_conv`.

    Attributes
    ----------
    in_channels, out_channels : int
    weight, bias : read-only float32 arrays of the shapes that were given; `bias` may be None.
    stride, groups, layout, out_layout, weight_layout, input_activation, activation, precision, backend :
        as they were given.

    Raises
    ------
    TypeError for wrong types and dtypes, ValueError for wrong shapes, layouts and names.
    """

    __slots__ = ("bias", "in_channels", "out_channels", "weight", *Spec._fields)

    in_channels: int
    out_channels: int
    weight: Float32Array
    bias: Float32Array | None
    stride: int | tuple[int, ...]
    groups: int
    layout: str
    out_layout: str | None
    weight_layout: str
    input_activation: ActivationLike
    activation: ActivationLike
    precision: str
    backend: str

    def __new__(
        cls,
        weight: Any,
        bias: Any = None,
        *,
        stride: StrideLike = 1,
        groups: int = 1,
        layout: str = "NCHW",
        out_layout: str | None = None,
        weight_layout: str = "OI",
        input_activation: ActivationLike = None,
        activation: ActivationLike = None,
        precision: str = "highest",
        backend: str = "auto",
    ) -> Self:
        spec = parse_spec(
            stride=stride,
            groups=groups,
            layout=layout,
            out_layout=out_layout,
            weight_layout=weight_layout,
            input_activation=input_activation,
            activation=activation,
            precision=precision,
            backend=backend,
        )
        weight = float32_array(weight, "weight")
        matrix = weight_matrix(weight, spec)
        layer = super().__new__(cls, matrix, bias_vector(bias, len(matrix)), spec)

        own_weight = layer.matrix if spec.weight_layout == "OI" else layer.matrix.T
        attributes = spec._asdict() | {
            "weight": own_weight.reshape(weight.shape),
            "bias": None if layer.bias1d is None else layer.bias1d[:],
            "in_channels": matrix.shape[1] * spec.groups,
            "out_channels": len(matrix),
            "input_activation": _plain(input_activation),
            "activation": _plain(activation),
            "backend": str(backend),
        }
        for name, value in attributes.items():
            object.__setattr__(layer, name, value)
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable: {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable: {name!r} cannot be deleted")

    def __repr__(self) -> str:
        shown = [f"{self.in_channels}, {self.out_channels}, stride={self.stride}"]
        if self.bias is None:
            shown.append("bias=False")
        defaults = inspect.signature(PointwiseConv).parameters
        for name in Spec._fields:
            if name != "stride" and (value := getattr(self, name)) != defaults[name].default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Plain bytes: NumPy's own unpickling of a damaged dtype spoils that dtype for the whole process.
        export: Callable[[Any], Any] = pickle.PickleBuffer if operator.index(protocol) >= 5 else bytes
        weight = export(np.ascontiguousarray(self.weight))
        bias = None if self.bias is None else export(self.bias)
        shape, options = self.weight.shape, {name: getattr(self, name) for name in Spec._fields}
        return _unpickle, (type(self), _checksum(weight, bias, shape, options), weight, bias, shape, options)


def _unpickle(
    cls: type[PointwiseConv], checksum: int, weight: Any, bias: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> PointwiseConv:
    if _checksum(weight, bias, shape, options) != checksum:
        raise pickle.UnpicklingError(f"the pickle of this {cls.__name__} is damaged: its checksum differs")
    weight = np.frombuffer(weight, np.float32).reshape(shape)
    return cls(weight, None if bias is None else np.frombuffer(bias, np.float32), **options)


def _checksum(weight: Any, bias: Any, *told: Any) -> int:
    """Add up all that a pickle holds, since a damaged weight is as good a number as any other."""
    checksum = zlib.crc32(repr(told).encode())
    for data in (weight, b"no bias" if bias is None else bias):
        checksum = zlib.crc32(data, checksum)
    return checksum


def _plain(activation: ActivationLike) -> ActivationLike:
    """Return an activation as it was given, but in Python's own types, which print and pickle plainly."""
    if isinstance(activation, tuple):
        function, *parameters = activation
        return (str(function), *map(float, parameters))
    return None if activation is None else str(activation)
