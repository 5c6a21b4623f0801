"""The cost of convolutions: multiply-adds, parameters and bytes, counted and not measured."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from pwconv.scalars import positive_int


@dataclass(frozen=True)
class Cost:
    """The cost of a computation, or the ratio of two costs.

    Costs are added (also by `sum`), subtracted and divided field by field. A cost can be divided by a number, too.

    Attributes
    ----------
    macs : multiplications, each with an addition.
    parameters : weights and biases.
    bytes : float32 inputs and parameters and results of any dtype, each moved once between memory and processor.

    Examples
    --------
    >>> thin, full = pwconv.conv_cost(64, 64, kernel=1, spatial=56), pwconv.conv_cost(64, 64, kernel=3, spatial=56)
    >>> round((thin / full).macs, 2)
    0.11
    """

    macs: float
    parameters: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __radd__(self, other: int) -> "Cost":
        return self if other == 0 else NotImplemented  # sum() starts with 0

    def __sub__(self, other: "Cost") -> "Cost":
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __truediv__(self, other: "Cost | float") -> "Cost":
        divisors = astuple(other) if isinstance(other, Cost) else (other,) * 3
        return Cost(*(a / b for a, b in zip(astuple(self), divisors, strict=True)))


def conv_cost(
    in_channels: int,
    out_channels: int,
    kernel: int | Sequence[int],
    spatial: int | Sequence[int],
    groups: int = 1,
) -> Cost:
    """Return the cost of a convolution without bias whose result has as many pixels as its input.

    Parameters
    ----------
    in_channels, out_channels, groups : as of a layer.
    kernel : length of the kernel along each spatial axis.
    spatial : pixels along each spatial axis. A single number holds for all axes; there are two axes if both `kernel`
        and `spatial` are single numbers.

    Raises
    ------
    TypeError for arguments that are no integers; ValueError for integers below 1, for `kernel` and `spatial` with
    different numbers of axes, and for `groups` that do not divide the channels.

    Examples
    --------
    >>> pwconv.conv_cost(256, 64, kernel=1, spatial=56)
    Cost(macs=51380224, parameters=16384, bytes=4079616)
    """
    axes = next((len(sizes) for sizes in (kernel, spatial) if isinstance(sizes, list | tuple)), 2)
    ins, outs = positive_int(in_channels, "in_channels"), positive_int(out_channels, "out_channels")
    groups = positive_int(groups, "groups")
    if ins % groups or outs % groups:
        raise ValueError(f"groups must divide in_channels={ins} and out_channels={outs}, got {groups}")
    return count(ins, outs, _product(spatial, axes, "spatial"), taps=_product(kernel, axes, "kernel"), groups=groups)


def count(
    in_channels: int,
    out_channels: int,
    pixels: int,
    *,
    taps: int = 1,
    groups: int = 1,
    biases: int = 0,
    out_itemsize: int = 4,
) -> Cost:
    """Return the cost of a convolution with this many taps per kernel and pixels in all images together."""
    weights = in_channels // groups * out_channels * taps
    maps = pixels * (4 * in_channels + out_itemsize * out_channels)
    return Cost(pixels * weights, weights + biases, maps + 4 * (weights + biases))


def _product(sizes: int | Sequence[int], axes: int, name: str) -> int:
    """Multiply the sizes along all axes."""
    if not isinstance(sizes, list | tuple):
        return positive_int(sizes, name) ** axes
    if len(sizes) != axes:
        raise ValueError(f"{name} must be one integer, or one for each of {axes} axes, got {sizes}")
    return math.prod(positive_int(size, f"{name}[{axis}]") for axis, size in enumerate(sizes))
