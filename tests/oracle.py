"""Pointwise convolution in float64 from its definition, error bounds for float32, and memory layouts for test arrays.

Nothing here imports pwconv: the oracle is independent of the code under test.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import special

UNIT = 2.0**-24  # the unit roundoff of float32: the largest relative error of one rounding
TINY = 2.0**-126  # the smallest normal float32; kernels flush smaller magnitudes to zero
BLOCK = 256  # input channels in one chain of FMAs

PLAIN_ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "hardsigmoid", "hardswish")
SMOOTH_ACTIVATIONS = ("sigmoid", "tanh", "silu", "gelu", "gelu_tanh")
ACTIVATIONS = (*PLAIN_ACTIVATIONS, *SMOOTH_ACTIVATIONS, ("leaky_relu", 0.2), ("clip", -0.75, 1.25))

# The largest slope of each activation: the factor by which it can enlarge an error of its argument.
_SLOPE = {"sigmoid": 0.25, "hardsigmoid": 1 / 6, "silu": 1.1, "gelu": 1.13, "gelu_tanh": 1.13, "hardswish": 1.5}


class Truth(NamedTuple):
    """An exact result in float64, and the largest |error| that each element of a float32 result may have."""

    value: np.ndarray
    bound: np.ndarray

    def accepts(self, result: np.ndarray) -> bool:
        """Whether every element of ``result`` is within its bound."""
        return bool(np.all(np.abs(result.astype(np.float64) - self.value) <= self.bound))

    def explain(self, result: np.ndarray) -> str:
        """The worst element of ``result``, for the message of a failed assertion."""
        excess = np.abs(result.astype(np.float64) - self.value) / self.bound
        worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
        return (
            f"at {tuple(map(int, worst))}: got {result[worst]!r}, expected {self.value[worst]!r} "
            f"within {self.bound[worst]!r}; {int(np.sum(~(excess <= 1)))} of {excess.size} are beyond their bound"
        )


def activate(activation: str | tuple | None, v: np.ndarray) -> np.ndarray:
    """An activation in float64, with its limits at infinities and NaN kept."""
    name, *parameters = activation if isinstance(activation, tuple) else (activation,)
    # A factor of exactly 0 meets -inf in silu, gelu and hardswish: their limit is 0.
    with np.errstate(invalid="ignore", over="ignore"):
        match name:
            case None:
                return v
            case "relu":
                return np.maximum(v, 0.0)
            case "relu6":
                return np.clip(v, 0.0, 6.0)
            case "clip":
                return np.clip(v, *parameters)
            case "leaky_relu":
                return np.where(v < 0, v * (parameters[0] if parameters else 0.01), v)
            case "sigmoid":
                return special.expit(v)
            case "tanh":
                return np.tanh(v)
            case "hardsigmoid":
                return np.clip((v + 3) / 6, 0.0, 1.0)
            case "silu":
                factor = special.expit(v)
            case "gelu":
                factor = special.erfc(-v / math.sqrt(2)) / 2
            case "gelu_tanh":
                # (1 + tanh z) / 2 = expit(2 z), which does not cancel for negative z
                factor = special.expit(2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))
            case "hardswish":
                factor = np.clip((v + 3) / 6, 0.0, 1.0)
            case _:
                raise ValueError(f"no oracle for activation {activation!r}")
        return np.where(v == -np.inf, 0.0, v * factor)


def ulp(value: np.ndarray) -> np.ndarray:
    """The distance between neighbouring float32 numbers around ``value`` (of normal numbers at least)."""
    _, exponent = np.frexp(np.maximum(np.abs(value), TINY))
    return np.ldexp(1.0, exponent - 24)


def activation_error(activation: str | tuple | None, v: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The promised |error| of ``value = activate(activation, v)``: 4 ulp, for gelu at least u |v|.

    Results below 2^-126 may be flushed to zero.
    """
    if activation is None:
        return np.zeros_like(value)
    allowed = 4 * ulp(value) + np.where(np.abs(value) < TINY, TINY, 0.0)
    if activation in ("gelu", "gelu_tanh"):
        allowed = np.maximum(allowed, UNIT * np.abs(v))
    return allowed


def _through(activation: str | tuple | None, v: np.ndarray, bound: np.ndarray) -> Truth:
    """The activation of values ``v`` whose errors are at most ``bound``."""
    name, *parameters = activation if isinstance(activation, tuple) else (activation,)
    slope = max(1.0, abs(parameters[0])) if name == "leaky_relu" and parameters else _SLOPE.get(name, 1.0)
    value = activate(activation, v)
    carried = slope * bound
    # The computed argument may lie in a higher binade than the exact one, where an ulp is larger.
    reach = np.maximum(
        activation_error(activation, v, value), activation_error(activation, np.abs(v) + bound, np.abs(value) + carried)
    )
    return Truth(value, carried + reach)


