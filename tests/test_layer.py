"""A layer as an object: attributes, immutability, pickles, threads, and the comparison with the NumPy reference."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import fuzz
import numpy as np
import oracle
import pytest

import pwconv

backends = pytest.mark.parametrize("backend", ["native", "numpy"])

OPTIONS = {
    "stride": (2, 1),
    "groups": 2,
    "layout": "NHWC",
    "out_layout": "channels_first",
    "weight_layout": "IO",
    "input_activation": ("leaky_relu", 0.25),
    "activation": ("clip", 0, 6),
    "precision": "high",
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def rich_layer(backend):
    """A layer whose arguments all differ from their defaults."""
    return pwconv.PointwiseConv(normal(1, 1, 1, 3, 4), normal(2, 4), backend=backend, **OPTIONS)


# Attributes -----------------------------------------------------------------------------------------------------------


@backends
def test_attributes_are_the_arguments(backend):
    layer = rich_layer(backend)
    assert (layer.in_channels, layer.out_channels) == (6, 4)
    assert np.array_equal(layer.weight, normal(1, 1, 1, 3, 4))
    assert np.array_equal(layer.bias, normal(2, 4))
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    assert {name: getattr(layer, name) for name in OPTIONS} == OPTIONS
    assert layer.backend == backend


@backends
def test_attributes_are_the_defaults(backend):
    layer = pwconv.PointwiseConv(normal(1, 4, 3), backend=backend)
    signature = inspect.signature(pwconv.pointwise_conv)
    assert layer.bias is None
    for name in OPTIONS:
        assert getattr(layer, name) == signature.parameters[name].default
    assert pwconv.PointwiseConv(normal(1, 4, 3)).backend == "auto"


@backends
@pytest.mark.parametrize(("weight_layout", "shape"), [("OI", (4, 3, 1, 1)), ("OI", (4, 3)), ("IO", (1, 3, 4))])
def test_weight_keeps_its_shape(backend, weight_layout, shape):
    weight = np.asfortranarray(normal(1, *shape))
    layer = pwconv.PointwiseConv(weight, weight_layout=weight_layout, backend=backend)
    assert layer.weight.shape == shape
    assert np.array_equal(layer.weight, weight)


def test_signatures_agree():
    """The layer and the NumPy reference take the arguments of the function: same names, order, kinds and defaults."""
    function = dict(inspect.signature(pwconv.pointwise_conv).parameters)
    reference = dict(inspect.signature(pwconv.reference.pointwise_conv).parameters)
    assert list(reference) == [*function, "dtype"]
    constructor = dict(inspect.signature(pwconv.PointwiseConv).parameters)
    call = dict(inspect.signature(pwconv.reference.call_layer).parameters)
    own = ("input_scale", "input_shift", "output_scale")  # which both take
    assert list(call) == ["layer", *(name for name in function if name not in constructor or name in own), "dtype"]
    for parameters in (reference, constructor, call):
        for name in function.keys() & parameters.keys() - {"backend"}:
            assert parameters[name].default == function[name].default
            assert parameters[name].kind == function[name].kind


# Immutability ---------------------------------------------------------------------------------------------------------


@backends
def test_the_callers_arrays_may_change(backend):
    weight, bias, x = normal(1, 4, 3), normal(2, 4), normal(3, 1, 3, 5, 5)
    layer = pwconv.PointwiseConv(weight, bias, backend=backend)
    weight_before, bias_before = weight.copy(), bias.copy()
    weight.fill(np.nan)
    bias.fill(np.nan)
    truth = oracle.pointwise(x, weight_before, bias_before)
    assert truth.accepts(layer(x)), truth.explain(layer(x))
    assert np.array_equal(layer.weight, weight_before)
    assert np.array_equal(layer.bias, bias_before)


@backends
def test_a_stride_list_may_change(backend):
    stride = [2, 1]
    layer = pwconv.PointwiseConv(normal(1, 4, 3), stride=stride, backend=backend)
    stride[0] = 7
    assert layer.stride == (2, 1)


@backends
@pytest.mark.parametrize(
    "name", ["weight", "bias", "in_channels", "out_channels", "backend", "spec", "colour", *OPTIONS]
)
def test_nothing_can_be_set_or_deleted(backend, name):
    layer = rich_layer(backend)
    with pytest.raises(AttributeError, match=f"a PointwiseConv is immutable: '{name}' cannot be set"):
        setattr(layer, name, 1)
    with pytest.raises(AttributeError, match=f"a PointwiseConv is immutable: '{name}' cannot be deleted"):
        delattr(layer, name)


@backends
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_its_arrays_are_read_only(backend, name):
    values = getattr(rich_layer(backend), name)
    with pytest.raises(ValueError, match="read-only"):
        values[...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        values.setflags(write=True)


@backends
def test_a_second_initialisation_changes_nothing(backend):
    layer, x = pwconv.PointwiseConv(normal(1, 4, 3), backend=backend), normal(2, 1, 3, 5, 5)
    before = layer(x)
    layer.__init__(normal(3, 2, 3), activation="relu")
    assert layer.out_channels == 4
    assert oracle.same_bits(layer(x), before)


# repr and plan --------------------------------------------------------------------------------------------------------


def test_repr_shows_what_is_not_default():
    plain = pwconv.PointwiseConv(normal(1, 64, 256), normal(2, 64))
    assert repr(plain) == "PointwiseConv(256, 64, stride=1)"
    without_bias = pwconv.PointwiseConv(normal(1, 8, 2), stride=[2, 1], groups=2, layout="NHWC", activation="relu")
    assert repr(without_bias) == (
        "PointwiseConv(4, 8, stride=(2, 1), bias=False, groups=2, layout='NHWC', activation='relu')"
    )
    assert repr(rich_layer("numpy")) == (
        "PointwiseConv(6, 4, stride=(2, 1), groups=2, layout='NHWC', out_layout='channels_first', weight_layout='IO', "
        "input_activation=('leaky_relu', 0.25), activation=('clip', 0.0, 6.0), precision='high', backend='numpy')"
    )


def test_repr_of_a_subclass():
    class Head(pwconv.PointwiseConv):
        pass

    assert repr(Head(normal(1, 2, 3))) == "Head(3, 2, stride=1, bias=False)"


def test_plan_of_numpy_counts_its_products():
    layer = pwconv.PointwiseConv(normal(1, 8, 3), groups=2, stride=2, backend="numpy")
    assert repr(layer.plan((5, 6, 7, 9))) == (
        "(5, 6, 7, 9) -> (5, 8, 4, 5) with NumPy: 10 products of a 4 x 3 by a 3 x 20 matrix"
    )


@backends
def test_plan_explains_wrong_shapes(backend):
    layer = pwconv.PointwiseConv(normal(1, 8, 3), backend=backend)
    assert repr(layer.plan((1, 3, 7, 9)))
    for shape, error, message in (
        (3, TypeError, "^shape must be a tuple of integers, got int$"),
        ((1, 3, 7.0, 9), TypeError, r"^shape must be a tuple of integers, got \(1, 3, 7.0, 9\)$"),
        ((1, 3, -7, 9), ValueError, r"^shape must not be negative, got \(1, 3, -7, 9\)$"),
        (
            (3, 7, 9),
            ValueError,
            "^x must have 4 axes for layout 'NCHW', got 3: a map without a batch axis has layout 'CHW'$",
        ),
        ((1, 4, 7, 9), ValueError, r"^x must have 3 channels on axis 1 .*got shape \(1, 4, 7, 9\)$"),
    ):
        with pytest.raises(error, match=message):
            layer.plan(shape)


# Pickles --------------------------------------------------------------------------------------------------------------


def same_layer(one, other):
    """Whether two layers have the same arguments, bit for bit."""
    return (
        type(one) is type(other)
        and oracle.same_bits(one.weight, other.weight)
        and (one.bias is None) == (other.bias is None)
        and (one.bias is None or oracle.same_bits(one.bias, other.bias))
        and all(getattr(one, name) == getattr(other, name) for name in [*OPTIONS, "backend"])
    )


@backends
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(backend, protocol):
    layer, x = rich_layer(backend), normal(3, 2, 5, 7, 6)
    restored = pickle.loads(pickle.dumps(layer, protocol))
    assert same_layer(restored, layer)
    assert oracle.same_bits(restored(x), layer(x))


@backends
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies(backend, duplicate):
    assert same_layer(duplicate(rich_layer(backend)), rich_layer(backend))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_pickle_of_an_empty_layer(shape):
    layer = pwconv.PointwiseConv(np.empty(shape, np.float32))
    assert same_layer(pickle.loads(pickle.dumps(layer)), layer)


def test_the_weights_travel_once():
    """A pickle holds no packed weights, also after a call; with out-of-band buffers it refers to the weights."""
    layer = pwconv.PointwiseConv(normal(1, 256, 128))
    layer(normal(2, 1, 128, 16, 16))
    assert len(pickle.dumps(layer)) < layer.weight.nbytes + 2000
    buffers = []
    assert len(pickle.dumps(layer, protocol=5, buffer_callback=buffers.append)) < 2000
    assert sum(buffer.raw().nbytes for buffer in buffers) == layer.weight.nbytes


@pytest.mark.parametrize("protocol", [4, 5])  # in older ones a damaged memo index makes pickle allocate gigabytes
def test_a_damaged_pickle_never_gives_another_layer(protocol):
    """A pickle with one damaged byte raises, or gives an equal layer."""
    layer = rich_layer("auto")
    data = pickle.dumps(layer, protocol)
    harmless = 0
    for place, restored in fuzz.restored_from_damage(data):
        harmless += 1
        assert not isinstance(restored, pwconv.PointwiseConv) or same_layer(restored, layer), place
    assert harmless < len(data) // 2


def test_a_shortened_pickle_raises():
    data = pickle.dumps(rich_layer("auto"))
    for length in range(len(data)):
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            pickle.loads(data[:length])


def test_a_damaged_weight_is_found_by_the_checksum():
    layer = pwconv.PointwiseConv(normal(1, 4, 3))
    data = bytearray(pickle.dumps(layer))
    data[data.index(layer.weight.tobytes())] ^= 1
    with pytest.raises(pickle.UnpicklingError, match="the pickle of this PointwiseConv is damaged"):
        pickle.loads(data)


# Threads --------------------------------------------------------------------------------------------------------------


@backends
def test_one_layer_in_many_threads(backend):
    """Eight threads call a fresh layer at once with maps of different shapes, and get what one thread gets."""
    maps = [normal(seed, 1 + seed % 3, 40, 3 + seed, 5) for seed in range(24)]
    weight = normal(99, 33, 40)
    expected = [pwconv.PointwiseConv(weight, backend=backend)(x) for x in maps]
    layer = pwconv.PointwiseConv(weight, backend=backend)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(layer, maps * 20))
    assert all(oracle.same_bits(result, want) for result, want in zip(results, expected * 20, strict=True))


# The NumPy reference and the comparison -------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS, ids=str)
def test_reference_in_both_dtypes(activation):
    x, weight, bias = 3 * normal(1, 2, 40, 6, 5), normal(2, 8, 40), normal(3, 8)
    truth = oracle.pointwise(x, weight, bias, activation=activation)
    single = pwconv.reference.pointwise_conv(x, weight, bias, activation=activation)
    double = pwconv.reference.pointwise_conv(x, weight, bias, activation=activation, dtype=np.float64)
    assert single.dtype == np.float32
    assert truth.accepts(single), truth.explain(single)
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, truth.value, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("activation", [name for name in oracle.ACTIVATIONS if name is not None], ids=str)
def test_reference_at_large_arguments_infinities_and_nan(activation):
    """Large arguments, infinities and NaN, while NumPy is set to raise floating-point errors."""
    v = np.array([0.0, 1e-30, -1e-30, 20.0, -20.0, 88.0, -88.0, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32)
    weight = np.ones((1, 1), np.float32)
    with np.errstate(all="raise"):
        value = pwconv.reference.pointwise_conv(v[:, None], weight, layout="NC", activation=activation)
    truth = oracle.activate(activation, v.astype(np.float64))
    np.testing.assert_allclose(value[:, 0], truth, rtol=1e-6, atol=1e-37)


@backends
def test_reference_of_a_layer_in_float64(backend):
    layer, x, residual = rich_layer(backend), normal(3, 2, 5, 7, 6), normal(4, 2, 4, 3, 7)
    options = OPTIONS | {"out_layout": "NCHW"}
    del options["precision"]
    truth = oracle.pointwise(x, normal(1, 1, 1, 3, 4), normal(2, 4), residual=residual, **options)
    value = pwconv.reference.call_layer(layer, x, residual=residual, dtype=np.float64)
    np.testing.assert_allclose(value, truth.value, rtol=1e-12, atol=1e-13)


def test_verify_a_layer(engine):
    layer, x = pwconv.PointwiseConv(normal(1, 64, 300), activation="gelu"), normal(2, 2, 300, 9, 9)
    report = pwconv.verify(layer, x, num_threads=1)
    difference = np.abs(layer(x).astype(np.float64) - pwconv.reference.call_layer(layer, x))
    assert report.backend == "native"
    assert report.max_error == difference.max() > 0
    assert report.where == np.unravel_index(difference.argmax(), difference.shape)
    assert report.relative_error == pytest.approx(report.max_error / np.abs(layer(x)).max(), rel=1e-5)
    assert report.relative_error < 1e-6
    assert report.native_seconds > 0
    assert report.numpy_seconds > 0


def test_verify_the_function_with_out_as_residual():
    x, weight, bias = normal(1, 2, 30, 5, 5), normal(2, 8, 30), normal(3, 8)
    out = normal(4, 2, 8, 5, 5)
    truth = oracle.pointwise(x, weight, bias, residual=out.copy())
    report = pwconv.verify(pwconv.pointwise_conv, x, weight, bias, residual=out, out=out)
    assert report.relative_error < 1e-6
    assert truth.accepts(out), truth.explain(out)


def test_verify_finds_an_error(monkeypatch):
    """`verify` reports an element in which result and reference differ, or one of them has a NaN."""
    layer, x = pwconv.PointwiseConv(normal(1, 4, 3)), normal(2, 1, 3, 5, 5)
    right = pwconv.reference.call_layer

    def wrong(value):
        def call_layer(*args, **kwargs):
            result = right(*args, **kwargs)
            result[0, 2, 3, 4] = value
            return result

        return call_layer

    expected = layer(x)[0, 2, 3, 4]
    monkeypatch.setattr(pwconv.reference, "call_layer", wrong(expected + 2))
    report = pwconv.verify(layer, x)
    assert report.where == (0, 2, 3, 4)
    assert report.max_error == pytest.approx(2, rel=1e-6)
    for value in (np.nan, np.inf):
        monkeypatch.setattr(pwconv.reference, "call_layer", wrong(value))
        report = pwconv.verify(layer, x)
        assert (report.where, report.max_error, report.relative_error) == ((0, 2, 3, 4), math.inf, math.inf)


@backends
def test_verify_counts_equal_nan_and_infinity_as_right(backend):
    x = np.zeros((1, 2, 2, 2), np.float32)
    x[0, 0] = [[np.nan, np.inf], [-np.inf, 1]]
    report = pwconv.verify(pwconv.PointwiseConv(np.ones((1, 2), np.float32), backend=backend), x)
    assert report.max_error == report.relative_error == 0
    assert report.backend == backend


@backends
def test_verify_an_empty_result(backend):
    report = pwconv.verify(pwconv.PointwiseConv(normal(1, 4, 3), backend=backend), normal(2, 0, 3, 5, 5))
    assert (report.max_error, report.where) == (0, None)
    assert repr(report).startswith("Report(largest error 0 in an empty result")


def test_repr_of_verify_is_one_line():
    report = pwconv.verify(pwconv.PointwiseConv(normal(1, 4, 3)), normal(2, 1, 3, 5, 5))
    assert f"at {report.where}" in repr(report)
    assert f"{report.max_error:.3g}" in repr(report)
    assert "ms, NumPy" in repr(report)
    assert "\n" not in repr(report)


def test_verify_raises_for_other_objects():
    with pytest.raises(
        TypeError, match=r"^verify takes a layer, layers, a classifier or a function, got builtin_function"
    ):
        pwconv.verify(abs, normal(1, 1, 3, 5, 5))
