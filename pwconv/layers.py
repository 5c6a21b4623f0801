"""Layers: operations that keep their weights, packed once; and several of them in one pass."""

import inspect
import itertools
import math
import operator
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, SupportsIndex

import numpy as np

from pwconv import adapters, arguments, reference, runtime
from pwconv.arguments import ActivationLike, Call, Float32Array, Spec, StrideLike
from pwconv.costs import Cost, count

if runtime.engine is None:
    from pwconv.reference import Layer
else:
    from pwconv._engine import Layer  # type: ignore[assignment]


class Immutable:
    """What is set once, when it is made."""

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

    Examples
    --------
    >>> layer = pwconv.PointwiseConv(np.ones((16, 64), np.float32), layout="NHWC", activation="relu6")
    >>> layer(np.ones((2, 56, 56, 64), np.float32)).shape
    (2, 56, 56, 16)
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
        )
        weight = arguments.float32_array(weight, "weight")
        matrix = arguments.weight_matrix(weight, spec)
        layer = super().__new__(cls, matrix, arguments.bias_vector(bias, len(matrix)), spec)

        attributes: dict[str, Any] = spec._asdict() | {
            "weight": arguments.as_kernel(layer.matrix, spec.weight_layout, weight.shape),
            "bias": None if layer.bias1d is None else layer.bias1d[:],
            "in_channels": matrix.shape[1] * spec.groups,
            "out_channels": len(matrix),
            "input_activation": _plain(input_activation),
            "activation": _plain(activation),
            "backend": str(backend),
        }
        layer._set(**attributes)
        return layer

    @classmethod
    def from_torch(cls, module: Any, **kw: Any) -> Self:
        """Make a layer of a torch `Conv1d`, `Conv2d` or `Conv3d` with a kernel of one pixel, or of a `Linear`.

        Weights are copied, and rounded to float32. A convolution is channels-first ("NCL", "NCHW", "NCDHW"), a `Linear`
        "channels_last", unless `layout` says otherwise. `**kw` are the constructor's and come before the module's own.

        Raises TypeError for another module, ValueError for a larger kernel, padding or a transposed convolution.
        """
        return cls(**adapters.from_torch(module, kw))

    @classmethod
    def from_keras(cls, layer: Any, **kw: Any) -> Self:
        """Make a layer of a Keras `Conv1D`, `Conv2D` or `Conv3D` with a kernel of one pixel, or of a `Dense`.

        Weights are copied, and rounded to float32; the layer's activation is taken over. A convolution is as its
        `data_format` says, a `Dense` "channels_last", unless `layout` says otherwise. `**kw` are the constructor's and
        come before the layer's own.

        Raises TypeError for another layer, ValueError for a larger kernel, a transposed or depthwise convolution, or an
        activation that has no counterpart.
        """
        return cls(**adapters.from_keras(layer, kw))

    def fold_batchnorm(self, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5) -> Self:
        """Return a layer with a batch norm, which follows this convolution and precedes its activation, folded in.

        The norm is `gamma * (y - mean) / sqrt(var + eps) + beta` (Ioffe and Szegedy, "Batch Normalization", 2015).
        Each vector is (C_out,) numbers; None as `gamma` or `beta` is 1 or 0. Weights are computed in float64.

        Raises TypeError for what is no number, ValueError for wrong shapes, or if `var + eps` is not positive.
        """
        outs = self.out_channels
        scale = np.ones(outs) if gamma is None else arguments.norm_vector(gamma, "gamma", outs)
        shift = np.zeros(outs) if beta is None else arguments.norm_vector(beta, "beta", outs)
        spread = arguments.norm_vector(var, "var", outs) + arguments.real(eps, "eps")
        if not (spread > 0).all():
            raise ValueError(f"var + eps must be positive, got {spread.min()}")
        scale = scale / np.sqrt(spread)
        bias = 0.0 if self.bias is None else self.bias.astype(np.float64)
        shift = shift + (bias - arguments.norm_vector(mean, "mean", outs)) * scale
        matrix = (self.matrix * scale[:, np.newaxis]).astype(np.float32)
        weight = arguments.as_kernel(matrix, self.weight_layout, self.weight.shape)
        return type(self)(weight, shift.astype(np.float32), **self._options())

    def backward(
        self, grad_y: Any, x: Any, *, need: Any = arguments.GRADIENTS, num_threads: int | None = None
    ) -> tuple[Float32Array | list[Float32Array] | None, Float32Array | None, Float32Array | None]:
        """Compute the gradients of `y = layer(x)` from that of `y`, the layer's activations included.

        The sum before the activation is computed again, and is as big as `y`.

        Parameters
        ----------
        grad_y : float32, the shape of `y`, any strides.
        x, num_threads : as in the call.
        need : "x", "weight", "bias", or a tuple of some; the others are not computed.

        Returns
        -------
        grad_x, grad_weight, grad_bias : as `pwconv.pointwise_conv_backward` returns them; grad_bias is None for a layer
            without a bias. Where an activation bends, its derivative is that of one side (relu's at 0 is 0).

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
        from pwconv import training  # which is built on layers

        return training.layer_backward(self, grad_y, x, need, num_threads)

    def cost(self, shape: Sequence[int]) -> Cost:
        """Return what the layer costs for an `x` of this shape: pixels that a stride leaves out are not read."""
        return self._cost(arguments.check_shape(self.spec, self.matrix.shape, shape))

    def _cost(self, call: Call) -> Cost:
        biases = 0 if self.bias is None else self.out_channels
        return count(self.in_channels, self.out_channels, _pixels(call), groups=self.groups, biases=biases)

    def _options(self) -> dict[str, Any]:
        """The constructor's arguments but for weight and bias."""
        return {name: getattr(self, name) for name in Spec._fields}

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
        shape, options = self.weight.shape, self._options()
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


