"""Error bounds of results against the exact sum, and the comparison of their errors with those of NumPy's product."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest

import pwconv

CHANNELS = (1, 2, 3, 7, 16, 64, 255, 256, 257, 511, 512, 513, 1000, 2048, 4096, 8192)
OUTS, PIXELS = 24, 35


def normal(rng, shape):
    return rng.standard_normal(shape, np.float32)


def after_relu(rng, shape):
    """Half zeros, the rest positive, so that sums of magnitudes do not cancel."""
    return np.maximum(rng.standard_normal(shape, np.float32), np.float32(0))


def many_magnitudes(rng, shape):
    """Exponents spread over 2^40."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 21, shape)).astype(np.float32)


def nearly_cancelling(rng, shape):
    """Neighbouring channels of almost opposite values."""
    values = rng.standard_normal(shape, np.float32)
    values[..., 1::2] = -values[..., 0 : values.shape[-1] - 1 : 2] * np.float32(1.0001)
    return values


KINDS = (normal, after_relu, many_magnitudes, nearly_cancelling)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_bound(isa, channels, kind):
    """|error| <= (min(K, 256) + K / 256 + 4) u sum |w| |x| + 2^-126 sum(|w| + |x| + 1) for every output."""
    for seed in range(5):
        rng = np.random.default_rng([seed, channels])
        x = kind(rng, (PIXELS, channels))
        weight = normal(rng, (OUTS, channels))
        exact = x.astype(np.float64) @ weight.astype(np.float64).T
        size, magnitude = np.abs(x).astype(np.float64), np.abs(weight).astype(np.float64)
        bound = oracle.chain_bound(channels) * oracle.UNIT * (size @ magnitude.T)
        bound += oracle.TINY * (size.sum(1)[:, np.newaxis] + magnitude.sum(1) + channels)
        last = pwconv.pointwise_conv(x, weight, layout="NC")
        first = pwconv.pointwise_conv(np.ascontiguousarray(x.T)[np.newaxis], weight, layout="NCL")[0].T
        for result in (last, first):
            truth = oracle.Truth(exact, bound)
            assert truth.accepts(result), truth.explain(result)


@pytest.mark.parametrize("channels", [1, 40, 300])
def test_error_bound_among_denormals(isa, channels):
    """Products and sums around 2^-126, where flushing to zero is the only error."""
    for seed in range(20):
        rng = np.random.default_rng([seed, channels])
        x = (2.0**-62 * rng.standard_normal((3, channels, 5, 7))).astype(np.float32)
        weight = (2.0**-63 * rng.standard_normal((9, channels))).astype(np.float32)
        bias = (2.0**-125 * rng.standard_normal(9)).astype(np.float32)
        truth = oracle.pointwise(x, weight, bias)
        result = pwconv.pointwise_conv(x, weight, bias)
        assert truth.accepts(result), truth.explain(result)


# (input channels, output channels, pixels) of maps in published networks
MAPS = [
    (64, 256, 784),
    (256, 64, 784),
    (128, 512, 784),
    (512, 128, 784),
    (256, 1024, 196),
    (1024, 256, 196),
    (512, 2048, 49),
    (2048, 512, 49),
    (4096, 64, 49),
    (8192, 64, 49),
]


@pytest.mark.parametrize("kind", [normal, after_relu], ids=lambda kind: kind.__name__)
def test_no_less_exact_than_numpy(fma_isa, kind):
    """The largest error is not above that of NumPy's float32 matmul, in the geometric mean over maps."""
    logarithms = []
    for channels, outs, pixels in MAPS:
        for seed in range(2):
            rng = np.random.default_rng([seed, channels, outs])
            x, weight = kind(rng, (1, channels, pixels)), normal(rng, (outs, channels))
            exact = weight.astype(np.float64) @ x.astype(np.float64)
            ours = np.abs(pwconv.pointwise_conv(x, weight, layout="NCL") - exact).max()
            theirs = np.abs(np.matmul(weight, x) - exact).max()
            logarithms.append(math.log(ours / theirs))
    assert math.exp(np.mean(logarithms)) <= 1.0
