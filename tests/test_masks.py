"""Pixels that do not count: masks and fills of the engine's heads and of classifiers, and masked arrays."""

import numpy as np
import pytest

import pwconv

SIZE = (61, 83)
engine = pytest.importorskip("pwconv._engine", reason="masks are the compiled engine's")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def scene():
    """A map with nodata (NaN) in a band and in one pixel, a mask, and which pixels count."""
    x = numbers(*SIZE, 7)
    x[5, 6], x[10:20] = np.nan, np.nan
    mask = np.random.default_rng(1).random((*SIZE, 1)) > 0.3
    mask[30:] = False
    return x, mask, mask[..., 0] & ~np.isnan(x).any(axis=-1)


@pytest.fixture
def layers():
    return tuple(pwconv.PointwiseConv(numbers(5, n, seed=n), layout="HWC") for n in (7, 5))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_labels(isa, scene, layers, dtype, count, threads):
    x, mask, counts = scene
    logits = layers[0](x) if count == 1 else layers[1](layers[0](x))
    expected = np.where(counts, np.nan_to_num(logits).argmax(axis=-1), 99)
    out = np.empty((*SIZE, 1), dtype)
    engine.classify(layers[:count], x, out, None, 1, mask, 99, threads)
    assert np.array_equal(out[..., 0], expected)
    # At the same size every label is interpolated from its own pixel alone.
    engine.classify_resized(layers[:count], x, out, mask, 99, threads)
    assert np.array_equal(out[..., 0], expected)


def test_the_best_labels_and_their_logits(isa, scene, layers):
    x, mask, counts = scene
    labels, values = np.empty((*SIZE, 3), np.int32), np.empty((*SIZE, 3), np.float32)
    engine.classify(layers[:1], x, labels, values, 3, mask, -1, 2)
    logits = layers[0](x)
    order = np.argsort(-np.nan_to_num(logits), axis=-1, kind="stable")[..., :3]
    assert np.array_equal(labels, np.where(counts[..., np.newaxis], order, -1))
    best = np.take_along_axis(logits, order, -1)
    assert np.array_equal(values, np.where(counts[..., np.newaxis], best, np.nan), equal_nan=True)


@pytest.mark.parametrize("fill", [-7.0, np.nan])
def test_logits_and_probabilities(isa, scene, layers, fill):
    x, mask, counts = scene
    logits = layers[0](x)
    out = np.empty_like(logits)
    engine.run_layers(layers[:1], x, (None,), (out,), False, mask, fill, 2)
    assert np.array_equal(out, np.where(counts[..., np.newaxis], logits, np.float32(fill)), equal_nan=True)
    engine.probabilities(layers[:1], x, out, "softmax", False, mask, fill, 2)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    assert np.allclose(out, np.where(counts[..., np.newaxis], shares, fill), rtol=1e-5, atol=1e-7, equal_nan=True)


def test_nan_alone(isa, scene, layers):
    x, _, _ = scene
    out = np.empty((*SIZE, 1), np.uint8)
    engine.classify(layers[:1], x, out, None, 1, None, 255, 1)
    nodata = np.isnan(x).any(axis=-1)
    assert np.array_equal(out[..., 0] == 255, nodata)


def test_resized_labels_of_neighbours_that_do_not_count(isa, layers):
    x, mask = numbers(6, 8, 7), np.ones((6, 8, 1), bool)
    mask[2, 3] = False
    out = np.empty((12, 16, 1), np.uint8)
    engine.classify_resized(layers[:1], x, out, mask, 255, 1)
    filled = np.argwhere(out[..., 0] == 255)
    # Twice the size: a label lies a quarter of a pixel from its pixel, between it and a neighbour in each direction.
    expected = [[line, column] for line in range(3, 7) for column in range(5, 9)]
    assert filled.tolist() == expected


# Classifiers ----------------------------------------------------------------------------------------------------------

BACKENDS = pytest.mark.parametrize("backend", ["native", "numpy"])
LINKS = pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber", "multilabel"])


def classifier(backend, outs=5, layout="HWC", **kw):
    return pwconv.PixelClassifier(
        numbers(outs, 7, seed=outs), numbers(outs, seed=9), layout=layout, backend=backend, **kw
    )


