"""The same bits for any thread count, layout, view, batch and instruction set: there is one order of summation.

A sum over the input channels of a group starts at +0 in every block of 256 channels and is one chain of fused
multiply-adds in channel order; block sums are added in ascending order; then come bias, output scale and residual (one
FMA where both are given) and the activation. Outside this rule are x86 processors without FMA, the NumPy backend, and a
``precision`` other than "highest".
"""

from __future__ import annotations

import itertools
import os
import re
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest

import pwconv

LAYOUT = "NCHW"
SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 1e-40)


class Problem(NamedTuple):
    """Arrays of one layer in NCHW, with all input transforms and epilogues."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    fused: dict[str, Any]

    def run(self, **changes) -> np.ndarray:
        return pwconv.pointwise_conv(self.x, self.weight, self.bias, **self.fused | changes)


FUSED = {
    "nothing": (),
    "relu": ("activation",),
    "scales": ("input_scale", "input_shift", "output_scale"),
    "residual": ("residual",),
    "everything": ("input_scale", "input_shift", "input_activation", "output_scale", "residual", "activation"),
}


def problem(channels=257, outs=45, size=(14, 13), *, batch=3, fused="everything", activation="silu", seed=0):
    """Random numbers, with NaN, infinities, -0 and denormals in a few places."""
    rng = np.random.default_rng([seed, channels, outs, *size])
    x = rng.standard_normal((batch, channels, *size), np.float32)
    for value in SPECIAL:
        x[tuple(rng.integers(0, x.shape))] = value
    weight = rng.standard_normal((outs, channels), np.float32)
    available = {
        "input_scale": rng.standard_normal((batch, channels), np.float32),
        "input_shift": rng.standard_normal(channels, np.float32),
        "input_activation": "relu",
        "output_scale": rng.standard_normal((batch, outs), np.float32),
        "residual": rng.standard_normal((batch, outs, *size), np.float32),
        "activation": activation,
    }
    bias = rng.standard_normal(outs, np.float32)
    return Problem(x, weight, bias, {name: available[name] for name in FUSED[fused]})


def assert_same_bits(left, right):
    assert oracle.same_bits(left, right), f"{int(np.sum(left != right))} of {left.size} elements differ"


def relaid(array: np.ndarray, layout: str) -> np.ndarray:
    """A contiguous copy of an NCHW array in another layout."""
    return np.ascontiguousarray(np.einsum(f"{LAYOUT}->{layout}", array))


def canonical(array: np.ndarray, layout: str) -> np.ndarray:
    """An array in ``layout`` seen as NCHW."""
    return np.einsum(f"{layout}->{LAYOUT}", array)


# Channels around multiples of 256; maps large enough for several threads and small enough for edges to matter.
SHAPES = [
    (1, 1, (5, 3)),
    (7, 64, (56, 57)),
    (255, 33, (14, 14)),
    (256, 65, (28, 28)),
    (257, 13, (7, 7)),
    (512, 40, (17, 19)),
    (513, 97, (40, 40)),
    (520, 300, (18, 18)),
    (1100, 31, (7, 7)),
]


@pytest.mark.parametrize(("channels", "outs", "size"), SHAPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_thread_count(fma_isa, channels, outs, size, layout):
    case = problem(channels, outs, size)
    x, residual = (relaid(array, layout) for array in (case.x, case.fused["residual"]))
    alone = case._replace(x=x).run(layout=layout, residual=residual, num_threads=1)
    for threads in (2, 3, 7, (os.cpu_count() or 1) + 1):
        assert_same_bits(case._replace(x=x).run(layout=layout, residual=residual, num_threads=threads), alone)


@pytest.fixture
def check_instruction_sets(engine, request):
    """Compare what a function returns under every instruction set with FMA, here and on another machine.

    With ``--keep-bits FOLDER`` a run leaves results for another machine's ``--compare-bits FOLDER``.
    """
    kept, elsewhere = (request.config.getoption(option) for option in ("keep_bits", "compare_bits"))
    file = re.sub(r"\W+", "_", request.node.name) + ".npy"
    names = [name for name in engine.isa_supported() if name != "baseline"]
    if len(names) < 2 and elsewhere is None:
        pytest.skip(f"needs two instruction sets with FMA, this machine has {names}")

    def check(compute):
        before, results = engine.isa_active(), []
        try:
            for name in names:
                engine.set_isa(name)
                results.append(compute())
        finally:
            engine.set_isa(before)
        for other in results[1:]:
            assert_same_bits(other, results[0])
        if elsewhere is not None:
            assert_same_bits(np.load(elsewhere / file), results[0])
        if kept is not None:
            np.save(kept / file, results[0])

    return check


@pytest.mark.parametrize(("channels", "outs", "size"), SHAPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_instruction_sets(check_instruction_sets, channels, outs, size, layout):
    case = problem(channels, outs, size)
    x, residual = (relaid(array, layout) for array in (case.x, case.fused["residual"]))
    check_instruction_sets(lambda: case._replace(x=x).run(layout=layout, residual=residual))


@pytest.mark.parametrize("where", ["input_activation", "activation"])
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS, ids=str)
def test_instruction_sets_activate_alike(check_instruction_sets, activation, where):
    """Numbers of every magnitude through a layer of one channel with weight 1 and an activation."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2**32, (1, 1, 250, 241), np.uint32).view(np.float32)
    one = np.ones((1, 1), np.float32)
    check_instruction_sets(lambda: pwconv.pointwise_conv(x, one, **{where: activation}))


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize(("channels", "outs", "size"), [(256, 33, (14, 13)), (600, 17, (9, 8))])
def test_layouts(fma_isa, channels, outs, size, fused):
    case = problem(channels, outs, size, fused=fused)
    expected = case.run()
    for layout, out_layout in itertools.product(oracle.layouts("HW"), ["NCHW", "NHWC", "NWHC", "HCNW", "WHCN"]):
        changes = {"layout": layout, "out_layout": out_layout}
        if "residual" in case.fused:
            changes["residual"] = relaid(case.fused["residual"], out_layout)
        result = case._replace(x=relaid(case.x, layout)).run(**changes)
        assert_same_bits(canonical(result, out_layout), expected)


