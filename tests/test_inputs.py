"""Lists of maps and narrow dtypes: the same bits as after concatenation and casts, without these copies."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from skimage import data
from test_views import LIMIT, extra_memory, needs_proc

import pwconv

DTYPES = ("uint8", "int8", "uint16", "int16", "float16")
LAYOUTS = ("NCHW", "NHWC", "NHCW")
PREACTIVATION = {"input_activation": "relu", "activation": "silu"}


def numbers(seed, shape, dtype):
    """Numbers of all magnitudes of a dtype, with the largest and the smallest."""
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer):
        ends = np.iinfo(dtype)
        values = rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)
        values.flat[:2] = ends.min, ends.max
        return values
    values = (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 12, shape)).astype(dtype)
    values.flat[:3] = 0.0, -0.0, 2.0**-24  # the smallest denormal of float16
    return values


def random_call(seed, channels, layout, sizes=(2, 13, 11)):
    """Arguments of a call except `x`, and a function that returns the shape of a map with a number of channels."""
    rng = np.random.default_rng(seed)
    n, h, w = sizes
    fixed = {"weight": rng.standard_normal((24, channels), np.float32), "bias": rng.standard_normal(24, np.float32)}
    per_call = {
        "input_scale": rng.standard_normal(channels, np.float32),
        "input_shift": rng.standard_normal((n, channels), np.float32),
    }

    def shape(c):
        return tuple({"N": n, "C": c, "H": h, "W": w}[letter] for letter in layout)

    return fixed | {"layout": layout}, per_call, shape


# Narrow numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_casting_first(isa, dtype, layout):
    fixed, per_call, shape = random_call(1, 70, layout)
    x = numbers(2, shape(70), dtype)
    cast = x.astype(np.float32)
    for options, call in (({}, {}), (PREACTIVATION, per_call)):
        layer = pwconv.PointwiseConv(**fixed, **options)
        assert oracle.same_bits(layer(x, **call), layer(cast, **call))
        assert oracle.same_bits(pwconv.pointwise_conv(x, **fixed, **options, **call), layer(cast, **call))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_of_casting_bfloat16_first(isa, layout):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed (the extra `peers` has it)")
    fixed, per_call, shape = random_call(3, 70, layout)
    x = numbers(4, shape(70), np.float32).astype(ml_dtypes.bfloat16)
    layer = pwconv.PointwiseConv(**fixed, **PREACTIVATION)
    assert oracle.same_bits(layer(x, **per_call), layer(x.astype(np.float32), **per_call))
    reference = pwconv.reference.call_layer(layer, x)
    np.testing.assert_array_equal(reference, pwconv.reference.call_layer(layer, x.astype(np.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_widened_exactly(isa, dtype):
    """All 256 or 65,536 numbers of a dtype through a layer with weight 1, channels first and channels last."""
    bits = np.arange(2 ** (8 * np.dtype(dtype).itemsize), dtype=np.uint32)
    every = bits.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    every = every[np.isfinite(every)]
    identity = np.ones((1, 1), np.float32)
    for x, layout in ((every[np.newaxis], "CL"), (every[:, np.newaxis], "LC")):
        result = pwconv.pointwise_conv(x, identity, layout=layout)
        assert np.array_equal(result.ravel(), every.astype(np.float32))


def test_infinities_and_nan_of_float16(isa):
    x = np.array([[np.inf, -np.inf, np.nan, 1.0]], np.float16)
    result = pwconv.pointwise_conv(x, np.ones((1, 1), np.float32), layout="CL")
    np.testing.assert_array_equal(result, x.astype(np.float32))


@pytest.mark.parametrize("view", ["flip", "step", "transpose", "unaligned", "broadcast"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_narrow_maps(dtype, view):
    fixed, _, shape = random_call(5, 33, "NCHW")
    x = numbers(6, shape(33), dtype)
    if view == "flip":
        x = x[:, ::-1, :, ::-1]
    elif view == "step":
        x = x[:, :, ::2, ::3]
    elif view == "transpose":
        x = x.swapaxes(2, 3)
    elif view == "unaligned":
        x = np.ndarray(x.shape, dtype, b"\0" + x.tobytes(), offset=1)
    else:
        x = np.broadcast_to(x[:1, :, :1], x.shape)
    layer = pwconv.PointwiseConv(**fixed, stride=(2, 1))
    assert oracle.same_bits(layer(x), layer(x.astype(np.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_widens_narrow_numbers(dtype):
    fixed, _, shape = random_call(7, 20, "NHWC")
    x = numbers(8, shape(20), dtype)
    truth = oracle.pointwise(x.astype(np.float32), **fixed)
    result = pwconv.reference.pointwise_conv(x, **fixed)
    assert result.dtype == np.float32
    assert truth.accepts(result), truth.explain(result)
    double = pwconv.reference.pointwise_conv(x, **fixed, dtype=np.float64)
    np.testing.assert_allclose(double, truth.value, rtol=1e-12)


def test_a_photograph_as_it_comes():
    """A flipped crop of a channels-last photograph in uint8 is read without a float copy."""
    x = data.astronaut()[100:400, -50:50:-1]
    weight = np.random.default_rng(9).standard_normal((8, 3), dtype=np.float32)
    result = pwconv.pointwise_conv(x, weight, layout="HWC")
    assert oracle.same_bits(result, pwconv.pointwise_conv(x.astype(np.float32), weight, layout="HWC"))


def test_a_raster_on_disk(tmp_path):
    """A memory-mapped file of uint16 bands, one after another."""
    raster = numbers(10, (12, 40, 50), "uint16")
    raster.tofile(tmp_path / "bands.raw")
    mapped = np.memmap(tmp_path / "bands.raw", np.uint16, "r", shape=raster.shape)
    weight = np.random.default_rng(11).standard_normal((4, 12), dtype=np.float32)
    result = pwconv.pointwise_conv(mapped[:, 5:, ::2], weight, layout="CHW")
    assert oracle.same_bits(result, pwconv.pointwise_conv(raster[:, 5:, ::2].astype(np.float32), weight, layout="CHW"))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("channels", [(3, 3), (3, 1), (4, 4)])
def test_bytes_to_bytes_as_opencv(channels, seed):
    """A photograph through a colour matrix: the nearest byte, from which OpenCV's is at most one away."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    ins, outs = channels
    picture = np.ascontiguousarray(
        np.concatenate([data.astronaut(), data.astronaut()[::-1, :, :1]], axis=-1)[..., :ins]
    )
    matrix = np.random.default_rng(seed).uniform(-0.5, 1, (outs, ins)).astype(np.float32)
    result = pwconv.pointwise_conv(picture, matrix, layout="HWC", out_dtype="uint8")
    exact = np.clip(picture @ matrix.T.astype(np.float64), 0, 255)
    assert np.abs(result - exact).max() < 0.5 + 1e-4
    opencv = cv2.transform(picture, matrix).reshape(result.shape)  # without an axis for a single channel
    assert np.abs(result.astype(int) - opencv).max() <= 1