def hidden_as(array, mask):
    """A map whose hidden pixels have the value that means nodata, as rasterio masks it: in one channel or in all."""
    filled = np.where(mask, array, np.float32(-9999))
    hidden = np.ma.masked_array(filled, filled == -9999)
    hidden.mask[..., 1:][~mask[..., 0]] = False
    return hidden


@BACKENDS
@pytest.mark.parametrize("outs", [1, 5])
def test_predicted_labels(backend, scene, outs):
    x, mask, counts = scene
    clf = classifier(backend, outs)
    plain = np.nan_to_num(x)
    expected = np.where(counts, clf.predict(plain), -1)
    labels = clf.predict(x, mask=mask[..., 0])
    assert labels.dtype == np.int32
    assert np.array_equal(labels, expected)
    assert np.array_equal(clf.predict(hidden_as(x, mask)), expected)
    # Masks of the array and of the argument are merged; both broadcast.
    lines = np.arange(SIZE[0]) % 2 == 0
    both = clf.predict(hidden_as(x, mask), mask=lines[:, np.newaxis], fill=77)
    assert np.array_equal(both, np.where(counts & lines[:, np.newaxis], clf.predict(plain), 77))
    nodata = np.isnan(x).any(axis=-1)
    assert np.array_equal(clf.predict(x, fill=-5), np.where(nodata, -5, clf.predict(plain)))
    assert np.array_equal(clf.predict(x)[nodata], np.zeros(nodata.sum()))  # without a fill, NaN is the largest logit
    out = np.empty(SIZE, np.uint8)
    assert clf.predict(x, mask=mask[..., 0], fill=255, out=out) is out
    assert np.array_equal(out, np.where(counts, expected, 255))


@BACKENDS
def test_predicted_names(backend, scene):
    x, mask, counts = scene
    names = ["sea", "wood", "cloud", "ice", "town"]
    clf = classifier(backend, classes=names)
    plain = clf.predict(np.nan_to_num(x))
    labels = clf.predict(x, mask=mask[..., 0], fill="unknown")
    assert labels.dtype == np.dtype("<U7")
    assert np.array_equal(labels, np.where(counts, plain, "unknown"))
    codes = classifier(backend, classes=np.array([10, 20, 30, 40, 50], np.uint8))
    assert codes.predict(x, mask=mask[..., 0], fill=255).dtype == np.uint8
    index = np.empty(SIZE, np.int16)
    clf.predict(x, mask=mask[..., 0], fill=-1, out=index)
    assert np.array_equal(index, np.where(counts, classifier(backend).predict(np.nan_to_num(x)), -1))
    best, _ = clf.top_k(x, 2, mask=mask[..., 0], fill="unknown")
    assert np.array_equal(best[..., 0], labels)


@BACKENDS
@pytest.mark.parametrize("fill", [None, -1.0, 0, np.inf])
def test_logits_of_pixels_that_count(backend, scene, fill):
    x, mask, counts = scene
    clf = classifier(backend)
    expected = np.where(counts[..., np.newaxis], clf.decision_function(x), np.float32(np.nan if fill is None else fill))
    logits = clf.decision_function(x, mask=mask[..., 0], fill=fill)
    assert np.array_equal(logits, expected, equal_nan=True)
    out = np.empty((*SIZE, 5), np.float16)
    assert clf.decision_function(hidden_as(x, mask), fill=fill, out=out) is out
    assert np.array_equal(out, expected.astype(np.float16), equal_nan=True)


@BACKENDS
@LINKS
@pytest.mark.parametrize("outs", [1, 5])
def test_probabilities_of_pixels_that_count(backend, scene, link, outs):
    x, mask, counts = scene
    clf = classifier(backend, outs, link=link)
    plain = clf.predict_proba(np.nan_to_num(x))
    for fill in (None, -1.0):
        expected = np.where(counts[..., np.newaxis], plain, np.float32(np.nan if fill is None else fill))
        got = clf.predict_proba(x, mask=mask[..., 0], fill=fill)
        assert np.allclose(got, expected, rtol=1e-6, atol=1e-7, equal_nan=True)
        assert np.array_equal(np.isnan(got), np.isnan(expected))