def _pixels(call: Call) -> int:
    """Return how many pixels all images of a result have together."""
    return math.prod(size for letter, size in zip(call.out_layout, call.out_shape, strict=True) if letter != "C")


def _plain(activation: ActivationLike) -> ActivationLike:
    """Return an activation as it was given, but in Python's own types, which print and pickle plainly."""
    if isinstance(activation, tuple):
        function, *parameters = activation
        return (str(function), *map(float, parameters))
    return None if activation is None else str(activation)


# Several layers in one pass -------------------------------------------------------------------------------------------


class Layers(Immutable):
    """Layers that work on the same pixels in one pass: what chains and branches share."""

    __slots__ = ("_by_numpy", "layers")

    _branched: ClassVar[bool]
    _by_numpy: bool
    layers: tuple[PointwiseConv, ...]

    def __new__(cls, layers: Sequence[PointwiseConv]) -> Self:
        group = super().__new__(cls)
        checked = arguments.parse_layers(layers, PointwiseConv, cls._branched)
        by_numpy = any(layer.spec.backend == "numpy" for layer in checked)
        group._set(layers=checked, _by_numpy=by_numpy)
        return group

    @property
    def backend(self) -> str:
        """What computes the layers: "native", or "numpy" if that is so of any of them."""
        return "numpy" if self._by_numpy else "native"

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.layers[0].in_channels

    def __repr__(self) -> str:
        return "\n".join(
            [f"{type(self).__name__}(", *(f"  ({i}): {layer!r}" for i, layer in enumerate(self.layers)), ")"]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layers,)

    def _sum_of_costs(self, calls: tuple[Call, ...]) -> Cost:
        return sum((layer._cost(call) for layer, call in zip(self.layers, calls, strict=True)), start=Cost(0, 0, 0))

    def _run(self, calls: tuple[Call, ...], outs: tuple[Float32Array | None, ...]) -> None:
        """Fill `outs`; where one is None, no more of a map exists than the next layer needs."""
        residuals = tuple(call.residual for call in calls)
        runtime.engine.run_layers(self.layers, calls[0].x, residuals, outs, self._branched, calls[0].num_threads)


class PointwiseChain(Layers):
    """Pointwise layers that feed each other in one pass: maps in between stay in cache and are never whole in memory.

    The bits are those of calling one layer after the other. A chain is immutable, safe to call from many threads, and
    picklable.

    Parameters
    ----------
    layers : list of `PointwiseConv`, each of which takes what the one before gives: as many channels, in its
        `out_layout`. Only the first may have a stride.

    Raises
    ------
    TypeError if `layers` is something else, ValueError if the layers do not fit together.

    Examples
    --------
    >>> up, down = (pwconv.PointwiseConv(np.ones(s, np.float32)) for s in ((256, 64), (64, 256)))
    >>> pwconv.PointwiseChain([up, down])(np.ones((2, 64, 14, 14), np.float32)).shape
    (2, 64, 14, 14)
    """

    __slots__ = ()

    _branched = False

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.layers[-1].out_channels

    def __call__(
        self,
        x: Any,
        *,
        residual: Mapping[int, Any] | None = None,
        keep: Sequence[int] = (),
        out: Any = None,
        num_threads: int | None = None,
    ) -> Float32Array | tuple[Float32Array, ...]:
        """Compute `layers[-1](... layers[1](layers[0](x)))`.

        Parameters
        ----------
        x : as for the first layer.
        residual : {i: array}; adds a float32 array to the result of layer i before its activation.
        keep : numbers of layers whose results are returned as well, before the last one's: `(kept, ..., y)`.
        out : float32, receives y. It may be the last layer's residual, and shares no memory with what else is read.
        num_threads : as for a layer.

        Raises
        ------
        TypeError, ValueError and MemoryError as a layer does.
        """
        if self._by_numpy:
            return reference.call_chain(self, x, residual=residual, keep=keep, out=out, num_threads=num_threads)
        calls, kept = arguments.check_chain(self.layers, x, residual, keep, out, num_threads)
        results: list[Any] = [call.out for call in calls]
        last = len(calls) - 1
        for i in {*kept, last}:
            if results[i] is None:
                results[i] = np.empty(calls[i].out_shape, np.float32)
        self._run(calls, tuple(results))
        if out is not None:
            results[last] = out  # the very object that was given
        return tuple(results[i] for i in (*kept, last)) if kept else results[last]

    def backward(
        self, grad_y: Any, x: Any, *, need: Any = arguments.GRADIENTS, num_threads: int | None = None
    ) -> tuple[Float32Array | list[Float32Array] | None, list[tuple[Float32Array | None, Float32Array | None]]]:
        """Compute the gradients of `y = chain(x)` from that of `y`; what layers pass on is computed again, and kept.

        Parameters
        ----------
        grad_y, x, need, num_threads : as for a layer.

        Returns
        -------
        grad_x, [(grad_weight, grad_bias), ...] : that of `x`, and those of each layer, as a layer's `backward` returns
            them.

        Raises
        ------
        TypeError, ValueError and MemoryError as a layer does.

        Examples
        --------
        >>> up, down = (pwconv.PointwiseConv(np.ones(s, np.float32)) for s in ((256, 64), (64, 256)))
        >>> x = np.ones((2, 64, 14, 14), np.float32)
        >>> grad_x, grads = pwconv.PointwiseChain([up, down]).backward(x, x)
        >>> grad_x.shape, [grad_weight.shape for grad_weight, _ in grads]
        ((2, 64, 14, 14), [(256, 64), (64, 256)])
        """
        from pwconv import training  # which is built on layers

        return training.chain_backward(self, grad_y, x, need, num_threads)

    def cost(self, shape: Sequence[int]) -> Cost:
        """Return what the chain costs for an `x` of this shape; maps in between are not moved."""
        calls, _ = arguments.check_chain(self.layers, arguments.array_of_shape(shape))
        between = _pixels(calls[0]) * sum(layer.out_channels for layer in self.layers[:-1])
        return self._sum_of_costs(calls) - Cost(0, 0, 2 * 4 * between)


