"""``precision="high"`` and ``"medium"``: error bounds of sums of bfloat16 products, and the same-bits rule for them."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import oracle
import pytest
from test_exactness import CHANNELS, KINDS, normal

import pwconv

PRECISIONS = ("high", "medium")
OUTS, PIXELS = 40, 35
# The special values of each precision, which have no bf16 split (see split.h), and NaN, which has one.
LONGEST_NAN = np.uint32(0xFFFFFFFF).view(np.float32)
SPECIAL_VALUES = {
    "medium": (np.inf, -np.inf, np.nan, LONGEST_NAN, 3.4e38),
    "high": (np.inf, -np.inf, np.nan, LONGEST_NAN, -3.4e38, 1e-37, -3e-33),
}


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def in_both_layouts(x, weight, **options):
    """The results for an array of pixels x channels, computed as a channels-last and as a channels-first map."""
    last = pwconv.pointwise_conv(x, weight, layout="NC", **options)
    first = pwconv.pointwise_conv(np.ascontiguousarray(x.T)[np.newaxis], weight, layout="NCL", **options)[0].T
    return last, first


def multiplies_bf16(engine, precision):
    return engine.isa_kernel_sets(engine.isa_active())[precision] not in ("baseline", "avx2", "avx512", "neon")


def check_bound(precision, x, weight):
    """|error| <= split_bound() sum |w| |x| + 2^-126 sum(|w| + |x| + 6)."""
    channels = x.shape[1]
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    size, magnitude = np.abs(x).astype(np.float64), np.abs(weight).astype(np.float64)
    bound = oracle.split_bound(precision, channels) * (size @ magnitude.T)
    bound += oracle.TINY * (size.sum(1)[:, np.newaxis] + magnitude.sum(1) + 6 * channels)
    for result in in_both_layouts(x, weight, precision=precision):
        truth = oracle.Truth(exact, bound)
        assert truth.accepts(result), truth.explain(result)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_bound(bf16_isa, precision, channels, kind):
    for seed in range(2):
        rng = np.random.default_rng([seed, channels])
        check_bound(precision, kind(rng, (PIXELS, channels)), normal(rng, (OUTS, channels)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
def test_error_bound_at_any_scale(bf16_isa, precision, scale):
    x, weight = drawn((PIXELS, 300)) * np.float32(scale), drawn((OUTS, 300), 1)
    check_bound(precision, x, weight)
    check_bound(precision, weight[:PIXELS], drawn((OUTS, 300), 2) * np.float32(scale))


@pytest.mark.parametrize("channels", [32, 33, 64, 100, 257, 1024])
def test_sums_of_rounded_numbers(engine, bf16_isa, channels):
    """The result is the sum of the bf16 terms' products up to rounding, so a bfloat16 kernel set computed it."""
    x, weight = drawn((PIXELS, channels)), drawn((OUTS, channels), 1)
    first, first_weight = (oracle.bfloat16(values).astype(np.float64) for values in (x, weight))
    second, second_weight = (
        oracle.bfloat16(values - oracle.bfloat16(values)).astype(np.float64) for values in (x, weight)
    )
    sums = {"medium": first @ first_weight.T}
    sums["high"] = sums["medium"] + first @ second_weight.T + second @ first_weight.T
    size = np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T
    for precision, products in (("high", 3), ("medium", 1)):
        if not multiplies_bf16(engine, precision):
            continue
        for result in in_both_layouts(x, weight, precision=precision):
            truth = oracle.Truth(sums[precision], (products + 1) * channels * oracle.UNIT * size)
            assert truth.accepts(result), truth.explain(result)


CASES = [
    # in channels, out channels, size, groups
    (64, 48, (9, 9), 1),
    (300, 77, (6, 7), 1),
    (132, 130, (11, 13), 2),
    (1000, 40, (4, 4), 1),
    (35, 200, (21, 20), 1),
]


def relaid(array, layout):
    return array if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(array, 1, -1))


