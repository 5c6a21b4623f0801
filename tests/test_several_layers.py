"""Chains and branches: the same bits as calling the layers one by one, without storing the hidden maps."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
from skimage import data
from test_views import LIMIT, extra_memory, needs_proc

import pwconv
from pwconv import PointwiseBranches, PointwiseChain, PointwiseConv

backends = pytest.mark.parametrize("backend", ["native", "numpy"])


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def layers_of(*channels, last="relu", activation="relu", **options):
    """Layers from each number of channels to the next, with weights scaled so that values keep their magnitude."""
    return [
        PointwiseConv(
            normal(i, outs, ins) / np.float32(np.sqrt(ins)),
            normal(100 + i, outs),
            activation=last if i == len(channels) - 2 else activation,
            **options,
        )
        for i, (ins, outs) in enumerate(itertools.pairwise(channels))
    ]


def one_by_one(layers, x, residual=(), num_threads=None):
    """The results of all layers of a chain."""
    maps = []
    for i, layer in enumerate(layers):
        x = layer(x, residual=dict(residual).get(i), num_threads=num_threads)
        maps.append(x)
    return maps


# Chains ---------------------------------------------------------------------------------------------------------------

REAL_CHAINS = {
    "NIN": ((1, 96, 30, 31), (96, 96, 96), {}),
    "NIN channels last": ((1, 30, 31, 96), (96, 96, 96), {"layout": "NHWC"}),
    "ConvNeXt": ((1, 28, 27, 96), (96, 384, 96), {"layout": "NHWC", "activation": "gelu", "last": None}),
    "ConvNeXt channels first": ((2, 96, 14, 15), (96, 384, 96), {"activation": "gelu", "last": None}),
    "transformer": ((2, 49, 192), (192, 768, 192), {"layout": "NLC", "activation": "gelu_tanh", "last": None}),
    "vectors": ((37, 300), (300, 20, 257, 5), {"layout": "NC", "last": "sigmoid"}),
    "video": ((1, 2, 5, 6, 24), (24, 48, 24), {"layout": "NDHWC", "activation": "hardswish"}),
    "one layer": ((2, 30, 7, 9), (30, 12), {}),
    "five layers": ((2, 3, 40, 41), (3, 64, 16, 300, 8, 1), {"activation": "silu"}),
    "one pixel": ((1, 64, 1, 1), (64, 16, 64), {"last": "hardsigmoid"}),
}


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize(("shape", "channels", "options"), REAL_CHAINS.values(), ids=REAL_CHAINS)
def test_bits_of_one_by_one(isa, shape, channels, options, num_threads):
    layers, x = layers_of(*channels, **options), normal(7, *shape)
    result = PointwiseChain(layers)(x, num_threads=num_threads)
    assert oracle.same_bits(result, one_by_one(layers, x)[-1])
    assert result.flags.c_contiguous


def test_resnet_seam(isa):
    """Expand, add the shortcut, ReLU, whose result is kept for the next shortcut; then the next block's reduction."""
    layers, x, shortcut = layers_of(64, 256, 64), normal(7, 2, 64, 28, 28), normal(8, 2, 256, 28, 28)
    kept, y = PointwiseChain(layers)(x, residual={0: shortcut}, keep=(0,))
    expected = one_by_one(layers, x, {0: shortcut})
    assert oracle.same_bits(kept, expected[0])
    assert oracle.same_bits(y, expected[1])


@backends
@pytest.mark.parametrize("keep", [(), (0,), [1], (1, 0), (2,), (0, 1, 2), (0, 0)])
def test_keep(backend, keep):
    layers, x = layers_of(20, 30, 10, 40, backend=backend), normal(7, 2, 20, 9, 8)
    residual = {0: normal(8, 2, 30, 9, 8), 2: normal(9, 2, 40, 9, 8)}
    expected = one_by_one(layers, x, residual)
    result = PointwiseChain(layers)(x, residual=residual, keep=keep)
    if not keep:
        assert oracle.same_bits(result, expected[-1])
        return
    assert isinstance(result, tuple)
    assert len(result) == len(keep) + 1
    assert all(oracle.same_bits(one, expected[i]) for one, i in zip(result, (*keep, 2), strict=True))


