"""`mask=` and `fill=` of classifiers and reducers, masked arrays and NaN, against NumPy's selection of pixels."""

from __future__ import annotations

import inspect

import dask.array as da
import numpy as np
import oracle
import pytest
from numpy import ma
from skimage.transform import resize

import pwconv
from pwconv import ChannelReducer, PixelClassifier, PointwiseChain, PointwiseConv

backends = pytest.mark.parametrize("backend", ["native", "numpy"])
SIZES = {"N": 2, "C": 7, "H": 23, "W": 31}
LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC", "NHCW")
NAMES = ["sea", "wood", "field", "town", "rock"]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def classifier(layout="HWC", rows=5, **options):
    return PixelClassifier(normal(1, rows, 7), normal(2, rows), layout=layout, **options)


def scene(layout):
    """A map, a mask of its pixels, and the same pixels hidden channel by channel in a masked array."""
    rng = np.random.default_rng(3)
    x = normal(4, *(SIZES[letter] for letter in layout))
    axis = layout.index("C")
    mask = rng.random([SIZES[letter] for letter in layout if letter != "C"]) > 0.3
    hidden = np.zeros(x.shape, bool)
    channel = np.expand_dims(rng.integers(0, 7, mask.shape), axis)
    np.put_along_axis(hidden, channel, np.expand_dims(~mask, axis), axis)
    return x, mask, hidden


def filled(values, mask, axis, fill):
    return np.where(np.expand_dims(mask, axis), values, fill)


