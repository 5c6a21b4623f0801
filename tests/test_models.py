"""Fitted models of scikit-learn as layers, chains and classifiers, against scikit-learn itself in float64."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from scipy import special
from sklearn import (
    compose,
    cross_decomposition,
    decomposition,
    ensemble,
    feature_selection,
    kernel_approximation,
    linear_model,
    model_selection,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    random_projection,
    svm,
    tree,
)
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

import pwconv
from pwconv import PixelClassifier, PointwiseChain, PointwiseConv

backends = pytest.mark.parametrize("backend", ["native", "numpy"])
layouts = pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "uint16", "uint8"])
SHAPE = (2, 15, 20)
BANDS = 7


@pytest.fixture(autouse=True)
def quiet():
    """Fits are short: what they say of convergence is of no interest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scene(seed, dtype):
    """A map of bands with different means and spreads that depend on each other, its pixels as samples, and classes."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((*SHAPE, BANDS))
    mixed = hidden @ (np.eye(BANDS) + 0.4 * rng.standard_normal((BANDS, BANDS)))
    largest = {"float32": None, "uint16": 65535, "uint8": 255}[dtype]
    x = mixed * rng.uniform(0.5, 3, BANDS) + rng.uniform(-4, 4, BANDS)
    if largest is not None:
        x = np.clip(np.rint(largest * (0.5 + x / 30)), 0, largest)
    x = x.astype(dtype)
    noisy = hidden[..., :4] + 0.5 * rng.standard_normal((*SHAPE, 4))
    return x, x.reshape(-1, BANDS).astype(np.float64), noisy.reshape(-1, 4)


def laid_out(x, layout):
    """A channels-last map in a layout."""
    return np.ascontiguousarray(np.moveaxis(x, -1, layout.index("C")))


def samples_of(y, layout):
    """The pixels of a map as samples."""
    y = np.moveaxis(y, layout.index("C"), -1)
    return y.reshape(-1, y.shape[-1])


def assert_close(result, expected, tolerance=1e-5):
    """Numbers agree to a share of their scale."""
    expected = expected.reshape(len(result), -1)
    assert result.shape == expected.shape
    error = np.abs(result - expected).max()
    assert error <= tolerance * np.abs(expected).max(), f"{error} of {np.abs(expected).max()}"


NAMES = np.array(["water", "wood", "town", "field"])

LINEAR = {
    "LogisticRegression": linear_model.LogisticRegression(),
    "LogisticRegressionCV": linear_model.LogisticRegressionCV(cv=2, Cs=2, use_legacy_attributes=False, l1_ratios=(0,)),
    "LinearSVC": svm.LinearSVC(),
    "SGDClassifier hinge": linear_model.SGDClassifier(random_state=0),
    "SGDClassifier log_loss": linear_model.SGDClassifier(loss="log_loss", random_state=0),
    "SGDClassifier modified_huber": linear_model.SGDClassifier(loss="modified_huber", random_state=0),
    "RidgeClassifier": linear_model.RidgeClassifier(),
    "RidgeClassifierCV": linear_model.RidgeClassifierCV(),
    "Perceptron": linear_model.Perceptron(),
    "LinearDiscriminantAnalysis": LinearDiscriminantAnalysis(),
    "LinearDiscriminantAnalysis lsqr": LinearDiscriminantAnalysis(solver="lsqr"),
    "LinearDiscriminantAnalysis eigen": LinearDiscriminantAnalysis(solver="eigen"),
    "MLPClassifier relu": neural_network.MLPClassifier((16, 8), max_iter=30, random_state=0),
    "MLPClassifier tanh": neural_network.MLPClassifier((9,), activation="tanh", max_iter=30, random_state=0),
    "MLPClassifier logistic": neural_network.MLPClassifier((9,), activation="logistic", max_iter=30, random_state=0),
    "MLPClassifier identity": neural_network.MLPClassifier((9, 5), activation="identity", max_iter=30, random_state=0),
    "MLPClassifier without hidden layers": neural_network.MLPClassifier((), max_iter=30, random_state=0),
}

NOT_SCALED = ("LinearDiscriminantAnalysis", "RidgeClassifier")  # which need no scaler to converge


def check_classifier(model, clf, x, samples, layout):
    """Labels, logits and probabilities of a classifier are scikit-learn's."""
    scores = scores_of(model, samples)
    logits = samples_of(clf.decision_function(x), layout)
    assert_close(logits, scores)

    both = scores if scores.shape[1] > 1 else np.concatenate([0 * scores, scores], 1)
    ranked = np.sort(both, axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > 1e-5 * np.abs(scores).max()
    # Discriminant analyses have scores with a large part in common, whose rounding hides small margins.
    assert sure.mean() > (0.3 if isinstance(model, LinearDiscriminantAnalysis) else 0.99)
    labels = clf.predict(x).reshape(-1)
    assert labels.dtype == model.classes_.dtype
    assert np.array_equal(labels[sure], model.predict(samples)[sure])
    if hasattr(model, "predict_proba"):
        expected = model.predict_proba(samples)
        rounding = 3e-7 * np.abs(scores).max()
        np.testing.assert_allclose(samples_of(clf.predict_proba(x), layout), expected, rtol=1e-3 + rounding, atol=1e-5)
    else:
        with pytest.raises(AttributeError, match="no predict_proba"):
            clf.predict_proba(x)


def scores_of(model, samples):
    """The scores in two axes; what a multilayer perceptron does not tell is the logarithm of its probabilities."""
    if hasattr(model, "decision_function"):
        return model.decision_function(samples).reshape(len(samples), -1)
    log = np.log(model.predict_proba(samples))
    if log.shape[1] == 2:
        return (log[:, 1] - log[:, 0])[:, np.newaxis]
    return log


@dtypes
@layouts
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", LINEAR)
def test_classifiers(name, classes, layout, dtype):
    for seed in range(2):
        x, samples, hidden = scene(seed, dtype)
        labels = NAMES[hidden[:, :classes].argmax(1)]
        end = copy.deepcopy(LINEAR[name])
        model = end if name.startswith(NOT_SCALED) else pipeline.make_pipeline(preprocessing.StandardScaler(), end)
        model.fit(samples, labels)
        clf = pwconv.from_sklearn(model, layout=layout)
        assert isinstance(clf, PixelClassifier)
        if name.startswith("MLP"):
            check_perceptron(model, clf, laid_out(x, layout), samples, layout)
        else:
            check_classifier(model, clf, laid_out(x, layout), samples, layout)


def check_perceptron(model, clf, x, samples, layout):
    """scikit-learn tells no logits of a perceptron, so the forward pass is written out."""
    network = model[-1]
    functions = {
        "relu": lambda v: np.maximum(v, 0),
        "tanh": np.tanh,
        "logistic": special.expit,
        "identity": lambda v: v,
    }
    y = model[:-1].transform(samples)
    for i, (matrix, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        y = y @ matrix + bias
        y = functions[network.activation](y) if i < len(network.coefs_) - 1 else y
    assert_close(samples_of(clf.decision_function(x), layout), y)
    np.testing.assert_allclose(
        samples_of(clf.predict_proba(x), layout), model.predict_proba(samples), rtol=1e-3, atol=1e-5
    )
    ranked = np.sort(y if y.shape[1] > 1 else np.concatenate([0 * y, y], 1), axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > 1e-5 * np.abs(y).max()
    assert np.array_equal(clf.predict(x).reshape(-1)[sure], model.predict(samples)[sure])
    hidden = 0 if network.activation == "identity" else len(network.coefs_) - 1
    assert len(clf.layers) == hidden + 1


@layouts
@backends
def test_multilabel_perceptron(backend, layout):
    x, samples, hidden = scene(3, "float32")
    indicators = (hidden > 0.3).astype(int)
    model = neural_network.MLPClassifier((12,), max_iter=60, random_state=0).fit(samples, indicators)
    clf = pwconv.from_sklearn(model, layout=layout, backend=backend)
    assert clf.link == "multilabel"
    assert repr(clf) == f"PixelClassifier(7, 12, 4, layout={layout!r}, link='multilabel')"
    x = laid_out(x, layout)
    probabilities = model.predict_proba(samples)
    np.testing.assert_allclose(samples_of(clf.predict_proba(x), layout), probabilities, rtol=1e-4, atol=1e-6)
    sure = np.abs(probabilities - 0.5) > 1e-5
    result = clf.predict(x)
    assert result.dtype == np.int32
    assert np.array_equal(samples_of(result, layout)[sure], model.predict(samples)[sure])
    out = np.empty(result.shape, np.uint8)
    assert clf.predict(x, out=out) is out
    assert np.array_equal(out, result)
    with pytest.raises(ValueError, match=r"^size needs a classifier whose classes exclude each other"):
        clf.predict(x, size=(30, 40))
    with pytest.raises(ValueError, match=r"^out must have shape"):
        clf.predict(x, out=np.empty(SHAPE, np.uint8))
    assert pwconv.verify(clf.predict, x).max_error == 0


@backends
def test_multilabel_of_many_pixels_with_a_stride(backend):
    """Blocks of pixels, of several maps in a layout of its own."""
    deep = PointwiseConv(normal(1, 40, 6), stride=(3, 2), layout="NWHC", out_layout="NCHW", backend=backend)
    clf = PixelClassifier.from_chain(
        PointwiseChain([deep, PointwiseConv(normal(2, 30, 40), backend=backend)]), link="multilabel"
    )
    x = [normal(3, 2, 500, 401, 4), normal(4, 2, 500, 401, 2)]
    assert np.array_equal(clf.predict(x), clf.decision_function(x) > 0)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# Steps ----------------------------------------------------------------------------------------------------------------

SCALE = preprocessing.StandardScaler

TRANSFORMERS = {
    "StandardScaler": SCALE(),
    "StandardScaler without a mean": SCALE(with_mean=False),
    "StandardScaler without a spread": SCALE(with_std=False),
    "StandardScaler without anything": SCALE(with_mean=False, with_std=False),
    "MinMaxScaler": preprocessing.MinMaxScaler((-1, 3)),
    "MinMaxScaler clip": preprocessing.MinMaxScaler(clip=True),
    "MaxAbsScaler": preprocessing.MaxAbsScaler(),
    "RobustScaler": preprocessing.RobustScaler(),
    "RobustScaler unit variance": preprocessing.RobustScaler(unit_variance=True, quantile_range=(10, 90)),
    "RobustScaler without centering": preprocessing.RobustScaler(with_centering=False),
    "RobustScaler without scaling": preprocessing.RobustScaler(with_scaling=False),
    "PCA": decomposition.PCA(4),
    "PCA whiten": decomposition.PCA(whiten=True),
    "PCA of a share": decomposition.PCA(0.9),
    "IncrementalPCA": decomposition.IncrementalPCA(3),
    "IncrementalPCA whiten": decomposition.IncrementalPCA(3, whiten=True),
    "TruncatedSVD": decomposition.TruncatedSVD(3, random_state=0),
    "FastICA": decomposition.FastICA(3, random_state=0),
    "GaussianRandomProjection": random_projection.GaussianRandomProjection(3, random_state=0),
    "SparseRandomProjection": random_projection.SparseRandomProjection(3, dense_output=True, random_state=0),
    "NeighborhoodComponentsAnalysis": neighbors.NeighborhoodComponentsAnalysis(2, max_iter=5, random_state=0),
    "LinearDiscriminantAnalysis": pipeline.make_pipeline(LinearDiscriminantAnalysis(), "passthrough"),
    "LinearDiscriminantAnalysis eigen": pipeline.make_pipeline(
        LinearDiscriminantAnalysis(solver="eigen", n_components=2), SCALE()
    ),
    "PLSRegression": pipeline.make_pipeline(cross_decomposition.PLSRegression(3), "passthrough"),
    "CCA": pipeline.make_pipeline(cross_decomposition.CCA(1), "passthrough"),
    "SelectKBest": feature_selection.SelectKBest(k=3),
    "VarianceThreshold": feature_selection.VarianceThreshold(),
    "RFE": feature_selection.RFE(linear_model.RidgeClassifier(), n_features_to_select=3),
    "SelectFromModel": feature_selection.SelectFromModel(linear_model.RidgeClassifier()),
    "SequentialFeatureSelector": feature_selection.SequentialFeatureSelector(
        linear_model.RidgeClassifier(), n_features_to_select=2, cv=2
    ),
    "FunctionTransformer": pipeline.make_pipeline(preprocessing.FunctionTransformer(), SCALE()),
    "three in a row": pipeline.make_pipeline(SCALE(), decomposition.PCA(5, whiten=True), preprocessing.MinMaxScaler()),
    "selection, scaler, PCA": pipeline.make_pipeline(feature_selection.SelectKBest(k=5), SCALE(), decomposition.PCA(3)),
    "SVD, scaler": pipeline.make_pipeline(decomposition.TruncatedSVD(4, random_state=0), SCALE()),
    "nested": pipeline.make_pipeline("passthrough", pipeline.make_pipeline(SCALE(), None), decomposition.PCA(2)),
    "clip, then more": pipeline.make_pipeline(preprocessing.MinMaxScaler(clip=True), decomposition.PCA(3)),
    "PCA, then clip": pipeline.make_pipeline(decomposition.PCA(3), preprocessing.MinMaxScaler((-2, 1), clip=True)),
    "ColumnTransformer": compose.ColumnTransformer(
        [
            ("standard", SCALE(), [4, 0]),
            ("reduced", pipeline.make_pipeline(preprocessing.RobustScaler(), decomposition.PCA(2)), slice(1, 4)),
            ("as it is", "passthrough", [True] + 6 * [False]),
            ("gone", "drop", [5]),
            ("empty", SCALE(), []),
        ],
        remainder="passthrough",
        transformer_weights={"reduced": 0.25},
    ),
    "ColumnTransformer behind a scaler": pipeline.make_pipeline(
        SCALE(),
        compose.make_column_transformer((SCALE(), lambda x: [1, 2]), (decomposition.PCA(2), slice(0, 7))),
        decomposition.PCA(3),
    ),
    "FeatureUnion": pipeline.FeatureUnion(
        [("a", decomposition.PCA(2)), ("b", SCALE()), ("c", "passthrough"), ("d", "drop")], transformer_weights={"a": 3}
    ),
}


@dtypes
@layouts
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name, layout, dtype):
    for seed in range(2):
        x, samples, hidden = scene(seed, dtype)
        target = hidden.argmax(1)
        model = copy.deepcopy(TRANSFORMERS[name]).fit(samples, target)
        layers = pwconv.from_sklearn(model, layout=layout)
        result = samples_of(layers(laid_out(x, layout)), layout)
        assert_close(result, np.asarray(model.transform(samples)))
        clips = "clip" in name
        assert isinstance(layers, PointwiseChain if clips else PointwiseConv)


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name not in ("PLSRegression", "CCA")])
def test_transformers_in_front_of_a_classifier(name):
    x, samples, hidden = scene(5, "float32")
    labels = NAMES[hidden.argmax(1)]
    model = pipeline.make_pipeline(copy.deepcopy(TRANSFORMERS[name]), linear_model.RidgeClassifier()).fit(
        samples, labels
    )
    check_classifier(model, pwconv.from_sklearn(model, layout="NHWC"), x, samples, "NHWC")


