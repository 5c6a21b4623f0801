"""Arrays in the other byte order, as ENVI, FITS and old GeoTIFFs hold them: the bits of arrays in the native one."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from sklearn.decomposition import PCA
from test_views import LIMIT, extra_memory, needs_proc

import pwconv
from pwconv import ChannelReducer, PixelClassifier, PointwiseBranches, PointwiseChain, PointwiseConv

backends = pytest.mark.parametrize("backend", ["native", "numpy"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "uint16", "int16", "float16"])
LAYOUTS = {"CHW": (9, 13, 37), "HWC": (13, 37, 9), "NCHW": (2, 9, 13, 17), "NHWC": (2, 13, 17, 9), "HCW": (13, 9, 37)}


def numbers(dtype, *shape, seed=0):
    """Numbers of every bit pattern that a dtype has, but for NaN and infinities."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    return (100 * rng.standard_normal(shape)).astype(dtype)


def swapped(array):
    """The same values in the other byte order."""
    return array.astype(array.dtype.newbyteorder())


def layer_of(layout, backend, ins=9, outs=20, **options):
    return PointwiseConv(numbers("float32", outs, ins, seed=1), layout=layout, backend=backend, **options)


# Maps -----------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("outs", [1, 3, 20, 70])
def test_bits_of_native_maps(isa, layout, outs, dtype):
    x = numbers(dtype, *LAYOUTS[layout])
    layer = layer_of(layout, "native", outs=outs, activation="silu")
    for threads in (1, 3):
        assert oracle.same_bits(layer(swapped(x), num_threads=threads), layer(x, num_threads=threads))
    result = pwconv.pointwise_conv(swapped(x), layer.weight, layout=layout, activation="silu")
    assert oracle.same_bits(result, layer(x))
    assert np.array_equal(layer(swapped(x), input_scale=np.ones(9, np.float32)), layer(x))


@dtypes
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 40, 200, 300])
def test_every_channel_count(isa, dtype, channels):
    """Maps of few channels are streamed, others packed; both in either byte order."""
    for layout, shape in (("CHW", (channels, 11, 53)), ("HWC", (11, 53, channels))):
        x = numbers(dtype, *shape)
        for outs in (3, 33):
            layer = layer_of(layout, "native", channels, outs)
            assert oracle.same_bits(layer(swapped(x)), layer(x))


@backends
@dtypes
def test_every_backend(backend, dtype):
    x = numbers(dtype, *LAYOUTS["HWC"])
    layer = layer_of("HWC", backend)
    assert oracle.same_bits(layer(swapped(x)), layer(x))
    assert oracle.same_bits(layer(swapped(x)), layer(x.astype(np.float32)))


