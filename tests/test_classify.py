"""Pixel classifiers: labels, probabilities and the best k classes, against logits in float64 and scikit-learn."""

from __future__ import annotations

import copy
import inspect
import pickle
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from scipy import special
from skimage import data
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.svm import SVC, LinearSVC
from test_views import extra_memory, needs_proc

import pwconv
from pwconv import PixelClassifier

backends = pytest.mark.parametrize("backend", ["native", "numpy"])
LAYOUTS = {"NCHW": (2, 20, 9, 11), "NHWC": (2, 9, 11, 20), "CHW": (20, 9, 11), "HWC": (9, 11, 20), "NC": (37, 20)}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def logits_of(clf, x):
    """The logits, and their channel axis."""
    return clf.decision_function(x), clf.layer.layout.index("C")


def random_classifier(rows=21, channels=20, layout="NCHW", **options):
    return PixelClassifier(normal(1, rows, channels), normal(2, rows), layout=layout, **options)


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 3, 17, 150, 1000])
def test_labels_are_those_of_the_logits(isa, layout, classes):
    clf, x = random_classifier(classes, layout=layout), normal(3, *LAYOUTS[layout])
    logits, axis = logits_of(clf, x)
    labels = clf.predict(x)
    assert labels.dtype == np.int32
    assert labels.flags.c_contiguous
    assert np.array_equal(labels, logits.argmax(axis))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_labels_of_many_pixels(isa, layout, num_threads):
    shape = {"NCHW": (2, 64, 70, 65), "NHWC": (2, 70, 65, 64)}[layout]
    clf, x = random_classifier(33, 64, layout), normal(3, *shape)
    logits, axis = logits_of(clf, x)
    assert np.array_equal(clf.predict(x, num_threads=num_threads), logits.argmax(axis))
    labels, best = clf.top_k(x, 3, num_threads=num_threads)
    order = np.argsort(-logits, axis, kind="stable").take(range(3), axis)
    assert np.array_equal(labels, order)
    assert oracle.same_bits(best, np.take_along_axis(logits, order, axis))


@backends
def test_ties_and_nan(backend):
    """Given logits: ties, zeros of both signs, infinities, and NaN in several places."""
    nan, inf = np.nan, np.inf
    logits = np.array(
        [
            [1, 2, 2, 0],
            [0.0, -0.0, 0.0, -0.0],
            [-0.0, 0.0, -1, -2],
            [-inf, -inf, -inf, -inf],
            [inf, 1, inf, nan],
            [5, nan, nan, inf],
            [nan, nan, nan, nan],
            [-1, -2, -inf, -1],
        ],
        np.float32,
    )
    # The logits are given by the bias, since weights would spread NaN and infinities over all classes.
    for row in logits:
        clf = PixelClassifier(np.zeros((4, 1), np.float32), row, layout="NC", backend=backend)
        x = np.zeros((1, 1), np.float32)
        assert clf.predict(x)[0] == np.argmax(row)
        labels, values = clf.top_k(x, 4)
        expected = sorted(range(4), key=lambda i, row=row: (not np.isnan(row[i]), -row[i], i))
        assert labels[0].tolist() == expected
        np.testing.assert_array_equal(values[0], row[expected])


@backends
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_out_holds_indices(backend, dtype):
    x = normal(3, 2, 20, 9, 11)
    clf = random_classifier(100, backend=backend, classes=[f"class {i}" for i in range(100)])
    whole = np.full((2, 9, 24), 7, dtype)
    out = whole[:, :, 1:23:2]
    assert clf.predict(x, out=out) is out
    assert np.array_equal(out, clf.decision_function(x).argmax(1))
    assert np.all(whole[:, :, ::2] == 7)
    pair = np.empty((2, 5, 9, 11), dtype), np.empty((5, 2, 9, 11), np.float32).swapaxes(0, 1)
    result = clf.top_k(x, 5, out=pair)
    assert result[0] is pair[0]
    assert result[1] is pair[1]
    assert np.array_equal(pair[0][:, 0], out)
    assert np.array_equal(pair[1][:, 0], clf.decision_function(x).max(1))