REGRESSORS = {
    "LinearRegression": linear_model.LinearRegression(),
    "LinearRegression of one target": linear_model.LinearRegression(),
    "Ridge": linear_model.Ridge(),
    "Ridge without intercept": linear_model.Ridge(fit_intercept=False),
    "RidgeCV": linear_model.RidgeCV(),
    "Lasso": linear_model.Lasso(0.1),
    "ElasticNet": linear_model.ElasticNet(0.1),
    "SGDRegressor of one target": pipeline.make_pipeline(SCALE(), linear_model.SGDRegressor()),
    "LinearSVR of one target": svm.LinearSVR(),
    "SVR of one target": pipeline.make_pipeline(SCALE(), svm.SVR(kernel="linear")),
    "HuberRegressor of one target": linear_model.HuberRegressor(),
    "RANSACRegressor": linear_model.RANSACRegressor(random_state=0),
    "TweedieRegressor of one target": pipeline.make_pipeline(SCALE(), linear_model.TweedieRegressor(power=0)),
    "PLSRegression": cross_decomposition.PLSRegression(3),
    "PLSRegression not scaled": cross_decomposition.PLSRegression(2, scale=False),
    "scaled PLSRegression": pipeline.make_pipeline(SCALE(), cross_decomposition.PLSRegression(3)),
    "MLPRegressor": neural_network.MLPRegressor(hidden_layer_sizes=(10, 6), max_iter=30, random_state=0),
    "MLPRegressor tanh of one target": neural_network.MLPRegressor(
        hidden_layer_sizes=(10,), activation="tanh", max_iter=30, random_state=0
    ),
    "MLPRegressor identity": neural_network.MLPRegressor(
        hidden_layer_sizes=(10,), activation="identity", max_iter=30, random_state=0
    ),
    "PCA and Ridge": pipeline.make_pipeline(decomposition.PCA(4), linear_model.Ridge()),
    "target StandardScaler": compose.TransformedTargetRegressor(linear_model.Ridge(), transformer=SCALE()),
    "target MinMaxScaler": compose.TransformedTargetRegressor(
        linear_model.LinearRegression(), transformer=preprocessing.MinMaxScaler((1, 2), clip=True)
    ),
    "target RobustScaler of one target": compose.TransformedTargetRegressor(
        pipeline.make_pipeline(SCALE(), linear_model.Lasso(0.01)), transformer=preprocessing.RobustScaler()
    ),
    "target MaxAbsScaler of an MLP": compose.TransformedTargetRegressor(
        neural_network.MLPRegressor(hidden_layer_sizes=(10,), max_iter=30, random_state=0),
        transformer=pipeline.make_pipeline(preprocessing.MaxAbsScaler(), SCALE()),
    ),
    "target as it is": compose.TransformedTargetRegressor(linear_model.Ridge()),
    "search": model_selection.GridSearchCV(linear_model.Ridge(), {"alpha": [0.1, 1]}, cv=2),
}