class PointwiseBranches(Layers):
    """Pointwise layers that all read the same input, which is read once.

    The bits are those of calling each layer. Branches are immutable, safe to call from many threads, and picklable.

    Parameters
    ----------
    layers : list of `PointwiseConv` with equal `in_channels`, `layout` and `stride`.

    Raises
    ------
    TypeError if `layers` is something else, ValueError if the layers do not fit together.

    Examples
    --------
    >>> classes, boxes = (pwconv.PointwiseConv(np.ones((outs, 64), np.float32)) for outs in (21, 4))
    >>> [y.shape for y in pwconv.PointwiseBranches([classes, boxes])(np.ones((1, 64, 9, 9), np.float32))]
    [(1, 21, 9, 9), (1, 4, 9, 9)]
    """

    __slots__ = ()

    _branched = True

    def __call__(
        self, x: Any, *, out: Sequence[Any] | str | None = None, num_threads: int | None = None
    ) -> Float32Array | tuple[Float32Array, ...]:
        """Compute `tuple(layer(x) for layer in layers)`.

        Parameters
        ----------
        x : as for a layer.
        out : None; or a tuple of float32 arrays with any strides, which receive the results, share no memory and are
            returned (None makes a new one); or "concat", which makes and returns one map, joined along C.
        num_threads : as for a layer.

        Raises
        ------
        TypeError, ValueError and MemoryError as a layer does.
        """
        if self._by_numpy:
            return reference.call_branches(self, x, out=out, num_threads=num_threads)
        if out is None and isinstance(x, np.ndarray) and x.nbytes <= runtime.engine.caches()["l2"]:
            # A map that stays in cache costs nothing to read again, and single calls start sooner.
            return tuple([layer(x, num_threads=num_threads) for layer in self.layers])
        calls = arguments.check_branches(self.layers, x, out, num_threads)
        if isinstance(out, str):
            joined, parts = _joined([call.out_shape for call in calls], calls[0].out_layout.index("C"))
            self._run(calls, parts)
            return joined
        results: list[Any] = [np.empty(call.out_shape, np.float32) if call.out is None else call.out for call in calls]
        self._run(calls, tuple(results))
        given = [None] * len(calls) if out is None else out
        return tuple(result if receiver is None else receiver for result, receiver in zip(results, given, strict=True))

    def cost(self, shape: Sequence[int]) -> Cost:
        """Return what the branches cost for an `x` of this shape, which is read once."""
        calls = arguments.check_branches(self.layers, arguments.array_of_shape(shape))
        again = _pixels(calls[0]) * self.in_channels * (len(calls) - 1)
        return self._sum_of_costs(calls) - Cost(0, 0, 4 * again)


def _joined(shapes: list[tuple[int, ...]], axis: int) -> tuple[Float32Array, tuple[Float32Array, ...]]:
    """Return a new map that joins maps of these shapes along an axis, and its parts."""
    ends = list(itertools.accumulate(shape[axis] for shape in shapes))
    shape = shapes[0]
    joined = np.empty((*shape[:axis], ends[-1], *shape[axis + 1 :]), np.float32)
    return joined, tuple(np.split(joined, ends[:-1], axis))
