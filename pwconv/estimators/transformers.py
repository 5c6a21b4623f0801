"""Transformers of scikit-learn as affine functions."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv.adapters import kind_of
from pwconv.arguments import ActivationLike
from pwconv.estimators.affine import Affine
from pwconv.estimators.attributes import attribute, channels_of, numbers, refusal


class Network:
    """Affine functions and activations in turn. The last affine function is open: steps that follow extend it."""

    def __init__(self, opened: Affine, *, forward: bool = True) -> None:
        self.layers: list[dict[str, Any]] = []
        self.open = opened
        self.forward = forward  # else the inverse is asked for, which clips nothing

    def activate(self, activation: ActivationLike, *, dense: bool) -> None:
        """Close the open function by an activation."""
        self.layers.append(self.open.layer(activation, dense=dense))
        self.open = Affine.identity(len(self.open.bias))


def transform(model: Any, place: str, network: Network) -> None:
    """Extend a network by what `model.transform` computes."""
    if model is None or (isinstance(model, str) and model == "passthrough"):
        return
    kind = kind_of(model, _KINDS, "transform")
    if kind is not None:
        _KINDS[kind](model, place, network)
    elif hasattr(model, "get_support"):
        attribute(model, "n_features_in_", place)
        network.open = network.open.selected(np.flatnonzero(model.get_support()))
    else:
        raise refusal(model, place)


def place_of(place: str, attribute_name: str, number: int, name: Any) -> str:
    """Return how messages call a step of a model."""
    return f"{place}.{attribute_name}[{number}] ({name!r})"


def _pipeline(model: Any, place: str, network: Network) -> None:
    for i, (name, step) in enumerate(model.steps):
        transform(step, place_of(place, "steps", i, name), network)


def _function(model: Any, place: str, network: Network) -> None:
    if model.func is not None:
        raise refusal(model, place, f"func is {getattr(model.func, '__name__', model.func)}")


def _standard(model: Any, place: str, network: Network) -> None:
    scale = attribute(model, "scale_", place)
    if model.with_mean:
        network.open = network.open.subtracted(numbers(model, "mean_", place))
    if scale is not None:
        network.open = network.open.scaled(1 / numbers(model, "scale_", place))


def _robust(model: Any, place: str, network: Network) -> None:
    attribute(model, "scale_", place)
    if model.with_centering:
        network.open = network.open.subtracted(numbers(model, "center_", place))
    if model.with_scaling:
        network.open = network.open.scaled(1 / numbers(model, "scale_", place))


def _min_max(model: Any, place: str, network: Network) -> None:
    scale, least = numbers(model, "scale_", place), numbers(model, "data_min_", place)
    # scale_ * x + min_, with the smallest value seen as the centre
    rest = numbers(model, "min_", place) + scale * least
    network.open = network.open.subtracted(least).scaled(scale).added(rest)
    if network.forward and getattr(model, "clip", False):
        network.activate(("clip", *map(float, model.feature_range)), dense=False)


def _max_abs(model: Any, place: str, network: Network) -> None:
    network.open = network.open.scaled(1 / numbers(model, "scale_", place))
    if network.forward and getattr(model, "clip", False):
        network.activate(("clip", -1.0, 1.0), dense=False)


def _pca(model: Any, place: str, network: Network) -> None:
    components = numbers(model, "components_", place)
    if model.whiten:
        spread = np.sqrt(numbers(model, "explained_variance_", place))
        # As scikit-learn clips it, in the precision that the model was fitted in.
        spread = np.maximum(spread, np.finfo(np.asarray(model.explained_variance_).dtype).eps)
        components = components / spread[:, np.newaxis]
    network.open = network.open.subtracted(numbers(model, "mean_", place)).multiplied(components)


def _projection(model: Any, place: str, network: Network) -> None:
    components = numbers(model, "components_", place)
    if getattr(model, "mean_", None) is not None:
        network.open = network.open.subtracted(numbers(model, "mean_", place))
    network.open = network.open.multiplied(components)


def _discriminants(model: Any, place: str, network: Network) -> None:
    scalings = numbers(model, "scalings_", place)[:, : model._max_components]
    if hasattr(model, "xbar_"):
        network.open = network.open.subtracted(numbers(model, "xbar_", place))
    else:
        network.open = network.open.located_at(centre_of_classes(model, place))
    network.open = network.open.multiplied(scalings.T)


def centre_of_classes(model: Any, place: str) -> NDArray[np.float64]:
    """Return where the data lies that a discriminant analysis was fitted to."""
    return numbers(model, "priors_", place) @ numbers(model, "means_", place)


def _partial_least_squares(model: Any, place: str, network: Network) -> None:
    rotations = numbers(model, "x_rotations_", place)
    centred = network.open.subtracted(numbers(model, "_x_mean", place))
    network.open = centred.scaled(1 / numbers(model, "_x_std", place)).multiplied(rotations.T)


def _columns(model: Any, place: str, network: Network) -> None:
    """Transformers of some channels each, in the order of their results."""
    parts = []
    for i, (name, step, columns) in enumerate(attribute(model, "transformers_", place)):
        if isinstance(step, str) and step == "drop":
            continue
        where = place_of(place, "transformers_", i, name)
        indices = _indices(model, name, columns, where)
        if len(indices):
            part = _part(step, where, network, network.open.selected(indices))
            parts.append(_weighted(model, name, part))
    _join(parts, model, place, network)


def _union(model: Any, place: str, network: Network) -> None:
    """Several transformers of all channels."""
    parts = []
    for i, (name, step) in enumerate(model.transformer_list):
        if not (isinstance(step, str) and step == "drop"):
            where = place_of(place, "transformer_list", i, name)
            parts.append(_weighted(model, name, _part(step, where, network, network.open)))
    _join(parts, model, place, network)


def _part(step: Any, place: str, network: Network, opened: Affine) -> Affine:
    part = Network(opened, forward=network.forward)
    transform(step, place, part)
    if part.layers:
        raise refusal(step, place, "it clips, and a layer clips all of its channels alike")
    return part.open


def _weighted(model: Any, name: str, part: Affine) -> Affine:
    weights = getattr(model, "transformer_weights", None) or {}
    return part.scaled(np.full(len(part.bias), float(weights[name]))) if name in weights else part


def _join(parts: list[Affine], model: Any, place: str, network: Network) -> None:
    if not parts:
        raise refusal(model, place, "it keeps no channel")
    network.open = Affine.joined(parts)


def _indices(model: Any, name: str, columns: Any, place: str) -> NDArray[np.intp]:
    """Return the channels that a transformer of a ColumnTransformer takes."""
    indices = getattr(model, "_transformer_to_input_indices", {}).get(name)
    if indices is not None:
        return np.asarray(indices, np.intp).reshape(-1)
    every = np.arange(channels_of(model) or 0)
    known = list(getattr(model, "feature_names_in_", ()))
    if isinstance(columns, slice):
        start, stop = columns.start, columns.stop
        # The last name is included.
        return every[
            slice(
                known.index(start) if isinstance(start, str) else start,
                known.index(stop) + 1 if isinstance(stop, str) else stop,
                columns.step,
            )
        ]
    chosen = np.atleast_1d(np.asarray(columns))
    if chosen.dtype.kind == "b":
        return np.flatnonzero(chosen)
    if chosen.dtype.kind in "iu":
        return every[chosen]
    if chosen.size and not set(chosen) <= set(known):
        raise ValueError(f"{place} must choose channels by number, or by names that the model knows, got {columns}")
    return np.array([known.index(column) for column in chosen], np.intp)


_KINDS: dict[str, Callable[[Any, str, Network], None]] = {
    "Pipeline": _pipeline,
    "ColumnTransformer": _columns,
    "FeatureUnion": _union,
    "FunctionTransformer": _function,
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": _max_abs,
    "PCA": _pca,
    "IncrementalPCA": _pca,
    "TruncatedSVD": _projection,
    "FastICA": _projection,
    "GaussianRandomProjection": _projection,
    "SparseRandomProjection": _projection,
    "NeighborhoodComponentsAnalysis": _projection,
    "LinearDiscriminantAnalysis": _discriminants,
    "PLSRegression": _partial_least_squares,
    "PLSCanonical": _partial_least_squares,
    "CCA": _partial_least_squares,
}