@dtypes
@layouts
@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name, layout, dtype):
    for seed in range(2):
        x, samples, hidden = scene(seed, dtype)
        target = 50 + 3 * hidden[:, :3]
        if name.endswith("one target"):
            target = target[:, 0]
        model = copy.deepcopy(REGRESSORS[name])
        if "MLP" in name:
            model = pipeline.make_pipeline(SCALE(), model)
        model.fit(samples, target)
        layers = pwconv.from_sklearn(model, layout=layout)
        assert_close(samples_of(layers(laid_out(x, layout)), layout), model.predict(samples))
        chained = "MLP" in name and "identity" not in name
        assert isinstance(layers, PointwiseChain if chained else PointwiseConv)


@backends
def test_a_mean_stays_in_front(backend):
    """Three bands near 10^6: with the mean in a float32 bias, logits would be anything from 3 to 4.5."""
    scaler = SCALE().fit(np.zeros((2, 3)))
    scaler.mean_, scaler.scale_ = np.full(3, 1e6), np.full(3, 0.1)
    end = linear_model.LogisticRegression().fit(np.eye(3), [0, 1, 1])
    end.coef_, end.intercept_ = np.ones((1, 3)), np.zeros(1)
    x = np.full((1, 3), 1000000.125, np.float32)
    clf = pwconv.from_sklearn(pipeline.make_pipeline(scaler, end), layout="NC", backend=backend)
    np.testing.assert_allclose(clf.decision_function(x), [[3.75]], rtol=1e-6)
    assert clf.predict(x) == [1]