def letters(layout: str, ndim: int) -> str:
    """``layout`` with ``channels_first`` and ``channels_last`` spelled out for a map of ``ndim`` axes."""
    spatial = "DHW"[5 - ndim :]
    return {"channels_first": f"NC{spatial}", "channels_last": f"N{spatial}C"}.get(layout, layout)


def chain_bound(channels: int) -> float:
    """The largest |error| of a sum over ``channels`` products, in units of u sum |w| |x|.

    A block of n channels rounds n times, then the K / 256 block sums are added; 4 more stand for bias, second-order
    terms and the oracle itself.
    """
    return min(channels, BLOCK) + channels / BLOCK + 4


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 values rounded to bfloat16, ties to even; for values below 3.39e38 that are not denormal."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def split_bound(precision: str, channels: int) -> float:
    """The largest |error| of a sum over `channels` of products of bf16 terms, in units of sum |w| |x|.

    A bfloat16 has 8 significant bits, so x differs from its first term x' by at most 2^-8 |x|, and from the sum of its
    two terms x' + x" by at most 2^-17 |x|. "medium" computes w'x', which differs from wx by at most 2 2^-8 + 2^-16.
    "high" computes w'x' + w'x" + w"x', which differs from wx by w"x" <= 2^-16 and by twice 2^-17 for the rest of both
    splits. A channel has p products, 1 or 3. Each is rounded at most p K times on the way into the result, to nearest
    with an error of 2^-24, or to odd with an error of 2^-23 but half as often. The last term of each bound leaves room
    for the factors 1 + 2^-8 that terms and sums add.
    """
    return {"medium": 2.0**-7 + 2.0**-16 + 2 * channels * UNIT, "high": 2.0**-15 + 4 * channels * UNIT}[precision]