def test_everything_that_a_layer_can_have(isa):
    """Strides, groups, layouts that differ between layers, input activations, views, bytes and a list as input."""
    first = PointwiseConv(
        normal(1, 24, 10), normal(2, 24), groups=2, stride=(2, 1), layout="NCHW", out_layout="NHWC", activation="relu6"
    )
    second = PointwiseConv(normal(3, 40, 6), groups=4, layout="NHWC", input_activation="tanh", out_layout="NHCW")
    third = PointwiseConv(normal(4, 5, 40), layout="channels_last", input_activation="relu", activation="silu")
    second_last = PointwiseConv(normal(3, 40, 6), groups=4, layout="NHWC", input_activation="tanh")
    rng = np.random.default_rng(5)
    parts = [rng.integers(0, 255, (2, 13, 12, 3), np.uint8).transpose(0, 3, 1, 2), normal(6, 2, 17, 13, 24)[..., ::2]]
    for layers in ([first, second], [first, second_last, third]):
        residual = {len(layers) - 1: normal(7, *one_by_one(layers, parts)[-1].shape)}
        result = PointwiseChain(layers)(parts, residual=residual)
        assert oracle.same_bits(result, one_by_one(layers, parts, residual)[-1])


def test_named_layouts_at_every_rank(isa):
    layers = layers_of(12, 20, 6, layout="channels_last")
    chain = PointwiseChain(layers)
    for shape in ((5, 12), (2, 7, 12), (2, 3, 4, 12), (1, 2, 3, 4, 12)):
        x = normal(1, *shape)
        assert oracle.same_bits(chain(x), one_by_one(layers, x)[-1])