@BACKENDS
def test_indicators_of_pixels_that_count(backend, scene):
    x, mask, counts = scene
    clf = classifier(backend, link="multilabel", classes=list("abcde"))
    expected = np.where(counts[..., np.newaxis], clf.predict(np.nan_to_num(x)), -1)
    assert np.array_equal(clf.predict(x, mask=mask[..., 0]), expected)


@BACKENDS
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW"])
def test_masks_of_every_layout(backend, layout):
    """A list of maps, of which one is a masked array with the other byte order."""
    x = numbers(2, 13, 17, 7)
    x = np.einsum(f"NHWC->{layout}", x) if "N" in layout else np.moveaxis(x[0], -1, 0)
    axis = layout.index("C")
    first, last = np.split(x, [3], axis)
    hidden = np.ma.masked_greater(last.astype(">f4"), 1.0)
    clf = classifier(backend, layout=layout)
    counts = ~(last > 1).any(axis=axis)
    expected = np.where(counts, clf.predict(x), -1)
    assert np.array_equal(clf.predict([first, hidden]), expected)
    values = clf.decision_function((first, hidden))
    assert np.array_equal(
        values, np.where(np.expand_dims(counts, axis), clf.decision_function(x), np.float32(np.nan)), equal_nan=True
    )


@BACKENDS
@pytest.mark.parametrize("size", [(12, 16), (5, 9), (6, 8), (13, 8)])
def test_resized_labels_need_every_neighbour(backend, size):
    """The logits of hidden pixels are NaN, and a weight of 0 reads nothing: NumPy's words for the rule."""
    x, mask = numbers(6, 8, 7), np.random.default_rng(3).random((6, 8)) > 0.15
    clf = classifier(backend)
    logits = np.where(mask[..., np.newaxis], clf.decision_function(x).astype(np.float64), np.nan)
    for axis, length in enumerate(size):
        place = np.maximum((np.arange(length) + 0.5) * logits.shape[axis] / length - 0.5, 0)
        first = place.astype(int)
        second = np.where(place == first, first, np.minimum(first + 1, logits.shape[axis] - 1))
        part = np.expand_dims((place - first).reshape(-1, *(1,) * (1 - axis)), -1)
        logits = logits.take(first, axis) * (1 - part) + logits.take(second, axis) * part
    hidden = np.isnan(logits).any(axis=-1)
    assert hidden.any()
    assert not hidden.all()
    expected = np.where(hidden, -1, np.nan_to_num(logits).argmax(axis=-1))
    assert np.array_equal(clf.predict(x, size=size, mask=mask), expected)
    assert np.array_equal(
        clf.predict(np.where(mask[..., np.newaxis], x, np.float32(np.nan)), size=size, fill=-1), expected
    )


@BACKENDS
def test_a_chain_behind_a_mask(backend, scene):
    x, mask, counts = scene
    layers = [
        pwconv.PointwiseConv(numbers(6, 7, seed=1), layout="HWC", stride=2, activation="relu", backend=backend),
        pwconv.PointwiseConv(numbers(4, 6, seed=2), layout="HWC", backend=backend),
    ]
    clf = pwconv.PixelClassifier.from_chain(pwconv.PointwiseChain(layers))
    expected = np.where(counts[::2, ::2], clf.predict(np.nan_to_num(x)), -1)
    # NaN behind relu stays NaN, so pixels of nodata do not count behind a chain either.
    assert np.array_equal(clf.predict(x, mask=mask[..., 0]), expected)


@BACKENDS
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": np.ones(SIZE, np.uint8)}, TypeError, r"^mask must be bool, got uint8: mask != 0 makes it so$"),
        (
            {"mask": np.ones((3, 3), bool)},
            ValueError,
            r"^mask must have shape \(61, 83\), or broadcast to it, got \(3, 3\)",
        ),
        ({"mask": np.ones((*SIZE, 7), bool)}, ValueError, r"mask.all\(axis=2\) has one value per pixel$"),
        ({"fill": 4}, ValueError, r"^fill must be an index of no class, not from 0 to 4, got 4$"),
        ({"fill": 0.5}, TypeError, r"^fill must be an integer, got float$"),
        ({"fill": 256, "out": np.empty(SIZE, np.uint8)}, ValueError, r"^fill must be from 0 to 255, got 256$"),
        (
            {"mask": np.ones(SIZE, bool), "out": np.empty(SIZE, np.uint8)},
            ValueError,
            r"^fill must be given where a mask hides pixels: uint8 does not hold -1. It may be from 5 to 255$",
        ),
    ],
    ids=str,
)
def test_wrong_masks_and_fills_of_labels(backend, options, error, message):
    with pytest.raises(error, match=message):
        classifier(backend).predict(numbers(*SIZE, 7), **options)


