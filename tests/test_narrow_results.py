"""Narrow results, narrow residuals, byte orders, scales of a layer, and maps with few channels, which are streamed."""

import pickle
import sys

import ml_dtypes
import numpy as np
import pytest

import pwconv
from pwconv import runtime

DTYPES = ("uint8", "int8", "uint16", "int16", "float16", ml_dtypes.bfloat16)
BACKENDS = ("native", "numpy")


def numbers(shape, dtype, seed=0):
    """Numbers of every size that a dtype holds, and for floats some that are no numbers."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def rounded(y, dtype):
    """The rule of the interface, in NumPy's words."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.nan_to_num(np.clip(np.rint(y), limits.min, limits.max), nan=0).astype(dtype)
    with np.errstate(over="ignore"):
        return y.astype(dtype)


def same(a, b):
    """Whether two arrays have the same values; NaN equals NaN."""
    return a.dtype == b.dtype and np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outs", [1, 2, 3, 4, 5, 21, 70])
def test_a_narrow_result_is_the_float32_result_rounded_once(isa, layout, dtype, outs):
    channels = 7
    x = numbers((channels, 19, 23) if layout == "CHW" else (19, 23, channels), np.float32)
    x[2, 3, 1], x[4, 5, 2], x[6, 7, 3] = np.nan, np.inf, 1e30
    weight = numbers((outs, channels), np.float32, 1) * np.float32(40)
    full = pwconv.pointwise_conv(x, weight, layout=layout)
    expected = rounded(full, dtype)
    assert same(pwconv.pointwise_conv(x, weight, layout=layout, out_dtype=dtype), expected)
    assert same(pwconv.PointwiseConv(weight, layout=layout, out_dtype=np.dtype(dtype).name)(x), expected)
    wide = np.zeros((*full.shape[:2], 2 * full.shape[2]), dtype)
    pwconv.pointwise_conv(x, weight, layout=layout, out=wide[..., ::2])
    assert same(np.ascontiguousarray(wide[..., ::2]), expected)
    assert not wide[..., 1::2].any()