FAR = {
    "scaler": pipeline.make_pipeline(SCALE(), linear_model.LogisticRegression()),
    "PCA": pipeline.make_pipeline(decomposition.PCA(3), SCALE(), linear_model.LogisticRegression()),
    "robust": pipeline.make_pipeline(preprocessing.RobustScaler(), svm.LinearSVC()),
    "least and largest": pipeline.make_pipeline(
        preprocessing.MinMaxScaler((5, 6)), linear_model.LogisticRegression(C=1e3)
    ),
    "MLP": pipeline.make_pipeline(preprocessing.MinMaxScaler(), neural_network.MLPClassifier((9,), random_state=0)),
    "LDA": LinearDiscriminantAnalysis(),
    "LDA in between": pipeline.make_pipeline(
        LinearDiscriminantAnalysis(solver="eigen"), SCALE(), linear_model.LogisticRegression()
    ),
    "SVD": pipeline.make_pipeline(
        decomposition.TruncatedSVD(6, random_state=0), SCALE(), linear_model.LogisticRegression()
    ),
    "columns": pipeline.make_pipeline(
        compose.make_column_transformer((SCALE(), [0, 1, 2]), remainder="passthrough"),
        SCALE(),
        linear_model.LogisticRegression(),
    ),
}


@pytest.mark.parametrize("name", FAR)
def test_bands_far_from_zero(name):
    """Whichever step subtracts the mean, the digits of what is left are kept."""
    x, _, hidden = scene(6, "float32")
    x = x + np.float32(2**18)
    samples = x.reshape(-1, BANDS).astype(np.float64)
    target = hidden.argmax(1)
    model = copy.deepcopy(FAR[name]).fit(samples, target)
    clf = pwconv.from_sklearn(model, layout="NHWC")
    if name == "MLP":
        check_perceptron(model, clf, x, samples, "NHWC")
    else:
        check_classifier(model, clf, x, samples, "NHWC")


def test_a_regressor_far_from_zero():
    x, _, hidden = scene(6, "float32")
    x = x + np.float32(2**18)
    samples = x.reshape(-1, BANDS).astype(np.float64)
    model = cross_decomposition.PLSRegression(3).fit(samples, hidden)
    assert_close(samples_of(pwconv.from_sklearn(model, layout="NHWC")(x), "NHWC"), model.predict(samples))


# What models are like -------------------------------------------------------------------------------------------------


def fitted(model, dtype="float32", seed=0):
    x, samples, hidden = scene(seed, dtype)
    return copy.deepcopy(model).fit(samples, NAMES[hidden.argmax(1)]), x, samples


def test_constant_bands():
    x, samples, hidden = scene(0, "float32")
    x[..., 2] = 7
    samples[:, 2] = 7
    for step in (SCALE(), preprocessing.MinMaxScaler(), preprocessing.RobustScaler(), decomposition.PCA()):
        model = pipeline.make_pipeline(step, linear_model.LogisticRegression()).fit(samples, NAMES[hidden.argmax(1)])
        check_classifier(model, pwconv.from_sklearn(model, layout="NHWC"), x, samples, "NHWC")
        assert_close(samples_of(pwconv.from_sklearn(step, layout="NHWC")(x), "NHWC"), step.transform(samples))


def test_whitened_components_without_variance():
    """Two equal bands: the last component has no variance, and its scale is scikit-learn's."""
    _, samples, _ = scene(0, "float32")
    samples[:, 1] = samples[:, 0]
    model = decomposition.PCA(6, whiten=True).fit(samples)
    x = samples.astype(np.float32)
    assert_close(pwconv.from_sklearn(model, layout="NC")(x), model.transform(x.astype(np.float64)))


@pytest.mark.parametrize(
    "end", [linear_model.LogisticRegression(l1_ratio=1, solver="saga", C=0.05), linear_model.SGDClassifier()]
)
def test_sparse_coefficients(end):
    model, x, samples = fitted(pipeline.make_pipeline(SCALE(), end))
    dense = pwconv.from_sklearn(model, layout="NHWC")
    model[-1].sparsify()
    assert not isinstance(model[-1].coef_, np.ndarray)
    sparse = pwconv.from_sklearn(model, layout="NHWC")
    assert oracle.same_bits(sparse.decision_function(x), dense.decision_function(x))
    check_classifier(model, sparse, x, samples, "NHWC")
    alone = copy.deepcopy(end).fit(samples, model.predict(samples))
    expected = PixelClassifier.from_sklearn(alone, layout="NHWC").decision_function(x)
    assert oracle.same_bits(
        PixelClassifier.from_sklearn(alone.sparsify(), layout="NHWC").decision_function(x), expected
    )


@pytest.mark.parametrize("dtype", [">f8", ">f4", "<f4", "f2"])
def test_coefficients_in_any_dtype(dtype):
    model, x, _ = fitted(pipeline.make_pipeline(SCALE(), linear_model.LogisticRegression()))
    for step, names in ((model[0], ("mean_", "scale_")), (model[1], ("coef_", "intercept_"))):
        for name in names:
            setattr(step, name, getattr(step, name).astype(dtype))
    result = pwconv.from_sklearn(model, layout="NHWC").decision_function(x)
    for step, names in ((model[0], ("mean_", "scale_")), (model[1], ("coef_", "intercept_"))):
        for name in names:
            setattr(step, name, getattr(step, name).astype(np.float64))
    assert oracle.same_bits(result, pwconv.from_sklearn(model, layout="NHWC").decision_function(x))


def test_models_fitted_in_float32():
    x, samples, hidden = scene(0, "float32")
    labels = NAMES[hidden.argmax(1)]
    for end in (linear_model.LogisticRegression(), neural_network.MLPClassifier((9,), max_iter=20, random_state=0)):
        model = pipeline.make_pipeline(SCALE(), decomposition.PCA(5, whiten=True), end).fit(samples.astype("f"), labels)
        clf = pwconv.from_sklearn(model, layout="NHWC")
        np.testing.assert_allclose(
            samples_of(clf.predict_proba(x), "NHWC"), model.predict_proba(samples.astype("f")), rtol=1e-3, atol=1e-4
        )


