"""Models of scikit-learn as layers, chains and classifiers."""

from typing import Any

from pwconv import estimators
from pwconv.classify import PixelClassifier
from pwconv.layers import PointwiseConv
from pwconv.several import PointwiseChain

_OF_THE_LAST = ("out_layout", "out_dtype", "activation")  # arguments of a layer that go to the last one


def from_sklearn(model: Any, *, layout: str = "NCHW", **kw: Any) -> PixelClassifier | PointwiseConv | PointwiseChain:
    """Turn a fitted model of scikit-learn into one for every pixel of a map: a pixel is a sample, a channel a feature.

    Labels and numbers are those of `model`, up to the rounding of float32. Affine steps are multiplied out in float64
    and rounded once. What a step subtracts from the channels stays subtracted first (`input_shift`), since a mean of
    10^6 in a float32 bias would cost all digits of a difference. scikit-learn is not imported: attributes are read.

    Parameters
    ----------
    model : a fitted estimator, or a pipeline. A pipeline may hold any of the steps, and end in any of the ends.

        Steps: StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler (`clip=True` too), PCA, IncrementalPCA,
        TruncatedSVD, FastICA, random projections, NeighborhoodComponentsAnalysis, LinearDiscriminantAnalysis,
        PLSRegression, CCA and PLSCanonical, feature selections (whatever has `get_support`), FunctionTransformer()
        without a function, "passthrough", Pipeline, ColumnTransformer and FeatureUnion of these.

        Ends: classifiers and regressors with `coef_` and `intercept_` whose result is their linear function,
        MLPClassifier, MLPRegressor, PLSRegression and its kin, TransformedTargetRegressor with a scaler, and a search
        (GridSearchCV) or RANSACRegressor of these. A pipeline whose end is none of these, or "passthrough", is a
        transformer.
    layout : as in `pwconv.pointwise_conv`.
    **kw : `precision` and `backend`; for a classifier also `classes` and `link`, as in `pwconv.PixelClassifier`; for
        anything else `out_layout`, `out_dtype` and `activation` of the last layer.

    Returns
    -------
    PixelClassifier, for a classifier; otherwise a PointwiseConv, or a PointwiseChain where something in between is not
    affine. Maps have `n_features_in_` channels along the C axis of their shape. A regressor has a channel for each
    target, also for a single one. LinearDiscriminantAnalysis is a classifier at the end of a pipeline, and a
    transformer if "passthrough" follows it.

    Raises
    ------
    TypeError if an attribute is missing that fitting sets, or for an argument that does not exist; ValueError for a
    step that is neither affine nor a known activation. The message names the step and its place.

    Examples
    --------
    >>> ridge = type("Ridge", (), {"coef_": np.ones((3, 13)), "intercept_": np.zeros(3)})()  # or one that was fitted
    >>> pwconv.from_sklearn(ridge, layout="HWC")
    PointwiseConv(13, 3, stride=1, bias=False, layout='HWC')
    """
    read = estimators.read(model, "model")
    if read.is_classifier:
        return PixelClassifier._of_model(read, layout=layout, **kw)
    unknown = kw.keys() - {"precision", "backend", *_OF_THE_LAST}
    if unknown:
        raise TypeError(f"from_sklearn() of a {type(model).__name__} has no argument {', '.join(sorted(unknown))}")
    common = {"layout": layout} | {name: value for name, value in kw.items() if name not in _OF_THE_LAST}
    last = {name: kw[name] for name in _OF_THE_LAST if name in kw}
    *first, end = read.layers
    layers = [PointwiseConv(**common | layer) for layer in first] + [PointwiseConv(**common | end | last)]
    return layers[0] if len(layers) == 1 else PointwiseChain(layers)
