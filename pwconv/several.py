"""Several layers in one pass: chains and branches."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments, reference, runtime, sequential, training
from pwconv.arguments import Call, Float32Array
from pwconv.costs import Cost
from pwconv.layers import Immutable, PointwiseConv, pixel_count


class Layers(Immutable):
    """Layers that are computed in one pass over the pixels: the base of chains and branches."""

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
        """The backend of the layers: "native", or "numpy" if any of them uses it."""
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
        """Compute all layers into `outs`. A result whose array is None exists only a block at a time, in cache."""
        residuals = tuple(call.residual for call in calls)
        runtime.engine.run_layers(
            self.layers, calls[0].x, residuals, outs, self._branched, None, None, calls[0].num_threads
        )


class PointwiseChain(Layers):
    """Pointwise layers in a row, computed in one pass: each takes the result of the layer before it.

    The maps between layers are computed in blocks that stay in cache; they are never complete in memory. Results have
    the same bits as calls of one layer after the other. A chain is immutable, picklable, and safe to call from many
    threads.

    Parameters
    ----------
    layers : list of `PointwiseConv`. The `in_channels` and `layout` of each are the `out_channels` and `out_layout` of
        the layer before it. Only the first may have a stride.

    Raises
    ------
    TypeError if `layers` is no list of layers, ValueError if the layers do not fit together.

    Examples
    --------
    >>> up, down = (pwconv.PointwiseConv(np.ones(s, np.float32)) for s in ((256, 64), (64, 256)))
    >>> pwconv.PointwiseChain([up, down])(np.ones((2, 64, 14, 14), np.float32)).shape
    (2, 64, 14, 14)
    """

    __slots__ = ()

    _branched = False

    @classmethod
    def from_torch(cls, module: Any, **kw: Any) -> Self:
        """Make a chain of a torch `Sequential`.

        It may hold convolutions with a kernel of one pixel or `Linear` layers, batch norms, dropout, `Identity`,
        activations that a layer has, and more Sequentials. Batch norms are folded in float64, into the convolution
        before or behind them; dropout does nothing, as in evaluation.

        Parameters
        ----------
        module : the Sequential, or one of what it may hold. Only attributes are read, torch is not imported.
        **kw : `layout`, `precision` and `backend` of all layers, `out_layout` and `out_dtype` of the last. A chain with
            a convolution is channels-first, one with a `Linear` "channels_last", unless `layout` says otherwise.

        Raises
        ------
        TypeError for another argument; ValueError, which names the module and its place, for any other module, a batch
        norm in training mode or without statistics, and a stride behind the first convolution.

        Examples
        --------
        >>> import torch
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
        >>> pwconv.PointwiseChain.from_torch(mlp)(np.ones((2, 7, 7, 8), np.float32)).shape
        (2, 7, 7, 8)
        """
        return cls([PointwiseConv(**layer) for layer in sequential.from_torch(module, kw)])

    @classmethod
    def from_keras(cls, model: Any, **kw: Any) -> Self:
        """Make a chain of a Keras `Sequential`, as `from_torch` does.

        It may hold convolutions with a kernel of one pixel or `Dense` layers, `BatchNormalization`, `Activation`,
        `ReLU`, `LeakyReLU`, dropout, `Identity`, and more Sequentials.
        """
        return cls([PointwiseConv(**layer) for layer in sequential.from_keras(model, kw)])

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
        residual : {i: array}; the array is added to the sums of layer i, before its activation.
        keep : numbers of layers whose results are returned too. The return value is then `(kept, ..., y)`.
        out : receives y. It may be the last layer's residual; it shares no memory with any other argument.
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
                results[i] = arguments.empty_result(calls[i].out_shape, self.layers[i].spec.out_dtype)
        self._run(calls, tuple(results))
        if out is not None:
            results[last] = out  # the object that was given, not the array that views it
        return tuple(results[i] for i in (*kept, last)) if kept else results[last]

    def backward(
        self, grad_y: Any, x: Any, *, need: Any = arguments.GRADIENTS, num_threads: int | None = None
    ) -> tuple[Float32Array | list[Float32Array] | None, list[tuple[Float32Array | None, Float32Array | None]]]:
        """Compute the gradients of `y = chain(x)` from the gradient of `y`.

        The maps between layers are computed again and are all in memory at once.

        Parameters
        ----------
        grad_y, x, need, num_threads : as for a layer.

        Returns
        -------
        grad_x, [(grad_weight, grad_bias), ...] : the gradient of `x`, and the gradients of each layer, as a layer's
            `backward` returns them.

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
        return training.chain_backward(self, grad_y, x, need, num_threads)

    def cost(self, shape: Sequence[int]) -> Cost:
        """Return the cost of a call for an `x` of this shape; maps between layers are not moved to or from memory."""
        calls, _ = arguments.check_chain(self.layers, arguments.array_of_shape(shape))
        # Each is counted as the result of a layer and as the float32 input of the next.
        between = sum(
            layer.out_channels * (arguments.numpy_dtype(layer.out_dtype).itemsize + 4) for layer in self.layers[:-1]
        )
        return self._sum_of_costs(calls) - Cost(0, 0, pixel_count(calls[0]) * between)

    def plan(self, shape: Sequence[int], num_threads: int | None = None) -> "ChainPlan":
        """Return a description, for people, of how each layer is computed for an `x` of this shape."""
        calls, _ = arguments.check_chain(self.layers, arguments.array_of_shape(shape))
        shapes = (tuple(shape), *(call.out_shape for call in calls[:-1]))
        return ChainPlan(layer.plan(each, num_threads) for layer, each in zip(self.layers, shapes, strict=True))