@pytest.mark.parametrize("outs", [1, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, 6.5), (3.0, 400.0), (-9.0, -2.0)])
def test_pictures_of_bytes(isa, channels, outs, bounds):
    x = numbers((31, 37, channels), np.uint8)
    weight = numbers((outs, channels), np.float32, 1)
    bias = numbers((outs,), np.float32, 2)
    options = {"layout": "HWC", "activation": ("clip", *bounds)}
    expected = rounded(pwconv.pointwise_conv(x.astype(np.float32), weight, bias, **options), np.uint8)
    assert same(pwconv.pointwise_conv(x, weight, bias, out_dtype="uint8", **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_round_alike(backend, dtype):
    x, weight = numbers((1, 5, 8, 9), np.uint8), np.round(numbers((3, 5), np.float32) * 4) / 4  # sums are exact
    y = pwconv.pointwise_conv(x, weight, out_dtype=dtype, backend=backend)
    assert same(y, rounded((weight @ x.reshape(5, -1).astype(np.float32)).reshape(1, 3, 8, 9), dtype))


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("dtype", [np.float32, *DTYPES[:5]])
@pytest.mark.parametrize("channels", [*range(1, 41), 200, 257])
def test_any_channel_count_and_element_type(isa, layout, dtype, channels):
    x = numbers((channels, 9, 31) if layout == "CHW" else (9, 31, channels), dtype)
    first = np.moveaxis(x, 0 if layout == "CHW" else 2, 0).astype(np.float64)
    for outs in (1, 4, 9, 32):
        weight = numbers((outs, channels), np.float32, 1)
        y = np.moveaxis(pwconv.pointwise_conv(x, weight, layout=layout), 0 if layout == "CHW" else 2, 0)
        expected = np.tensordot(weight.astype(np.float64), first, 1)
        bound = (min(channels, 256) + 8) * 2.0**-24 * np.tensordot(abs(weight.astype(np.float64)), abs(first), 1)
        assert (abs(y - expected) <= bound).all()


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 13, 16, 40, 200])
@pytest.mark.parametrize("outs", [1, 3, 8, 16, 32])
def test_the_same_bits_for_layouts_threads_and_views(isa, channels, outs):
    x, weight = numbers((channels, 40, 53), np.float32), numbers((outs, channels), np.float32, 1)
    y = pwconv.pointwise_conv(x, weight, layout="CHW", num_threads=1)
    last = np.ascontiguousarray(np.moveaxis(x, 0, -1))
    for threads in (1, 3):
        z = pwconv.pointwise_conv(last, weight, layout="HWC", num_threads=threads)
        assert np.array_equal(np.moveaxis(z, -1, 0), y)
    assert np.array_equal(pwconv.pointwise_conv(x[:, 3:, ::-2], weight, layout="CHW"), y[:, 3:, ::-2])
    few = np.concatenate([pwconv.pointwise_conv(x[:, :, i : i + 9], weight, layout="CHW") for i in range(0, 53, 9)], 2)
    assert np.array_equal(few, y)


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize(
    ("dtype", "out_dtype", "channels", "outs", "size"),
    [
        (np.float32, np.float32, 3, 3, (851, 991)),
        (np.float32, np.float32, 16, 16, (401, 403)),
        (np.float32, np.float32, 5, 1, (1501, 1503)),
        (np.uint8, np.float32, 3, 5, (701, 801)),
        (np.uint16, np.float32, 13, 8, (521, 523)),
        (np.uint8, np.uint8, 3, 3, (1701, 1703)),
        (np.uint8, np.uint8, 4, 4, (1501, 1503)),
    ],
)
def test_a_large_result_stored_past_the_caches(isa, layout, dtype, out_dtype, channels, outs, size):
    x = numbers((channels, *size) if layout == "CHW" else (*size, channels), dtype)
    weight = numbers((outs, channels), np.float32, 1)
    y = pwconv.pointwise_conv(x, weight, layout=layout, out_dtype=out_dtype)
    assert y.nbytes > 8 << 20
    rows = 1 if layout == "CHW" else 0
    parts = np.array_split(x, 20, axis=rows)
    small = [pwconv.pointwise_conv(part, weight, layout=layout, out_dtype=out_dtype) for part in parts]
    assert all(part.nbytes < 1 << 20 for part in small)
    assert np.array_equal(y, np.concatenate(small, axis=rows))


@pytest.fixture(params=[False, True], ids=["stores-do-not-wait", "stores-wait"])
def stores_wait(request):
    before = runtime.engine.set_stores_wait(request.param)
    yield
    runtime.engine.set_stores_wait(before)