@backends
@pytest.mark.parametrize("in_place", [False, True])
def test_out_of_a_chain(backend, in_place):
    """`out` is a channel slice of a larger map, and may be the last layer's residual."""
    layers, x = layers_of(12, 20, 6, backend=backend), normal(1, 1, 12, 9, 9)
    whole = normal(2, 1, 10, 9, 9)
    before, out = whole.copy(), whole[:, 2:8]
    residual = {1: before[:, 2:8]} if in_place else {}
    expected = one_by_one(layers, x, residual)
    kept, y = PointwiseChain(layers)(x, residual={1: out} if in_place else None, keep=[0], out=out)
    assert y is out
    assert oracle.same_bits(kept, expected[0])
    assert oracle.same_bits(out, expected[1])
    assert np.array_equal(whole[:, [0, 1, 8, 9]], before[:, [0, 1, 8, 9]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_of_a_chain(dtype):
    layers, x, shortcut = layers_of(12, 300, 6, activation="gelu"), normal(1, 2, 12, 5, 4), normal(2, 2, 300, 5, 4)
    hidden = oracle.pointwise(x, layers[0].weight, layers[0].bias, residual=shortcut, activation="gelu").value
    truth = oracle.pointwise(hidden, layers[1].weight, layers[1].bias, activation="relu").value
    kept, y = pwconv.reference.call_chain(PointwiseChain(layers), x, residual={0: shortcut}, keep=(0,), dtype=dtype)
    assert kept.dtype == y.dtype == dtype
    tolerance = {np.float32: 1e-5, np.float64: 1e-12}[dtype]
    np.testing.assert_allclose(kept, hidden, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(y, truth, rtol=tolerance, atol=tolerance)


@pytest.mark.measures
@needs_proc
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_maps_in_between_are_never_whole(layout):
    """A hidden map of 200 MB between one of 100 MB and one of 6 MB."""
    call = (
        "pwconv.PointwiseChain([pwconv.PointwiseConv(np.ones((128, 64), np.float32), layout=layout),"
        " pwconv.PointwiseConv(np.full((4, 128), 1 / 128, np.float32), layout=layout)])(x)"
    )
    assert extra_memory(layout, "", call) < LIMIT


# Branches -------------------------------------------------------------------------------------------------------------

REAL_BRANCHES = {
    "Inception": ((1, 192, 28, 28), (64, 96, 16), {}),
    "Inception channels last": ((1, 28, 28, 192), (64, 96, 16), {"layout": "NHWC"}),
    "heads": ((2, 256, 10, 13), (80, 4), {}),
    "one branch": ((1, 20, 5, 6), (7,), {"stride": 2}),
    "query, key, value": ((2, 49, 64), (64, 64, 64), {"layout": "NLC"}),
}


def branches_of(shape, outs, backend="auto", **options):
    ins = shape[options.get("layout", "NCHW").index("C")]
    return [
        PointwiseConv(normal(i, out, ins), normal(i, out), activation=activation, backend=backend, **options)
        for i, (out, activation) in enumerate(zip(outs, ("relu", None, "silu"), strict=False))
    ]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize(("shape", "outs", "options"), REAL_BRANCHES.values(), ids=REAL_BRANCHES)
def test_bits_of_each_branch(isa, shape, outs, options, num_threads):
    layers, x = branches_of(shape, outs, **options), normal(9, *shape)
    results = PointwiseBranches(layers)(x, num_threads=num_threads)
    assert isinstance(results, tuple)
    assert all(oracle.same_bits(result, layer(x)) for result, layer in zip(results, layers, strict=True))
    joined = PointwiseBranches(layers)(x, out="concat", num_threads=num_threads)
    assert joined.flags.c_contiguous
    assert oracle.same_bits(joined, np.concatenate(results, axis=options.get("layout", "NCHW").index("C")))


@backends
def test_branches_write_into_out(backend):
    """Two branches write into slices of one map, one into a flipped array, one into a new array; layouts differ."""
    x = normal(1, 2, 12, 9, 7)
    layers = [
        PointwiseConv(normal(2 + i, 6, 12), out_layout=layout, backend=backend)
        for i, layout in enumerate(["NCHW", "NHWC", None, "NHCW"])
    ]
    joined, flipped = np.zeros((2, 12, 9, 7), np.float32), np.zeros((2, 6, 9, 7), np.float32)[:, :, ::-1]
    outs = (joined[:, 6:], joined.transpose(0, 2, 3, 1)[..., :6], flipped, None)
    results = PointwiseBranches(layers)(x, out=outs)
    assert all(result is out for result, out in zip(results[:3], outs[:3], strict=True))
    assert all(oracle.same_bits(result, layer(x)) for result, layer in zip(results, layers, strict=True))


def test_branches_read_lists_and_bytes(isa):
    parts = [data.astronaut()[:32, :30], normal(1, 32, 30, 9)]
    layers = [PointwiseConv(normal(i, 8 + i, 12), layout="HWC", stride=(1, 2)) for i in range(3)]
    results = PointwiseBranches(tuple(layers))(parts)
    assert all(oracle.same_bits(result, layer(parts)) for result, layer in zip(results, layers, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_of_branches(dtype):
    shape = (2, 192, 5, 4)
    layers, x = branches_of(shape, (64, 96, 16)), normal(9, *shape)
    reference = pwconv.reference.call_branches(PointwiseBranches(layers), x, dtype=dtype)
    joined = pwconv.reference.call_branches(PointwiseBranches(layers), x, out="concat", dtype=dtype)
    assert np.array_equal(joined, np.concatenate(reference, axis=1))
    for layer, result in zip(layers, reference, strict=True):
        truth = oracle.pointwise(x, layer.weight, layer.bias, activation=layer.activation)
        assert result.dtype == dtype
        assert truth.accepts(result), truth.explain(result)


# Both -----------------------------------------------------------------------------------------------------------------

KINDS = (PointwiseChain, PointwiseBranches)


@backends
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((0, 4, 3, 3), (4, 4, 4)), ((1, 4, 3, 0), (4, 4, 4)), ((1, 4, 3, 3), (4, 0)), ((1, 0, 3, 3), (0, 0))],
)
def test_empty(backend, kind, shape, channels):
    layers, x = layers_of(*channels, backend=backend), normal(1, *shape)
    result = kind(layers)(x)
    expected = one_by_one(layers, x) if kind is PointwiseChain else [layer(x) for layer in layers]
    if kind is PointwiseChain:
        assert oracle.same_bits(result, expected[-1])
    else:
        assert all(oracle.same_bits(one, other) for one, other in zip(result, expected, strict=True))


@backends
def test_a_chain_through_no_channels(backend):
    """A chain with a hidden map of no channels returns the last bias."""
    layers = layers_of(3, 0, 4, backend=backend)
    result = PointwiseChain(layers)(normal(1, 1, 3, 2, 2))
    assert np.array_equal(result, np.broadcast_to(np.maximum(layers[1].bias, 0)[:, None, None], (1, 4, 2, 2)))


@backends
@pytest.mark.parametrize("kind", KINDS)
def test_attributes_copies_and_pickles(backend, kind):
    layers = layers_of(8, 8, 8, backend=backend)
    group = kind(layers)
    layers.append(None)  # the group has a copy of the caller's list
    assert isinstance(group.layers, tuple)
    assert (group.in_channels, group.backend, len(group.layers)) == (8, backend, 2)
    x = normal(1, 1, 8, 5, 5)
    for duplicate in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), copy.copy(group)):
        assert repr(duplicate) == repr(group)
        assert oracle.same_bits(np.stack(duplicate(x)), np.stack(group(x)))
    for name in ("layers", "colour"):
        with pytest.raises(AttributeError, match=f"a {kind.__name__} is immutable: '{name}' cannot be set"):
            setattr(group, name, ())
        with pytest.raises(AttributeError, match=f"a {kind.__name__} is immutable: '{name}' cannot be deleted"):
            delattr(group, name)
    group.__init__([])
    assert len(group.layers) == 2


def test_repr_shows_the_layers():
    chain = PointwiseChain(layers_of(4, 16, 8, last=None))
    assert chain.out_channels == 8
    assert repr(chain) == (
        "PointwiseChain(\n  (0): PointwiseConv(4, 16, stride=1, activation='relu')\n"
        "  (1): PointwiseConv(16, 8, stride=1)\n)"
    )


def test_one_numpy_layer_makes_the_whole_chain_numpy():
    mixed = [*layers_of(4, 6), *layers_of(6, 3, backend="numpy")]
    chain = PointwiseChain(mixed)
    assert chain.backend == "numpy"
    x = normal(1, 1, 4, 5, 5)
    np.testing.assert_allclose(chain(x), one_by_one(mixed, x)[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_at_once(kind):
    group = kind(layers_of(40, 40, 40))
    maps = [normal(seed, 1 + seed % 3, 40, 3 + seed, 5) for seed in range(12)]
    expected = [group(x) for x in maps]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(group, maps * 10))
    for result, want in zip(results, expected * 10, strict=True):
        assert oracle.same_bits(np.stack(result), np.stack(want))


@pytest.mark.parametrize(("kind", "name"), [(PointwiseChain, "call_chain"), (PointwiseBranches, "call_branches")])
def test_signatures_agree(kind, name):
    native = list(inspect.signature(kind.__call__).parameters.values())[1:]
    reference = list(inspect.signature(getattr(pwconv.reference, name)).parameters.values())[1:]
    assert [(p.name, p.kind, p.default) for p in native] == [(p.name, p.kind, p.default) for p in reference[:-1]]


def test_verify():
    x = normal(1, 1, 40, 9, 9)
    chain, branches = PointwiseChain(layers_of(40, 160, 40)), PointwiseBranches(layers_of(40, 40, 40))
    for report in (
        pwconv.verify(chain, x),
        pwconv.verify(chain, x, keep=(0,), residual={1: x}),
        pwconv.verify(chain, x, residual={1: x}, out=np.empty_like(x)),
        pwconv.verify(branches, x),
        pwconv.verify(branches, x, out="concat"),
        pwconv.verify(branches, x, out=(np.empty_like(x), None)),
    ):
        assert report.relative_error < 1e-6
        assert report.backend == "native"


def test_verify_says_which_result_is_wrong(monkeypatch):
    branches, x = PointwiseBranches(layers_of(4, 4, 4)), normal(1, 1, 4, 3, 3)
    right = pwconv.reference.call_branches

    def wrong(*args, **kwargs):
        results = right(*args, **kwargs)
        results[1][0, 2, 1, 0] += 5
        return results

    monkeypatch.setattr(pwconv.reference, "call_branches", wrong)
    report = pwconv.verify(branches, x)
    assert report.where == (1, 0, 2, 1, 0)
    assert report.max_error == pytest.approx(5, rel=1e-5)


# Errors ---------------------------------------------------------------------------------------------------------------


def conv(outs, ins, **options):
    return PointwiseConv(np.ones((outs, ins), np.float32), **options)


MISFITS = {
    "no list": (KINDS, conv(2, 3), TypeError, r"^layers must be a list of layers, got PointwiseConv$"),
    "no layer": (KINDS, [], ValueError, r"^layers must hold at least one layer, got none$"),
    "something else": (KINDS, [conv(3, 3), max], TypeError, r"^layers\[1\] must be a PointwiseConv, got builtin"),
    "a chain": (KINDS, [PointwiseChain([conv(3, 3)])], TypeError, r"^layers\[0\] must be a .*, got PointwiseChain$"),
    "channels of a chain": (
        [PointwiseChain],
        [conv(5, 3), conv(2, 4)],
        ValueError,
        r"^layers\[1\] must have in_channels, layout and stride \(5, 'NCHW', \(1, 1\)\) to take the result of "
        r"layers\[0\], got \(4, 'NCHW', \(1, 1\)\)$",
    ),
    "channels of branches": (
        [PointwiseBranches],
        [conv(5, 3), conv(2, 3), conv(2, 5)],
        ValueError,
        r"^layers\[2\] must have .* \(3, 'NCHW', \(1, 1\)\) to share the input of layers\[0\], got \(5, ",
    ),
    "layout": (
        KINDS,
        [conv(3, 3), conv(3, 3, layout="NHWC")],
        ValueError,
        r"^layers\[1\] must have .* \(3, 'NCHW', \(1, 1\)\) .*, got \(3, 'NHWC', \(1, 1\)\)$",
    ),
    "layout of the result": (
        [PointwiseChain],
        [conv(3, 3, out_layout="NHWC"), conv(3, 3)],
        ValueError,
        r"^layers\[1\] must have .* \(3, 'NHWC', \(1, 1\)\) to take .*, got \(3, 'NCHW', \(1, 1\)\)$",
    ),
    "named layouts": (
        KINDS,
        [conv(3, 3, layout="channels_last"), conv(3, 3, layout="channels_first")],
        ValueError,
        r"^layers\[1\] must have .* \(3, 'NHWC', \(1, 1\)\) to .*, got \(3, 'NCHW', \(1, 1\)\)$",
    ),
    "rank": (
        KINDS,
        [conv(3, 3), conv(3, 3, layout="NCL")],
        ValueError,
        r"^layers\[1\] must fit the others: x must have 3 axes for layout 'NCL', got 4$",
    ),
    "rank by a stride": (
        KINDS,
        [conv(3, 3, layout="channels_first", stride=(1, 1, 1)), conv(3, 3)],
        ValueError,
        r"^layers\[1\] must fit the others: x must have 4 axes for layout 'NCHW', got 5$",
    ),
    "stride in a chain": (
        [PointwiseChain],
        [conv(3, 3, stride=2), conv(3, 3, stride=2)],
        ValueError,
        r"^layers\[1\] must have .* \(3, 'NCHW', \(1, 1\)\) to take the .*, got \(3, 'NCHW', \(2, 2\)\)$",
    ),
    "strides of branches": (
        [PointwiseBranches],
        [conv(3, 3, stride=2), conv(3, 3)],
        ValueError,
        r"^layers\[1\] must have .* \(3, 'NCHW', \(2, 2\)\) to share .*, got \(3, 'NCHW', \(1, 1\)\)$",
    ),
}


@pytest.mark.parametrize(
    ("kind", "layers", "error", "message"),
    [
        pytest.param(kind, *rest, id=f"{name}-{kind.__name__}")
        for name, (kinds, *rest) in MISFITS.items()
        for kind in kinds
    ],
)
def test_layers_that_do_not_fit(kind, layers, error, message):
    with pytest.raises(error, match=message):
        kind(layers)


X = np.ones((1, 4, 3, 3), np.float32)
SHARED = np.ones((1, 16, 3, 3), np.float32)
READ_ONLY = np.broadcast_to(np.float32(1), X.shape)

WRONG_CHAIN_CALLS = {
    "x channels": ({"x": X[:, 1:]}, ValueError, r"^x must have 4 channels on axis 1"),
    "x rank": ({"x": X[0]}, ValueError, r"^x must have 4 axes for layout 'NCHW', got 3"),
    "x float64": ({"x": X.astype(float)}, TypeError, r"^x must be float32, .*, got float64"),
    "residual array": ({"residual": X}, TypeError, r"^residual must be a dict from .* to arrays, got ndarray$"),
    "residual key": ({"residual": {2: X}}, ValueError, r"^a key of residual must be from 0 to 1, got 2$"),
    "residual negative key": ({"residual": {-1: X}}, ValueError, r"^a key of residual must be from 0 to 1, got -1$"),
    "residual str key": ({"residual": {"0": X}}, TypeError, r"^a key of residual must be an integer, got str$"),
    "residual bool key": ({"residual": {True: X}}, TypeError, r"^a key of residual must be an integer, got bool$"),
    "residual shape": (
        {"residual": {0: X[:, :2]}},
        ValueError,
        r"^residual\[0\] must have shape \(1, 4, 3, 3\) \(layout 'NCHW'\), got \(1, 2, 3, 3\)$",
    ),
    "residual dtype": ({"residual": {1: X.astype("f8")}}, TypeError, r"^residual\[1\] must be float32.* got float64"),
    "keep int": ({"keep": 0}, TypeError, r"^keep must be a tuple of numbers of layers, got int$"),
    "keep beyond": ({"keep": (0, 2)}, ValueError, r"^a layer of keep must be from 0 to 1, got 2$"),
    "keep float": ({"keep": (0.0,)}, TypeError, r"^a layer of keep must be an integer, got float$"),
    "out shape": ({"out": SHARED[:, :3]}, ValueError, r"^out must have shape \(1, 4, 3, 3\) .*, got \(1, 3, 3, 3\)$"),
    "out read-only": ({"out": READ_ONLY}, ValueError, r"^out must be writable, got a read-only array$"),
    "out is x": ({"x": SHARED[:, :4], "out": SHARED[:, 3:7]}, ValueError, r"^out must not share memory with x$"),
    "out is a part of x": (
        {"x": [X[:, :2], SHARED[:, :2]], "out": SHARED[:, :4]},
        ValueError,
        r"^out must not share memory with x\[1\]$",
    ),
    "out is the first residual": (
        {"residual": {0: SHARED[:, :4]}, "out": SHARED[:, :4]},
        ValueError,
        r"^out must not share memory with residual\[0\]$",
    ),
    "out crosses the last residual": (
        {"residual": {1: SHARED[:, 1:5]}, "out": SHARED[:, :4]},
        ValueError,
        r"^out must not share memory with residual\[1\]$",
    ),
    "num_threads": ({"num_threads": 0}, ValueError, r"^num_threads must be from 1 to \d+, got 0$"),
}

WRONG_BRANCHES_CALLS = {
    "x channels": ({"x": X[:, 1:]}, ValueError, r"^x must have 4 channels on axis 1"),
    "x None": ({"x": None}, TypeError, r"^x must be a float32 array, got NoneType"),
    "out name": ({"out": "stack"}, ValueError, r"^out must be None, a tuple of arrays or 'concat', got 'stack'$"),
    "out array": ({"out": X}, TypeError, r"^out must be None, a tuple of arrays or 'concat', got ndarray$"),
    "out too short": ({"out": (None,)}, ValueError, r"^out must hold an array for each of 2 branches, got 1$"),
    "out shape": ({"out": (None, X[:, :2])}, ValueError, r"^out\[1\] must have shape \(1, 4, 3, 3\) .*\(1, 2, 3, 3\)$"),
    "out dtype": ({"out": [X.astype("f8"), None]}, TypeError, r"^out\[0\] must be float32.* got float64$"),
    "out read-only": ({"out": (READ_ONLY, None)}, ValueError, r"^out\[0\] must be writable, got a read-only array$"),
    "out is x": (
        {"x": SHARED[:, :4], "out": (None, SHARED[:, 2:6])},
        ValueError,
        r"^out\[1\] must not share memory with x$",
    ),
    "outs overlap": (
        {"out": (SHARED[:, :4], SHARED[:, 3:7])},
        ValueError,
        r"^out\[1\] must not share memory with out\[0\]$",
    ),
    "num_threads": ({"num_threads": True}, TypeError, r"^num_threads must be an integer, got bool$"),
}


@backends
@pytest.mark.parametrize(
    ("kind", "change", "error", "message"),
    [
        pytest.param(kind, *case, id=f"{kind.__name__} {name}")
        for kind, cases in ((PointwiseChain, WRONG_CHAIN_CALLS), (PointwiseBranches, WRONG_BRANCHES_CALLS))
        for name, case in cases.items()
    ],
)
def test_wrong_calls_raise_and_write_nothing(backend, kind, change, error, message):
    group = kind([conv(4, 4, backend=backend), conv(4, 4, backend=backend)])
    with pytest.raises(error, match=message):
        group(**({"x": X} | change))
    assert np.all(SHARED == 1)


@backends
def test_results_that_are_joined_have_one_layout(backend):
    branches = PointwiseBranches([conv(4, 4, backend=backend), conv(4, 4, out_layout="NHWC", backend=backend)])
    with pytest.raises(ValueError, match=r"^out='concat' needs branches of one out_layout, got 'NCHW' and 'NHWC'$"):
        branches(X, out="concat")


@backends
@pytest.mark.parametrize("size", [(2**45, 1), (2**59, 0)])
def test_results_that_no_memory_holds(backend, size):
    x = np.broadcast_to(np.float32(1), (1, 2, *size))
    wide = [conv(64, 2, backend=backend), conv(2, 64, backend=backend)]
    with pytest.raises(MemoryError):
        PointwiseChain(wide)(x, keep=(0,))
    with pytest.raises(MemoryError):
        PointwiseBranches(wide[:1])(x)
