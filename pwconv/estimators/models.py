"""Whole models of scikit-learn: pipelines, and the classifiers and regressors at their ends."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pwconv.adapters import kind_of
from pwconv.estimators.affine import Affine
from pwconv.estimators.attributes import as_float64, attribute, channels_of, numbers, refusal
from pwconv.estimators.transformers import Network, centre_of_classes, place_of, transform

_HIDDEN = {"identity": None, "relu": "relu", "tanh": "tanh", "logistic": "sigmoid"}
_HELD = {"BaseSearchCV": "best_estimator_", "RANSACRegressor": "estimator_"}  # estimators that have another's predict


class Model(NamedTuple):
    """The layers of a model, each as the arguments of a `pwconv.PointwiseConv`; `link` and `classes` of a classifier.

    `link` is as in `pwconv.PixelClassifier`; `is_classifier` tells a classifier without probabilities from others.
    """

    layers: list[dict[str, Any]]
    is_classifier: bool
    classes: NDArray[Any] | None = None
    link: str | None = None


def read(model: Any, place: str) -> Model:
    """Read a fitted classifier, regressor or transformer, or a pipeline of them; `place` is its name in messages.

    Raises TypeError if an attribute is missing that fitting sets; ValueError, which names the step, for what is neither
    affine nor a known activation.
    """
    channels = channels_of(model)
    # A model that is not fitted lacks an attribute, which says more than that it lacks channels.
    network = Network(Affine.identity(channels or 0))
    end = _read(model, place, network)
    if channels is None:
        raise TypeError(f"{place} must tell its number of channels, got {type(model).__name__} without n_features_in_")
    network.layers.append(network.open.layer(dense=end is not None))
    return Model(network.layers, False) if end is None or not end.is_classifier else end._replace(layers=network.layers)


def _read(model: Any, place: str, network: Network) -> Model | None:
    """Extend a network by a model; return its end without layers, or None for a transformer."""
    if kind_of(model, ("Pipeline",), "predict") is not None:
        for i, (name, step) in enumerate(model.steps):
            where = place_of(place, "steps", i, name)
            if i < len(model.steps) - 1:
                transform(step, where, network)
            else:
                return _read(step, where, network)
    held = kind_of(model, _HELD, "predict")
    if held is not None:
        name = _HELD[held]
        return _read(attribute(model, name, place), f"{place}.{name}", network)
    if kind_of(model, ("TransformedTargetRegressor",), "predict") is not None:
        return _transformed_target(model, place, network)
    if kind_of(model, ("MLPClassifier", "MLPRegressor"), "predict") is not None:
        return _perceptron(model, place, network)
    if hasattr(model, "coef_") or (hasattr(type(model), "predict") and not hasattr(model, "get_support")):
        return _linear(model, place, network)
    transform(model, place, network)
    return None


def _linear(model: Any, place: str, network: Network) -> Model:
    """A classifier or regressor with `coef_` and `intercept_`."""
    is_classifier = hasattr(model, "classes_") or hasattr(type(model), "decision_function")
    for name in ("coef_", "intercept_") + ("classes_",) * is_classifier:
        if not hasattr(model, name):
            if hasattr(model, "n_features_in_"):
                raise refusal(model, place)
            raise TypeError(f"{place} must be linear and fitted, got {type(model).__name__} without {name}")
    # Two classes have one row, in RidgeClassifier even without an axis for it.
    coef = np.atleast_2d(numbers(model, "coef_", place))
    intercept = numbers(model, "intercept_", place)
    end = _linear_classes(model, place, coef) if is_classifier else Model([], False)
    if not is_classifier:
        _check_linear_regressor(model, place)
    if kind_of(model, ("_PLS",), "predict") is not None:
        network.open = network.open.subtracted(numbers(model, "_x_mean", place))
    elif kind_of(model, ("LinearDiscriminantAnalysis",), "predict_proba") is not None:
        network.open = network.open.located_at(centre_of_classes(model, place))
    network.open = network.open.multiplied(coef).added(np.broadcast_to(intercept, len(coef)))
    return end


def _check_linear_regressor(model: Any, place: str) -> None:
    """Refuse what has coefficients but predicts something else than their sum."""
    if hasattr(model, "offset_"):
        raise refusal(model, place)
    link = getattr(getattr(model, "_base_loss", None), "link", None)
    if link is not None and type(link).__name__ != "IdentityLink":
        raise refusal(model, place, f"its link is {type(link).__name__}")


def _linear_classes(model: Any, place: str, coef: NDArray[np.float64]) -> Model:
    names = np.asarray(model.classes_)
    rows = 1 if len(names) == 2 else len(names)
    pairs = hasattr(model, "support_vectors_") and len(names) > 2
    binarizer = getattr(model, "_label_binarizer", None)
    several = getattr(binarizer, "y_type_", "").startswith("multilabel")
    if coef.ndim != 2 or len(coef) not in (rows, len(names)) or pairs or several:
        raise ValueError(
            f"{place} must have one linear function per class, got {type(model).__name__} with coef_ of "
            f"shape {coef.shape} for {len(names)} classes" + " that exclude each other not" * several
        )
    return Model([], True, names, _link_of(model))


def _link_of(model: Any) -> str | None:
    """Return how a linear classifier makes probabilities, as its attributes say."""
    # The probabilities of support vector machines are a model of their own.
    if not hasattr(model, "predict_proba") or hasattr(model, "support_vectors_"):
        return None
    loss = getattr(model, "loss", None)
    if loss == "modified_huber":
        return loss
    # SGDClassifier; and LogisticRegression in versions that still had the choice
    old = getattr(model, "multi_class", None) == "ovr" or getattr(model, "solver", None) == "liblinear"
    return "one_vs_rest" if loss == "log_loss" or old else "softmax"


def _perceptron(model: Any, place: str, network: Network) -> Model:
    """A multilayer perceptron; the last affine function stays open."""
    matrices, biases = attribute(model, "coefs_", place), attribute(model, "intercepts_", place)
    if model.activation not in _HIDDEN:
        raise refusal(model, place, f"its activation is {model.activation!r}")
    for i, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
        weight = as_float64(matrix, f"coefs_[{i}] of {place}").T
        network.open = network.open.multiplied(weight).added(as_float64(bias, f"intercepts_[{i}] of {place}"))
        if i < len(matrices) - 1 and _HIDDEN[model.activation] is not None:
            network.activate(_HIDDEN[model.activation], dense=True)
    last = model.out_activation_
    if not hasattr(model, "classes_"):
        if last != "identity":
            raise refusal(model, place, f"the activation of its output is {last!r}")
        return Model([], False)
    several = last == "logistic" and model.n_outputs_ > 1
    return Model([], True, np.asarray(model.classes_), "multilabel" if several else "softmax")


def _transformed_target(model: Any, place: str, network: Network) -> Model:
    """A regressor whose results are transformed back."""
    end = _read(attribute(model, "regressor_", place), f"{place}.regressor_", network)
    if end is None or end.is_classifier:
        raise refusal(model.regressor_, f"{place}.regressor_", "it is no regressor")
    where = f"{place}.transformer_"
    targets = Network(Affine.identity(len(network.open.bias)), forward=False)
    transform(model.transformer_, where, targets)
    scale, bias = np.diag(targets.open.matrix), targets.open.bias
    if targets.layers or len(scale) != len(network.open.bias) or (targets.open.matrix != np.diag(scale)).any():
        raise refusal(model.transformer_, where, "it must scale each target by itself")
    network.open = network.open.added(-bias).scaled(1 / scale).added(targets.open.centre)
    return end