def pointwise(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    groups: int = 1,
    layout: str = "NCHW",
    out_layout: str | None = None,
    weight_layout: str = "OI",
    input_scale: np.ndarray | None = None,
    input_shift: np.ndarray | None = None,
    input_activation: str | tuple | None = None,
    output_scale: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    activation: str | tuple | None = None,
) -> Truth:
    """``pwconv.pointwise_conv`` in float64 from its definition, with the error bound of every element."""
    layout = letters(layout, x.ndim)
    out_layout = letters(out_layout, x.ndim) if out_layout else layout
    spatial = layout.replace("N", "").replace("C", "")
    batch = "N" if "N" in layout else ""
    canonical = f"{batch}C{spatial}"
    tail = (np.newaxis,) * len(spatial)

    def broadcast(vector):
        """A (C,) or (N, C) array in a shape that broadcasts against maps in canonical order."""
        return vector.astype(np.float64)[(..., *tail)]

    matrix = weight.astype(np.float64)
    matrix = matrix.reshape(matrix.shape[-2:]).T if weight_layout == "IO" else matrix.reshape(matrix.shape[:2])
    out_channels, channels = matrix.shape
    matrix = matrix.reshape(groups, out_channels // groups, channels)

    steps = (stride,) * len(spatial) if isinstance(stride, int) else stride
    a = np.einsum(f"{layout}->{canonical}", x)[(..., *(slice(None, None, step) for step in steps))].astype(np.float64)
    bound = np.zeros_like(a)
    if input_scale is not None or input_shift is not None:
        scale = 1.0 if input_scale is None else broadcast(input_scale)
        shift = 0.0 if input_shift is None else broadcast(input_shift)
        product = scale * a
        bound = bound + TINY * (np.abs(scale) + np.abs(a) + 2) + UNIT * np.abs(product)  # where there is no FMA
        a = product + shift
        bound = bound + UNIT * np.abs(a)
    a, bound = _through(input_activation, a, bound)

    def contract(left, right):
        """Sum over the input channels of every group."""
        outer, size = right.shape[: len(batch)], right.shape[len(batch) + 1 :]
        product = left @ right.reshape(*outer, groups, channels, math.prod(size))
        return product.reshape(*outer, out_channels, *size)

    magnitude = np.abs(matrix)
    carried = contract(magnitude, bound)
    value = contract(matrix, a)
    reach = contract(magnitude, np.abs(a)) + carried
    flushed = TINY * contract(magnitude + 1, np.abs(a) + 1)  # TINY sum(|w| + |x| + 1), and TINY sum |w| |x| more
    if bias is not None:
        value = value + broadcast(bias)
        reach = reach + np.abs(broadcast(bias))
        flushed = flushed + TINY
    bound = chain_bound(channels) * UNIT * reach + carried + flushed
    if output_scale is not None:
        scale = broadcast(output_scale)
        bound = np.abs(scale) * bound + UNIT * np.abs(scale * value) + TINY * (np.abs(scale) + np.abs(value) + 1)
        value = scale * value
    if residual is not None:
        value = value + np.einsum(f"{out_layout}->{canonical}", residual)
        bound = bound + UNIT * (np.abs(value) + bound) + 2 * TINY
    return Truth(*(np.einsum(f"{canonical}->{out_layout}", part) for part in _through(activation, value, bound)))


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a * b + c`` of float32 arrays, rounded once to float32 (normal range).

    The product of two float32 numbers is exact in float64. Their sum is rounded to odd there (Boldo and Melquiond,
    "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE Transactions on
    Computers 57(4), 2008), after which rounding a second time, to float32, does no harm.
    """
    product, addend = np.broadcast_arrays(a.astype(np.float64) * b, c.astype(np.float64))
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)  # Knuth's two-sum: total + error is the exact sum
    even = (total.view(np.uint64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays have one shape, one dtype and the same bits, whatever the payloads of their NaNs."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    bits = f"u{left.itemsize}"
    return bool(np.all((left.view(bits) == right.view(bits)) | (np.isnan(left) & np.isnan(right))))


class Placement(NamedTuple):
    """Where the elements of a float32 array lie inside a buffer of bytes; describes any strided view."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    nbytes: int

    def over(self, buffer: np.ndarray) -> np.ndarray:
        """The array whose elements lie in ``buffer``."""
        return np.ndarray(self.shape, np.float32, buffer=buffer, offset=self.offset, strides=self.strides)

    def buffer(self, fill: int = 0) -> np.ndarray:
        """A buffer of ``nbytes`` bytes, all equal to ``fill``, that starts on a cache line."""
        raw = np.full(self.nbytes + 64, fill, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + self.nbytes]

    def hold(self, values: np.ndarray) -> np.ndarray:
        """A copy of ``values`` with this placement; all other bytes of the buffer are NaNs that no call may read."""
        view = self.over(self.buffer(fill=0xFF))
        view[...] = values
        return view


def place(
    shape: tuple[int, ...],
    *,
    order: tuple[int, ...] | None = None,
    steps: tuple[int, ...] | None = None,
    margins: tuple[int, ...] | None = None,
    broadcast: tuple[bool, ...] | None = None,
    item: int = 4,
    offset: int = 0,
) -> Placement:
    """Lay out an array of ``shape``: every axis with its own step, inside a larger array with its own axis order.

    ``order`` names the axes from the slowest to the fastest in memory. ``steps`` are those of a slice, negative ones
    included; ``margins`` are left free before and after each axis; axes in ``broadcast`` have stride 0. ``item`` bytes
    lie from one element to the next (more than 4: a field of a packed record), and the whole starts at ``offset``.
    """
    ndim = len(shape)
    order = tuple(range(ndim)) if order is None else order
    steps = (1,) * ndim if steps is None else steps
    margins = (0,) * ndim if margins is None else margins
    broadcast = (False,) * ndim if broadcast is None else broadcast
    strides = [0] * ndim
    start, unit = offset, item
    for axis in reversed(order):
        if broadcast[axis]:
            continue
        step, margin = steps[axis], margins[axis]
        span = max(shape[axis] - 1, 0) * abs(step) + 1
        strides[axis] = unit * step
        start += unit * (margin + (span - 1 if step < 0 else 0))
        unit *= span + 2 * margin
    return Placement(shape, tuple(strides), start, offset + unit + item)


def placements(shape: tuple[int, ...], channel_axis: int) -> dict[str, Placement]:
    """One placement of every kind of view that users pass, by name."""
    ndim = len(shape)
    axes = range(ndim)

    def only(axis, value, other):
        return tuple(value if i == axis % ndim else other for i in axes)

    return {
        "contiguous": place(shape),
        "Fortran order": place(shape, order=tuple(reversed(axes))),
        "rotated axes": place(shape, order=(*axes[1:], 0)),
        "crop": place(shape, margins=(2,) * ndim),
        "channel slice": place(shape, margins=only(channel_axis, 3, 0)),
        "stepped": place(shape, steps=only(-1, 2, 1)),
        "stepped everywhere": place(shape, steps=(2,) * ndim),
        "last axis reversed": place(shape, steps=only(-1, -1, 1)),
        "all axes reversed": place(shape, steps=(-1,) * ndim),
        "every third channel backwards": place(shape, steps=only(channel_axis, -3, 1)),
        "one byte off": place(shape, offset=1),
        "one element off": place(shape, offset=4),
        "field of a packed record": place(shape, item=7, offset=3),
    }


def layouts(spatial: str, *, batch: bool = True) -> tuple[str, ...]:
    """Every layout of these spatial letters, N first where there is a batch."""
    return tuple("N" * batch + "".join(rest) for rest in itertools.permutations(f"C{spatial}"))
