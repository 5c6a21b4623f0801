"""Every activation, before and after the sum, over the whole range of float32."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

import pwconv

# Bit patterns in steps of an odd number, which reach all exponents and signs with evenly spread fractions.
SAMPLE = (np.arange(2**20, dtype=np.uint64) * 4099 * 1048573 % 2**32).astype(np.uint32).view(np.float32)
# Critical arguments: where activations have a kink, saturate, cancel or leave the normal range.
DENSE = np.linspace(-110, 110, 200001, dtype=np.float32)
KNEES = (-90, -88, -87.3, -18, -13, -10, -9, -6, -3, -1, -0.5, 0.5, 1, 3, 6, 9, 10, 18, 88, 89)
NEAR_KNEES = np.concatenate(
    [(np.float32(knee).view(np.int32) + np.arange(-500, 500, dtype=np.int32)).view(np.float32) for knee in KNEES]
)
SPECIALS = np.array([0.0, -0.0, 2**-126, -(2**-126), 1e-45, -1e-45, 3.4028235e38, -3.4028235e38], np.float32)
FINITE = np.concatenate([SAMPLE[np.isfinite(SAMPLE)], DENSE, NEAR_KNEES, SPECIALS])
FINITE.setflags(write=False)

WHERE = ["activation", "input_activation"]
LAYOUTS = ["NC", "NCL"]  # channels last, channels first


def apply(activation, values, where, layout):
    """The result of a layer of one channel with weight 1, whose sum equals its input."""
    x = values.reshape(-1, 1) if layout == "NC" else values.reshape(1, 1, -1)
    one = np.ones((1, 1), np.float32)
    return pwconv.pointwise_conv(x, one, layout=layout, **{where: activation}).ravel()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS[1:], ids=str)
def test_within_4_ulp(isa, activation, where, layout):
    """gelu may be off by u |v|. Denormal arguments count as 0, and results below 2^-126 may be flushed to 0."""
    v = np.where(np.abs(FINITE) < oracle.TINY, 0.0, FINITE.astype(np.float64))
    value = oracle.activate(activation, v)
    truth = oracle.Truth(value, oracle.activation_error(activation, v, value))
    result = apply(activation, FINITE, where, layout)
    worst = FINITE[np.argmax(np.abs(result - value) / truth.bound)]
    assert truth.accepts(result), f"of {worst!r} {truth.explain(result)}"


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    ("activation", "low", "high"), [("relu", 0, np.inf), ("relu6", 0, 6), (("clip", -0.75, 1.25), -0.75, 1.25)], ids=str
)
def test_clipping_is_exact(isa, activation, low, high, where):
    normal = FINITE[np.abs(FINITE) >= oracle.TINY]
    expected = np.clip(normal, np.float32(low), np.float32(high))
    np.testing.assert_array_equal(apply(activation, normal, where, "NCL"), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS, ids=str)
def test_limits_at_infinities_and_nan(isa, activation, where, layout):
    values = np.array([np.inf, -np.inf, np.nan, -np.nan] * 11, np.float32)
    expected = oracle.activate(activation, values.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(apply(activation, values, where, layout), expected)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("activation", ["sigmoid", "hardsigmoid", "tanh", "relu6"])
def test_saturation_never_overshoots(isa, activation, where):
    low, high = {"tanh": (-1, 1), "relu6": (0, 6)}.get(activation, (0, 1))
    result = apply(activation, FINITE, where, "NCL")
    assert result.min() >= low
    assert result.max() <= high


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, 3.0, -0.5])
def test_leaky_relu_slopes(isa, slope):
    values = np.linspace(-4, 4, 999, dtype=np.float32)
    expected = np.where(values < 0, np.float32(slope) * values, values)
    np.testing.assert_array_equal(apply(("leaky_relu", slope), values, "activation", "NCL"), expected)