def test_ranks(fma_isa):
    """Results do not depend on the number of pixel axes: one, two, three, or none besides the batch."""
    case = problem(300, 21, (12, 10), fused="scales")
    expected = case.run().reshape(3, 21, 120)
    pixels = case.x.reshape(3, 300, 120)
    assert_same_bits(case._replace(x=pixels).run(layout="NCL"), expected)
    assert_same_bits(case._replace(x=pixels.reshape(3, 300, 5, 4, 6)).run(layout="NCDHW").reshape(3, 21, 120), expected)
    by_pixel = case._replace(x=np.ascontiguousarray(pixels.transpose(0, 2, 1)))
    assert_same_bits(by_pixel.run(layout="NLC").transpose(0, 2, 1), expected)
    scales = {name: case.fused[name] for name in ("input_scale", "output_scale")}
    each = {name: np.repeat(scale, 120, axis=0) for name, scale in scales.items()}
    rows = by_pixel._replace(x=by_pixel.x.reshape(360, 300)).run(layout="NC", **each)
    assert_same_bits(rows.reshape(3, 120, 21).transpose(0, 2, 1), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("fused", FUSED)
def test_batch_size_and_position(fma_isa, layout, fused):
    case = problem(257, 45, (14, 13), batch=5, fused=fused)
    per_image = {"input_scale", "output_scale", "residual"} & case.fused.keys()

    def run(images):
        changes = {name: case.fused[name][images] for name in per_image}
        if "residual" in changes:
            changes["residual"] = relaid(changes["residual"], layout)
        return canonical(case._replace(x=relaid(case.x[images], layout)).run(layout=layout, **changes), layout)

    expected = run([0, 1, 2, 3, 4])
    for images in ([0], [3], [4, 2], [4, 3, 2, 1, 0], [2] * 9):
        assert_same_bits(run(images), expected[images])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_where_a_pixel_lies(fma_isa, layout):
    """A pixel's result does not depend on the map around it: crops, single pixels, strides."""
    case = problem(513, 45, (21, 23), fused="scales")

    def run(pixels, **stride):
        x = relaid(case.x[(..., *pixels)], layout)
        return canonical(case._replace(x=x).run(layout=layout, **stride), layout)

    everything = (slice(None), slice(None))
    expected = run(everything)
    for pixels in (np.s_[3:, 5:], np.s_[:20, 1:2], np.s_[7:8, 7:8], np.s_[::2, ::3], np.s_[::-1, 4:9]):
        assert_same_bits(run(pixels), expected[(..., *pixels)])
    for rows, columns in ((2, 2), (1, 3), (20, 7)):
        assert_same_bits(run(everything, stride=(rows, columns)), expected[..., ::rows, ::columns])


LINKS = pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber", "multilabel"])


def classified(rows, link, layout, x, threads=None):
    """Probabilities and labels, in NCHW, of a map; logits lie far from 0 and include NaN and infinities."""
    rng = np.random.default_rng([5, rows])
    weight = 40 * rng.standard_normal((rows, x.shape[1]), np.float32)
    layer = pwconv.PointwiseConv(weight, rng.standard_normal(rows, np.float32), layout=layout)
    clf = pwconv.PixelClassifier.from_chain(layer, link=link)
    x = relaid(x, layout)
    labels = clf.predict(x, num_threads=threads)
    if labels.ndim < x.ndim:
        labels = np.expand_dims(labels, layout.index("C"))
    return [canonical(result, layout) for result in (clf.predict_proba(x, num_threads=threads), labels)]


@LINKS
@pytest.mark.parametrize("rows", [1, 5])
def test_probabilities(fma_isa, link, rows):
    x = problem(12, rows, (67, 61)).x
    expected = classified(rows, link, "NCHW", x, threads=1)
    for layout, threads in itertools.product(["NCHW", "NHWC", "NHCW"], [1, 2, 5]):
        for result, whole in zip(classified(rows, link, layout, x, threads), expected, strict=True):
            assert_same_bits(result, whole)
    for result, whole in zip(classified(rows, link, "NCHW", x[:, :, 5:6, ::2]), expected, strict=True):
        assert_same_bits(result, whole[..., 5:6, ::2])


@LINKS
@pytest.mark.parametrize("rows", [1, 5])
def test_instruction_sets_classify_alike(check_instruction_sets, link, rows):
    x = problem(12, rows, (67, 61)).x
    check_instruction_sets(lambda: classified(rows, link, "NCHW", x)[0])


@pytest.mark.parametrize("kind", oracle.placements((1, 1, 1, 1), 1))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_views_alignment_and_out(fma_isa, layout, kind):
    case = problem(257, 37, (11, 9))
    x, residual = relaid(case.x, layout), relaid(case.fused["residual"], layout)
    expected = case._replace(x=x).run(layout=layout, residual=residual)

    def laid_out(array):
        channel_axis = layout.index("C") if array.ndim == 4 else 0
        return oracle.placements(array.shape, channel_axis)[kind].hold(array)

    view = Problem(laid_out(x), laid_out(case.weight), laid_out(case.bias), case.fused)
    assert_same_bits(view.run(layout=layout, residual=laid_out(residual)), expected)
    out = laid_out(np.zeros_like(expected))
    assert_same_bits(view.run(layout=layout, residual=residual, out=out), expected)
    in_place = laid_out(residual)
    assert_same_bits(view.run(layout=layout, residual=in_place, out=in_place), expected)


def test_broadcast_input(fma_isa):
    case = problem(257, 37, (11, 9), fused="scales")
    for axes in (np.s_[:, :, :1, :1], np.s_[:, :, :, :1], np.s_[:1], np.s_[:, :1]):
        repeated = np.broadcast_to(case.x[axes], case.x.shape)
        expected = case._replace(x=repeated.copy()).run()
        assert_same_bits(case._replace(x=repeated).run(), expected)


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS, ids=str)
def test_function_and_layer(fma_isa, activation):
    case = problem(257, 37, (11, 9), activation=activation)
    expected = case.run()
    fixed = {name: case.fused[name] for name in ("input_activation", "activation")}
    per_call = {name: value for name, value in case.fused.items() if name not in fixed}
    layer = pwconv.PointwiseConv(case.weight, case.bias, **fixed)
    assert_same_bits(layer(case.x, **per_call), expected)
    assert_same_bits(layer(case.x, **per_call), expected)
    assert_same_bits(layer(case.x, **per_call, out=np.empty_like(expected), num_threads=2), expected)
    keras = np.ascontiguousarray(case.weight.T)[np.newaxis, np.newaxis]
    assert_same_bits(case._replace(weight=keras).run(weight_layout="IO"), expected)
    torch = case.weight[..., np.newaxis, np.newaxis]
    assert_same_bits(case._replace(weight=torch).run(), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("weight_layout", ["OI", "IO"])
@pytest.mark.parametrize(
    ("channels", "outs", "groups", "size"), [(700, 509, 1, 7), (2100, 170, 1, 5), (1400, 1010, 2, 3), (520, 700, 1, 9)]
)
def test_many_weights_and_few_pixels(fma_isa, layout, weight_layout, channels, outs, groups, size):
    """The function packs such weights panel by panel."""
    rng = np.random.default_rng(channels)
    shape = {"N": 1, "C": channels, "H": size, "W": size}
    x = rng.standard_normal([shape[letter] for letter in layout], np.float32)
    weight = rng.standard_normal((outs, channels // groups), np.float32)
    bias = rng.standard_normal(outs, np.float32)
    options = {"groups": groups, "layout": layout, "activation": "relu"}
    expected = pwconv.PointwiseConv(weight, bias, **options)(x, num_threads=1)
    given = weight if weight_layout == "OI" else np.ascontiguousarray(weight.T)
    for threads in (1, 2, 3):
        y = pwconv.pointwise_conv(x, given, bias, weight_layout=weight_layout, num_threads=threads, **options)
        assert oracle.same_bits(y, expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("fused", FUSED)
def test_one_output_channel_alone(fma_isa, layout, fused):
    case = problem(513, 67, (9, 10), fused=fused)
    per_output = [name for name in ("output_scale", "residual") if name in case.fused]

    def run(outs):
        changes = {name: case.fused[name][:, outs] for name in per_output}
        if "residual" in changes:
            changes["residual"] = relaid(changes["residual"], layout)
        part = Problem(relaid(case.x, layout), case.weight[outs], case.bias[outs], case.fused)
        return canonical(part.run(layout=layout, **changes), layout)

    expected = run(slice(None))
    for outs in (slice(0, 1), slice(31, 32), slice(66, 67), slice(5, 21), slice(None, None, -1)):
        assert_same_bits(run(outs), expected[:, outs])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("groups", "channels", "outs"), [(2, 257, 19), (3, 64, 32), (4, 256, 9), (8, 5, 1), (32, 1, 1)]
)
def test_groups(fma_isa, layout, groups, channels, outs):
    """Each group is a layer of its own: blocks of 256 channels are counted inside it."""
    case = problem(groups * channels, groups * outs, (9, 10))
    case = case._replace(weight=np.ascontiguousarray(case.weight[:, :channels]))
    residual = relaid(case.fused["residual"], layout)
    together = case._replace(x=relaid(case.x, layout)).run(groups=groups, layout=layout, residual=residual)
    for group in range(groups):
        ins = slice(group * channels, (group + 1) * channels)
        own = slice(group * outs, (group + 1) * outs)
        part = Problem(case.x[:, ins], case.weight[own], case.bias[own], case.fused)
        alone = part.run(
            input_scale=case.fused["input_scale"][:, ins],
            input_shift=case.fused["input_shift"][ins],
            output_scale=case.fused["output_scale"][:, own],
            residual=case.fused["residual"][:, own],
        )
        assert_same_bits(canonical(together, layout)[:, own], alone)


def test_denormals_are_zeros_everywhere(fma_isa):
    """Denormal numbers in arguments and results become zeros of their sign, in every layout."""
    rng = np.random.default_rng(9)
    shapes = {"x": (2, 40, 9, 9), "weight": (21, 40), "bias": (21,), "residual": (2, 21, 9, 9)}
    arrays = {name: (1e-20 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    arrays["bias"] *= np.float32(1e-18)
    arrays["residual"] *= np.float32(1e-18)
    clean = {
        name: np.where(np.abs(array) < oracle.TINY, np.copysign(np.float32(0), array), array)
        for name, array in arrays.items()
    }
    result = pwconv.pointwise_conv(**arrays)
    assert np.any(result == 0)
    assert np.any(result != 0)
    assert np.all((result == 0) | (np.abs(result) >= oracle.TINY))
    assert_same_bits(pwconv.pointwise_conv(**clean), result)
    last = {name: relaid(array, "NHWC") if array.ndim == 4 else array for name, array in arrays.items()}
    assert_same_bits(canonical(pwconv.pointwise_conv(**last, layout="NHWC"), "NHWC"), result)


@pytest.mark.parametrize("channels", [1, 2, 7, 255, 256, 257, 512, 600])
@pytest.mark.parametrize("fused", ["nothing", "relu", "scales", "residual", "scale and residual", "shift"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_rule_itself(fma_isa, layout, channels, fused):
    """Results equal the documented order of summation, computed with one exactly emulated FMA at a time."""
    rng = np.random.default_rng([channels, len(fused)])
    x = rng.standard_normal((2, channels, 5, 4), np.float32)
    weight = rng.standard_normal((19, channels), np.float32)
    bias = rng.standard_normal(19, np.float32)
    scale, shift = rng.standard_normal((2, 2, channels), np.float32)
    output_scale = rng.standard_normal((2, 19), np.float32)
    residual = rng.standard_normal((2, 19, 5, 4), np.float32)

    def spread(per_channel):
        return per_channel[..., np.newaxis, np.newaxis]

    a, call = x, {}
    if fused == "scales":
        call = {"input_scale": scale, "input_shift": shift, "output_scale": output_scale}
        a = oracle.fma(spread(scale), x, spread(shift))
    elif fused == "shift":
        call = {"input_shift": shift}
        a = x + spread(shift)
    elif fused == "residual":
        call = {"residual": relaid(residual, layout)}
    elif fused == "scale and residual":
        call = {"output_scale": output_scale, "residual": relaid(residual, layout)}
    elif fused == "relu":
        call = {"activation": "relu"}
    blocks = []
    for start in range(0, channels, oracle.BLOCK):
        block = np.zeros((2, 19, 5, 4), np.float32)
        for channel in range(start, min(start + oracle.BLOCK, channels)):
            block = oracle.fma(weight[:, channel, None, None], a[:, channel, None], block)
        blocks.append(block)
    expected = sum(blocks[1:], start=blocks[0]) + bias[:, None, None]
    if fused == "scale and residual":
        expected = oracle.fma(spread(output_scale), expected, residual)
    elif fused == "scales":
        expected = spread(output_scale) * expected
    elif fused == "residual":
        expected = expected + residual
    elif fused == "relu":
        expected = np.maximum(expected, np.float32(0))
    result = pwconv.pointwise_conv(relaid(x, layout), weight, bias, layout=layout, **call)
    assert_same_bits(canonical(result, layout), expected)


def test_the_oracle_rounds_once():
    """Emulated FMAs against exact fractions, near ties, where rounding twice would give another result."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 4000), np.float32)
    product = a.astype(np.float64) * b
    # Addends that put the exact sum next to the midpoint of two float32 numbers, from both sides.
    middle = product.astype(np.float32).astype(np.float64) + np.ldexp(0.5, np.frexp(product)[1] - 24)
    c = np.where(rng.integers(0, 2, 4000) == 1, (middle - product), rng.standard_normal(4000)).astype(np.float32)
    result = oracle.fma(a, b, c)
    for inputs in zip(a, b, c, result, strict=True):
        left, right, addend, rounded = (Fraction(float(value)) for value in inputs)
        exact = left * right + addend
        below, above = (Fraction(float(np.nextafter(inputs[3], np.float32(side)))) for side in (-np.inf, np.inf))
        assert abs(exact - rounded) <= min(abs(exact - below), abs(exact - above))