class ChainPlan(tuple[Any, ...]):
    """The plans of the layers of a chain, each by itself; a chain runs the same kernels on blocks of pixels."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(f"({i}): {plan!r}" for i, plan in enumerate(self))


class PointwiseBranches(Layers):
    """Pointwise layers that share an input, which is read once.

    Results have the same bits as calls of each layer. Branches are immutable, picklable, and safe to call from many
    threads.

    Parameters
    ----------
    layers : list of `PointwiseConv` with equal `in_channels`, `layout` and `stride`.

    Raises
    ------
    TypeError if `layers` is no list of layers, ValueError if the layers do not fit together.

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
        out : None for new arrays; or a tuple of arrays as a layer takes them, which receive the results and are
            returned (None in the tuple means a new array; the arrays share no memory); or "concat", for one new map
            that joins the results along C.
        num_threads : as for a layer.

        Raises
        ------
        TypeError, ValueError and MemoryError as a layer does.
        """
        if self._by_numpy:
            return reference.call_branches(self, x, out=out, num_threads=num_threads)
        if out is None and isinstance(x, np.ndarray) and x.nbytes <= runtime.engine.caches()["l2"]:
            # A map that fits into the L2 cache is cheap to read again, and calls of single layers have less overhead.
            return tuple([layer(x, num_threads=num_threads) for layer in self.layers])
        calls = arguments.check_branches(self.layers, x, out, num_threads)
        if isinstance(out, str):
            dtype = self.layers[0].spec.out_dtype
            joined, parts = _joined([call.out_shape for call in calls], calls[0].out_layout.index("C"), dtype)
            self._run(calls, parts)
            return joined
        results: list[Any] = [
            arguments.empty_result(call.out_shape, layer.spec.out_dtype) if call.out is None else call.out
            for layer, call in zip(self.layers, calls, strict=True)
        ]
        self._run(calls, tuple(results))
        given = [None] * len(calls) if out is None else out
        return tuple(result if receiver is None else receiver for result, receiver in zip(results, given, strict=True))

    def cost(self, shape: Sequence[int]) -> Cost:
        """Return the cost of a call for an `x` of this shape, which is read once."""
        calls = arguments.check_branches(self.layers, arguments.array_of_shape(shape))
        again = pixel_count(calls[0]) * self.in_channels * (len(calls) - 1)
        return self._sum_of_costs(calls) - Cost(0, 0, 4 * again)


def run_masked(
    layers: tuple[PointwiseConv, ...], x: Any, mask: Any, fill: Any, out: Any, num_threads: int | None
) -> NDArray[Any]:
    """Compute layers one behind the other, and give `fill` to pixels that do not count.

    `mask` is None or bool, True for pixels that count; a masked `x` has a mask of its own. Pixels with a NaN in the
    result do not count either. Blocks of pixels none of which counts are not computed.
    """
    if any(layer.spec.backend == "numpy" for layer in layers):
        return reference.call_masked(layers, x, mask=mask, fill=fill, out=out, num_threads=num_threads)
    call = arguments.check_values(layers, x, mask, fill, out, num_threads)
    result = arguments.empty_result(call.out_shape, layers[-1].spec.out_dtype) if call.out is None else call.out
    nothing = (None,) * (len(layers) - 1)
    runtime.engine.run_layers(
        layers, call.x, (*nothing, None), (*nothing, result), False, call.mask, call.fill, call.num_threads
    )
    return result if out is None else out


def _joined(shapes: list[tuple[int, ...]], axis: int, dtype: str) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
    """Return a new map that joins maps of these shapes along an axis, and a view of each part."""
    ends = list(itertools.accumulate(shape[axis] for shape in shapes))
    shape = shapes[0]
    joined = arguments.empty_result((*shape[:axis], ends[-1], *shape[axis + 1 :]), dtype)
    return joined, tuple(np.split(joined, ends[:-1], axis))