@BACKENDS
def test_wrong_fills_of_names(backend):
    clf, x = classifier(backend, classes=list("abcde")), numbers(*SIZE, 7)
    with pytest.raises(ValueError, match=r"^fill must be given where a mask hides pixels, as a name of no class"):
        clf.predict(x, mask=np.ones(SIZE, bool))
    with pytest.raises(ValueError, match=r"^fill must be a name of no class, got 'c'$"):
        clf.predict(x, fill="c")
    with pytest.raises(TypeError, match=r"^fill must be a name of no class like those of dtype <U1, got 3$"):
        clf.predict(x, fill=3)
    with pytest.raises(TypeError, match=r"^fill must be a number, got str$"):
        clf.predict_proba(x, fill="c")


# Masked arrays where no pixel can be left out -------------------------------------------------------------------------


def hiding(*shape):
    array = np.ma.masked_array(np.ones(shape, np.float32), np.zeros(shape, bool))
    array[(0,) * len(shape)] = np.ma.masked
    return array


@BACKENDS
@pytest.mark.parametrize(
    "name", ["x", "x[1]", "weight", "bias", "input_scale", "input_shift", "output_scale", "residual", "out"]
)
def test_no_argument_drops_its_mask(backend, name):
    """A mask that hides nothing is as good as none."""
    shapes = {"weight": (3, 4), "bias": (3,), "input_scale": (4,), "input_shift": (4,), "output_scale": (3,)}
    arrays = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    arrays |= {key: np.ones((1, 3, 5, 5), np.float32) for key in ("residual", "out")}
    arrays["x"] = np.ones((1, 4, 5, 5), np.float32)
    for masked, message in ((hiding, rf"^{name.replace('[', '.').replace(']', '.')} must not hide values"), (None, "")):
        given = dict(arrays)
        if name == "x[1]":
            parts = [arrays["x"][:, :2], arrays["x"][:, 2:]]
            parts[1] = np.ma.masked_array(parts[1]) if masked is None else hiding(*parts[1].shape)
            given["x"] = parts
        else:
            given[name] = np.ma.masked_array(given[name]) if masked is None else hiding(*given[name].shape)
        if masked is None:
            assert (pwconv.pointwise_conv(**given, backend=backend) == 4 + 4 + 1 + 1).all()
        else:
            with pytest.raises(TypeError, match=message):
                pwconv.pointwise_conv(**given, backend=backend)


def test_gradients_and_statistics_drop_no_mask():
    x, weight, grad_y = hiding(1, 4, 5, 5), np.ones((3, 4), np.float32), np.ones((1, 3, 5, 5), np.float32)
    with pytest.raises(TypeError, match=r"^x must not hide values"):
        pwconv.pointwise_conv_backward(grad_y, x, weight)
    with pytest.raises(TypeError, match=r"^grad_y must not hide values"):
        pwconv.pointwise_conv_backward(hiding(1, 3, 5, 5), np.asarray(x), weight)
    with pytest.raises(TypeError, match=r"^mask must not hide values"):
        pwconv.ChannelReducer(2).fit(np.asarray(x), mask=np.ma.masked_array(np.ones((5, 5), bool), np.eye(5)))
    reducer = pwconv.ChannelReducer(2).fit(numbers(1, 4, 5, 5))
    with pytest.raises(TypeError, match=r"^x must not hide values"):
        reducer.inverse_transform(hiding(1, 2, 5, 5))
    with pytest.raises(TypeError, match=r"^weight must not hide values"):
        pwconv.factorize_kernel(hiding(3, 4, 1, 1), rank=2)
