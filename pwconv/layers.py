"""The layer: a pointwise convolution that keeps its packed weights."""

import inspect
import math
import operator
import pickle
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Self, SupportsIndex

import numpy as np

from pwconv import adapters, arguments, runtime, training
from pwconv.arguments import ActivationLike, Call, Float32Array, Spec, StrideLike
from pwconv.costs import Cost, count
from pwconv.scalars import real

if runtime.engine is None:
    from pwconv.reference import Layer
else:
    from pwconv._engine import Layer  # type: ignore[assignment]


SCALES = ("input_scale", "input_shift", "output_scale")


class Immutable:
    """A base for objects whose attributes are set once, by `__new__`."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable: {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable: {name!r} cannot be deleted")

    def _set(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)


class PointwiseConv(Immutable, Layer):
    """A pointwise (1x1) convolution that packs its weights once.

    Called as `layer(x, *, input_scale=None, input_shift=None, output_scale=None, residual=None, out=None,
    num_threads=None)`, it computes what `pwconv.pointwise_conv` defines, with the same bits, dtypes and errors.

    A layer is immutable: it copies its weights, and its attributes are read-only. It may be called from many threads
    at once. It can be pickled: a pickle holds the weights once, and unpickling packs them again.

    Parameters
    ----------
    weight : float32, shape (C_out, C_in // groups), trailing axes of length 1 allowed; or, with `weight_layout="IO"`,
        (C_in // groups, C_out), leading axes of length 1 allowed.
    bias : float32, shape (C_out,), or None.
    input_scale, input_shift, output_scale : float32, shape (C_in,), (C_in,), (C_out,), or None; the same argument of a
        call replaces each of them.
    stride, groups, layout, out_layout, weight_layout, input_activation, activation, out_dtype, precision, backend :
        as in `pwconv.pointwise_conv`.

    Attributes
    ----------
    in_channels, out_channels : int
    weight, bias, input_scale, input_shift, output_scale : read-only float32 arrays with the shapes of the arguments;
        all but `weight` may be None.
    out_dtype : name of the result's dtype.
    stride, groups, layout, out_layout, weight_layout, input_activation, activation, precision, backend :
        the arguments as given.

    Raises
    ------
    TypeError for wrong types and dtypes, ValueError for wrong shapes, layouts and names.

    Examples
    --------
    >>> layer = pwconv.PointwiseConv(np.ones((16, 64), np.float32), layout="NHWC", activation="relu6")
    >>> layer(np.ones((2, 56, 56, 64), np.float32)).shape
    (2, 56, 56, 16)
    """

    __slots__ = ("bias", "in_channels", "out_channels", "weight", *SCALES, *Spec._fields)

    in_channels: int
    out_channels: int
    weight: Float32Array
    bias: Float32Array | None
    input_scale: Float32Array | None
    input_shift: Float32Array | None
    output_scale: Float32Array | None
    stride: int | tuple[int, ...]
    groups: int
    layout: str
    out_layout: str | None
    weight_layout: str
    input_activation: ActivationLike
    activation: ActivationLike
    precision: str
    backend: str
    out_dtype: str

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
        input_scale: Any = None,
        input_shift: Any = None,
        output_scale: Any = None,
        input_activation: ActivationLike = None,
        activation: ActivationLike = None,
        out_dtype: Any = None,
        precision: str = "highest",
        backend: str = "auto",
    ) -> Self:
        spec = arguments.parse_spec(
            stride=stride,
            groups=groups,
            layout=layout,
            out_layout=out_layout,
            weight_layout=weight_layout,
            input_activation=input_activation,
            activation=activation,
            precision=precision,
            backend=backend,
            out_dtype=out_dtype,
        )
        weight = arguments.float32_array(weight, "weight")
        matrix = arguments.weight_matrix(weight, spec)
        ins, outs = matrix.shape[1] * spec.groups, len(matrix)
        scales = (
            arguments.table(input_scale, "input_scale", ins),
            arguments.table(input_shift, "input_shift", ins),
            arguments.table(output_scale, "output_scale", outs),
        )
        layer = super().__new__(cls, matrix, arguments.bias_vector(bias, len(matrix)), spec, scales)

        attributes: dict[str, Any] = spec._asdict() | {
            "weight": arguments.as_kernel(layer.matrix, spec.weight_layout, weight.shape),
            "bias": None if layer.bias1d is None else layer.bias1d[:],
            "in_channels": matrix.shape[1] * spec.groups,
            "out_channels": len(matrix),
            "input_activation": _in_python_types(input_activation),
            "activation": _in_python_types(activation),
            "backend": str(backend),
            **dict(zip(SCALES, layer.scales, strict=True)),
        }
        layer._set(**attributes)
        return layer

    @classmethod
    def from_torch(cls, module: Any, **kw: Any) -> Self:
        """Make a layer of a torch `Conv1d`, `Conv2d` or `Conv3d` with a kernel of one pixel, or of a `Linear`.

        Weights are copied and rounded to float32. The default layout of a convolution is channels-first ("NCL", "NCHW",
        "NCDHW"), that of a `Linear` is "channels_last". `**kw` are arguments of the constructor and override those
        that are read from the module.

        Raises TypeError for any other module, ValueError for a larger kernel, padding or a transposed convolution.
        """
        return cls(**adapters.from_torch(module, kw))

    @classmethod
    def from_keras(cls, layer: Any, **kw: Any) -> Self:
        """Make a layer of a Keras `Conv1D`, `Conv2D` or `Conv3D` with a kernel of one pixel, or of a `Dense`.

        Weights are copied and rounded to float32; the new layer has the activation of the Keras layer. The default
        layout of a convolution is that of its `data_format`, that of a `Dense` is "channels_last". `**kw` are arguments
        of the constructor and override those that are read from the layer.

        Raises TypeError for any other layer, ValueError for a larger kernel, a transposed or depthwise convolution, and
        an activation without a counterpart here.
        """
        return cls(**adapters.from_keras(layer, kw))

    def fold_batchnorm(self, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5) -> Self:
        """Return a new layer with a batch norm folded into its weights and bias.

        The norm stands between this convolution and its activation. It is
        `gamma * (y - mean) / sqrt(var + eps) + beta` (Ioffe and Szegedy, "Batch Normalization", 2015). Each vector has
        shape (C_out,); None means 1 for `gamma` and 0 for `beta`. Weights are computed in float64 and rounded once.

        Raises TypeError for arguments that are no numbers, ValueError for wrong shapes or if `var + eps` is not
        positive.
        """
        outs = self.out_channels
        scale = np.ones(outs) if gamma is None else arguments.norm_vector(gamma, "gamma", outs)
        shift = np.zeros(outs) if beta is None else arguments.norm_vector(beta, "beta", outs)
        spread = arguments.norm_vector(var, "var", outs) + real(eps, "eps")
        if not (spread > 0).all():
            raise ValueError(f"var + eps must be positive, got {spread.min()}")
        scale = scale / np.sqrt(spread)
        bias = 0.0 if self.bias is None else self.bias.astype(np.float64)
        own = 1.0 if self.output_scale is None else self.output_scale.astype(np.float64)
        shift = shift + (bias * own - arguments.norm_vector(mean, "mean", outs)) * scale
        scale = scale * own
        matrix = (self.matrix * scale[:, np.newaxis]).astype(np.float32)
        weight = arguments.as_kernel(matrix, self.weight_layout, self.weight.shape)
        return type(self)(weight, shift.astype(np.float32), **(self._options() | {"output_scale": None}))

    def backward(
        self, grad_y: Any, x: Any, *, need: Any = arguments.GRADIENTS, num_threads: int | None = None
    ) -> tuple[Float32Array | list[Float32Array] | None, Float32Array | None, Float32Array | None]:
        """Compute the gradients of `y = layer(x)` from the gradient of `y`; the layer's activations are included.

        If the layer has an activation, its argument is computed again into a temporary map as large as `y`.

        Parameters
        ----------
        grad_y : float32, the shape of `y`, any strides.
        x, num_threads : as in the call.
        need : "x", "weight", "bias", or a tuple of these names; other gradients are not computed.

        Returns
        -------
        grad_x, grad_weight, grad_bias : as `pwconv.pointwise_conv_backward` returns them. grad_bias is None for a layer
            without bias. At the kink of an activation, its derivative is that of one side (0 for relu at 0).

        Raises
        ------
        TypeError, ValueError and MemoryError as `pwconv.pointwise_conv_backward` does.

        Examples
        --------
        >>> layer = pwconv.PointwiseConv(np.ones((16, 64), np.float32), np.ones(16, np.float32), activation="silu")
        >>> x, grad_y = (np.ones((2, channels, 9, 9), np.float32) for channels in (64, 16))
        >>> [grad.shape for grad in layer.backward(grad_y, x)]
        [(2, 64, 9, 9), (16, 64), (16,)]
        """
        return training.layer_backward(self, grad_y, x, need, num_threads)

    def cost(self, shape: Sequence[int]) -> Cost:
        """Return the cost of a call for a float32 `x` of this shape; pixels that the stride skips are not read."""
        return self._cost(arguments.check_shape(self.spec, self.matrix.shape, shape))

    def _cost(self, call: Call) -> Cost:
        biases = 0 if self.bias is None else self.out_channels
        return count(
            self.in_channels,
            self.out_channels,
            pixel_count(call),
            groups=self.groups,
            biases=biases,
            out_itemsize=arguments.numpy_dtype(self.out_dtype).itemsize,
        )

    def _options(self) -> dict[str, Any]:
        """Return the constructor's arguments except weight and bias."""
        return {name: getattr(self, name) for name in (*Spec._fields, *SCALES)}

    def __repr__(self) -> str:
        shown = [f"{self.in_channels}, {self.out_channels}, stride={self.stride}"]
        if self.bias is None:
            shown.append("bias=False")
        defaults = inspect.signature(PointwiseConv).parameters
        for name in Spec._fields:
            if name != "stride" and (value := getattr(self, name)) not in (defaults[name].default, "float32"):
                shown.append(f"{name}={value!r}")
        shown += [f"{name}=True" for name in SCALES if getattr(self, name) is not None]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Arrays are pickled as bytes: NumPy's unpickling of a damaged dtype alters that dtype for the whole process.
        export: Callable[[Any], Any] = pickle.PickleBuffer if operator.index(protocol) >= 5 else bytes
        arrays = np.ascontiguousarray(self.weight), self.bias, *(getattr(self, name) for name in SCALES)
        data = tuple(None if array is None else export(array) for array in arrays)
        options = {name: getattr(self, name) for name in Spec._fields}
        shape = self.weight.shape
        return _unpickle, (type(self), _checksum(data, shape, options), data, shape, options)


def _unpickle(
    cls: type[PointwiseConv], checksum: int, data: tuple[Any, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> PointwiseConv:
    """Make a layer from the contents of a pickle, unless their checksum says that they are damaged."""
    if _checksum(data, shape, options) != checksum:
        raise pickle.UnpicklingError(f"the pickle of this {cls.__name__} is damaged: its checksum differs")
    tables = (None if part is None else np.frombuffer(part, np.float32) for part in data[1:])
    named: dict[str, Any] = dict(zip(("bias", *SCALES), tables, strict=True))
    return cls(np.frombuffer(data[0], np.float32).reshape(shape), **named, **options)


def _checksum(data: tuple[Any, ...], *others: Any) -> int:
    """Return the CRC-32 of the contents of a pickle. Without it, damaged weights would pass as other weights."""
    checksum = zlib.crc32(repr(others).encode())
    for part in data:
        checksum = zlib.crc32(b"none" if part is None else part, checksum)
    return checksum


def pixel_count(call: Call) -> int:
    """Return the number of pixels of a result, in all images together."""
    return math.prod(size for letter, size in zip(call.out_layout, call.out_shape, strict=True) if letter != "C")


def _in_python_types(activation: ActivationLike) -> ActivationLike:
    """Return an activation in plain Python types, which print and pickle without NumPy's."""
    if isinstance(activation, tuple):
        function, *parameters = activation
        return (str(function), *map(float, parameters))
    return None if activation is None else str(activation)