@backends
@pytest.mark.parametrize("names", [["sea", "wood", "cloud"], [10, 20, 30], [1.5, 2.5, 0.5], [None, "a", 3]])
def test_names_of_classes(backend, names):
    clf, x = random_classifier(3, classes=names, backend=backend), normal(3, 2, 20, 9, 11)
    indices = clf.decision_function(x).argmax(1)
    assert np.array_equal(clf.predict(x), np.array(names)[indices])
    assert np.array_equal(clf.top_k(x, 1)[0][:, 0], np.array(names)[indices])
    with pytest.raises(ValueError, match="read-only"):
        clf.classes[0] = names[1]


def test_inputs_are_those_of_a_layer(isa):
    """A list of uint8 and float32 maps, and a flipped crop."""
    parts = [data.astronaut()[:40, :50][::-1, 5:], normal(1, 40, 60, 17)[:, 8:53]]
    clf = random_classifier(30, 20, "HWC")
    logits = clf.decision_function(parts)
    assert oracle.same_bits(logits, pwconv.pointwise_conv(parts, normal(1, 30, 20), normal(2, 30), layout="HWC"))
    assert np.array_equal(clf.predict(parts), logits.argmax(-1))
    assert np.array_equal(clf.top_k(parts, 2)[1][..., 0], logits.max(-1))


# Resized labels -------------------------------------------------------------------------------------------------------


def resized(logits, size):
    """Bilinear interpolation of (..., H, W) with half-pixel centres, in float64."""
    for axis, length in ((-2, size[0]), (-1, size[1])):
        old = logits.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        part = place - low
        part = part[:, np.newaxis] if axis == -2 else part
        logits = (1 - part) * logits.take(low, axis) + part * logits.take(np.minimum(low + 1, old - 1), axis)
    return logits


SIZES = [(9, 11), (18, 22), (40, 37), (1, 1), (5, 50), (3, 4), (288, 352)]


@backends
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW", "HWC", "NHCW", "channels_first"])
@pytest.mark.parametrize("size", SIZES)
def test_labels_of_resized_logits(backend, layout, size):
    clf = random_classifier(17, layout=layout, backend=backend)
    letters = oracle.letters(layout, 4)
    x = normal(3, *({"N": 2, "C": 20, "H": 9, "W": 11}[letter] for letter in letters))
    labels = clf.predict(x, size=size)
    assert labels.dtype == np.int32
    logits = np.einsum(f"{letters}->{letters.replace('C', '').replace('HW', 'CHW')}", clf.decision_function(x))
    logits = np.moveaxis(logits, letters.replace("C", "").index("H"), 0)
    large = resized(logits.astype(np.float64), size)
    assert labels.shape == large.shape[1:]
    # A label is right if no other logit is larger by more than rounding errors.
    chosen = np.take_along_axis(large, labels[np.newaxis], 0)[0]
    assert np.all(large.max(0) - chosen <= 1e-5 * np.abs(large).max())
    assert np.mean(labels == large.argmax(0)) > 0.999


def test_resized_labels_have_the_bits_of_any_split(isa):
    clf, x = random_classifier(19, 32), normal(3, 2, 32, 40, 41)
    expected = clf.predict(x, size=(160, 123), num_threads=1)
    for num_threads in (2, 5):
        assert np.array_equal(clf.predict(x, size=(160, 123), num_threads=num_threads), expected)
    last = random_classifier(19, 32, "NHWC")
    assert np.array_equal(last.predict(np.moveaxis(x, 1, -1), size=[160, 123]), expected)


@backends
def test_resized_to_the_same_size_changes_nothing(backend):
    clf, x = random_classifier(17, backend=backend), normal(3, 2, 20, 9, 11)
    assert np.array_equal(clf.predict(x, size=(9, 11)), clf.predict(x))


@backends
def test_resized_into_out(backend):
    clf, x = random_classifier(17, backend=backend), normal(3, 2, 20, 9, 11)
    out = np.zeros((2, 60, 50), np.uint8)[:, ::2, ::-1]
    assert clf.predict(x, size=(30, 50), out=out) is out
    assert np.array_equal(out, clf.predict(x, size=(30, 50)))