# Labels and numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_method_with_a_mask(isa, layout, num_threads):
    x, mask, _ = scene(layout)
    clf, axis, options = classifier(layout), layout.index("C"), {"mask": mask, "num_threads": num_threads}
    assert np.array_equal(clf.predict(x, **options), np.where(mask, clf.predict(x), -1))
    assert np.array_equal(clf.predict(x, fill=99, **options), np.where(mask, clf.predict(x), 99))
    labels, values = clf.top_k(x, 3, **options)
    assert np.array_equal(labels, filled(clf.top_k(x, 3)[0], mask, axis, -1))
    assert oracle.same_bits(values, filled(clf.top_k(x, 3)[1], mask, axis, np.float32(np.nan)))
    for method in (clf.decision_function, clf.predict_proba):
        for fill in (None, np.nan, -1, 0.5):
            expected = filled(method(x), mask, axis, np.float32(np.nan if fill is None else fill))
            assert oracle.same_bits(method(x, fill=fill, **options), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_arrays_are_masks(isa, layout):
    """A pixel with one masked channel does not count; `mask=` and the array's mask are joined."""
    x, mask, hidden = scene(layout)
    other = np.random.default_rng(5).random(mask.shape) > 0.5
    data = np.where(hidden, np.float32(-9999), x)
    masked = ma.MaskedArray(data, hidden)
    clf = classifier(layout)
    for method in (clf.predict, clf.decision_function, clf.predict_proba, lambda *a, **k: clf.top_k(*a, k=2, **k)[0]):
        assert np.array_equal(method(masked), method(x, mask=mask), equal_nan=True)
        assert np.array_equal(method(masked, mask=other), method(x, mask=mask & other), equal_nan=True)
    assert np.array_equal(masked.data, data)
    assert np.array_equal(masked.mask, hidden)


@backends
def test_lists_with_masked_parts(backend):
    x, _, _ = scene("HWC")
    first, last = ma.masked_greater(x[..., :3], 1), ma.masked_less(x[..., 4:], -1)
    mask = ~(first.mask.any(axis=-1) | last.mask.any(axis=-1))
    clf = classifier(backend=backend)
    assert np.array_equal(clf.predict([first, x[..., 3:4], last]), np.where(mask, clf.predict(x), -1))


@backends
def test_nan_pixels(backend):
    """NaN is the largest logit, unless there is a fill, a mask or a masked array."""
    x, mask, _ = scene("HWC")
    clf = classifier(backend=backend)
    x[5, 6, 2], x[10:15] = np.nan, np.nan
    counted = ~np.isnan(x).any(axis=-1)
    plain = clf.predict(x)
    assert np.all(plain[10:15] == 0)
    assert np.array_equal(clf.predict(x, fill=-7), np.where(counted, plain, -7))
    assert np.array_equal(clf.predict(x, mask=mask), np.where(counted & mask, plain, -1))
    assert np.array_equal(clf.predict(ma.masked_invalid(x)), np.where(counted, plain, -1))
    logits, probabilities = clf.decision_function(x, fill=-7), clf.predict_proba(x, fill=-7)
    for values, whole in ((logits, clf.decision_function(x)), (probabilities, clf.predict_proba(x))):
        assert np.array_equal(values, filled(whole, counted, -1, np.float32(-7)))


@backends
def test_a_single_nan_logit_is_enough(backend):
    """A bias of NaN is one of a class, an infinite weight makes one at a zero."""
    clf = PixelClassifier(np.zeros((3, 1), np.float32), np.float32([1, np.nan, 2]), layout="NC", backend=backend)
    x = np.ones((4, 1), np.float32)
    assert clf.predict(x).tolist() == [1] * 4
    assert clf.predict(x, fill=9).tolist() == [9] * 4
    assert np.isnan(clf.decision_function(x, fill=np.nan)).all()
    assert np.all(clf.predict_proba(x, fill=-1) == -1)
    infinite = PixelClassifier(np.float32([[np.inf], [1]]), layout="NC", backend=backend)
    assert infinite.predict(np.float32([[0], [1], [-1]]), fill=9).tolist() == [9, 0, 1]


@backends
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_out_of_every_integer(backend, dtype):
    x, mask, _ = scene("HWC")
    clf = classifier(backend=backend, classes=NAMES)
    largest = min(np.iinfo(dtype).max, 2**31 - 1)
    out = np.full((23, 62), 77, dtype)[:, ::2]
    assert clf.predict(x, mask=mask, fill=largest, out=out) is out
    indices = classifier(backend=backend).predict(x)
    assert np.array_equal(out, np.where(mask, indices, largest))
    if np.dtype(dtype).kind == "i":
        assert np.array_equal(clf.predict(x, mask=mask, out=out), np.where(mask, indices, -1))
    else:
        with pytest.raises(
            ValueError, match=rf"^fill must be given where a mask hides pixels: {dtype} does not hold -1. .* from 5 to"
        ):
            clf.predict(x, mask=mask, out=out)
    pair = np.empty((23, 31, 2), dtype), np.empty((23, 31, 2), np.float32)
    assert clf.top_k(x, 2, mask=mask, fill=largest, out=pair)[0] is pair[0]
    assert np.all((pair[0][..., 0] == largest) == ~mask)


@backends
@pytest.mark.parametrize(
    ("classes", "fill", "dtype"),
    [
        (NAMES, "none", "<U5"),
        (NAMES, "no data at all", "<U14"),
        (np.array(NAMES, "S"), b"nodata", "S6"),
        ([10, 20, 30, 40, 50], 255, "int64"),
        (np.arange(1, 6, dtype=np.uint8), 0, "uint8"),
        (np.arange(1, 6, dtype=np.uint8), 255, "uint8"),
        (np.arange(1, 6, dtype=np.uint8), -1, "int16"),
        (np.arange(5, dtype=np.int8), 200, "int16"),
        ([0.5, 1.5, 2.5, 3.5, 4.5], np.nan, "float64"),
        ([1, 2, 3, 4, 5], np.nan, "float64"),
        ([None, "a", 3, (1,), "b"], "anything", "object"),
    ],
)
def test_names(backend, classes, fill, dtype):
    x, mask, hidden = scene("HWC")
    names = np.empty(5, object) if isinstance(classes, list) and None in classes else np.array(classes)
    names[:] = classes
    clf = classifier(backend=backend, classes=names)
    indices = classifier(backend=backend).predict(x)
    labels = clf.predict(x, mask=mask, fill=fill)
    assert labels.dtype == dtype
    assert labels[mask].tolist() == names[indices][mask].tolist()
    np.testing.assert_array_equal(labels[~mask], np.array([fill], dtype)[0])
    np.testing.assert_array_equal(clf.predict(ma.MaskedArray(x, hidden), fill=fill), labels)
    top, _ = clf.top_k(x, 2, mask=mask, fill=fill)
    np.testing.assert_array_equal(top[..., 0], labels)
    # The dtype does not depend on whether a pixel is hidden: chunks of a scene fit together.
    assert clf.predict(x, fill=fill).dtype == dtype


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("layout", ["CHW", "HWC", "HCW"])
def test_stretches_of_pixels_that_do_not_count(isa, layout, rows, num_threads):
    """Stretches from single pixels to many blocks, and every way for a block to begin and end, leave the bits alone."""
    rng = np.random.default_rng(rows)
    lengths = np.concatenate([rng.integers(1, 9, 40), rng.integers(100, 1500, 40), [4000, 20000]])
    rng.shuffle(lengths)
    mask = np.resize(np.repeat(np.arange(len(lengths)) % 2 == 0, lengths), (301, 257))
    x = np.moveaxis(normal(5, 301, 257, 7), -1, layout.index("C"))
    x = np.ascontiguousarray(x)
    first = PointwiseConv(normal(6, 24, 7), layout=layout, activation="relu")
    clf = PixelClassifier.from_chain(PointwiseChain([first, PointwiseConv(normal(1, rows, 24), layout=layout)]))
    axis, options = layout.index("C"), {"mask": mask, "fill": -1, "num_threads": num_threads}
    assert np.array_equal(clf.predict(x, **options), np.where(mask, clf.predict(x), -1))
    for method in (clf.decision_function, clf.predict_proba):
        assert oracle.same_bits(method(x, **options), filled(method(x), mask, axis, np.float32(-1)))


@backends
@pytest.mark.parametrize("fill", [np.nan, -1.0])
@pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber", "multilabel"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_probabilities_of_every_link(backend, link, rows, fill):
    x, mask, _ = scene("NCHW")
    x[1, :, 3, 4] = np.nan
    counted = mask.copy()
    counted[1, 3, 4] = False
    clf = classifier("NCHW", rows, backend=backend, link=link)
    plain = clf.predict_proba(x)
    result = clf.predict_proba(x, mask=mask, fill=fill, out=np.empty_like(plain))
    np.testing.assert_array_equal(result, filled(plain, counted, 1, np.float32(fill)))
    logits = clf.decision_function(x, mask=mask, fill=fill)
    assert logits.shape[1] == rows
    np.testing.assert_array_equal(logits, filled(clf.decision_function(x), counted, 1, np.float32(fill)))


@backends
@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_multilabel(backend, stride):
    x, mask, _ = scene("HWC")
    x[4, 6] = np.nan
    layer = PointwiseConv(normal(1, 5, 7), layout="HWC", out_layout="CHW", stride=stride, backend=backend)
    clf = PixelClassifier.from_chain(layer, link="multilabel")
    rows, columns = (stride, stride) if isinstance(stride, int) else stride
    counted = (mask & ~np.isnan(x).any(axis=-1))[::rows, ::columns]
    expected = np.where(counted, layer(x) > 0, -1)
    assert np.array_equal(clf.predict(x, mask=mask), expected)
    assert np.array_equal(clf.predict(x, mask=mask, fill=7), np.where(counted, layer(x) > 0, 7))
    for fill in (0, 1):
        with pytest.raises(ValueError, match=r"^fill must be an index of no class, not from 0 to 1"):
            clf.predict(x, fill=fill)


@backends
@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_chains_strides_and_layouts(backend, stride):
    """The mask has the pixels of `x`; the results have those that the stride selects, in `out_layout`."""
    x, mask, hidden = scene("NHWC")
    first = PointwiseConv(
        normal(1, 9, 7), layout="NHWC", out_layout="NCHW", stride=stride, activation="silu", backend=backend
    )
    head = PointwiseConv(normal(2, 5, 9), layout="NCHW", out_layout="NHCW", backend=backend)
    clf = PixelClassifier.from_chain(PointwiseChain([first, head]))
    logits = head(first(x))
    rows, columns = (stride, stride) if isinstance(stride, int) else stride
    counted = mask[:, ::rows, ::columns]
    for options in ({"mask": mask}, {}):
        source = x if options else ma.MaskedArray(x, hidden)
        assert np.array_equal(clf.predict(source, **options), np.where(counted, logits.argmax(2), -1))
        assert np.array_equal(
            clf.decision_function(source, **options), filled(logits, counted, 2, np.nan), equal_nan=True
        )


@backends
def test_a_mask_that_broadcasts(backend):
    x, mask, _ = scene("NCHW")
    clf = classifier("NCHW", backend=backend)
    row = mask[0, 0]
    expected = np.where(np.broadcast_to(row, mask.shape), clf.predict(x), -1)
    assert np.array_equal(clf.predict(x, mask=row), expected)
    assert np.array_equal(clf.predict(x, mask=np.asfortranarray(mask)), clf.predict(x, mask=mask))
    assert np.array_equal(clf.predict(x, mask=np.False_), np.full(mask.shape, -1))


@backends
@pytest.mark.parametrize("shape", [(0, 7, 9, 11), (2, 7, 0, 11)])
def test_no_pixels(backend, shape):
    clf, x = classifier("NCHW", backend=backend), np.zeros(shape, np.float32)
    mask = np.ones((shape[0], *shape[2:]), bool)
    assert clf.predict(x, mask=mask).shape == mask.shape
    assert clf.predict_proba(x, mask=mask).shape == (shape[0], 5, *shape[2:])
    assert clf.top_k(x, 2, mask=mask)[0].shape == (shape[0], 2, *shape[2:])


def test_narrow_logits(isa):
    """Logits that `out` rounds to integers: pixels are found to be NaN before that."""
    x, mask, _ = scene("HWC")
    x[3, 4] = np.nan
    counted = mask & ~np.isnan(x).any(axis=-1)
    clf = PixelClassifier(normal(1, 5, 7) * 100, layout="HWC")
    out = np.empty((23, 31, 5), np.int16)
    assert clf.decision_function(x, mask=mask, fill=-32768, out=out) is out
    assert np.array_equal(out, filled(np.rint(np.nan_to_num(clf.decision_function(x))), counted, -1, -32768))
    twin = pwconv.reference.decision_function(clf, x, mask=mask, fill=-32768, out=np.empty_like(out))
    assert np.array_equal(twin, out)
    with pytest.raises(ValueError, match=r"^fill must be given where a mask hides pixels: int16 has no NaN"):
        clf.decision_function(x, mask=mask, out=out)
    for fill in (40000, 0.5, np.nan):
        with pytest.raises(ValueError, match=r"^fill must be an integer that int16 holds, got"):
            clf.decision_function(x, mask=mask, fill=fill, out=out)


# Resized labels -------------------------------------------------------------------------------------------------------


def hidden_by_neighbours(mask, size):
    """Which pixels scikit-image interpolates from one that does not count."""
    resized = resize((~mask).astype(float), size, order=1, mode="edge", anti_aliasing=False)
    return resized > 1e-9  # weights of 0 come out as 1e-16


@pytest.mark.parametrize("size", [(23, 31), (46, 62), (69, 93), (50, 41), (11, 60), (1, 1), (7, 200)])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_resized_labels(isa, layout, size):
    x, _, _ = scene(layout)
    mask = np.random.default_rng(6).random((23, 31)) > 0.05
    nodata = np.random.default_rng(7).random((23, 31)) > 0.03
    np.moveaxis(x, layout.index("C"), -1)[~nodata] = np.nan
    clf = classifier(layout)
    clean = np.nan_to_num(x)
    expected = np.where(hidden_by_neighbours(mask & nodata, size), 200, clf.predict(clean, size=size))
    out = np.empty(size, np.uint8)
    assert clf.predict(x, size=size, mask=mask, fill=200, out=out) is out
    assert np.array_equal(out, expected)
    twin = pwconv.reference.predict(clf, x, size=size, mask=mask, fill=200)
    assert np.array_equal(twin == 200, expected == 200)
    assert np.mean(twin == expected) > 0.999


@backends
def test_resized_to_the_same_size(backend):
    """No neighbour has a weight, so labels are those of the pixels; NaN is the largest without a fill."""
    x, mask, _ = scene("HWC")
    x[5:9, 3:20] = np.nan
    clf = classifier(backend=backend, classes=NAMES)
    assert np.array_equal(clf.predict(x, size=(23, 31)), clf.predict(x))
    assert np.array_equal(
        clf.predict(x, size=(23, 31), mask=mask, fill="nodata"), clf.predict(x, mask=mask, fill="nodata")
    )


def test_resized_blocks_without_a_pixel_that_counts(isa):
    """Bands of lines in which nothing counts, beside bands in which something does."""
    clf, x = classifier("NHWC"), normal(8, 2, 400, 300, 7)
    mask = np.zeros((2, 400, 300), bool)
    mask[0, 180:210, 100:] = mask[1, 0] = mask[1, 399] = True
    for size in ((400, 300), (555, 299)):
        labels = clf.predict(x, size=size, mask=mask, num_threads=3)
        hidden = np.stack([hidden_by_neighbours(image, size) for image in mask])
        assert np.array_equal(labels, np.where(hidden, -1, clf.predict(x, size=size)))


# Errors ---------------------------------------------------------------------------------------------------------------


X = np.zeros((4, 5, 7), np.float32)
MASK = np.ones((4, 5), bool)
HIDDEN = ma.MaskedArray(X, np.arange(140).reshape(4, 5, 7) == 50)
WRONG = {
    "mask dtype": (
        "predict",
        {"mask": MASK.astype("u1")},
        TypeError,
        r"^mask must be bool, got uint8: mask != 0 makes",
    ),
    "mask list": ("predict", {"mask": [True]}, TypeError, r"^mask must be .*, got list$"),
    "mask shape": ("predict", {"mask": MASK[1:]}, ValueError, r"^mask must have shape \(4, 5\), .*, got \(3, 5\)$"),
    "mask of elements": (
        "predict_proba",
        {"mask": X == 0},
        ValueError,
        r"^mask must have shape \(4, 5\), .* got \(4, 5, 7\): mask.all\(axis=2\) has one value per pixel$",
    ),
    "masked mask": ("predict", {"mask": ma.MaskedArray(MASK, MASK)}, TypeError, r"^mask must not hide values"),
    "fill of a class": (
        "predict",
        {"fill": 2},
        ValueError,
        r"^fill must be an index of no class, not from 0 to 4, got 2$",
    ),
    "fill float": ("predict", {"fill": 9.0}, TypeError, r"^fill must be an integer, got float$"),
    "fill str": ("predict", {"fill": "sea"}, TypeError, r"^fill must be an integer, got str$"),
    "fill bool": ("predict", {"fill": True}, TypeError, r"^fill must be an integer, got bool$"),
    "fill beyond int32": ("predict", {"fill": 2**31}, ValueError, r"^fill must be from -2147483648 to 2147483647, got"),
    "fill beyond out": (
        "predict",
        {"fill": 256, "out": np.empty((4, 5), np.uint8)},
        ValueError,
        r"^fill must be from 0 to 255, got 256$",
    ),
    "no fill for uint8": (
        "predict",
        {"x": HIDDEN, "out": np.empty((4, 5), np.uint8)},
        ValueError,
        r"^fill must be given where a mask hides pixels: uint8 does not hold -1. It may be from 5 to 255$",
    ),
    "probability str": ("predict_proba", {"fill": "sea"}, TypeError, r"^fill must be a number, got str$"),
    "logit too large": (
        "decision_function",
        {"fill": 1e39},
        ValueError,
        r"^fill must be finite in float32, .* got 1e\+39$",
    ),
    "top_k fill": (
        "top_k",
        {"k": 2, "fill": 0},
        ValueError,
        r"^fill must be an index of no class, not from 0 to 4, got 0$",
    ),
}


@backends
@pytest.mark.parametrize(("method", "change", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_masks_and_fills_are_explained(backend, method, change, error, message):
    with pytest.raises(error, match=message):
        getattr(classifier(backend=backend), method)(**({"x": X} | change))


@backends
@pytest.mark.parametrize(
    ("classes", "fill", "error", "message"),
    [
        (NAMES, None, ValueError, r"^fill must be given where a mask hides pixels, as a name of no class"),
        (NAMES, "sea", ValueError, r"^fill must be a name of no class, got 'sea'$"),
        (NAMES, 255, TypeError, r"^fill must be a name of no class like those of dtype <U5, got 255$"),
        (NAMES, ["a"], TypeError, r"^fill must be a name of no class like those of dtype <U5, got \['a'\]$"),
        ([1, 2, 3, 4, 5], 3, ValueError, r"^fill must be a name of no class, got 3$"),
        ([1, 2, 3, 4, 5], "x", TypeError, r"^fill must be a name of no class like those of dtype int64, got 'x'$"),
        ([1, 2, 3, 4, 5], 10**30, ValueError, r"^fill must be an integer that fits those of classes, .* int64, got 10"),
        (np.arange(5, dtype=np.uint64), -1, ValueError, r"^fill must be an integer that fits .* uint64, got -1$"),
        ([None, 1, "a", 2, "b"], "a", ValueError, r"^fill must be a name of no class, got 'a'$"),
    ],
)
def test_wrong_names_are_explained(backend, classes, fill, error, message):
    clf = classifier(backend=backend, classes=classes)
    for call in (lambda **k: clf.predict(X, **k), lambda **k: clf.top_k(X, 2, **k)):
        with pytest.raises(error, match=message):
            call(mask=MASK, fill=fill)
    out = np.empty((4, 5), np.int32)
    with pytest.raises(TypeError, match=r"^fill must be an integer, since out receives indices, got str$"):
        clf.predict(X, fill="sea", out=out)


@backends
def test_256_classes_fill_uint8(backend):
    clf = PixelClassifier(normal(1, 256, 7), layout="HWC", backend=backend)
    with pytest.raises(ValueError, match=r"uint8 does not hold -1. uint8 holds no index of no class$"):
        clf.predict(X, mask=MASK, out=np.empty((4, 5), np.uint8))


@backends
def test_out_must_not_lie_in_the_mask(backend):
    clf, memory = classifier(backend=backend), np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"^out must not share memory with mask$"):
        clf.predict(X, mask=memory.view(bool), fill=255, out=memory)
    memory = np.zeros((4, 5, 7), np.float32)
    one_of_four = np.ndarray((4, 5), bool, memory, strides=(140, 28))
    for method in (clf.decision_function, clf.predict_proba):
        with pytest.raises(ValueError, match=r"^out must not share memory with mask$"):
            method(X, mask=one_of_four, out=memory[..., :5])


# A mask is never dropped ----------------------------------------------------------------------------------------------


class Exports:
    """An object whose `__array__` returns a masked array."""

    def __array__(self, dtype=None, copy=None):
        return HIDDEN


WEIGHT = np.ones((3, 7), np.float32)
MASKED = {
    "x": lambda b: pwconv.pointwise_conv(HIDDEN, WEIGHT, layout="HWC", backend=b),
    "x[1]": lambda b: pwconv.pointwise_conv([X[..., :1], HIDDEN[..., 1:]], WEIGHT, layout="HWC", backend=b),
    "x of __array__": lambda b: pwconv.pointwise_conv(Exports(), WEIGHT, layout="HWC", backend=b),
    "x of a layer": lambda b: PointwiseConv(WEIGHT, layout="HWC", backend=b)(HIDDEN),
    "x of a chain": lambda b: PointwiseChain([PointwiseConv(WEIGHT, layout="HWC", backend=b)])(HIDDEN),
    "x of branches": lambda b: pwconv.PointwiseBranches([PointwiseConv(WEIGHT, layout="HWC", backend=b)])(HIDDEN),
    "weight": lambda b: PointwiseConv(ma.masked_equal(WEIGHT, 1), backend=b),
    "bias": lambda b: PointwiseConv(WEIGHT, ma.masked_equal(WEIGHT[:, 0], 1), backend=b),
    "input_scale": lambda b: pwconv.pointwise_conv(
        X, WEIGHT, layout="HWC", input_scale=ma.masked_equal(WEIGHT[0], 1), backend=b
    ),
    "residual": lambda b: PointwiseConv(np.ones((7, 7), np.float32), layout="HWC", backend=b)(X, residual=HIDDEN),
    "out": lambda b: PointwiseConv(np.ones((7, 7), np.float32), layout="HWC", backend=b)(X, out=HIDDEN.copy()),
    "grad_y": lambda b: pwconv.pointwise_conv_backward(HIDDEN, X, np.ones((7, 7), np.float32), layout="HWC", backend=b),
    "gamma": lambda b: PointwiseConv(WEIGHT, backend=b).fold_batchnorm(
        ma.masked_equal(WEIGHT[:, 0], 1), *[WEIGHT[:, 0]] * 3
    ),
    "classes": lambda b: PixelClassifier(WEIGHT, classes=ma.masked_equal([1, 2, 3], 2), backend=b),
    "weight of from_linear": lambda b: PixelClassifier.from_linear(ma.masked_equal(WEIGHT, 1), backend=b),
    "z": lambda b: ChannelReducer(7, layout="HWC").fit(normal(1, 4, 5, 7)).inverse_transform(HIDDEN),
}


@backends
@pytest.mark.parametrize("call", MASKED.values(), ids=MASKED)
def test_a_mask_is_never_dropped(backend, call):
    with pytest.raises(TypeError, match=r"must not hide values behind a mask: (fill them|give)"):
        call(backend)


def test_what_to_do_about_an_out_that_is_masked():
    with pytest.raises(TypeError, match=r"^out must not hide values behind a mask: give out.data$"):
        MASKED["out"]("native")


@backends
def test_a_mask_that_hides_nothing_is_none(backend):
    x = ma.MaskedArray(normal(1, 4, 5, 7), np.zeros((4, 5, 7), bool))
    layer = PointwiseConv(ma.MaskedArray(normal(2, 3, 7)), layout="HWC", backend=backend)
    out = ma.MaskedArray(np.empty((4, 5, 3), np.float32))
    assert layer(x, out=out) is out
    assert oracle.same_bits(out.data, layer(x.data))
    assert np.array_equal(
        classifier(backend=backend, classes=NAMES).predict(x), classifier(classes=NAMES).predict(x.data)
    )


# Reducers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transform(isa, layout):
    x, mask, hidden = scene(layout)
    axis = layout.index("C")
    reducer = ChannelReducer(3, layout=layout, whiten=True).fit(x)
    plain = reducer.transform(x)
    for fill in (None, -5):
        expected = filled(plain, mask, axis, np.float32(np.nan if fill is None else fill))
        assert oracle.same_bits(reducer.transform(x, mask=mask, fill=fill), expected)
        assert oracle.same_bits(reducer.transform(ma.MaskedArray(x, hidden), fill=fill), expected)
    out = np.empty_like(plain)
    assert reducer.transform(x, out, mask=mask, num_threads=3) is out
    narrow = reducer.transform(x, mask=mask, fill=-99, out_dtype="int8")
    assert narrow.dtype == np.int8
    assert np.array_equal(narrow, filled(np.clip(np.rint(plain), -128, 127), mask, axis, -99))
    assert np.array_equal(reducer.transform(x, out_dtype=np.int16), np.rint(plain))
    with pytest.raises(ValueError, match=r"^fill must be given where a mask hides pixels: uint8 has no NaN"):
        reducer.transform(x, mask=mask, out_dtype="uint8")


def test_fit_of_a_masked_array():
    """Four pixels, of which the last is hidden and holds -9999."""
    x = ma.masked_equal(np.array([[1], [2], [3], [-9999]], np.int16), -9999)
    reducer = ChannelReducer(1, layout="NC")
    for fit in (reducer.fit, ChannelReducer(1, layout="NC").partial_fit):
        fitted = fit(x)
        assert fitted.mean_ == [2]
        assert fitted.explained_variance_ == [1]
        assert fitted.n_samples_seen_ == 3
    np.testing.assert_array_equal(reducer.transform(x)[:, 0], [-1, 0, 1, np.nan])
    np.testing.assert_array_equal(reducer.fit_transform(x, fill=9)[:, 0], [-1, 0, 1, 9])
    assert reducer.fit(x, mask=np.array([True, True, False, True])).mean_ == [1.5]
    assert reducer.fit(x.data).mean_ == [-2498.25]


def test_components_of_a_masked_array():
    x, mask, hidden = scene("CHW")
    masked = ma.MaskedArray(np.where(hidden, np.float32(1e6), x), hidden)
    reducer = ChannelReducer(3, layout="CHW").fit(masked)
    expected = ChannelReducer(3, layout="CHW").fit(x, mask=mask)
    assert np.array_equal(reducer.components_, expected.components_)
    assert reducer.n_samples_seen_ == mask.sum()
    twin = pwconv.reference.principal_components(masked, 3, layout="CHW")
    np.testing.assert_allclose(reducer.components_, twin.components, atol=1e-5)


# The rest -------------------------------------------------------------------------------------------------------------


def test_verify_takes_masks():
    x, mask, _ = scene("HWC")
    clf = classifier(classes=NAMES)
    for report in (
        pwconv.verify(clf, x, mask=mask),
        pwconv.verify(clf.predict_proba, x, mask=mask, fill=-1),
        pwconv.verify(clf.top_k, x, 2, mask=mask, fill="nodata"),
        pwconv.verify(clf.predict, x, mask=mask, fill="nodata", size=(50, 60)),
    ):
        assert report.relative_error < 1e-5
        assert report.backend == "native"


def test_dask_chunks_of_masked_arrays():
    """Each chunk brings its own mask; chunks without a hidden pixel have the dtype of the others."""
    x, _, hidden = scene("HWC")
    hidden[:10] = False
    clf = classifier(classes=NAMES)
    masked = ma.MaskedArray(x, hidden)
    chunks = da.from_array(masked, chunks=(10, 10, 7), asarray=False)
    labels = chunks.map_blocks(lambda chunk: clf.predict(chunk, fill="nodata"), drop_axis=2, dtype="<U6").compute()
    assert np.array_equal(labels, clf.predict(masked, fill="nodata"))
    assert np.array_equal(labels == "nodata", hidden.any(axis=-1))


def test_arguments_follow_one_order():
    for method in ("predict", "predict_proba", "decision_function", "top_k"):
        names = list(inspect.signature(getattr(PixelClassifier, method)).parameters)
        place = names.index("mask")
        assert names[place : place + 4] == ["mask", "fill", "out", "num_threads"]
