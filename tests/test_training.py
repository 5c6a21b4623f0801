"""Gradients: the definition in float64, finite differences, torch's autograd, and models that learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracle
import process
import pytest

import pwconv
from pwconv.runtime import engine

LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC", "NCL", "NLC", "NC", "NCDHW")


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def problem(rng, layout, *, channels=24, outs=16, groups=1, stride=1, **sizes):
    """Return a map, a weight, and a gradient of the result, all float32."""
    sizes = {"N": 3, "C": channels, "H": 9, "W": 7, "L": 31, "D": 4} | sizes
    after = {**sizes, "C": outs} | {a: -(-sizes[a] // stride) for a in layout if a not in "NC"}
    x = rng.standard_normal([sizes[a] for a in layout], dtype=np.float32)
    weight = rng.standard_normal((outs, channels // groups), dtype=np.float32)
    return x, weight, rng.standard_normal([after[a] for a in layout], dtype=np.float32)


def by_definition(grad_y, x, weight, layout, *, groups=1, stride=1):
    """Return the gradients in float64, and for each the sum of absolute products and the number of products."""
    axis = layout.index("C")
    steps = tuple(slice(None) if a in "NC" else slice(None, None, stride) for a in layout)
    gy = np.moveaxis(grad_y.astype(float), axis, 0).reshape(groups, len(weight) // groups, -1)
    sampled = np.moveaxis(x[steps].astype(float), axis, 0)
    xs = sampled.reshape(groups, weight.shape[1], -1)
    w = weight.astype(float).reshape(groups, -1, weight.shape[1])
    results = []
    for g, v, m in ((gy, xs, w), (abs(gy), abs(xs), abs(w))):
        grad_x = np.zeros(x.shape)
        grad_x[steps] = np.moveaxis(np.einsum("goi,gop->gip", m, g).reshape(sampled.shape), 0, axis)
        results.append((grad_x, np.einsum("gop,gip->goi", g, v).reshape(weight.shape), g.sum(axis=2).ravel()))
    pixels = math.prod(grad_y.shape) // len(weight)
    return *results, (w.shape[1], pixels, pixels)


def assert_close(grads, expected):
    """Each gradient is within the error bound of a float32 sum of `n` products in blocks."""
    values, sums, terms = expected
    for grad, value, magnitude, n in zip(grads, values, sums, terms, strict=True):
        assert grad.dtype == np.float32
        assert grad.shape == value.shape
        assert grad.flags.c_contiguous
        bound = (min(n, oracle.BLOCK) + n / oracle.BLOCK + 6) * oracle.UNIT * magnitude + n * oracle.TINY
        assert np.all(abs(grad - value) <= bound)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1), (2, 3)])
def test_definition(rng, isa, layout, groups, stride):
    x, weight, grad_y = problem(rng, layout, groups=groups, stride=stride)
    grads = pwconv.pointwise_conv_backward(grad_y, x, weight, groups=groups, stride=stride, layout=layout)
    expected = by_definition(grad_y, x, weight, layout, groups=groups, stride=stride)
    assert_close(grads, expected)
    references = pwconv.reference.pointwise_conv_backward(
        grad_y, x, weight, groups=groups, stride=stride, layout=layout, dtype=np.float64
    )
    for reference, value in zip(references, expected[0], strict=True):
        np.testing.assert_allclose(reference, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("pixels", "channels", "outs"), [(150, 8, 40), (64, 300, 20), (7, 600, 700)])
def test_sizes(rng, layout, pixels, channels, outs):
    shape = {"N": 2, "C": channels, "H": pixels, "W": pixels}
    x = rng.standard_normal([shape[a] for a in layout], dtype=np.float32)
    weight = rng.standard_normal((outs, channels), dtype=np.float32)
    grad_y = rng.standard_normal([outs if a == "C" else shape[a] for a in layout], dtype=np.float32)
    grads = pwconv.pointwise_conv_backward(grad_y, x, weight, layout=layout)
    assert_close(grads, by_definition(grad_y, x, weight, layout))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("groups", "channels", "outs"), [(1, 1500, 1400), (2, 2600, 1800), (40, 8000, 8000)])
def test_more_weights_than_are_packed_at_a_time(rng, layout, groups, channels, outs):
    """Weights are packed in parts of a group, or several groups at a time; a list may be split inside a group."""
    x, weight, grad_y = problem(rng, layout, channels=channels, outs=outs, groups=groups, N=1, H=1, W=3)
    expected = by_definition(grad_y, x, weight, layout, groups=groups)
    assert_close(pwconv.pointwise_conv_backward(grad_y, x, weight, layout=layout, groups=groups), expected)
    axis = layout.index("C")
    parts = np.split(x, [700, 1430], axis)
    grad_parts, *others = pwconv.pointwise_conv_backward(grad_y, parts, weight, layout=layout, groups=groups)
    assert_close([np.concatenate(grad_parts, axis), *others], expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_long_sums_are_as_exact_as_numpy(rng, layout):
    """Sums of positive numbers, whose rounding errors grow the most."""
    x, grad_y = (rng.random((2, 16, 200, 200), dtype=np.float32) for _ in range(2))
    truth = np.einsum("nohw,nihw->oi", grad_y.astype(float), x.astype(float))
    flat = [np.ascontiguousarray(np.moveaxis(a, 1, 0)).reshape(16, -1) for a in (grad_y, x)]
    numpy = flat[0] @ flat[1].T
    bias_truth, numpy_bias = flat[0].sum(axis=1, dtype=float), flat[0].sum(axis=1)
    if layout == "NHWC":
        x, grad_y = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, grad_y))
    weight = np.eye(16, dtype=np.float32)
    _, grad, bias = pwconv.pointwise_conv_backward(grad_y, x, weight, layout=layout, need=("weight", "bias"))
    assert abs(grad - truth).max() <= abs(numpy - truth).max()
    assert abs(bias - bias_truth).max() <= abs(numpy_bias - bias_truth).max()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_bias_is_summed_in_float64(rng, layout):
    """All but the sums of short runs are in float64, so the error is hardly more than that of the last rounding."""
    grad_y = rng.random((1, 64, 58, 55), dtype=np.float32)
    truth = grad_y.sum(axis=(0, 2, 3), dtype=float)
    if layout == "NHWC":
        grad_y = np.ascontiguousarray(np.moveaxis(grad_y, 1, -1))
    weight = np.eye(64, dtype=np.float32)
    _, _, bias = pwconv.pointwise_conv_backward(grad_y, grad_y, weight, layout=layout, need="bias")
    assert abs(bias / truth - 1).max() <= 2 * oracle.UNIT


def test_finite_differences(rng):
    x, weight, grad_y = problem(rng, "NCHW", channels=6, outs=4, groups=2, stride=2)
    grads = pwconv.pointwise_conv_backward(grad_y, x, weight, groups=2, stride=2)
    bias = np.zeros(4, np.float32)

    def loss(**changed):
        given = {"x": x, "weight": weight, "bias": bias} | changed
        y = pwconv.reference.pointwise_conv(
            given["x"], given["weight"], given["bias"], groups=2, stride=2, dtype=np.float64
        )
        return float((y * grad_y).sum())

    for name, array, grad in zip(("x", "weight", "bias"), (x, weight, bias), grads, strict=True):
        for place in rng.integers(array.size, size=12):
            up, down = array.copy(), array.copy()
            up.flat[place] += 0.5  # the loss is linear in each argument, so any step is exact
            down.flat[place] -= 0.5
            step = float(up.flat[place]) - float(down.flat[place])
            difference = (loss(**{name: up}) - loss(**{name: down})) / step
            assert difference == pytest.approx(float(grad.flat[place]), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("groups", "stride", "size"), [(1, 1, 150), (1, 2, 150), (2, 1, 60), (8, 2, 60), (1, 1, 7)])
def test_threads_do_not_change_bits(rng, fma_isa, layout, groups, stride, size):
    """Maps with several chunks, which occupy all threads, and small maps."""
    x, weight, grad_y = problem(rng, layout, channels=96, outs=80, groups=groups, stride=stride, H=size, W=size)
    grads = [
        pwconv.pointwise_conv_backward(
            grad_y, x, weight, layout=layout, groups=groups, stride=stride, num_threads=threads
        )
        for threads in (1, 2, 3, 8)
    ]
    for others in grads[1:]:
        for grad, other in zip(grads[0], others, strict=True):
            assert oracle.same_bits(grad, other)


@pytest.fixture
def one_pass():
    """Return a function that makes maps of more bytes than its argument come from memory, as the engine sees it."""
    before = engine.set_one_pass_bytes(math.inf)
    yield engine.set_one_pass_bytes
    engine.set_one_pass_bytes(before)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("sizes", [(3, 32, 70), (33, 3, 70), (64, 64, 41), (1, 1, 5), (200, 20, 40)])
def test_one_pass_over_grad_y_gives_the_same_bits(rng, fma_isa, one_pass, layout, sizes, threads):
    """Maps that come from memory are read once for all gradients."""
    channels, outs, size = sizes
    x, weight, grad_y = problem(rng, layout, channels=channels, outs=outs, H=size, W=size + 1)
    options = {"layout": layout, "num_threads": threads}
    expected = pwconv.pointwise_conv_backward(grad_y, x, weight, **options)
    one_pass(0)
    for need in (("x", "weight", "bias"), ("x", "weight"), ("x", "bias"), ("x",)):
        grads = pwconv.pointwise_conv_backward(grad_y, x, weight, need=need, **options)
        for name, grad, other in zip(("x", "weight", "bias"), grads, expected, strict=True):
            assert oracle.same_bits(grad, other) if name in need else grad is None


def test_views(rng):
    x, weight, grad_y = problem(rng, "NCHW")
    whole_x, whole_y = np.zeros((3, 40, 20, 14), np.float32), np.zeros((5, 16, 9, 7), np.float32)
    odd_x, odd_y = whole_x[:, 8:32, 1:19:2, ::-2], whole_y[1:4, ::-1, :, ::-1]
    odd_x[:], odd_y[:] = x, grad_y
    plain = pwconv.pointwise_conv_backward(grad_y, x, weight)
    for grad, other in zip(plain, pwconv.pointwise_conv_backward(odd_y, odd_x, weight), strict=True):
        assert oracle.same_bits(grad, other)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("layout", "axis"), [("NCHW", 1), ("NHWC", 3)])
def test_lists(rng, layout, axis, groups):
    x, weight, grad_y = problem(rng, layout, groups=groups)
    parts = np.split(x, [5, 17], axis)
    whole = pwconv.pointwise_conv_backward(grad_y, x, weight, layout=layout, groups=groups)
    grad_parts, *others = pwconv.pointwise_conv_backward(grad_y, parts, weight, layout=layout, groups=groups)
    assert isinstance(grad_parts, list)
    assert [part.shape for part in grad_parts] == [part.shape for part in parts]
    assert all(part.flags.c_contiguous for part in grad_parts)
    np.testing.assert_array_equal(np.concatenate(grad_parts, axis), whole[0])
    for grad, other in zip(others, whole[1:], strict=True):
        assert oracle.same_bits(grad, other)


def blocks_of(pixels):
    """Cut pixels into blocks as the rule says: one up to 1,024; else a multiple of four, up to the last few pixels."""
    count = -(-pixels // 1024)
    most = pixels if count == 1 else -(-pixels // (-(-count // 4) * 4) // 16) * 16
    return [slice(start, start + most) for start in range(0, pixels, most)]


def added_in_segments(sums, results):
    """Add float32 sums of blocks in float64, within segments of consecutive blocks first."""
    count = max(1, min(len(sums), 32, 2**19 // results))
    edges = [len(sums) * i // count for i in range(count + 1)]
    totals = [sum(part.astype(float) for part in sums[a:b]) for a, b in itertools.pairwise(edges)]
    return sum(totals[1:], start=totals[0]).astype(np.float32)


def sums_by_rule(grad_y, x):
    """Compute sums over pixels, (o, p) and (i, p), with one exactly emulated FMA at a time."""
    products, own, results = [], [], len(grad_y) * len(x)
    for block in blocks_of(x.shape[1]):
        chains = []
        gradient, seen = grad_y[:, block], x[:, block]
        for start in range(0, seen.shape[1], oracle.BLOCK):
            chain = np.zeros((len(grad_y), len(x)), np.float32)
            for p in range(start, min(start + oracle.BLOCK, seen.shape[1])):
                chain = oracle.fma(gradient[:, None, p], seen[None, :, p], chain)
            chains.append(chain)
        products.append(sum(chains[1:], start=chains[0]))
        runs = [gradient[:, i : i + 32].cumsum(axis=1)[:, -1].astype(float) for i in range(0, seen.shape[1], 32)]
        own.append(sum(runs[1:], start=runs[0]))
    return added_in_segments(products, results), added_in_segments(own, results)


@pytest.mark.parametrize(("ins", "outs", "size"), [(3, 5, 46), (24, 16, 9), (45, 70, 23), (300, 20, 25), (7, 1100, 37)])
def test_the_order_of_summation(rng, fma_isa, ins, outs, size):
    """One to several blocks of pixels; every layout, list and set of gradients has the bits of the rule."""
    x, weight, grad_y = problem(rng, "NCHW", channels=ins, outs=outs, H=size, W=size)
    flat = [np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) for array in (grad_y, x)]
    expected = sums_by_rule(*flat)
    for layout in ("NCHW", "NHWC", "NHCW"):
        gradient, map_ = (np.ascontiguousarray(np.einsum(f"NCHW->{layout}", array)) for array in (grad_y, x))
        split = np.split(map_, [1], axis=layout.index("C"))
        for need, given in ((("weight",), map_), (("bias",), map_), (("weight", "bias"), split)):
            _, *grads = pwconv.pointwise_conv_backward(gradient, given, weight, layout=layout, need=need)
            for name, grad, value in zip(("weight", "bias"), grads, expected, strict=True):
                assert grad is None if name not in need else oracle.same_bits(grad, value)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_few_channels_with_a_stride(rng, layout):
    """A downsampling layer on a large batch: oneDNN 3.4 ends the process here in channels-last."""
    x, weight, grad_y = problem(rng, layout, channels=4, outs=8, stride=2, N=32, H=128, W=128)
    grads = pwconv.pointwise_conv_backward(grad_y, x, weight, stride=2, layout=layout)
    assert_close(grads, by_definition(grad_y, x, weight, layout, stride=2))


@pytest.mark.parametrize("ins", [4, 6, 10, 12])
@pytest.mark.parametrize("outs", [24, 48, 64, 96])
def test_low_tiles_of_adjacent_channels(rng, fma_isa, ins, outs):
    x, grad_y = (rng.standard_normal((9, 9, channels)).astype(np.float32) for channels in (ins, outs))
    grad = pwconv.pointwise_conv_backward(grad_y, x, np.ones((outs, ins), np.float32), layout="HWC")[1]
    expected = np.einsum("hwo,hwi->oi", grad_y.astype(np.float64), x.astype(np.float64))
    np.testing.assert_allclose(grad, expected, atol=1e-4)


@pytest.mark.parametrize("outs", [16, 40])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16"])
def test_narrow_maps(rng, dtype, outs):
    """Fewer and more out channels than in channels: either map may be the packed operand."""
    _, weight, grad_y = problem(rng, "NHWC", outs=outs)
    x = rng.integers(0, 100, (3, 9, 7, 24)).astype(dtype)
    narrow = pwconv.pointwise_conv_backward(grad_y, x, weight, layout="NHWC")
    wide = pwconv.pointwise_conv_backward(grad_y, x.astype(np.float32), weight, layout="NHWC")
    for grad, other in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(grad, other)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_list_with_a_narrow_and_a_broadcast_map(rng, groups):
    """Each element of a broadcast map has a gradient of its own."""
    x, weight, grad_y = problem(rng, "NCHW", groups=groups)
    parts = [rng.integers(0, 256, (3, 7, 9, 7), dtype=np.uint8), np.broadcast_to(x[:, 7:, :1, :1], (3, 17, 9, 7))]
    grad_parts, *others = pwconv.pointwise_conv_backward(grad_y, parts, weight, groups=groups)
    joined = np.concatenate(parts, axis=1, dtype=np.float32)
    assert [part.shape for part in grad_parts] == [part.shape for part in parts]
    expected = by_definition(grad_y, joined, weight, "NCHW", groups=groups)
    assert_close([np.concatenate(grad_parts, axis=1), *others], expected)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_batches_of_small_maps(rng, size):
    """Images that are not adjacent in memory, each with few or many pixels."""
    x, weight, grad_y = problem(rng, "NCHW", N=150, H=size, W=size)
    grads = pwconv.pointwise_conv_backward(grad_y, x, weight)
    assert_close(grads, by_definition(grad_y, x, weight, "NCHW"))


def test_a_stride_per_axis(rng):
    x, weight, grad_y = problem(rng, "NHWC")
    grad_y = grad_y[:, ::3, ::2]
    grad_x, grad_weight, _ = pwconv.pointwise_conv_backward(grad_y, x, weight, layout="NHWC", stride=(3, 2))
    sampled = pwconv.pointwise_conv_backward(grad_y, x[:, ::3, ::2], weight, layout="NHWC")
    np.testing.assert_array_equal(grad_x[:, ::3, ::2], sampled[0])
    assert np.count_nonzero(grad_x) == np.count_nonzero(sampled[0])
    np.testing.assert_array_equal(grad_weight, sampled[1])


def test_need_selects_the_gradients(rng):
    x, weight, grad_y = problem(rng, "NCHW")
    names = ("x", "weight", "bias")
    whole = pwconv.pointwise_conv_backward(grad_y, x, weight)
    for count in range(4):
        for need in itertools.permutations(names, count):
            grads = pwconv.pointwise_conv_backward(grad_y, x, weight, need=need)
            for name, grad, expected in zip(names, grads, whole, strict=True):
                if name in need:
                    np.testing.assert_array_equal(grad, expected)
                else:
                    assert grad is None


def test_equal_arguments_of_other_types(rng):
    """A call is checked once for its shapes, but for each spelling of its arguments: True == 1 == 1.0."""
    x, weight, grad_y = problem(rng, "NCHW")
    expected = pwconv.pointwise_conv_backward(grad_y, x, weight, num_threads=1)
    for need in (["x", "weight", "bias"], {"x", "weight", "bias"}, ("bias", "weight", "x")):
        for gradient, same in zip(
            pwconv.pointwise_conv_backward(grad_y, x, weight, num_threads=1, need=need), expected, strict=True
        ):
            np.testing.assert_array_equal(gradient, same)
    for name in ("stride", "groups", "num_threads"):
        for value in (True, 1.0, [True]):
            with pytest.raises(TypeError, match=name):
                pwconv.pointwise_conv_backward(grad_y, x, weight, **{name: value})
    with pytest.raises(TypeError, match="name in need"):
        pwconv.pointwise_conv_backward(grad_y, x, weight, need=(["x"],))


@pytest.mark.parametrize("weight_layout", ["OI", "IO"])
def test_shapes_of_kernels(rng, weight_layout):
    x, weight, grad_y = problem(rng, "NCHW")
    kernel = weight[:, :, None, None] if weight_layout == "OI" else np.ascontiguousarray(weight.T)[None, None]
    _, plain, _ = pwconv.pointwise_conv_backward(grad_y, x, weight)
    _, grad, _ = pwconv.pointwise_conv_backward(grad_y, x, kernel, weight_layout=weight_layout)
    assert grad.shape == kernel.shape
    np.testing.assert_array_equal(grad.reshape(plain.shape) if weight_layout == "OI" else grad[0, 0].T, plain)


def test_empty(rng):
    x, weight, grad_y = problem(rng, "NCHW")
    grads = pwconv.pointwise_conv_backward(grad_y[:0], x[:0], weight)
    assert grads[0].shape == (0, 24, 9, 7)
    assert not grads[1].any()
    assert not grads[2].any()


X, WEIGHT, GRAD_Y = (np.ones(shape, np.float32) for shape in ((2, 6, 4, 3), (4, 6), (2, 4, 4, 3)))
ERRORS = {
    "a gradient of another shape": (
        {"grad_y": GRAD_Y[:, 1:]},
        ValueError,
        r"^grad_y must have shape \(2, 4, 4, 3\) \(layout 'NCHW'\), got \(2, 3, 4, 3\)$",
    ),
    "a gradient in float64": ({"grad_y": GRAD_Y.astype(float)}, TypeError, r"^grad_y must be float32, got float64"),
    "no gradient": ({"grad_y": None}, TypeError, r"^grad_y must be a float32 array, got NoneType"),
    "other channels": ({"x": X[:, 1:]}, ValueError, r"^x must have 6 channels on axis 1 of layout 'NCHW'"),
    "a map in float64": ({"x": X.astype(float)}, TypeError, r"^x must be float32"),
    "weights in float64": ({"weight": WEIGHT.astype(float)}, TypeError, r"^weight must be float32, got float64"),
    "groups": ({"groups": 3}, ValueError, r"^groups must divide the output channels of weight"),
    "a stride of 0": ({"stride": 0}, ValueError, r"^stride must be from 1 to"),
    "threads": ({"num_threads": 0}, ValueError, r"^num_threads must be from 1 to"),
    "an unknown name": ({"need": ("x", "y")}, ValueError, r"^a name in need must be one of 'x', 'weight', 'bias', got"),
    "one unknown name": ({"need": "y"}, ValueError, r"^need must be one of 'x', 'weight', 'bias', got 'y'$"),
    "a name that is none": ({"need": (1,)}, TypeError, r"^a name in need must be a str, got int$"),
    "a number as need": ({"need": 3}, TypeError, r"^need must be a name or a tuple of names, got int$"),
    "bytes whose gradient is beyond all memory": (
        {
            "grad_y": np.broadcast_to(GRAD_Y[:1, :4, 0, 0], (2**58, 4)),
            "x": np.broadcast_to(np.uint8(1), (2**58, 16)),
            "weight": np.ones((4, 16), np.float32),
            "layout": "NC",
        },
        MemoryError,
        "does not fit into memory",
    ),
}


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, backend):
    changes, error, message = ERRORS[name]
    arguments = {"grad_y": GRAD_Y, "x": X, "weight": WEIGHT, "backend": backend} | changes
    with pytest.raises(error, match=message):
        pwconv.pointwise_conv_backward(**arguments)


def test_numpy_computes_the_same(rng):
    x, weight, grad_y = problem(rng, "NHWC", groups=2, stride=2)
    parts = [x[..., :5], x[..., 5:]]
    options = {"layout": "NHWC", "groups": 2, "stride": 2}
    native, numpy = (
        pwconv.pointwise_conv_backward(grad_y, parts, weight, **options, backend=backend)
        for backend in ("native", "numpy")
    )
    for grad, other in zip((*native[0], *native[1:]), (*numpy[0], *numpy[1:]), strict=True):
        assert other.dtype == np.float32
        np.testing.assert_allclose(grad, other, rtol=1e-5, atol=1e-4)


def test_nothing_is_written_to(rng):
    x, weight, grad_y = problem(rng, "NHWC")
    for array in (x, weight, grad_y):
        array.flags.writeable = False
    pwconv.pointwise_conv_backward(grad_y, x, weight, layout="NHWC")


# Layers and chains ----------------------------------------------------------------------------------------------------


# The fixed seed draws no argument at a kink of an activation; threads that share the generator would draw others.
draws_alone = pytest.mark.thread_unsafe(reason="threads would share its generator, and draw other numbers")


def slope(activation, v):
    """The derivative of an activation in float64, by a central difference (no v is within its step of a kink)."""
    step = 1e-5
    return (oracle.activate(activation, v + step) - oracle.activate(activation, v - step)) / (2 * step)


def assert_near(grad, expected, tolerance=1e-5):
    assert grad.dtype == np.float32
    assert grad.flags.c_contiguous
    np.testing.assert_allclose(grad, expected, rtol=0, atol=tolerance * abs(expected).max())


@draws_alone
@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 2)])
@pytest.mark.parametrize(("layout", "out_layout"), [("NCHW", "NCHW"), ("NHWC", "NHWC"), ("NCHW", "NHWC")])
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS, ids=str)
def test_a_layer(rng, activation, layout, out_layout, groups, stride, backend):
    x, weight, grad_y = problem(rng, layout, groups=groups, stride=stride)
    bias = rng.standard_normal(16, dtype=np.float32)
    options = {"layout": layout, "groups": groups, "stride": stride}
    sums = oracle.pointwise(x, weight, bias, **options).value
    expected, *_ = by_definition(grad_y * slope(activation, sums), x, weight, layout, groups=groups, stride=stride)
    layer = pwconv.PointwiseConv(weight, bias, **options, out_layout=out_layout, activation=activation, backend=backend)
    given = grad_y.transpose([layout.index(letter) for letter in out_layout])
    for grad, value in zip(layer.backward(given, x), expected, strict=True):
        assert_near(grad, value)


@draws_alone
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS, ids=str)
def test_a_layer_that_activates_its_input(rng, activation, layout):
    x, weight, grad_y = problem(rng, layout, stride=2)
    layer = pwconv.PointwiseConv(weight, layout=layout, stride=2, input_activation=activation)
    seen = oracle.activate(activation, x.astype(float))
    (grad_x, grad_weight, _), *_ = by_definition(grad_y, seen, weight, layout, stride=2)
    got = layer.backward(grad_y, x)
    assert_near(got[0], grad_x * slope(activation, x.astype(float)))
    assert_near(got[1], grad_weight)
    assert got[2] is None


def one_number(activation, backend="native"):
    """Return a layer of one channel with weight 1, whose result is the activation of its input."""
    one = np.ones((1, 1), np.float32)
    return pwconv.PointwiseConv(one, layout="NC", activation=activation, backend=backend)


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS[1:], ids=str)
def test_derivatives(activation):
    """Derivatives over the range in which activations are not linear."""
    v = np.linspace(-20, 20, 100001, dtype=np.float32)[:, np.newaxis] + np.float32(1e-3)
    grad, _, _ = one_number(activation).backward(np.ones_like(v), v)
    assert_near(grad, slope(activation, v.astype(float)), tolerance=1e-6)


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize(
    ("activation", "below", "above"),
    [
        (None, 1, 1),
        ("relu", 0, 1),
        ("relu6", 0, 0),
        ("leaky_relu", 0.01, 1),
        (("clip", -np.inf, 2.0), 1, 0),
        ("sigmoid", 0, 0),
        ("tanh", 0, 0),
        ("silu", 0, 1),
        ("gelu", 0, 1),
        ("gelu_tanh", 0, 1),
        ("hardsigmoid", 0, 0),
        ("hardswish", 0, 1),
    ],
    ids=str,
)
def test_derivatives_far_out(activation, below, above, backend):
    v = np.array([[-np.inf], [-3e38], [3e38], [np.inf], [np.nan]], np.float32)
    grad, _, _ = one_number(activation, backend).backward(np.ones_like(v), v)
    expected = [below, below, above, above, 1 if activation is None else np.nan]
    np.testing.assert_array_equal(grad.ravel(), np.array(expected, np.float32))


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "gelu", "silu"])
def test_derivatives_at_zero(activation):
    v = np.zeros((1, 1), np.float32)
    grad, _, _ = one_number(activation).backward(np.ones_like(v), v)
    assert grad == np.float32({"leaky_relu": 0.01, "gelu": 0.5, "silu": 0.5}.get(activation, 0))


def test_a_layer_of_a_list_and_an_io_kernel(rng):
    x, weight, grad_y = problem(rng, "NHWC")
    x = rng.integers(0, 4, x.shape).astype(np.uint8)
    kernel = np.ascontiguousarray(weight.T)[np.newaxis, np.newaxis]
    layer = pwconv.PointwiseConv(
        kernel, layout="channels_last", weight_layout="IO", input_activation="tanh", activation="relu"
    )
    parts, grad_weight, _ = layer.backward(grad_y, [x[..., :5], x[..., 5:]])
    whole = layer.backward(grad_y, x.astype(np.float32))
    assert grad_weight.shape == kernel.shape
    np.testing.assert_allclose(np.concatenate(parts, axis=3), whole[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad_weight, whole[1], rtol=1e-5, atol=1e-4)


def layers(rng, **options):
    """Return the layers of a chain of 24, 32, 16 and 8 channels, each with another activation."""
    made = []
    for ins, outs, activation in ((24, 32, "gelu"), (32, 16, "relu"), (16, 8, None)):
        weight = rng.standard_normal((outs, ins), dtype=np.float32) / np.float32(math.sqrt(ins))
        bias = None if activation is None else rng.standard_normal(outs, dtype=np.float32)
        made.append(pwconv.PointwiseConv(weight, bias, activation=activation, **options))
    return made


@draws_alone
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_chain(rng, layout):
    x, _, grad_y = problem(rng, layout, outs=8)
    chain = layers(rng, layout=layout)
    maps, sums = [x.astype(float)], []
    for layer in chain:
        sums.append(oracle.pointwise(maps[-1], layer.weight, layer.bias, layout=layout).value)
        maps.append(oracle.activate(layer.activation, sums[-1]))
    grad, expected = grad_y.astype(float), []
    for layer, seen, v in zip(reversed(chain), reversed(maps[:-1]), reversed(sums), strict=True):
        (grad, *own), *_ = by_definition(grad * slope(layer.activation, v), seen, layer.weight, layout)
        expected.append(own)
    grad_x, grads = pwconv.PointwiseChain(chain).backward(grad_y, x)
    assert_near(grad_x, grad)
    for layer, (grad_weight, grad_bias), (weight, bias) in zip(chain, grads, reversed(expected), strict=True):
        assert_near(grad_weight, weight)
        if layer.bias is None:
            assert grad_bias is None
        else:
            assert_near(grad_bias, bias)


@pytest.mark.parametrize("count", range(4))
def test_need_of_a_chain(rng, count):
    x, _, grad_y = problem(rng, "NCHW", outs=8)
    chain = pwconv.PointwiseChain(layers(rng))
    whole_x, whole = chain.backward(grad_y, x)
    for need in itertools.combinations(("x", "weight", "bias"), count):
        grad_x, grads = chain.backward(grad_y, x, need=need)
        assert (grad_x is not None) == ("x" in need)
        if grad_x is not None:
            np.testing.assert_array_equal(grad_x, whole_x)
        for got, expected in zip(grads, whole, strict=True):
            for name, grad, value in zip(("weight", "bias"), got, expected, strict=True):
                assert (grad is not None) == (name in need and value is not None)
                if grad is not None:
                    np.testing.assert_array_equal(grad, value)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_threads_do_not_change_a_chains_bits(rng, layout):
    x, _, grad_y = problem(rng, layout, outs=8, H=90, W=70)
    chain = pwconv.PointwiseChain(layers(rng, layout=layout))
    (grad_x, grads), (other_x, others) = (chain.backward(grad_y, x, num_threads=threads) for threads in (1, 3))
    assert oracle.same_bits(grad_x, other_x)
    for grad, other in zip(itertools.chain(*grads), itertools.chain(*others), strict=True):
        assert (grad is None and other is None) or oracle.same_bits(grad, other)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grad_y": GRAD_Y[:, 1:]}, ValueError, r"^grad_y must have shape \(2, 4, 4, 3\)"),
        ({"grad_y": GRAD_Y.astype(float)}, TypeError, r"^grad_y must be float32, got float64"),
        ({"x": X[:, 1:]}, ValueError, r"^x must have 6 channels"),
        ({"need": "y"}, ValueError, r"^need must be one of 'x', 'weight', 'bias', got 'y'$"),
        ({"num_threads": 0}, ValueError, r"^num_threads must be from 1 to"),
    ],
)
@pytest.mark.parametrize("chained", [False, True])
def test_errors_of_layers_and_chains(chained, changes, error, message):
    layer = pwconv.PointwiseConv(WEIGHT, activation="relu")
    given = {"grad_y": GRAD_Y, "x": X} | changes
    with pytest.raises(error, match=message):
        (pwconv.PointwiseChain([layer]) if chained else layer).backward(**given)


# Memory ---------------------------------------------------------------------------------------------------------------


def extra_memory(layout, view, threads):
    """Print the bytes that a call on maps of 51 MB and 26 MB needs at its peak beyond its arguments and results."""
    sizes = {"N": 16, "H": 56, "W": 112}
    x, grad_y = (np.ones([(sizes | {"C": c})[a] for a in layout], np.float32) for c in (128, 64))
    if view == "stepped":
        x, grad_y = x[:, :, ::2], grad_y[:, :, ::2]
    weight = np.ones((64, 128), np.float32)

    def call(x, grad_y):
        return pwconv.pointwise_conv_backward(grad_y, x, weight, layout=layout, num_threads=threads)

    call(x[:1, :, :2], grad_y[:1, :, :2])  # loads code, and starts threads with their packing buffers, which stay
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # resets the peak
    before = process.bytes_of("resident")
    grads = call(x.copy() if view == "copied" else x, grad_y)
    print(process.bytes_of("peak") - before - sum(grad.nbytes for grad in grads))


@pytest.mark.measures
@process.needs_linux
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("view", ["whole", "stepped"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_memory_beyond_the_results(layout, view, threads):
    assert int(process.run(extra_memory, layout, view, threads)) < threads * 8 * 2**20


def extra_memory_of_weights(layout, groups, threads):
    """Print the same bytes for grad_x alone, for a layer whose weights take 64 MB."""
    outs, ins = 4096, 4096 * groups
    sizes = {"N": 1, "H": 4, "W": 4}
    x, grad_y = (np.ones([(sizes | {"C": c})[a] for a in layout], np.float32) for c in (ins, outs))
    weight = np.ones((outs, ins // groups), np.float32)

    def call(x, grad_y, weight, groups):
        options = {"layout": layout, "need": "x", "num_threads": threads}
        return pwconv.pointwise_conv_backward(grad_y, x, weight, groups=groups, **options)

    few = [slice(16) if letter == "C" else slice(None) for letter in layout]
    call(x[tuple(few)], grad_y[tuple(few)], weight[:16, :16], 1)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = process.bytes_of("resident")
    grad = call(x, grad_y, weight, groups)[0]
    print(process.bytes_of("peak") - before - grad.nbytes)


@pytest.mark.measures
@process.needs_linux
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_memory_of_many_weights(layout, groups):
    assert int(process.run(extra_memory_of_weights, layout, groups, 1)) < 8 * 2**20


@pytest.mark.measures
@process.needs_linux
def test_the_measurement_sees_a_copy():
    assert int(process.run(extra_memory, "NCHW", "copied", 1)) > 40 * 2**20


# Models that learn ----------------------------------------------------------------------------------------------------


def picture():
    """Return the pixels of a photograph as (3, H, W) in [0, 1], and a class for each: dark, middle or light."""
    image = pytest.importorskip("skimage.data", reason="scikit-image is not installed (the extra `test` has it)")
    pixels = image.astronaut()[::8, ::8]
    light = pixels.mean(axis=2)
    x = np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32) / np.float32(255)
    return x[np.newaxis], np.digitize(light, np.quantile(light, [1 / 3, 2 / 3]))[np.newaxis]


def start(rng, widths):
    """Return weights and biases of layers with these numbers of channels."""
    pairs = itertools.pairwise(widths)
    return [
        ((rng.standard_normal((o, i)) / math.sqrt(i)).astype(np.float32), np.zeros(o, np.float32)) for i, o in pairs
    ]


def train(x, labels, parameters, steps, rate, forward_and_back):
    """Run plain gradient descent on the mean cross-entropy of a net; return the losses and the final accuracy.

    `forward_and_back(parameters, x)` returns the result, and a function from its gradient to those of the parameters.
    """
    losses = []
    for _ in range(steps):
        y, back = forward_and_back(parameters, x)
        shifted = np.exp(y - y.max(axis=1, keepdims=True))
        shares = shifted / shifted.sum(axis=1, keepdims=True)
        hit = np.take_along_axis(shares, labels[:, np.newaxis], axis=1)
        losses.append(float(-np.log(hit).mean()))
        np.put_along_axis(shares, labels[:, np.newaxis], hit - 1, axis=1)
        grads = back((shares / labels.size).astype(x.dtype))
        parameters = [
            tuple(array - x.dtype.type(rate) * grad for array, grad in zip(pair, own, strict=True))
            for pair, own in zip(parameters, grads, strict=True)
        ]
    return losses, float((y.argmax(axis=1) == labels).mean())


def by_chain(parameters, x):
    """A chain with ReLU after every layer but the last."""
    *hidden, last = parameters
    chain = pwconv.PointwiseChain(
        [*(pwconv.PointwiseConv(*pair, activation="relu") for pair in hidden), pwconv.PointwiseConv(*last)]
    )
    return chain(x), lambda grad: chain.backward(grad, x, need=("weight", "bias"))[1]


def by_numpy(parameters, x):
    """The same net computed by NumPy from the definition."""
    maps = [x]
    for weight, bias in parameters:
        seen = maps[-1] if len(maps) == 1 else np.maximum(maps[-1], 0)
        maps.append(np.einsum("oi,nihw->nohw", weight, seen) + bias[:, None, None])

    def back(grad):
        grads = []
        for i in reversed(range(len(parameters))):
            seen = np.maximum(maps[i], 0) if i else maps[i]
            grads.append((np.einsum("nohw,nihw->oi", grad, seen), grad.sum(axis=(0, 2, 3))))
            grad = np.einsum("oi,nohw->nihw", parameters[i][0], grad) * (maps[i] > 0)
        return grads[::-1]

    return maps[-1], back


@pytest.mark.parametrize("widths", [(3, 3), (3, 24, 3)], ids=["classifier", "chain"])
def test_a_model_learns(rng, widths):
    x, labels = picture()
    parameters = start(rng, widths)
    losses, accuracy = train(x, labels, parameters, 150, 0.5, by_chain)
    exact = [tuple(array.astype(float) for array in pair) for pair in parameters]
    expected, expected_accuracy = train(x.astype(float), labels, exact, 150, 0.5, by_numpy)
    np.testing.assert_allclose(losses, expected, rtol=5e-4)
    assert accuracy == pytest.approx(expected_accuracy, abs=0.005)
    assert losses[-1] < 0.7 * losses[0]


# torch ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed (the extra `peers` has it)")
    with module.enable_grad():  # other tests may have turned gradients off
        yield module


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1), (2, 3)])
def test_autograd(rng, torch, groups, stride):
    x, weight, grad_y = problem(rng, "NCHW", groups=groups, stride=stride)
    exact = [torch.from_numpy(array.astype(float)).requires_grad_() for array in (x, weight, np.zeros(16))]
    y = torch.nn.functional.conv2d(exact[0], exact[1][:, :, None, None], exact[2], stride=stride, groups=groups)
    y.backward(torch.from_numpy(grad_y.astype(float)))
    grads = pwconv.pointwise_conv_backward(grad_y, x, weight, groups=groups, stride=stride)
    for grad, tensor in zip(grads, exact, strict=True):
        expected = tensor.grad.numpy()
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(
    "activation",
    ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "hardsigmoid", "hardswish"],
)
def test_autograd_of_a_layer(rng, torch, activation, groups, stride, layout):
    x, weight, grad_y = problem(rng, "NCHW", groups=groups, stride=stride)
    bias = rng.standard_normal(16, dtype=np.float32)
    exact = [torch.from_numpy(array.astype(float)).requires_grad_() for array in (x, weight, bias)]
    y = torch.nn.functional.conv2d(exact[0], exact[1][:, :, None, None], exact[2], stride=stride, groups=groups)
    functions = torch.nn.functional
    function = functions.gelu if activation == "gelu_tanh" else getattr(functions, activation)
    options = {"approximate": "tanh"} if activation == "gelu_tanh" else {}
    function(y, **options).backward(torch.from_numpy(grad_y.astype(float)))
    layer = pwconv.PointwiseConv(weight, bias, groups=groups, stride=stride, layout=layout, activation=activation)
    if layout == "NHWC":
        x, grad_y = (np.moveaxis(array, 1, -1) for array in (x, grad_y))
    grad_x, *grads = layer.backward(grad_y, x)
    grads.insert(0, np.moveaxis(grad_x, -1, 1) if layout == "NHWC" else grad_x)
    for grad, tensor in zip(grads, exact, strict=True):
        expected = tensor.grad.numpy()
        np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("widths", [(3, 3), (3, 24, 3)], ids=["classifier", "chain"])
def test_a_model_learns_as_in_torch(rng, torch, widths):
    x, labels = picture()
    parameters = start(rng, widths)
    losses, accuracy = train(x, labels, parameters, 100, 0.5, by_chain)
    tensors = [tuple(torch.from_numpy(a.copy()).requires_grad_() for a in pair) for pair in parameters]
    optimizer = torch.optim.SGD(itertools.chain(*tensors), lr=0.5)
    expected = []
    for _ in range(100):
        y = torch.from_numpy(x)
        for i, (weight, bias) in enumerate(tensors):
            y = torch.nn.functional.conv2d(y, weight[:, :, None, None], bias)
            y = torch.relu(y) if i < len(tensors) - 1 else y
        loss = torch.nn.functional.cross_entropy(y, torch.from_numpy(labels))
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(losses, expected, rtol=5e-4)
    assert accuracy == pytest.approx(float((y.argmax(dim=1).numpy() == labels).mean()), abs=0.005)