@pytest.mark.measures
@needs_proc
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", ["None", "(500, 700)"])
def test_logits_are_never_stored_as_a_whole(layout, size):
    """Logits of 230 MB, and of 210 MB when resized; class 64 has the largest."""
    call = (
        "pwconv.PixelClassifier(np.arange(150, dtype=np.float32)[:, None] % 65 * np.ones((1, 64), np.float32),"
        f" layout=layout).predict(x, size={size})"
    )
    assert extra_memory(layout, "", call) < 20 * 2**20


# Probabilities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 3, 33])
def test_softmax(isa, layout, classes):
    clf, x = random_classifier(classes, layout=layout), 5 * normal(3, *LAYOUTS[layout])
    logits, axis = logits_of(clf, x)
    probabilities = clf.predict_proba(x)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == logits.shape
    np.testing.assert_allclose(probabilities, special.softmax(logits.astype(float), axis), rtol=4e-6, atol=1e-37)


@backends
def test_softmax_is_stable(backend):
    clf = PixelClassifier(np.zeros((3, 1), np.float32), np.float32([3e38, 3e38, -3e38]), layout="NC", backend=backend)
    np.testing.assert_array_equal(clf.predict_proba(np.zeros((1, 1), np.float32)), [[0.5, 0.5, 0]])


@backends
@pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_links(backend, link, rows):
    clf, x = random_classifier(rows, link=link, backend=backend), normal(3, 2, 20, 9, 11)
    logits = clf.decision_function(x).astype(float)
    assert logits.shape[1] == rows
    if link == "softmax":
        expected = special.softmax(logits if rows > 1 else np.concatenate([0 * logits, logits], 1), 1)
    else:
        both = logits if rows > 1 else np.concatenate([-logits, logits], 1)
        scores = special.expit(both) if link == "one_vs_rest" else np.clip(both / 2 + 0.5, 0, 1)
        total = scores.sum(1, keepdims=True)
        expected = np.where(total == 0, 1 / scores.shape[1], scores / np.where(total == 0, 1, total))
    out = np.empty((expected.shape[1], 2, 9, 11), np.float32).swapaxes(0, 1)
    assert clf.predict_proba(x, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=4e-5, atol=1e-6)
    assert np.array_equal(clf.predict_proba(x), out)


@backends
def test_scores_that_are_all_zero_are_equal_shares(backend):
    clf = PixelClassifier(
        np.zeros((4, 1), np.float32), np.float32([-2, -3, -9, -1]), layout="NC", link="modified_huber", backend=backend
    )
    np.testing.assert_array_equal(clf.predict_proba(np.zeros((1, 1), np.float32)), np.full((1, 4), 0.25))


@backends
def test_two_classes(backend):
    """Weights of one row have one logit and two probabilities; class 0 is predicted for logits up to 0."""
    clf = PixelClassifier(np.ones((1, 1), np.float32), layout="NC", classes=["no", "yes"], backend=backend)
    x = np.float32([[-1], [0], [2]])
    assert np.array_equal(clf.decision_function(x), x)
    assert clf.predict(x).tolist() == ["no", "no", "yes"]
    np.testing.assert_allclose(clf.predict_proba(x)[:, 1], special.expit(x[:, 0]), rtol=1e-6)
    labels, logits = clf.top_k(x, 2)
    assert labels.tolist() == [["no", "yes"], ["no", "yes"], ["yes", "no"]]
    assert logits.tolist() == [[0, -1], [0, 0], [2, 0]]


# scikit-learn and fully connected layers ------------------------------------------------------------------------------


ESTIMATORS = {
    "LogisticRegression": LogisticRegression(),
    "LogisticRegression without intercept": LogisticRegression(fit_intercept=False),
    "LinearSVC": LinearSVC(),
    "LinearSVC without intercept": LinearSVC(fit_intercept=False),
    "SGDClassifier hinge": SGDClassifier(random_state=0),
    "SGDClassifier log_loss": SGDClassifier(loss="log_loss", random_state=0),
    "SGDClassifier modified_huber": SGDClassifier(loss="modified_huber", random_state=0),
    "RidgeClassifier": RidgeClassifier(),
    "LinearDiscriminantAnalysis": LinearDiscriminantAnalysis(),
}