def test_models_fitted_to_data_frames():
    pandas = pytest.importorskip("pandas")
    x, samples, hidden = scene(0, "float32")
    bands = [f"B{i}" for i in range(BANDS)]
    frame = pandas.DataFrame(samples, columns=bands)
    columns = compose.ColumnTransformer(
        [
            ("one", SCALE(), ["B4", "B1"]),
            ("range", preprocessing.RobustScaler(), slice("B2", "B3")),
            ("chosen", "passthrough", compose.make_column_selector("B[56]")),
        ]
    ).set_output(transform="pandas")
    model = pipeline.make_pipeline(columns, SCALE(), linear_model.LogisticRegression()).fit(
        frame, NAMES[hidden.argmax(1)]
    )
    check_classifier(model, pwconv.from_sklearn(model, layout="NHWC"), x, frame, "NHWC")
    # Versions of scikit-learn without a private table of channels tell columns as they were given.
    expected = pwconv.from_sklearn(columns, layout="NHWC")(x)
    del columns._transformer_to_input_indices
    assert oracle.same_bits(pwconv.from_sklearn(columns, layout="NHWC")(x), expected)


def test_columns_without_a_table_of_channels():
    x, samples, _ = scene(0, "float32")
    model = copy.deepcopy(TRANSFORMERS["ColumnTransformer"]).fit(samples)
    expected = pwconv.from_sklearn(model, layout="NHWC")(x)
    del model._transformer_to_input_indices
    assert oracle.same_bits(pwconv.from_sklearn(model, layout="NHWC")(x), expected)


@pytest.mark.parametrize(
    "model", [svm.SVC(kernel="linear"), svm.NuSVC(kernel="linear", nu=0.2), svm.SVC(kernel="linear", C=0.1)]
)
@pytest.mark.parametrize("names", [["a", "b"], [False, True], [3, -1]])
def test_binary_support_vectors(model, names):
    x, samples, hidden = scene(0, "float32")
    model = copy.deepcopy(model).fit(samples, np.array(names)[(hidden[:, 0] > 0).astype(int)])
    check_classifier(model, pwconv.from_sklearn(model, layout="NHWC"), x, samples, "NHWC")


@pytest.mark.parametrize("names", [["a", "b"], [False, True], [3, -1], [0, 1]])
@pytest.mark.parametrize("name", LINEAR)
def test_names_of_two_classes(name, names):
    x, samples, hidden = scene(1, "float32")
    labels = np.array(names)[(hidden[:, 0] > 0).astype(int)]
    model = pipeline.make_pipeline(SCALE(), copy.deepcopy(LINEAR[name])).fit(samples, labels)
    clf = pwconv.from_sklearn(model, layout="NHWC")
    assert clf.classes.tolist() == sorted(names)
    check = check_perceptron if name.startswith("MLP") else check_classifier
    check(model, clf, x, samples, "NHWC")


def test_a_search_of_pipelines():
    model, x, samples = fitted(
        model_selection.GridSearchCV(
            pipeline.make_pipeline(SCALE(), linear_model.LogisticRegression()),
            {"logisticregression__C": [0.1, 1]},
            cv=2,
        )
    )
    check_classifier(model, pwconv.from_sklearn(model, layout="NHWC"), x, samples, "NHWC")


# What is refused ------------------------------------------------------------------------------------------------------


class Doubler(SCALE):
    """A subclass that computes something else."""

    def transform(self, x):
        return 2 * super().transform(x)


def columns(step):
    return compose.ColumnTransformer([("others", SCALE(), [0]), ("these", step, [1, 2])])