@dtypes
def test_every_number(isa, dtype):
    """All 65,536 numbers of 16 bits, and many of 32, through a layer that changes nothing."""
    size = np.dtype(dtype).itemsize
    bits = np.arange(0, 2 ** (8 * size), 1 if size == 2 else 65521, dtype=np.uint32)
    every = bits.astype(f"u{size}").view(dtype)
    every = every[np.isfinite(every)]
    if dtype == "float32":
        every = every[(np.abs(every) >= np.finfo(np.float32).tiny) | (every == 0)]  # denormals count as zeros
    for x, layout in ((every[np.newaxis], "CL"), (every[:, np.newaxis], "LC")):
        result = pwconv.pointwise_conv(swapped(x), np.ones((1, 1), np.float32), layout=layout)
        assert np.array_equal(result.ravel(), every.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_infinities_and_nan(isa, dtype):
    x = np.array([[np.inf, -np.inf, np.nan, 1.0]], dtype)
    result = pwconv.pointwise_conv(swapped(x), np.ones((1, 1), np.float32), layout="CL")
    np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("view", ["flip", "step", "transpose", "unaligned", "broadcast"])
@dtypes
def test_views(isa, dtype, view):
    x = numbers(dtype, 2, 9, 18, 14)
    other = swapped(x)
    if view == "unaligned":
        other = np.ndarray(x.shape, other.dtype, b"\0" + other.tobytes(), offset=1)
    else:
        x, other = (
            {
                "flip": lambda a: a[:, ::-1, :, ::-1],
                "step": lambda a: a[:, :, ::2, ::3],
                "transpose": lambda a: a.swapaxes(2, 3),
                "broadcast": lambda a: np.broadcast_to(a[:1, :, :1], a.shape),
            }[view](array)
            for array in (x, other)
        )
    layer = layer_of("NCHW", "native", stride=(2, 1))
    assert oracle.same_bits(layer(other), layer(x))


@backends
def test_lists_of_both_orders(backend):
    parts = [numbers(dtype, 13, 37, 3) for dtype in ("int16", "float32", "float16")]
    layer = layer_of("HWC", backend)
    expected = layer(np.concatenate([part.astype(np.float32) for part in parts], axis=-1))
    assert oracle.same_bits(layer([swapped(parts[0]), parts[1], swapped(parts[2])]), expected)


@dtypes
def test_less_exact_sums(bf16_isa, dtype):
    """Splitting into bfloat16 reads numbers in either byte order."""
    x = numbers(dtype, *LAYOUTS["HWC"])
    for precision in ("high", "medium"):
        layer = layer_of("HWC", "native", precision=precision)
        assert oracle.same_bits(layer(swapped(x)), layer(x))


@backends
@dtypes
def test_residuals(backend, dtype):
    x, residual = numbers("float32", *LAYOUTS["CHW"]), numbers(dtype, 20, 13, 37)
    layer = layer_of("CHW", backend, activation="relu")
    assert oracle.same_bits(layer(x, residual=swapped(residual)), layer(x, residual=residual.astype(np.float32)))
    chain = PointwiseChain([layer, layer_of("CHW", backend, 20, 9)])
    results = [chain(swapped(x), residual={0: swapped(residual)}), chain(x, residual={0: residual.astype(np.float32)})]
    assert oracle.same_bits(*results)


@backends
@dtypes
def test_chains_branches_and_classifiers(backend, dtype):
    x = numbers(dtype, *LAYOUTS["HCW"])
    first, second = layer_of("HCW", backend, activation="relu6"), layer_of("HCW", backend, 20, 5)
    chain, branches = PointwiseChain([first, second]), PointwiseBranches([first, first])
    assert oracle.same_bits(chain(swapped(x)), chain(x))
    assert all(oracle.same_bits(one, other) for one, other in zip(branches(swapped(x)), branches(x), strict=True))
    clf = PixelClassifier.from_chain(chain)
    for method in (
        clf.predict,
        clf.predict_proba,
        lambda x: clf.predict(x, size=(26, 50)),
        lambda x: clf.top_k(x, 2)[1],
    ):
        assert np.array_equal(method(swapped(x)), method(x))


@dtypes
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_reducers(dtype, layout):
    x = numbers(dtype, *LAYOUTS[layout])
    one, other = (ChannelReducer(3, layout=layout).fit(map_) for map_ in (x, swapped(x)))
    assert np.array_equal(one.components_, other.components_)
    assert oracle.same_bits(one.transform(x), one.transform(swapped(x)))
    samples = np.moveaxis(x, layout.index("C"), -1).reshape(-1, 9).astype(np.float64)
    pca = PCA(3).fit(samples)
    np.testing.assert_allclose(other.explained_variance_, pca.explained_variance_, rtol=1e-5)


def test_gradients():
    x, grad_y = numbers("int16", *LAYOUTS["NCHW"]), numbers("float32", 2, 20, 13, 17)
    layer = PointwiseConv(numbers("float32", 20, 9), numbers("float32", 20), activation="silu")
    for one, other in zip(layer.backward(swapped(grad_y), swapped(x)), layer.backward(grad_y, x), strict=True):
        assert oracle.same_bits(one, other)


# What is not a map ----------------------------------------------------------------------------------------------------


@backends
def test_weights_biases_and_tables(backend):
    x, weight, bias = numbers("float32", 2, 9, 13, 17), numbers("float32", 20, 9), numbers("float32", 20)
    tables = {"input_scale": numbers("float32", 2, 9), "input_shift": numbers("float32", 9, seed=2)}
    expected = PointwiseConv(weight, bias, backend=backend)(x, **tables)
    other = {name: swapped(table) for name, table in tables.items()}
    assert oracle.same_bits(PointwiseConv(swapped(weight), swapped(bias), backend=backend)(x, **other), expected)
    assert oracle.same_bits(
        pwconv.pointwise_conv(x, swapped(weight), swapped(bias), backend=backend, **other), expected
    )
    layer = PointwiseConv(swapped(weight), input_shift=swapped(tables["input_shift"]), backend=backend)
    assert layer.weight.dtype == layer.input_shift.dtype == np.float32
    assert layer.weight.dtype.isnative
    clf = PixelClassifier(swapped(weight), swapped(bias), backend=backend)
    assert np.array_equal(clf.predict(x), PixelClassifier(weight, bias, backend=backend).predict(x))


@backends
def test_results_are_native(backend):
    layer, x = layer_of("HWC", backend), numbers("float32", *LAYOUTS["HWC"])
    assert layer(swapped(x)).dtype.isnative
    for dtype in (">f4", ">u2", ">f2"):
        with pytest.raises(TypeError, match=rf"^out must be float32, .*, got {dtype}$"):
            layer(x, out=np.empty((13, 37, 20), dtype))
        with pytest.raises(TypeError, match=rf"^out_dtype must be one of float32, .*, got {dtype}$"):
            layer_of("HWC", backend, out_dtype=dtype)
    with pytest.raises(TypeError, match=r"^x must be float32, uint8, .*, got >f8: convert it with x.astype"):
        layer(x.astype(">f8"))


def test_a_raster_on_disk(tmp_path):
    """Big-endian BIL of ENVI (lines of bands) in a file, mapped into memory; a part of it, every other line."""
    raster = numbers("int16", 40, 9, 50)
    raster.astype(">i2").tofile(tmp_path / "scene.bil")
    mapped = np.memmap(tmp_path / "scene.bil", ">i2", "r", shape=raster.shape)
    layer = layer_of("HCW", "native")
    assert oracle.same_bits(layer(mapped), layer(raster))
    assert oracle.same_bits(layer(mapped[5::2, :, 7:]), layer(raster[5::2, :, 7:].astype(np.float32)))


@pytest.mark.measures
@needs_proc
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_no_copy_is_made(layout):
    """Of 100 MB of maps. A swapped 1.0 is a denormal number, which counts as zero, so the bias is the result."""
    call = "pwconv.pointwise_conv(x, np.ones((4, 64), np.float32), np.full(4, 64, np.float32), layout=layout)"
    assert extra_memory(layout, ".view('>f4')", call) < LIMIT