def segmented_picture(classes):
    """The astronaut as standardised colours, and class names of the pixels by brightness, with some noise."""
    picture = data.astronaut()[100:300:4, 150:350:4].astype(np.float32)
    picture = (picture - picture.mean((0, 1))) / picture.std((0, 1))
    brightness = picture.mean(-1) + np.random.default_rng(0).normal(0, 0.2, picture.shape[:2])
    edges = np.quantile(brightness, np.linspace(0, 1, classes + 1)[1:-1])
    return picture, np.array(["dark", "dim", "grey", "light"])[np.digitize(brightness, edges)]


@backends
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_sklearn(backend, name, classes):
    picture, labels = segmented_picture(classes)
    pixels = picture.reshape(-1, 3)
    estimator = copy.deepcopy(ESTIMATORS[name]).fit(pixels, labels.ravel())
    clf = PixelClassifier.from_sklearn(estimator, layout="HWC", backend=backend)

    scores = estimator.decision_function(pixels.astype(np.float64)).reshape(*picture.shape[:2], -1)
    logits = clf.decision_function(picture)
    np.testing.assert_allclose(logits, scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())

    # The margin by which the best class wins, of all pixels where rounding cannot change the winner.
    ranked = np.sort(scores, axis=-1)
    margin = np.abs(scores[..., 0]) if classes == 2 else ranked[..., -1] - ranked[..., -2]
    sure = margin > 1e-4 * np.abs(scores).max()
    assert sure.mean() > 0.99
    assert np.array_equal(clf.predict(picture)[sure], estimator.predict(pixels).reshape(sure.shape)[sure])

    if hasattr(estimator, "predict_proba"):
        expected = estimator.predict_proba(pixels.astype(np.float64)).reshape(*picture.shape[:2], classes)
        np.testing.assert_allclose(clf.predict_proba(picture), expected, rtol=1e-3, atol=1e-4)
    else:
        with pytest.raises(AttributeError, match="no predict_proba"):
            clf.predict_proba(picture)


def test_estimators_with_and_without_probabilities():
    _, labels = segmented_picture(4)
    assert {name: hasattr(estimator, "predict_proba") for name, estimator in ESTIMATORS.items()} == {
        name: name.split()[0] in ("LogisticRegression", "LinearDiscriminantAnalysis")
        or name.endswith(("log_loss", "huber"))
        for name in ESTIMATORS
    }
    assert set(labels.ravel()) == {"dark", "dim", "grey", "light"}


def test_estimators_that_are_not_linear():
    picture, labels = segmented_picture(4)
    pixels, labels = picture.reshape(-1, 3), labels.ravel()
    with pytest.raises(TypeError, match=r"^estimator must be linear and fitted, got LogisticRegression without coef_$"):
        PixelClassifier.from_sklearn(LogisticRegression())
    # One-vs-one has as many rows as classes if there are three classes.
    three = np.isin(labels, ["dark", "dim", "light"])
    pairs = SVC(kernel="linear").fit(pixels[three][:200], labels[three][:200])
    assert pairs.coef_.shape == (3, 3)
    with pytest.raises(ValueError, match=r"^estimator must have one linear function per class, got SVC with coef_"):
        PixelClassifier.from_sklearn(pairs)


def test_anything_with_the_attributes():
    estimator = SimpleNamespace(coef_=normal(1, 3, 20).astype(float), intercept_=0.0, classes_=[4, 5, 6])
    clf = PixelClassifier.from_sklearn(estimator)
    x = normal(3, 1, 20, 4, 4)
    assert clf.link is None
    assert set(clf.predict(x).ravel()) <= {4, 5, 6}
    assert PixelClassifier.from_sklearn(estimator, link="softmax", classes=None).predict_proba(x).shape == (1, 3, 4, 4)