REFUSED = {
    "polynomial": (
        preprocessing.PolynomialFeatures(),
        r"^model\.steps\[0\] \('step'\) must be affine, .*got Polynomial",
    ),
    "splines": (preprocessing.SplineTransformer(), r"^model\.steps\[0\] \('step'\) .*SplineTransformer$"),
    "bins": (preprocessing.KBinsDiscretizer(), r"^model\.steps\[0\] .*KBinsDiscretizer$"),
    "rows": (preprocessing.Normalizer(), r"^model\.steps\[0\] .*Normalizer$"),
    "quantiles": (preprocessing.QuantileTransformer(n_quantiles=9), r"^model\.steps\[0\] .*QuantileTransformer$"),
    "powers": (preprocessing.PowerTransformer(), r"^model\.steps\[0\] .*PowerTransformer$"),
    "kernels": (kernel_approximation.Nystroem(n_components=4), r"^model\.steps\[0\] .*Nystroem$"),
    "KernelPCA": (decomposition.KernelPCA(2), r"^model\.steps\[0\] .*KernelPCA$"),
    "a function": (preprocessing.FunctionTransformer(np.abs), r"^model\.steps\[0\] .*FunctionTransformer: func is abs"),
    "a subclass": (Doubler(), r"^model\.steps\[0\] .*Doubler$"),
    "a nested step": (
        pipeline.make_pipeline(SCALE(), preprocessing.Binarizer()),
        r"^model\.steps\[0\] \('step'\)\.steps\[1\] \('binarizer'\) .*Binarizer$",
    ),
    "a step of columns": (
        columns(preprocessing.PolynomialFeatures()),
        r"^model\.steps\[0\] \('step'\)\.transformers_\[1\] \('these'\) .*PolynomialFeatures$",
    ),
    "clipping some channels": (
        columns(preprocessing.MinMaxScaler(clip=True)),
        r"^model\.steps\[0\] \('step'\)\.transformers_\[1\] \('these'\) .*MinMaxScaler: it clips",
    ),
    "no channel": (compose.ColumnTransformer([("gone", "drop", [0])]), r"^model\.steps\[0\] .*: it keeps no channel$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_steps_that_are_refused(name):
    step, message = REFUSED[name]
    _, samples, _ = scene(0, "float32")
    step = copy.deepcopy(step).fit(samples)
    with pytest.raises(ValueError, match=message):
        pwconv.from_sklearn(pipeline.Pipeline([("step", step), ("end", "passthrough")]))
    with pytest.raises(ValueError, match=message.replace(r"model\.", r"estimator\.")):
        PixelClassifier.from_sklearn(pipeline.Pipeline([("step", step), ("end", linear_model.Ridge())]))


ENDS = {
    "forest": (ensemble.RandomForestClassifier(5), r"^model must be affine, .*got RandomForestClassifier$"),
    "tree": (tree.DecisionTreeRegressor(), r"^model must be affine, .*got DecisionTreeRegressor$"),
    "neighbours": (neighbors.KNeighborsClassifier(), r"^model must be affine, .*got KNeighborsClassifier$"),
    "quadratic": (QuadraticDiscriminantAnalysis(), r"^model must be affine, .*got QuadraticDiscriminantAnalysis$"),
    "kernel": (svm.SVC(), r"^model must be affine, .*got SVC$"),
    "kernel regression": (svm.SVR(), r"^model must be affine, .*got SVR$"),
    "pairs": (svm.SVC(kernel="linear"), r"^model must have one linear function per class, got SVC with coef_ of"),
    "exponential": (
        linear_model.PoissonRegressor(),
        r"^model must be affine, .*PoissonRegressor: its link is LogLink$",
    ),
    "outliers": (linear_model.SGDOneClassSVM(), r"^model must be affine, .*got SGDOneClassSVM$"),
    "exponential perceptron": (
        neural_network.MLPRegressor(hidden_layer_sizes=(3,), loss="poisson", max_iter=5),
        r"^model must be affine, .*MLPRegressor: the activation of its output is 'exp'$",
    ),
    "several labels": (
        linear_model.RidgeClassifier(),
        r"^model must have one linear function per class, .* that exclude each other not$",
    ),
    "a target's function": (
        compose.TransformedTargetRegressor(linear_model.Ridge(), func=np.sqrt, inverse_func=np.square),
        r"^model\.transformer_ must be affine, .*FunctionTransformer: func is sqrt$",
    ),
    "a target that is not scaled": (
        compose.TransformedTargetRegressor(linear_model.Ridge(), transformer=decomposition.PCA()),
        r"^model\.transformer_ must be affine, .*PCA: it must scale each target by itself$",
    ),
    "a target's regressor": (
        compose.TransformedTargetRegressor(tree.DecisionTreeRegressor()),
        r"^model\.regressor_ must be affine, .*DecisionTreeRegressor$",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_ends_that_are_refused(name):
    end, message = ENDS[name]
    _, samples, hidden = scene(0, "float32")
    target = hidden.argmax(1)
    if name == "several labels":
        target = (hidden > 0).astype(int)
    elif name == "a target that is not scaled":
        target = hidden
    model = copy.deepcopy(end).fit(samples, target)
    with pytest.raises(ValueError, match=message):
        pwconv.from_sklearn(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SCALE(), r"^model must be fitted, got StandardScaler without scale_$"),
        (decomposition.PCA(), r"^model must be fitted, got PCA without components_$"),
        (linear_model.Ridge(), r"^model must be linear and fitted, got Ridge without coef_$"),
        (linear_model.LogisticRegression(), r"^model must be linear and fitted, got LogisticRegression without coef_$"),
        (neural_network.MLPClassifier(), r"^model must be fitted, got MLPClassifier without coefs_$"),
        (feature_selection.SelectKBest(), r"^model must be fitted, got SelectKBest without n_features_in_$"),
        (compose.TransformedTargetRegressor(), r"^model must be fitted, got TransformedTargetRegressor without reg"),
        (
            model_selection.GridSearchCV(SCALE(), {}),
            r"^model must be fitted, got GridSearchCV without best_estimator_$",
        ),
        (
            pipeline.make_pipeline(SCALE(), linear_model.Ridge()),
            r"^model\.steps\[0\] \('standardscaler'\) must be fitted",
        ),
        (pipeline.make_pipeline("passthrough"), r"^model must tell its number of channels, got Pipeline without"),
    ],
)
def test_models_that_are_not_fitted(model, message):
    with pytest.raises(TypeError, match=message):
        pwconv.from_sklearn(model)


def test_arguments():
    model, x, samples = fitted(pipeline.make_pipeline(SCALE(), linear_model.LogisticRegression()))
    clf = pwconv.from_sklearn(model, layout="NHWC", classes=None, link="one_vs_rest", precision="high", backend="numpy")
    assert (clf.classes, clf.link, clf.backend, clf.layer.precision) == (None, "one_vs_rest", "numpy", "high")
    assert clf.predict(x).dtype == np.int32
    with pytest.raises(TypeError, match="activation"):
        pwconv.from_sklearn(model, activation="relu")
    layer = pwconv.from_sklearn(model[0], layout="NHWC", out_layout="NCHW", activation="relu")
    np.testing.assert_allclose(
        samples_of(layer(x), "NCHW"), np.maximum(model[0].transform(samples), 0), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(TypeError, match=r"^from_sklearn\(\) of a StandardScaler has no argument groups, link$"):
        pwconv.from_sklearn(model[0], link=None, groups=2)
    with pytest.raises(
        TypeError, match=r"^estimator must be a classifier, got StandardScaler: use pwconv\.from_sklearn$"
    ):
        PixelClassifier.from_sklearn(model[0])


def test_numbers_beyond_float32():
    model = linear_model.Ridge().fit(np.eye(3), np.ones(3))
    model.coef_ = np.array([1, 1e39, 1])
    with pytest.raises(ValueError, match=r"^model must have numbers within float32's range$"):
        pwconv.from_sklearn(model)


def test_anything_with_the_attributes():
    ridge = SimpleNamespace(coef_=[[1.0, 2.0], [0.5, 0.25]], intercept_=1)
    layer = pwconv.from_sklearn(ridge, layout="NC")
    np.testing.assert_array_equal(layer(np.float32([[1, 1]])), [[4, 1.75]])


def test_scikit_learn_is_not_imported():
    for name in ("pwconv.estimators.models", "pwconv.estimators.transformers", "pwconv.models"):
        values = vars(sys.modules[name]).values()
        assert not any(getattr(value, "__module__", "").startswith("sklearn") for value in values if callable(value))


# Probabilities --------------------------------------------------------------------------------------------------------


def constant_logits(rows, **options):
    """A classifier with these logits for each pixel of a map of one channel."""
    return [
        PixelClassifier(np.zeros((len(row), 1), np.float32), np.float32(row), layout="NC", **options) for row in rows
    ]


@backends
def test_one_vs_rest_far_below_zero(backend):
    """scikit-learn's float64 has the first; it gives equal shares for the others, which are the first's limit."""
    scores = np.array([[-110, -111, -112], [-1000, -1001, -1002], [-1e6, -1e6 - 1, -1e6 - 2]])
    first = special.expit(scores[0]) / special.expit(scores[0]).sum()
    np.testing.assert_allclose(first, [0.665, 0.245, 0.090], atol=5e-4)
    x = np.zeros((1, 1), np.float32)
    for clf in constant_logits(scores, link="one_vs_rest", backend=backend):
        np.testing.assert_allclose(clf.predict_proba(x)[0], first, rtol=1e-6)


def exact_shares(logits, link):
    """The definition in logarithms, in float64."""
    v = logits.astype(np.float64)
    if link == "modified_huber":
        parts = np.clip((v + 1) / 2, 0, 1)
        total = parts.sum(1, keepdims=True)
        return np.where(total == 0, 1 / v.shape[1], parts / np.where(total == 0, 1, total))
    return special.softmax(v if link == "softmax" else -np.logaddexp(0, -v), 1)


@backends
@pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber"])
@pytest.mark.parametrize("scale", [1e-3, 1, 30, 1e3, 1e10, 3e38])
def test_probabilities_of_any_finite_logits(backend, link, scale):
    rng = np.random.default_rng(3)
    rows = (rng.uniform(-1, 1, (200, 5)) * scale).astype(np.float32)
    rows[:60] -= np.float32(scale) * np.float32(0.13)
    rows[60:80, 1] = rows[60:80, 0]
    # Logits that are given outright: the channels of x.
    clf = PixelClassifier(np.eye(5, dtype=np.float32), layout="NC", link=link, backend=backend)
    result = clf.predict_proba(rows)
    np.testing.assert_allclose(result, exact_shares(rows, link), rtol=4e-6, atol=1e-37)
    np.testing.assert_allclose(result.sum(1), 1, rtol=1e-6)
    twin = pwconv.reference.predict_proba(clf, rows, dtype=np.float64)
    np.testing.assert_allclose(twin, exact_shares(rows, link), rtol=1e-12, atol=1e-300)


@backends
@pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber"])
def test_probabilities_of_two_classes(backend, link):
    v = np.float32([[-3e38], [-1000], [-110], [-2], [-0.5], [0], [0.25], [1], [90], [3e38]])
    clf = PixelClassifier(np.ones((1, 1), np.float32), layout="NC", link=link, backend=backend)
    positive = np.clip((v.astype(float) + 1) / 2, 0, 1) if link == "modified_huber" else special.expit(v.astype(float))
    negative = 1 - positive if link == "modified_huber" else special.expit(-v.astype(float))
    np.testing.assert_allclose(clf.predict_proba(v), np.hstack([negative, positive]), rtol=4e-6, atol=1e-37)


@backends
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("link", ["one_vs_rest", "modified_huber", "multilabel"])
def test_probabilities_of_many_pixels(backend, layout, link):
    """More pixels than a block has, written to an array with strides of its own."""
    clf = PixelClassifier(normal(1, 30, 5), normal(2, 30), layout=layout, link=link, backend=backend)
    x = laid_out(normal(3, 2, 70, 90, 5), layout)
    shape = clf.decision_function(x).shape
    out = np.zeros((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2]
    assert clf.predict_proba(x, out=out) is out
    logits = samples_of(clf.decision_function(x), layout)
    expected = special.expit(logits.astype(float)) if link == "multilabel" else exact_shares(logits, link)
    np.testing.assert_allclose(samples_of(out, layout), expected, rtol=4e-6, atol=1e-37)


@backends
def test_infinite_logits_of_one_vs_rest(backend):
    """Their shares are limits; NaN makes all of them NaN."""
    inf, nan = np.inf, np.nan
    rows = np.float32([[-inf, -inf, -inf, -inf], [-inf, 0, -inf, -inf], [inf, inf, -5, 100], [1, nan, 2, 3]])
    expected = [[0.25] * 4, [0, 1, 0, 0], exact_shares(np.array([[200.0, 200, -5, 100]]), "one_vs_rest")[0], [nan] * 4]
    for clf, row in zip(constant_logits(rows, link="one_vs_rest", backend=backend), expected, strict=True):
        np.testing.assert_allclose(clf.predict_proba(np.zeros((1, 1), np.float32))[0], row, rtol=1e-6)


# Classifiers of chains ------------------------------------------------------------------------------------------------


def head_of_layers(layout="NCHW", rows=21, **options):
    deep = PointwiseConv(normal(1, 48, 33), normal(2, 48), layout=layout, activation="relu", **options)
    deeper = PointwiseConv(normal(3, 40, 48), layout=layout, activation="silu", **options)
    return PointwiseChain([deep, deeper, PointwiseConv(normal(4, rows, 40), normal(5, rows), layout=layout, **options)])


def one_by_one(chain, x):
    for layer in chain.layers:
        x = layer(x)
    return x


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 21, 150])
@layouts
def test_a_chain_has_the_bits_of_its_layers(isa, layout, rows, num_threads):
    chain, x = head_of_layers(layout, rows), laid_out(normal(6, 2, 31, 37, 33), layout)
    clf = PixelClassifier.from_chain(chain)
    logits = one_by_one(chain, x)
    axis = layout.index("C")
    assert oracle.same_bits(clf.decision_function(x, num_threads=num_threads), logits)
    both = np.concatenate([np.zeros_like(logits), logits], axis) if rows == 1 else logits
    assert np.array_equal(clf.predict(x, num_threads=num_threads), both.argmax(axis))
    labels, best = clf.top_k(x, 2, num_threads=num_threads)
    order = np.argsort(-both, axis, kind="stable").take(range(2), axis)
    assert np.array_equal(labels, order)
    assert np.array_equal(best, np.take_along_axis(both, order, axis))
    expected = special.softmax(both.astype(float), axis)
    np.testing.assert_allclose(clf.predict_proba(x, num_threads=num_threads), expected, rtol=2e-5, atol=1e-37)
    # The head alone, behind the layers before it.
    single = PixelClassifier.from_chain(chain.layers[-1])
    between = one_by_one(SimpleNamespace(layers=chain.layers[:-1]), x)
    assert np.array_equal(clf.predict(x, size=(62, 70)), single.predict(between, size=(62, 70)))


@backends
@pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber", "multilabel", None])
@pytest.mark.parametrize("rows", [1, 5])
def test_copies_costs_and_checks_of_a_chain(backend, rows, link):
    chain, x = head_of_layers(rows=rows, backend=backend), normal(6, 1, 33, 9, 8)
    names = None if link == "multilabel" else [f"class {i}" for i in range(max(2, rows))]
    clf = PixelClassifier.from_chain(chain, link=link, classes=names)
    assert clf.backend == backend
    for duplicate in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf), copy.copy(clf)):
        assert repr(duplicate) == repr(clf)
        assert np.array_equal(duplicate.predict(x), clf.predict(x))
    assert clf.cost(x.shape) == chain.cost(x.shape)
    assert repr(clf.plan(x.shape)) == repr(chain.plan(x.shape))
    for method in (clf.decision_function, clf.predict) + (clf.predict_proba,) * (link is not None):
        assert pwconv.verify(method, x).relative_error < 1e-5
    assert pwconv.verify(clf, x).backend == backend


