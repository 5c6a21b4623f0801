"""Maps, weights and scales in the other byte order: read where they lie, with the bits of the native ones."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle
import pytest

import pwconv

BACKENDS = pytest.mark.parametrize("backend", ["native", "numpy"])
DTYPES = ("f4", "u2", "i2", "f2")
OTHER = ">" if np.little_endian else "<"
LETTERS = {"N": 2, "H": 9, "W": 33, "D": 3}


def numbers(dtype, *shape, seed=0):
    """Numbers that use every byte of a dtype."""
    rng = np.random.default_rng(seed)
    if dtype[0] == "f":
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def swapped(array):
    """The same numbers in the other byte order."""
    other = array.astype(array.dtype.newbyteorder(OTHER))
    assert not other.dtype.isnative
    return other


def layer(backend, ins=6, outs=5, **kw):
    return pwconv.PointwiseConv(numbers("f4", outs, ins, seed=1), numbers("f4", outs, seed=2), backend=backend, **kw)


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 17, 40, 300])
@pytest.mark.parametrize("layout", ["HCW", "CHW", "HWC", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_of_every_layout(isa, dtype, layout, channels):
    x = numbers(dtype, *((LETTERS | {"C": channels})[letter] for letter in layout))
    for outs in (1, 5, 40):
        one = layer("native", channels, outs, layout=layout)
        y = one(x)
        assert oracle.same_bits(one(swapped(x)), y)
        view = (np.s_[..., ::-2], np.s_[..., ::-1, 3:, :])[layout[-1] == "C"]
        assert oracle.same_bits(one(swapped(x)[view]), one(np.ascontiguousarray(x[view])))


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_numpy(backend, dtype):
    x = numbers(dtype, 6, 9, 33)
    one = layer(backend, layout="CHW")
    wide = x.astype(np.float64)
    expected = np.tensordot(one.weight.astype(np.float64), wide, 1) + one.bias[:, np.newaxis, np.newaxis]
    scale = np.tensordot(abs(one.weight.astype(np.float64)), abs(wide), 1) + abs(one.bias[:, np.newaxis, np.newaxis])
    assert (abs(one(swapped(x)) - expected) <= 16 * 2.0**-24 * scale).all()


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_memmap(backend, dtype, tmp_path):
    """A raster file of two images is read through a read-only map; the bytes of the file stay."""
    x = numbers(dtype, 2, 9, 6, 33)
    swapped(x).tofile(tmp_path / "raster")
    before = (tmp_path / "raster").read_bytes()
    raster = np.memmap(tmp_path / "raster", np.dtype(dtype).newbyteorder(OTHER), "r", shape=x.shape)
    one = layer(backend, layout="NHCW")
    assert oracle.same_bits(one(raster), one(x))
    assert (tmp_path / "raster").read_bytes() == before


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_list_of_maps_in_both_orders(backend, dtype):
    parts = [numbers(dtype, 2, 2, 9, 8), numbers("f4", 2, 3, 9, 8, seed=5), numbers("u1", 2, 1, 9, 8, seed=6)]
    one = layer(backend)
    assert oracle.same_bits(one([swapped(parts[0]), swapped(parts[1]), parts[2]]), one(parts))


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_residual(backend, dtype, activation):
    x, residual = numbers("f4", 2, 6, 9, 33), numbers(dtype, 2, 5, 9, 33)
    one = layer(backend, activation=activation)
    assert oracle.same_bits(one(x, residual=swapped(residual)), one(x, residual=residual.astype(np.float32)))


@BACKENDS
def test_weights_biases_and_scales_are_converted(backend):
    """They are small, so a copy in the native order costs nothing; so does that of a call."""
    x = numbers("f4", 2, 6, 9, 33)
    given = {"weight": (5, 6), "bias": (5,), "input_scale": (6,), "input_shift": (2, 6), "output_scale": (2, 5)}
    native = {name: numbers("f4", *shape, seed=i) for i, (name, shape) in enumerate(given.items())}
    others = {name: swapped(array) for name, array in native.items()}
    y = pwconv.pointwise_conv(x, **native, backend=backend)
    assert oracle.same_bits(pwconv.pointwise_conv(x, **others, backend=backend), y)
    own = {name: array if array.ndim == 1 or name == "weight" else array[0] for name, array in others.items()}
    made = pwconv.PointwiseConv(**own, backend=backend)
    assert all(getattr(made, name).dtype == np.dtype(np.float32) for name in given)
    assert all(np.array_equal(getattr(made, name), own[name]) for name in given)
    tables = {name: others[name] for name in ("input_scale", "input_shift", "output_scale")}
    assert oracle.same_bits(made(x, **tables), y)


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_branches_classifiers_and_reducers(backend, dtype):
    x = numbers(dtype, 2, 6, 40, 33)
    first, second = layer(backend), layer(backend, 5, 4)
    chain, branches = pwconv.PointwiseChain([first, second]), pwconv.PointwiseBranches([first, layer(backend, 6, 3)])
    assert oracle.same_bits(chain(swapped(x)), chain(x))
    for one, other in zip(branches(swapped(x)), branches(x), strict=True):
        assert oracle.same_bits(one, other)
    clf = pwconv.PixelClassifier(first.weight, first.bias, backend=backend)
    assert np.array_equal(clf.predict(swapped(x)), clf.predict(x))
    assert np.array_equal(clf.predict(swapped(x), size=(80, 50)), clf.predict(x, size=(80, 50)))
    assert oracle.same_bits(clf.predict_proba(swapped(x)), clf.predict_proba(x))
    one, other = (pwconv.ChannelReducer(2).fit(map_) for map_ in (swapped(x), x))
    assert np.array_equal(one.components_, other.components_)
    assert oracle.same_bits(one.transform(swapped(x)), other.transform(x))


def test_gradients():
    x, weight, grad_y = numbers("f4", 2, 6, 9, 8), numbers("f4", 5, 6, seed=1), numbers("f4", 2, 5, 9, 8, seed=2)
    expected = pwconv.pointwise_conv_backward(grad_y, x, weight)
    for arguments in ((grad_y, swapped(x), swapped(weight)), (swapped(grad_y), x, weight)):
        for one, other in zip(pwconv.pointwise_conv_backward(*arguments), expected, strict=True):
            assert oracle.same_bits(one, other)


@BACKENDS
@pytest.mark.parametrize("dtype", [*DTYPES, "i4", "f8"])
def test_a_result_is_native(backend, dtype):
    one, x = layer(backend), numbers("f4", 2, 6, 9, 8)
    out = np.empty((2, 5, 9, 8), OTHER + dtype)
    with pytest.raises(TypeError, match=r"^out must be float32, .*bfloat16, got [<>]"):
        one(x, out=out)
    with pytest.raises(TypeError, match=r"^out_dtype must be one of float32, .*, got [<>]"):
        layer(backend, out_dtype=out.dtype)


@BACKENDS
def test_other_dtypes_stay_refused(backend):
    for dtype in ("i4", "f8", "c8"):
        with pytest.raises(TypeError, match=r"^x must be float32, .* or bfloat16, got [<>]"):
            layer(backend)(np.ones((2, 6, 9, 8), OTHER + dtype))
    with pytest.raises(TypeError, match=r"^weight must be float32, got [<>]f8: convert it"):
        pwconv.PointwiseConv(np.ones((5, 6), OTHER + "f8"), backend=backend)


@BACKENDS
def test_bfloat16_in_the_other_order(backend):
    x = numbers("f4", 2, 6, 9, 8).astype(ml_dtypes.bfloat16)
    other = x.view(np.uint16).byteswap().view(x.dtype.newbyteorder(OTHER))
    assert np.array_equal(other.astype(np.float32), x.astype(np.float32)) or other.dtype.isnative