def test_from_linear():
    x = normal(3, 2, 20, 9, 11)
    clf = PixelClassifier.from_linear(normal(1, 7, 20).astype(float), normal(2, 7).astype(np.float16).tolist())
    expected = PixelClassifier(normal(1, 7, 20), normal(2, 7).astype(np.float16).astype(np.float32))
    assert oracle.same_bits(clf.decision_function(x), expected.decision_function(x))
    assert (
        PixelClassifier.from_linear(normal(1, 7, 20, 1, 1), layout="NHWC", classes=list("abcdefg")).layer.layout
        == "NHWC"
    )


def test_from_linear_behind_a_map():
    """VGG's fc6 is a 7 x 7 convolution: the constructor refuses the kernel; calls on maps refuse the matrix."""
    with pytest.raises(ValueError, match=r"^weight must look at one pixel.* \(9, 512, 7, 7\): .* with a 7 x 7 kernel;"):
        PixelClassifier.from_linear(np.zeros((9, 512, 7, 7)))
    clf = PixelClassifier.from_linear(np.zeros((9, 512 * 7 * 7)))
    for form in (clf.predict, clf.decision_function):
        with pytest.raises(
            ValueError, match=r"^x must have 25088 channels .* behind the whole map are a 7 x 7 kernel$"
        ):
            form(np.zeros((1, 512, 7, 7), np.float32))


# The rest -------------------------------------------------------------------------------------------------------------


@backends
def test_attributes_copies_and_pickles(backend):
    clf = random_classifier(3, backend=backend, classes=["a", "b", "c"], link="one_vs_rest")
    x = normal(3, 1, 20, 5, 5)
    assert clf.backend == backend
    for duplicate in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf), copy.copy(clf)):
        assert repr(duplicate) == repr(clf) == "PixelClassifier(20, 3, layout='NCHW', link='one_vs_rest')"
        assert np.array_equal(duplicate.predict(x), clf.predict(x))
        assert oracle.same_bits(duplicate.predict_proba(x), clf.predict_proba(x))
    for name in ("classes", "link", "colour"):
        with pytest.raises(AttributeError, match=f"a PixelClassifier is immutable: '{name}' cannot be set"):
            setattr(clf, name, None)
    assert repr(PixelClassifier(normal(1, 1, 20))) == "PixelClassifier(20, 2, layout='NCHW', bias=False)"


METHODS = ("decision_function", "predict", "predict_proba", "top_k")


@pytest.mark.parametrize("method", METHODS)
def test_signatures_agree(method):
    native = list(inspect.signature(getattr(PixelClassifier, method)).parameters.values())[1:]
    reference = list(inspect.signature(getattr(pwconv.reference, method)).parameters.values())[1:]
    assert [(p.name, p.kind, p.default) for p in native] == [(p.name, p.kind, p.default) for p in reference[:-1]]
    assert reference[-1].name == "dtype"


@pytest.mark.parametrize("rows", [1, 6])
def test_verify(rows):
    clf, x = random_classifier(rows), normal(3, 2, 20, 9, 11)
    for report in (
        pwconv.verify(clf, x),
        pwconv.verify(clf.decision_function, x, num_threads=1),
        pwconv.verify(clf.predict_proba, x),
        pwconv.verify(clf.top_k, x, 1),
    ):
        assert report.relative_error < 1e-5
        assert report.backend == "native"
    named = random_classifier(4, classes=["a", "b", "c", "d"])
    assert pwconv.verify(named.predict, x, size=(20, 30)).max_error == 0
    assert pwconv.verify(named.predict, x, out=np.empty((2, 9, 11), np.uint8)).max_error == 0