# Lists ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [(70,), (1, 69), (3, 64, 3), (0, 5, 65), (7, 256, 9), (1,) * 70])
def test_bits_of_concatenating_first(isa, channels, layout):
    fixed, per_call, shape = random_call(12, sum(channels), layout)
    parts = [numbers(13 + i, shape(c), np.float32) for i, c in enumerate(channels)]
    joined = np.concatenate(parts, axis=layout.index("C"))
    for options, call in (({}, {}), (PREACTIVATION, per_call), ({"stride": (2, 3), "out_layout": "NHWC"}, {})):
        layer = pwconv.PointwiseConv(**fixed, **options)
        assert oracle.same_bits(layer(parts, **call), layer(joined, **call))
        assert oracle.same_bits(pwconv.pointwise_conv(tuple(parts), **fixed, **options, **call), layer(joined, **call))


@pytest.mark.parametrize("groups", [2, 5])
def test_groups_of_a_list(isa, groups):
    """The maps of a list may end inside a group."""
    rng = np.random.default_rng(14)
    parts = [rng.standard_normal((1, c, 9, 7), np.float32) for c in (3, 4, 13)]
    layer = pwconv.PointwiseConv(rng.standard_normal((20, 20 // groups), np.float32), groups=groups)
    assert oracle.same_bits(layer(parts), layer(np.concatenate(parts, axis=1)))


def test_parts_with_dtypes_and_strides_of_their_own(isa):
    """A list of a uint8 photograph, uint16 depth, a flipped float32 map, and a vector broadcast over all pixels."""
    rng = np.random.default_rng(15)
    picture = data.astronaut()[:64, :48]
    depth = rng.integers(0, 65535, (64, 48, 1), np.uint16)
    features = rng.standard_normal((40, 48, 64), np.float32).transpose(2, 1, 0)[:, ::-1]
    text = np.broadcast_to(rng.standard_normal(20, np.float32), (64, 48, 20))
    parts = [picture, depth, features, text]
    joined = np.concatenate([part.astype(np.float32) for part in parts], axis=-1)
    layer = pwconv.PointwiseConv(rng.standard_normal((10, 64), np.float32), layout="HWC", activation="relu")
    assert oracle.same_bits(layer(parts), layer(joined))


@pytest.mark.parametrize("layout", ["NCDHW", "NDHWC"])
def test_two_video_streams(layout):
    rng = np.random.default_rng(16)
    sizes = {"N": 2, "D": 3, "H": 5, "W": 6}
    rgb, flow = (
        rng.standard_normal([sizes.get(letter, channels) for letter in layout], np.float32) for channels in (32, 16)
    )
    layer = pwconv.PointwiseConv(rng.standard_normal((16, 48), np.float32), layout=layout)
    assert oracle.same_bits(layer([rgb, flow]), layer(np.concatenate([rgb, flow], axis=layout.index("C"))))


def test_reference_of_a_list():
    rng = np.random.default_rng(17)
    parts = [rng.standard_normal((2, c, 4, 5), np.float32) for c in (3, 9)] + [np.ones((2, 1, 4, 5), np.uint8)]
    weight = rng.standard_normal((6, 13), np.float32)
    truth = oracle.pointwise(np.concatenate([part.astype(np.float32) for part in parts], axis=1), weight, stride=2)
    for result in (
        pwconv.reference.pointwise_conv(parts, weight, stride=2),
        pwconv.pointwise_conv(parts, weight, stride=2, backend="numpy"),
    ):
        assert truth.accepts(result), truth.explain(result)


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_the_list_is_kept_as_it_was(backend):
    parts = [np.ones((1, 2, 3, 3), np.float32), np.ones((1, 1, 3, 3), np.uint8)]
    given = list(parts)
    pwconv.pointwise_conv(given, np.ones((2, 3), np.float32), backend=backend)
    assert all(part is before for part, before in zip(given, parts, strict=True))
    assert len(given) == 2


def test_verify_takes_lists():
    rng = np.random.default_rng(18)
    parts = [rng.standard_normal((1, c, 9, 9), np.float32) for c in (30, 40)]
    report = pwconv.verify(pwconv.PointwiseConv(rng.standard_normal((8, 70), np.float32)), parts)
    assert report.relative_error < 1e-6


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.measures
@needs_proc
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("view", "call"),
    [
        # The third byte of every 1.0 is 128.
        (".view(np.uint8)[..., 2::4]", "pwconv.pointwise_conv(x, weight / 128, layout=layout)"),
        ("", "pwconv.pointwise_conv([x, x], np.full((4, 128), 0.5, np.float32), layout=layout)"),
    ],
    ids=["bytes", "list"],
)
def test_no_copy_is_made(layout, view, call):
    """No call makes a float32 copy of 100 MB or a concatenated copy of 200 MB."""
    assert extra_memory(layout, view, call) < LIMIT