def computed(x, weight, layout="NCHW", **options):
    """The result in channels-first order for any layout."""
    residual = options.pop("residual", None)
    y = pwconv.pointwise_conv(
        relaid(x, layout), weight, layout=layout, residual=None if residual is None else relaid(residual, layout),
        **options,
    )  # fmt: skip
    return y if layout == "NCHW" else np.moveaxis(y, -1, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("channels", "outs", "size", "groups"), CASES)
def test_same_bits(bf16_isa, precision, channels, outs, size, groups):
    """Within a precision no bit depends on threads, layout, batch, crop, stride, group, function or layer."""
    x, weight, bias = drawn((3, channels, *size)), drawn((outs, channels // groups), 1), drawn(outs, 2)
    options = {"bias": bias, "groups": groups, "precision": precision, "activation": "silu"}
    expected = computed(x, weight, num_threads=1, **options)
    for layout, threads in itertools.product(("NCHW", "NHWC"), (1, 2, 5)):
        assert oracle.same_bits(computed(x, weight, layout, num_threads=threads, **options), expected)
    assert oracle.same_bits(computed(x[1:2], weight, **options), expected[1:2])
    assert oracle.same_bits(computed(x[:, :, 1:, 2:], weight, **options), expected[:, :, 1:, 2:])
    strided = pwconv.pointwise_conv(x, weight, stride=2, **options)
    assert oracle.same_bits(strided, np.ascontiguousarray(expected[:, :, ::2, ::2]))
    options.pop("bias")
    layer = pwconv.PointwiseConv(weight, bias, **options)
    assert oracle.same_bits(layer(x), expected)
    if groups == 1:
        parts = np.split(x, [channels // 3], axis=1)
        assert oracle.same_bits(layer(parts), expected)
        chain = pwconv.PointwiseChain([layer, pwconv.PointwiseConv(drawn((50, outs)), precision=precision)])
        assert oracle.same_bits(chain(x), chain.layers[1](expected))
    else:
        half = pwconv.pointwise_conv(
            x[:, : channels // 2], weight[: outs // 2], bias[: outs // 2], precision=precision, activation="silu"
        )
        assert oracle.same_bits(half, np.ascontiguousarray(expected[:, : outs // 2]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_input_transforms_and_epilogue(bf16_isa, precision):
    """Fused scales, shifts, residuals and activations give the bits of the same operations applied separately."""
    x, weight = drawn((2, 64, 9, 8)), drawn((40, 64), 1)
    options = {"precision": precision}
    gate, shift = np.abs(drawn((2, 64), 2)), drawn(64, 3)
    ready = np.maximum(oracle.fma(x, gate[:, :, np.newaxis, np.newaxis], shift[:, np.newaxis, np.newaxis]), 0)
    for layout in ("NCHW", "NHWC"):
        fused = computed(x, weight, layout, input_scale=gate, input_shift=shift, input_activation="relu", **options)
        assert oracle.same_bits(fused, computed(ready, weight, layout, **options))
        plain = computed(x, weight, layout, **options)
        scale, residual = drawn(40, 4), drawn(plain.shape, 5)
        scaled = computed(x, weight, layout, output_scale=scale, residual=residual, **options)
        assert oracle.same_bits(scaled, oracle.fma(plain, scale[:, np.newaxis, np.newaxis], residual))
        classifier = pwconv.PixelClassifier(weight, layout=layout, precision=precision)
        labels = classifier.predict(relaid(x, layout))
        assert np.array_equal(labels, plain.argmax(1))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.float16, ml_dtypes.bfloat16])
def test_narrow_numbers(bf16_isa, precision, kind):
    """Narrow dtypes give the bits of the same numbers in float32, also where a value has no bf16 split."""
    shape, weight, gate, options = (2, 100, 9, 8), drawn((40, 100), 1), drawn(100, 2), {"precision": precision}
    if np.issubdtype(kind, np.integer):
        bounds = np.iinfo(kind)
        x = np.random.default_rng(3).integers(bounds.min, bounds.max, shape, kind, endpoint=True)
    else:
        x = drawn(shape).astype(kind)
        x[0, 5, 2, 3], x[1, 99, 8, 7], x[1, 0, 0, 0] = np.inf, np.nan, 1e-37
    wide, other = x.astype(np.float32), drawn((2, 70, 9, 8), 4)
    for layout in ("NCHW", "NHWC"):
        for own in ({}, {"input_scale": gate}):
            narrow, expected = (computed(one, weight, layout, **own, **options) for one in (x, wide))
            assert oracle.same_bits(narrow, expected)
        for second in (x[:, 30:], other):
            parts = [relaid(part, layout) for part in (x[:, :30], second)]
            joined = np.concatenate([part.astype(np.float32) for part in (x[:, :30], second)], axis=1)
            result = pwconv.pointwise_conv(parts, weight, layout=layout, **options)
            assert oracle.same_bits(result, relaid(computed(joined, weight, layout, **options), layout))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("channels", "outs", "size", "groups"), CASES)
def test_values_without_a_bf16_split(bf16_isa, precision, layout, channels, outs, size, groups):
    """Pixels and out channels with a special value get the bits of "highest"; no other bit changes."""
    rng = np.random.default_rng(7)
    x, weight, bias = drawn((2, channels, *size)), drawn((outs, channels // groups), 1), drawn(outs, 2)
    residual = drawn((2, outs, *size), 3)
    clean, clean_weight = x.copy(), weight.copy()
    pixel, out = np.zeros((2, groups, *size), bool), np.zeros(outs, bool)
    for value in SPECIAL_VALUES[precision]:
        image, channel, row, column = (rng.integers(n) for n in x.shape)
        x[image, channel, row, column] = value
        pixel[image, channel // (channels // groups), row, column] = True
        row, column = (rng.integers(n) for n in weight.shape)
        weight[row, column] = value
        out[row] = True
    special = np.repeat(pixel, outs // groups, axis=1) | out[:, np.newaxis, np.newaxis]
    for options in ({}, {"activation": "relu"}, {"activation": "gelu", "residual": residual}):
        options = options | {"bias": bias, "groups": groups, "num_threads": 2}
        highest, result = (computed(x, weight, layout, precision=name, **options) for name in ("highest", precision))
        without = computed(clean, clean_weight, layout, precision=precision, **options)
        assert oracle.same_bits(result[special], highest[special])
        assert oracle.same_bits(result[~special], without[~special])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_residual_as_out_with_a_special_value(bf16_isa, precision):
    x, weight = drawn((1, 64, 7, 7)), drawn((40, 64), 1)
    x[0, 3, 2, 1] = np.inf
    residual = drawn((1, 40, 7, 7), 2)
    expected = pwconv.pointwise_conv(x, weight, residual=residual, precision=precision)
    assert pwconv.pointwise_conv(x, weight, residual=residual, out=residual, precision=precision) is residual
    assert oracle.same_bits(residual, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_kernel_set_depends_on_channels_only(engine, bf16_isa, precision):
    kernel_set = engine.isa_kernel_sets(bf16_isa)[precision]
    layer = pwconv.PointwiseConv(drawn((256, 256)), precision=precision)
    for shape, threads in itertools.product([(1, 256, 1, 1), (1, 256, 7, 7), (5, 256, 30, 30)], (1, 2)):
        assert layer.plan(shape, num_threads=threads).isa == kernel_set
    assert "bf16" in kernel_set or kernel_set == "amx" or precision == "high"


@pytest.mark.parametrize(("channels", "outs", "pays"), [(64, 24, True), (64, 23, False), (15, 64, False)])
def test_layers_with_few_channels_use_float32(engine, bf16_isa, channels, outs, pays):
    kernel_sets = engine.isa_kernel_sets(bf16_isa)
    layer = pwconv.PointwiseConv(drawn((outs, channels)), precision="medium")
    assert layer.plan((1, channels, 9, 9)).isa == kernel_sets["medium" if pays else "highest"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_a_bf16_kernel_set_float32_is_used(engine, isa, precision):
    assert set(engine.isa_kernel_sets(isa).values()) == {isa}
    x, weight = drawn((2, 64, 9, 9)), drawn((40, 64), 1)
    results = [pwconv.pointwise_conv(x, weight, precision=name) for name in ("highest", precision)]
    assert oracle.same_bits(*results)
