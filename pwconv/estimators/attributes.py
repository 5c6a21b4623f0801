"""What a fitted estimator says of itself: its kind, its numbers, its channels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments import foreign_numbers

_COUNTED = ("coef_", "components_", "scalings_", "coefs_")  # attributes that tell the number of channels


def attribute(model: Any, name: str, place: str) -> Any:
    """Return an attribute that fitting sets."""
    if not hasattr(model, name):
        raise TypeError(f"{place} must be fitted, got {type(model).__name__} without {name}")
    return getattr(model, name)


def numbers(model: Any, name: str, place: str) -> NDArray[np.float64]:
    """Return an attribute that fitting sets as float64 numbers; a sparse matrix becomes dense."""
    return as_float64(attribute(model, name, place), f"{name} of {place}")


def as_float64(value: Any, name: str) -> NDArray[np.float64]:
    """Return numbers in any dtype and byte order, dense or sparse, as float64."""
    if hasattr(value, "toarray"):
        value = value.toarray()
    return foreign_numbers(value, name).astype(np.float64)


def channels_of(model: Any) -> int | None:
    """Return the number of channels that a model was fitted to, or None if nothing tells."""
    if not hasattr(model, "steps"):
        count = getattr(model, "n_features_in_", None)
        if count is not None:
            return int(count)
        for name in _COUNTED:
            if hasattr(model, name):
                value = getattr(model, name)
                if name in ("coefs_", "scalings_"):  # matrices (C_in, C_out)
                    return int(np.shape(value[0] if name == "coefs_" else value)[0])
                shape = value.shape if hasattr(value, "shape") else np.shape(value)
                return int(shape[-1]) if shape else None
        return None
    return next((count for _, step in model.steps if (count := channels_of(step)) is not None), None)


def refusal(model: Any, place: str, why: str = "") -> ValueError:
    """Return the error that says which step of a model is neither affine nor a known activation."""
    return ValueError(
        f"{place} must be affine, or affine functions with known activations, got {type(model).__name__}"
        + (f": {why}" if why else "")
    )
