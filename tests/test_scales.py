"""Scales and shifts that belong to a layer: those of a call, given once."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import oracle
import pytest

import pwconv
from pwconv import PixelClassifier, PointwiseBranches, PointwiseChain, PointwiseConv

backends = pytest.mark.parametrize("backend", ["native", "numpy"])
NAMES = ("input_scale", "input_shift", "output_scale")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def scales(ins, outs, names=NAMES, seed=5):
    sizes = {"input_scale": ins, "input_shift": ins, "output_scale": outs}
    return {name: normal(seed + i, sizes[name]) for i, name in enumerate(NAMES) if name in names}


def layer_of(ins, outs, own, **options):
    return PointwiseConv(normal(1, outs, ins), normal(2, outs), **options | own)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("names", [NAMES, *[(name,) for name in NAMES], NAMES[:2]], ids=" ".join)
@pytest.mark.parametrize(("ins", "outs"), [(3, 3), (13, 40), (300, 17)])
def test_a_layer_has_the_bits_of_a_call(isa, ins, outs, names, layout):
    own = scales(ins, outs, names)
    options = {"layout": layout, "activation": "relu", "input_activation": "silu" if ins == 13 else None}
    x = normal(3, 2, ins, 19, 23) if layout == "NCHW" else normal(3, 2, 19, 23, ins)
    layer, plain = layer_of(ins, outs, own, **options), layer_of(ins, outs, {}, **options)
    assert oracle.same_bits(layer(x), plain(x, **own))
    # What a call gives replaces what the layer has.
    others = {name: values + 1 for name, values in own.items()}
    assert oracle.same_bits(layer(x, **others), plain(x, **others))
    images = {name: np.stack([values, 2 * values]) for name, values in own.items()}
    assert oracle.same_bits(layer(x, **images), plain(x, **images))


@backends
def test_chains_branches_and_classifiers(backend):
    layers = [
        layer_of(12, 20, scales(12, 20), backend=backend, activation="relu"),
        layer_of(20, 9, scales(20, 9), backend=backend, input_activation="tanh"),
    ]
    x = normal(3, 2, 12, 31, 17)
    expected = layers[1](layers[0](x))
    # The last bits of NumPy's products depend on where arrays lie.
    same = oracle.same_bits if backend == "native" else functools.partial(np.allclose, rtol=1e-5, atol=1e-5)
    assert same(PointwiseChain(layers)(x), expected)
    for layer, result in zip((layers[0],) * 2, PointwiseBranches([layers[0]] * 2)(x), strict=True):
        assert same(layer(x), result)
    clf = PixelClassifier.from_chain(PointwiseChain(layers))
    assert same(clf.decision_function(x), expected)
    assert np.array_equal(clf.predict(x), expected.argmax(1))
    binary = PixelClassifier.from_chain(layer_of(12, 1, scales(12, 1), backend=backend))
    logits = binary.decision_function(x)
    assert np.array_equal(binary.predict(x), (logits[:, 0] > 0))
    assert same(binary.top_k(x, 2)[1], np.sort(np.concatenate([np.zeros_like(logits), logits], 1), 1)[:, ::-1])


@backends
def test_attributes_copies_and_pickles(backend):
    own = scales(12, 20)
    layer, x = layer_of(12, 20, own, backend=backend), normal(3, 1, 12, 5, 5)
    given = {name: values.copy() for name, values in own.items()}
    for values in own.values():
        values[:] = 7
    for duplicate in (
        layer,
        pickle.loads(pickle.dumps(layer)),
        pickle.loads(pickle.dumps(layer, 2)),
        copy.deepcopy(layer),
    ):
        assert all(np.array_equal(getattr(duplicate, name), given[name]) for name in NAMES)
        assert np.array_equal(duplicate(x), layer(x))
        assert "input_scale=True, input_shift=True, output_scale=True" in repr(duplicate)
    with pytest.raises(ValueError, match="read-only"):
        layer.input_shift[0] = 1
    with pytest.raises(AttributeError, match="immutable"):
        layer.output_scale = None
    assert PointwiseConv(normal(1, 3, 3)).input_shift is None
    assert pwconv.verify(layer, x).relative_error < 1e-5


@backends
@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ({"input_scale": np.ones(7, "f")}, ValueError, r"^input_scale must have shape .*\(12,\), got \(7,\)$"),
        ({"input_shift": np.ones((1, 12), "f")}, ValueError, r"^input_shift must have shape .*\(12,\), got \(1, 12\)$"),
        ({"output_scale": np.ones(12, "f")}, ValueError, r"^output_scale must have shape .*\(8,\), got \(12,\)$"),
        ({"input_scale": np.ones(12)}, TypeError, r"^input_scale must be float32, got float64"),
        ({"output_scale": 2.0}, TypeError, r"^output_scale must be a float32 array, got float"),
    ],
)
def test_wrong_scales_are_explained(backend, own, error, message):
    with pytest.raises(error, match=message):
        PointwiseConv(normal(1, 8, 12), backend=backend, **own)


def test_batch_norms_and_factors():
    own = scales(12, 8)
    layer, x = layer_of(12, 8, own, activation="silu"), normal(3, 1, 12, 9, 9)
    gamma, beta, mean, var = normal(7, 8), normal(8, 8), normal(9, 8), normal(10, 8) ** 2
    linear = layer_of(12, 8, own)(x).astype(np.float64)

    def channels(values):
        return values.reshape(8, 1, 1)

    norm = channels(gamma) * (linear - channels(mean)) / np.sqrt(channels(var) + 1e-5) + channels(beta)
    folded = layer.fold_batchnorm(gamma, beta, mean, var)
    np.testing.assert_allclose(folded(x), oracle.activate("silu", norm), rtol=1e-3, atol=1e-4)
    factors = pwconv.factorize(layer, rank=8)
    np.testing.assert_allclose(factors(x), layer(x), rtol=1e-3, atol=1e-4)


def test_gradients():
    """Against torch's, in float64."""
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra `peers` has it)")
    own = scales(12, 8)
    layer = layer_of(12, 8, own, input_activation="silu", activation="tanh", stride=2)
    x, grad_y = [normal(3, 2, 5, 9, 7), normal(4, 2, 7, 9, 7)], normal(6, 2, 8, 5, 4)
    grad_x, grad_weight, grad_bias = layer.backward(grad_y, x)
    joined = torch.tensor(np.concatenate(x, 1).astype(np.float64), requires_grad=True)
    weight, bias = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (layer.weight, layer.bias))
    scale, shift, after = (torch.tensor(own[name].astype(np.float64)).reshape(-1, 1, 1) for name in NAMES)
    with torch.enable_grad():  # other tests may have turned gradients off
        inside = torch.nn.functional.silu(joined * scale + shift)
        y = torch.nn.functional.conv2d(inside, weight[..., None, None], bias, stride=2) * after
        torch.tanh(y).backward(torch.tensor(grad_y.astype(np.float64)))
    for result, expected in ((np.concatenate(grad_x, 1), joined), (grad_weight, weight), (grad_bias, bias)):
        np.testing.assert_allclose(result, expected.grad.numpy(), rtol=1e-3, atol=1e-4)