@pytest.mark.parametrize("apart", [0, 16, 64, 128, 260, 2048, 4032])
@pytest.mark.parametrize(("channels", "outs"), [(3, 3), (13, 8), (40, 5)])
def test_planes_of_a_large_result_at_any_place_in_a_page(isa, stores_wait, apart, channels, outs):
    """How planes are stored past the caches depends on the CPU and on how far those of x are, modulo 4096."""
    pixels = (8 << 20) // 4 // outs // 1024 * 1024 + 1024
    x = numbers((channels, pixels), np.float32)
    weight = numbers((outs, channels), np.float32, 1)
    memory = np.zeros(outs * pixels * 4 + 3 * 4096, np.uint8)
    start = 4096 + (x.ctypes.data + apart - memory.ctypes.data) % 4096
    y = memory[start : start + outs * pixels * 4].view(np.float32).reshape(outs, pixels)
    pwconv.pointwise_conv(x[:, None], weight, layout="CHW", out=y[:, None])
    assert not memory[:start].any()
    assert not memory[start + y.nbytes :].any()
    parts = [pwconv.pointwise_conv(part[:, None], weight, layout="CHW") for part in np.array_split(x, 20, axis=1)]
    assert np.array_equal(y[:, None], np.concatenate(parts, axis=2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [">f4", ">u2", ">i2", ">f2"])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_big_endian_maps(backend, dtype, layout):
    native = numbers((6, 17, 6), np.dtype(dtype).newbyteorder("="))
    weight = numbers((4, 6), np.float32, 1)
    expected = pwconv.pointwise_conv(native, weight, layout=layout, backend=backend)
    assert np.array_equal(pwconv.pointwise_conv(native.astype(dtype), weight, layout=layout, backend=backend), expected)
    assert np.array_equal(
        pwconv.PointwiseConv(weight.astype(">f4"), layout=layout, backend=backend)(native.astype(dtype)), expected
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, ">i2"])
def test_a_narrow_residual(backend, dtype):
    x, weight, residual = (
        numbers((2, 40, 5, 7), np.float32),
        numbers((33, 40), np.float32),
        numbers((2, 33, 5, 7), dtype),
    )
    options = {"activation": "relu", "backend": backend}
    expected = pwconv.pointwise_conv(x, weight, residual=residual.astype(np.float32), **options)
    assert np.array_equal(pwconv.pointwise_conv(x, weight, residual=residual, **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_rounds_after_each_layer(backend):
    x = numbers((1, 8, 11, 13), np.float32) * np.float32(20)
    first = pwconv.PointwiseConv(numbers((6, 8), np.float32, 1), out_dtype="uint8", backend=backend)
    second = pwconv.PointwiseConv(numbers((5, 6), np.float32, 2), out_dtype="int16", backend=backend)
    chain = pwconv.PointwiseChain([first, second])
    y = chain(x)
    assert y.dtype == np.int16
    assert np.array_equal(y, second(first(x)))
    kept, y = chain(x, keep=(0,))
    assert kept.dtype == np.uint8
    assert np.array_equal(kept, first(x))
    both = pwconv.PointwiseBranches([first, pwconv.PointwiseConv(first.weight, backend=backend)])(x)
    assert [part.dtype for part in both] == [np.uint8, np.float32]


def test_out_and_out_dtype_that_disagree():
    layer = pwconv.PointwiseConv(np.ones((2, 3), np.float32), out_dtype="uint8")
    with pytest.raises(TypeError, match=r"^out must be uint8 as out_dtype says, got int8$"):
        layer(np.ones((1, 3, 4, 4), np.float32), out=np.empty((1, 2, 4, 4), np.int8))
    with pytest.raises(TypeError, match=r"^out_dtype must be one of float32, .*, got int64$"):
        pwconv.PointwiseConv(np.ones((2, 3), np.float32), out_dtype=np.int64)
    with pytest.raises(ValueError, match=r"^backward needs a layer with out_dtype 'float32', got 'uint8'"):
        layer.backward(np.ones((1, 2, 4, 4), np.float32), np.ones((1, 3, 4, 4), np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_of_a_layer(backend):
    rng = np.random.default_rng(3)
    x, weight, bias = numbers((2, 6, 9, 5), np.float32), numbers((4, 6), np.float32, 1), numbers((4,), np.float32, 2)
    scales = {
        name: rng.random(n, np.float32) + np.float32(0.5)
        for name, n in (("input_scale", 6), ("input_shift", 6), ("output_scale", 4))
    }
    layer = pwconv.PointwiseConv(weight, bias, **scales, activation="relu", backend=backend)
    plain = pwconv.PointwiseConv(weight, bias, activation="relu", backend=backend)
    y = layer(x)
    assert np.array_equal(y, plain(x, **scales))
    ones = np.ones(6, np.float32)
    assert np.array_equal(layer(x, input_scale=ones), plain(x, **(scales | {"input_scale": ones})))
    copy = pickle.loads(pickle.dumps(layer))
    assert np.array_equal(copy(x), y)
    assert all(np.array_equal(getattr(copy, name), scales[name]) for name in scales)
    assert np.array_equal(pwconv.PointwiseChain([layer])(x), y)
    folded = layer.fold_batchnorm(*(rng.random(4) for _ in range(3)), rng.random(4) + 1)
    assert folded.output_scale is None
    with pytest.raises(ValueError, match=r"^input_scale must have shape"):
        pwconv.PointwiseConv(weight, input_scale=np.ones(5, np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_is_never_ignored(backend):
    x = np.ma.masked_equal(numbers((1, 3, 4, 5), np.float32), 7.0)
    layer = pwconv.PointwiseConv(np.ones((2, 3), np.float32), backend=backend)
    assert np.array_equal(layer(x), layer(x.data))  # nothing is hidden
    hidden = np.ma.masked_greater(x, 0.5)
    with pytest.raises(TypeError, match=r"^x must not hide values behind a mask"):
        layer(hidden)
    with pytest.raises(TypeError, match=r"^weight must not hide values behind a mask"):
        pwconv.pointwise_conv(x.data, np.ma.masked_less(np.ones((2, 3), np.float32), 2), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_branches_of_several_dtypes(backend):
    x, weight = numbers((2, 6, 9, 8), np.uint8), numbers((5, 6), np.float32, 1)
    wide, narrow, half = (
        pwconv.PointwiseConv(weight, out_dtype=d, backend=backend) for d in (None, "int16", "float16")
    )
    outs = tuple(np.empty((2, 5, 9, 8), d) for d in (np.uint8, np.int16, np.float16))
    results = pwconv.PointwiseBranches([wide, narrow, half])(x, out=outs)
    assert all(one is other for one, other in zip(results, outs, strict=True))
    y = wide(x)
    assert all(same(out, rounded(y, out.dtype)) for out in outs)
    joined = pwconv.PointwiseBranches([narrow, narrow])(x, out="concat")
    assert same(joined, np.concatenate([narrow(x), narrow(x)], axis=1))
    with pytest.raises(ValueError, match=r"^out='concat' needs branches of one out_dtype, got float32 and int16$"):
        pwconv.PointwiseBranches([wide, narrow])(x, out="concat")
    with pytest.raises(TypeError, match=r"^out\[1\] must be int16 as out_dtype says, got uint8$"):
        pwconv.PointwiseBranches([wide, narrow])(x, out=(None, np.empty((2, 5, 9, 8), np.uint8)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_made_of_a_narrow_layer_stays_narrow(dtype):
    x, weight = numbers((2, 6, 9, 8), np.uint8), numbers((5, 6), np.float32, 1)
    layer = pwconv.PointwiseConv(weight, out_dtype=dtype)
    name = np.dtype(dtype).name
    assert f"out_dtype='{name}'" in repr(layer)
    copy = pickle.loads(pickle.dumps(layer))
    assert copy.out_dtype == layer.out_dtype == name
    assert same(copy(x), layer(x))
    assert layer.fold_batchnorm(None, None, np.zeros(5), np.ones(5)).out_dtype == name
    factors = pwconv.factorize(layer, rank=2)
    assert [part.out_dtype for part in factors.layers] == ["float32", name]
    assert factors(x).dtype == np.dtype(dtype)
    # One unit of integers, or of the last place of a float, where the sums of both lie on two sides of a half.
    report = pwconv.verify(layer, x)
    assert report.max_error <= (1 if np.dtype(dtype).kind in "iu" else 2.0**-8 * np.abs(layer(x).astype(float)).max())


def test_bfloat16_without_ml_dtypes(monkeypatch):
    """Only a new bfloat16 result needs the package: other arrays bring its dtype with them."""
    layer = pwconv.PointwiseConv(np.ones((5, 6), np.float32), out_dtype="bfloat16")
    x, out = np.ones((1, 6, 9, 8), np.float32), np.empty((1, 5, 9, 8), ml_dtypes.bfloat16)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert (layer(x, out=out) == 6).all()
    with pytest.raises(ImportError, match=r"^out_dtype='bfloat16' needs ml_dtypes: pip install ml-dtypes$"):
        layer(x)
