"""Low-rank factors of weights: two thin layers in place of one."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from pwconv import arguments
from pwconv.arguments import Float32Array
from pwconv.costs import Cost, conv_cost
from pwconv.layers import PointwiseConv
from pwconv.scalars import integer, real
from pwconv.several import PointwiseChain


class Factorization(PointwiseChain):
    """Two layers with few channels in between, in place of one layer; see `pwconv.factorize`.

    Attributes
    ----------
    rank : number of channels in between.
    energy : the share of the weights' squared Frobenius norm that the factors keep.
    """

    __slots__ = ("energy",)

    energy: float

    def __new__(cls, layers: Sequence[PointwiseConv], energy: float) -> Self:
        chain = super().__new__(cls, layers)
        chain._set(energy=energy)
        return chain

    @property
    def rank(self) -> int:
        """Number of channels between the two layers."""
        return self.layers[0].out_channels

    def saved(self, shape: Sequence[int]) -> Cost:
        """Return the cost of the single layer minus the cost of the chain, for an `x` of this shape."""
        first, last = self.layers
        weight = np.broadcast_to(np.float32(0), (last.out_channels, first.in_channels))
        whole = PointwiseConv(weight, last.bias, stride=first.stride, layout=first.layout)
        return whole.cost(shape) - self.cost(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layers, self.energy)


class FactorizedKernel(NamedTuple):
    """A 1x1 layer that reduces the channels, and the thin kernel that follows it; see `pwconv.factorize_kernel`."""

    reduce: PointwiseConv
    thin: Float32Array

    def saved(self, spatial: int | Sequence[int]) -> Cost:
        """Return the cost of the original kernel minus the cost of both, for this many pixels on each spatial axis."""
        outs, rank, *kernel = self.thin.shape
        spatial = (spatial,) * len(kernel) if isinstance(spatial, int) else spatial
        ins = self.reduce.in_channels
        return conv_cost(ins, outs, kernel, spatial) - (
            conv_cost(ins, rank, 1, spatial) + conv_cost(rank, outs, kernel, spatial)
        )


def factorize(layer: PointwiseConv, rank: int | None = None, energy: float | None = None) -> Factorization:
    """Approximate a layer by a bottleneck: two layers with few channels in between.

    The weights are the best approximation of this rank: the truncated singular value decomposition (Eckart and Young,
    1936). Two layers cost less than one if `rank * (C_in + C_out) < C_in * C_out`; `saved(x.shape)` of the result
    returns the difference.

    Parameters
    ----------
    layer : a `PointwiseConv` without groups. The first layer of the result has its stride and input activation, the
        second its bias, activation, out_layout and out_dtype.
    rank : number of channels in between. Give either `rank` or `energy`.
    energy : a share of the sum of squared weights, above 0 and at most 1. The rank is the smallest that keeps it.

    Raises
    ------
    TypeError for wrong types; ValueError for groups, for a rank or energy out of range, and unless exactly one of them
    is given.

    Examples
    --------
    >>> layer = pwconv.PointwiseConv(np.ones((256, 256), np.float32))
    >>> pwconv.factorize(layer, rank=16).layers[0]
    PointwiseConv(256, 16, stride=1, bias=False)
    """
    if not isinstance(layer, PointwiseConv):
        raise TypeError(f"layer must be a PointwiseConv, got {type(layer).__name__}")
    if layer.groups != 1:
        raise ValueError(f"layer must have no groups, got groups={layer.groups}")
    left, right, kept = _truncated_svd(layer.matrix, rank, energy)
    common: dict[str, Any] = {"layout": layer.layout, "precision": layer.precision, "backend": layer.backend}
    front = {name: getattr(layer, name) for name in ("stride", "input_scale", "input_shift", "input_activation")}
    back = {name: getattr(layer, name) for name in ("bias", "output_scale", "out_layout", "activation", "out_dtype")}
    reduce, widen = PointwiseConv(right, **front, **common), PointwiseConv(left, **back, **common)
    return Factorization([reduce, widen], kept)


def factorize_kernel(
    weight: Any, rank: int | None = None, energy: float | None = None, *, layout: str = "NCHW"
) -> FactorizedKernel:
    """Approximate a k x k kernel by a 1x1 layer that reduces the channels, and a k x k kernel with fewer inputs.

    The convolution of `reduce(x)` with `thin` approximates the convolution of `x` with `weight`; for the full rank it
    is exact. The factors are the best approximation of this rank (as in `pwconv.factorize`). Jaderberg, Vedaldi and
    Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions" (2014), decompose the spatial axes
    as well.

    Parameters
    ----------
    weight : real numbers, shape (C_out, C_in, ...), with any kernel size.
    rank, energy : as for `pwconv.factorize`; the rank is at most min(C_in, C_out * size of the kernel).
    layout : layout of the 1x1 layer.

    Returns
    -------
    reduce, thin : a `PointwiseConv` to `rank` channels, and a float32 kernel of shape (C_out, rank, ...). The result is
        a `FactorizedKernel`, whose `saved(spatial)` returns the difference in cost.

    Examples
    --------
    >>> reduce, thin = pwconv.factorize_kernel(np.ones((32, 192, 5, 5)), rank=16)
    >>> reduce(np.ones((1, 192, 28, 28), np.float32)).shape, thin.shape
    ((1, 16, 28, 28), (32, 16, 5, 5))
    """
    kernel = arguments.foreign_array(weight, "weight")
    if kernel.ndim < 2:
        raise ValueError(f"weight must have shape (C_out, C_in, ...), got {kernel.shape}")
    outs, ins, *size = kernel.shape
    left, right, _ = _truncated_svd(np.moveaxis(kernel, 1, -1).reshape(-1, ins), rank, energy)
    thin = np.moveaxis(left.reshape(outs, *size, len(right)), -1, 1)
    return FactorizedKernel(PointwiseConv(right, layout=layout), np.ascontiguousarray(thin))


def _truncated_svd(matrix: Float32Array, rank: Any, energy: Any) -> tuple[Float32Array, Float32Array, float]:
    """Return two factors of a matrix, each scaled by the roots of the singular values, and the share of energy kept."""
    if (rank is None) == (energy is None):
        raise ValueError(f"give either rank or energy, got rank={rank}, energy={energy}")
    if matrix.size == 0:
        raise ValueError("weights without elements have no factors")
    if energy is None:
        rank = integer(rank, "rank", 1, min(matrix.shape))
    elif not 0 < (share := real(energy, "energy")) <= 1:
        raise ValueError(f"energy must be above 0 and at most 1, got {energy}")
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    total = np.cumsum(values**2)
    shares = total / total[-1] if total.any() else np.ones(len(values))
    if energy is not None:
        rank = min(len(values), 1 + int(np.searchsorted(shares, share)))
    root = np.sqrt(values[:rank])
    factors = left[:, :rank] * root, root[:, np.newaxis] * right[:rank]
    return factors[0].astype(np.float32), factors[1].astype(np.float32), float(shares[rank - 1])