@backends
@layouts
@pytest.mark.parametrize("link", ["softmax", "one_vs_rest", "modified_huber", "multilabel"])
def test_pixels_of_a_chain_that_do_not_count(link, layout, backend):
    chain, x = head_of_layers(layout, 5, backend=backend), laid_out(normal(6, 2, 31, 37, 33), layout)
    clf = PixelClassifier.from_chain(chain, link=link)
    mask = np.random.default_rng(7).random((2, 31, 37)) < 0.4
    mask[0, :20] = False
    np.moveaxis(x, layout.index("C"), -1)[1, 3:5, 6, 2] = np.nan
    counted = mask & ~np.isnan(samples_of(x, layout)).any(1).reshape(mask.shape)
    per_channel = np.expand_dims(counted, layout.index("C"))
    several = link == "multilabel"
    chosen = per_channel if several else counted
    plain = np.nan_to_num(x)
    expected = np.where(chosen, clf.predict(plain), -1)
    assert np.array_equal(clf.predict(x, mask=mask, fill=-1), expected)
    assert np.array_equal(clf.predict(x, mask=mask), expected)
    out = np.zeros(expected.shape, np.uint8)
    assert clf.predict(x, mask=mask, fill=255, out=out) is out
    assert np.array_equal(out, expected.astype(np.uint8))
    shares = np.where(per_channel, clf.predict_proba(plain), np.float32(-3))
    np.testing.assert_array_equal(clf.predict_proba(x, mask=mask, fill=-3), shares)
    logits = np.where(per_channel, clf.decision_function(plain), np.float32(np.nan))
    np.testing.assert_array_equal(clf.decision_function(x, mask=mask), logits)
    labels, best = clf.top_k(x, 2, mask=mask, fill=99)
    expected_labels, expected_best = clf.top_k(plain, 2)
    assert np.array_equal(labels, np.where(per_channel, expected_labels, 99))
    np.testing.assert_array_equal(best, np.where(per_channel, expected_best, np.float32(np.nan)))
    if not several:
        sizes = clf.predict(x, mask=mask, fill=-1, size=(62, 74))
        single = PixelClassifier.from_chain(chain.layers[-1])
        between = one_by_one(SimpleNamespace(layers=chain.layers[:-1]), plain)
        assert np.array_equal(sizes, single.predict(between, mask=counted, fill=-1, size=(62, 74)))
        assert (sizes == -1).any()
        assert (sizes >= 0).any()