def test_verify_finds_a_wrong_name(monkeypatch):
    clf, x = random_classifier(3, classes=["a", "b", "c"]), normal(3, 2, 20, 9, 11)
    right = clf.predict(x)
    wrong = right.copy()
    wrong[1, 2, 3] = "z"
    monkeypatch.setattr(pwconv.reference, "predict", lambda *_, **__: wrong)
    report = pwconv.verify(clf.predict, x)
    assert (report.max_error, report.where) == (1, (1, 2, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twins_in_both_dtypes(dtype):
    clf, x = random_classifier(6), normal(3, 2, 20, 9, 11)
    logits = oracle.pointwise(x, clf.layer.weight, clf.layer.bias).value
    tolerance = {np.float32: 1e-5, np.float64: 1e-12}[dtype]
    reference = pwconv.reference
    np.testing.assert_allclose(reference.decision_function(clf, x, dtype=dtype), logits, rtol=1e-4, atol=tolerance)
    probabilities = reference.predict_proba(clf, x, dtype=dtype)
    assert probabilities.dtype == dtype
    np.testing.assert_allclose(probabilities, special.softmax(logits, 1), rtol=10 * tolerance)
    labels, best = reference.top_k(clf, x, 2, dtype=dtype)
    assert best.dtype == dtype
    assert np.array_equal(labels, np.argsort(-logits, 1)[:, :2])
    np.testing.assert_allclose(best, -np.sort(-logits, 1)[:, :2], rtol=1e-4, atol=tolerance)
    assert np.array_equal(reference.predict(clf, x, dtype=dtype), logits.argmax(1))


@backends
@pytest.mark.parametrize("shape", [(0, 20, 9, 11), (2, 20, 0, 11)])
def test_no_pixels(backend, shape):
    clf, x = random_classifier(5, backend=backend), np.zeros(shape, np.float32)
    assert clf.predict(x).shape == (shape[0], *shape[2:])
    assert clf.predict_proba(x).shape == (shape[0], 5, *shape[2:])
    assert clf.top_k(x, 2)[0].shape == (shape[0], 2, *shape[2:])


@backends
def test_no_channels(backend):
    """Without channels the logits are the bias."""
    clf = PixelClassifier(np.zeros((3, 0), np.float32), np.float32([1, 3, 2]), backend=backend)
    x = np.zeros((1, 0, 2, 2), np.float32)
    assert np.all(clf.predict(x) == 1)
    assert np.all(clf.predict(x, size=(4, 4)) == 1)
    np.testing.assert_allclose(clf.predict_proba(x)[0, :, 0, 0], special.softmax([1.0, 3, 2]), rtol=1e-6)


X = np.zeros((1, 20, 4, 5), np.float32)
HALF = X.reshape(-1).view(np.int32)[:20].reshape(1, 4, 5)

WRONG = {
    "x channels": ("predict", {"x": X[:, 1:]}, ValueError, r"^x must have 20 channels on axis 1"),
    "x dtype": ("predict_proba", {"x": X.astype(float)}, TypeError, r"^x must be float32, .*, got float64"),
    "out float": ("predict", {"out": np.zeros((1, 4, 5))}, TypeError, r"^out must have integers .* 199, got float64$"),
    "out bool": ("predict", {"out": np.zeros((1, 4, 5), bool)}, TypeError, r"^out must have integers .*, got bool$"),
    "out int8": ("predict", {"out": np.zeros((1, 4, 5), "i1")}, TypeError, r"^out must have .* 199, got int8$"),
    "out swapped bytes": ("predict", {"out": np.zeros((1, 4, 5), ">i4")}, TypeError, r"^out must have .*, got >i4$"),
    "out list": ("predict", {"out": [1]}, TypeError, r"^out must be .*, got list$"),
    "out shape": (
        "predict",
        {"out": np.zeros((1, 1, 4, 5), int)},
        ValueError,
        r"^out must have shape \(1, 4, 5\), got",
    ),
    "out of the old size": (
        "predict",
        {"size": (8, 9), "out": np.zeros((1, 4, 5), int)},
        ValueError,
        r"^out must have shape \(1, 8, 9\), got \(1, 4, 5\)$",
    ),
    "out read-only": (
        "predict",
        {"out": np.broadcast_to(np.int32(1), (1, 4, 5))},
        ValueError,
        r"^out must be writable, got a read-only array$",
    ),
    "out is x": ("predict", {"out": HALF}, ValueError, r"^out must not share memory with x$"),
    "size of one": ("predict", {"size": 8}, TypeError, r"^size must be a pair of integers, got 8$"),
    "size of three": ("predict", {"size": (8, 8, 8)}, TypeError, r"^size must be a pair of integers, got \(8, 8, 8\)$"),
    "size zero": ("predict", {"size": (8, 0)}, ValueError, r"^size\[1\] must be from 1 to \d+, got 0$"),
    "size float": ("predict", {"size": (8.0, 8)}, TypeError, r"^size\[0\] must be an integer, got float$"),
    "size of nothing": (
        "predict",
        {"x": X[:, :, :0], "size": (8, 8)},
        ValueError,
        r"^x must have pixels, .*\(1, 20, 0",
    ),
    "k missing": ("top_k", {}, TypeError, r"k"),
    "k zero": ("top_k", {"k": 0}, ValueError, r"^k must be from 1 to 200, got 0$"),
    "k too large": ("top_k", {"k": 201}, ValueError, r"^k must be from 1 to 200, got 201$"),
    "k float": ("top_k", {"k": 2.0}, TypeError, r"^k must be an integer, got float$"),
    "top_k out array": ("top_k", {"k": 2, "out": X}, TypeError, r"^out must be None or a pair of .*, got ndarray$"),
    "top_k out of one": ("top_k", {"k": 2, "out": (X,)}, TypeError, r"^out must be None or a pair of .*, got tuple$"),
    "top_k labels": (
        "top_k",
        {"k": 2, "out": (np.zeros((1, 3, 4, 5), int), np.zeros((1, 2, 4, 5), "f"))},
        ValueError,
        r"^out\[0\] must have shape \(1, 2, 4, 5\), got \(1, 3, 4, 5\)$",
    ),
    "top_k logits": (
        "top_k",
        {"k": 2, "out": (np.zeros((1, 2, 4, 5), int), np.zeros((1, 2, 4, 5)))},
        TypeError,
        r"^out\[1\] must be float32, got float64$",
    ),
    "top_k without logits": (
        "top_k",
        {"k": 2, "out": (np.zeros((1, 2, 4, 5), int), None)},
        TypeError,
        r"^out\[1\] must be a float32 array, got NoneType",
    ),
    "top_k labels are logits": (
        "top_k",
        {"k": 1, "out": (HALF[:, np.newaxis], HALF[:, np.newaxis].view("f"))},
        ValueError,
        r"^out\[1\] must not share memory with x$",
    ),
    "probabilities out": (
        "predict_proba",
        {"out": np.zeros((1, 4, 5), "f")},
        ValueError,
        r"^out must have shape \(1, 200, 4, 5\) \(layout 'NCHW'\), got \(1, 4, 5\)$",
    ),
    "num_threads": ("predict", {"num_threads": 0}, ValueError, r"^num_threads must be from 1 to \d+, got 0$"),
}


@backends
@pytest.mark.parametrize(("method", "change", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_explained(backend, method, change, error, message):
    clf = random_classifier(200, backend=backend)
    with pytest.raises(error, match=message):
        getattr(clf, method)(**({"x": X} | change))
    assert not X.any()


@backends
def test_size_needs_two_spatial_axes(backend):
    clf = random_classifier(3, layout="NCL", backend=backend)
    with pytest.raises(ValueError, match=r"^size needs a layout with two spatial axes, got 'NCL'$"):
        clf.predict(np.zeros((1, 20, 7), np.float32), size=(2, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"classes": ["a", "b"]}, ValueError, r"^classes must hold a name for each of 3 classes, got shape \(2,\)$"),
        ({"classes": 3}, ValueError, r"^classes must hold a name for each of 3 classes, got shape \(\)$"),
        ({"link": "logit"}, ValueError, r"^link must be one of 'softmax', .*, None, got 'logit'$"),
        ({"weight": np.zeros((0, 3), "f")}, ValueError, r"^weight must have a row for each class, got none$"),
        ({"weight": np.zeros((3, 3))}, TypeError, r"^weight must be float32, got float64"),
        ({"bias": np.zeros(2, "f")}, ValueError, r"^bias must have shape \(C_out,\) = \(3,\), got \(2,\)$"),
        ({"layout": "NHW"}, ValueError, r"^layout must name every axis"),
    ],
)
def test_wrong_constructions_are_explained(arguments, error, message):
    with pytest.raises(error, match=message):
        PixelClassifier(**({"weight": np.zeros((3, 20), np.float32)} | arguments))
