"""Pixels that do not count: masks and fills of the engine's heads, for layers, chains and resized labels."""

import numpy as np
import pytest

import pwconv

SIZE = (61, 83)
engine = pytest.importorskip("pwconv._engine", reason="masks are the compiled engine's")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def scene():
    """A map with nodata (NaN) in a band and in one pixel, a mask, and which pixels count."""
    x = numbers(*SIZE, 7)
    x[5, 6], x[10:20] = np.nan, np.nan
    mask = np.random.default_rng(1).random((*SIZE, 1)) > 0.3
    mask[30:] = False
    return x, mask, mask[..., 0] & ~np.isnan(x).any(axis=-1)


@pytest.fixture
def layers():
    return tuple(pwconv.PointwiseConv(numbers(5, n, seed=n), layout="HWC") for n in (7, 5))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_labels(isa, scene, layers, dtype, count, threads):
    x, mask, counts = scene
    logits = layers[0](x) if count == 1 else layers[1](layers[0](x))
    expected = np.where(counts, np.nan_to_num(logits).argmax(axis=-1), 99)
    out = np.empty((*SIZE, 1), dtype)
    engine.classify(layers[:count], x, out, None, 1, mask, 99, threads)
    assert np.array_equal(out[..., 0], expected)
    # At the same size every label is interpolated from its own pixel alone.
    engine.classify_resized(layers[:count], x, out, mask, 99, threads)
    assert np.array_equal(out[..., 0], expected)


def test_the_best_labels_and_their_logits(isa, scene, layers):
    x, mask, counts = scene
    labels, values = np.empty((*SIZE, 3), np.int32), np.empty((*SIZE, 3), np.float32)
    engine.classify(layers[:1], x, labels, values, 3, mask, -1, 2)
    logits = layers[0](x)
    order = np.argsort(-np.nan_to_num(logits), axis=-1, kind="stable")[..., :3]
    assert np.array_equal(labels, np.where(counts[..., np.newaxis], order, -1))
    best = np.take_along_axis(logits, order, -1)
    assert np.array_equal(values, np.where(counts[..., np.newaxis], best, np.nan), equal_nan=True)


@pytest.mark.parametrize("fill", [-7.0, np.nan])
def test_logits_and_probabilities(isa, scene, layers, fill):
    x, mask, counts = scene
    logits = layers[0](x)
    out = np.empty_like(logits)
    engine.run_layers(layers[:1], x, (None,), (out,), False, mask, fill, 2)
    assert np.array_equal(out, np.where(counts[..., np.newaxis], logits, np.float32(fill)), equal_nan=True)
    engine.classify(layers[:1], x, out, None, 0, mask, fill, 2)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    assert np.allclose(out, np.where(counts[..., np.newaxis], shares, fill), rtol=1e-5, atol=1e-7, equal_nan=True)


def test_nan_alone(isa, scene, layers):
    x, _, _ = scene
    out = np.empty((*SIZE, 1), np.uint8)
    engine.classify(layers[:1], x, out, None, 1, None, 255, 1)
    nodata = np.isnan(x).any(axis=-1)
    assert np.array_equal(out[..., 0] == 255, nodata)


def test_resized_labels_of_neighbours_that_do_not_count(isa, layers):
    x, mask = numbers(6, 8, 7), np.ones((6, 8, 1), bool)
    mask[2, 3] = False
    out = np.empty((12, 16, 1), np.uint8)
    engine.classify_resized(layers[:1], x, out, mask, 255, 1)
    filled = np.argwhere(out[..., 0] == 255)
    # Twice the size: a label lies a quarter of a pixel from its pixel, between it and a neighbour in each direction.
    expected = [[line, column] for line in range(3, 7) for column in range(5, 9)]
    assert filled.tolist() == expected