def test_wrong_chains_are_explained():
    chain = head_of_layers()
    with pytest.raises(TypeError, match=r"^chain must be a PointwiseChain or a PointwiseConv, got list$"):
        PixelClassifier.from_chain(list(chain.layers))
    with pytest.raises(ValueError, match=r"^classes must hold a name for each of 21 classes, got shape \(2,\)$"):
        PixelClassifier.from_chain(chain, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"^link must be one of 'softmax', .*, None, got 'probit'$"):
        PixelClassifier.from_chain(chain, link="probit")
    with pytest.raises(ValueError, match=r"^the last layer of a binary classifier must have no activation, got 'tanh'"):
        PixelClassifier.from_chain(PointwiseConv(normal(1, 1, 3), activation="tanh"))
    with pytest.raises(ValueError, match=r"^the last layer of a classifier must have out_dtype float32, got uint8$"):
        PixelClassifier.from_chain(PointwiseConv(normal(1, 5, 3), out_dtype="uint8"))
    x = np.zeros((1, 33, 4, 5), np.float32)
    clf = PixelClassifier.from_chain(chain)
    for call, message in (
        (lambda: clf.predict(x[:, 1:]), r"^x must have 33 channels on axis 1"),
        (lambda: clf.predict(x, out=np.zeros((1, 5, 5), int)), r"^out must have shape \(1, 4, 5\), got \(1, 5, 5\)$"),
        (lambda: clf.top_k(x, 22), r"^k must be from 1 to 21, got 22$"),
        (lambda: clf.predict_proba(x, out=x), r"^out must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_head_of_a_stepping_chain_with_a_last_activation():
    """The first layer has a stride, the last a scale, an activation and another layout."""
    first = PointwiseConv(normal(1, 16, 6), stride=2, layout="NHWC", activation="relu")
    last = PointwiseConv(normal(2, 5, 16) / 16, layout="NHWC", out_layout="NCHW", activation="tanh")
    clf = PixelClassifier.from_chain(PointwiseChain([first, last]))
    x = normal(3, 2, 21, 17, 6)
    logits = last(first(x))
    assert oracle.same_bits(clf.decision_function(x), logits)
    assert np.array_equal(clf.predict(x), logits.argmax(1))
    assert clf.predict(x, size=(21, 17)).shape == (2, 21, 17)
    assert pwconv.verify(clf.predict, x, size=(21, 17)).max_error == 0


def test_blocks_of_dask():
    array = pytest.importorskip("dask.array")
    model, x, _ = fitted(
        pipeline.make_pipeline(SCALE(), neural_network.MLPClassifier((9,), max_iter=20, random_state=0))
    )
    clf = pwconv.from_sklearn(model, layout="NHWC")
    blocks = array.from_array(x, chunks=(1, 8, 9, BANDS))
    labels = blocks.map_blocks(clf.predict, drop_axis=3, dtype=clf.classes.dtype)
    assert np.array_equal(labels.compute(scheduler="processes", num_workers=2), clf.predict(x))
    layers = pwconv.from_sklearn(model[0], layout="NHWC")
    assert oracle.same_bits(blocks.map_blocks(layers, dtype=np.float32).compute(), layers(x))
