"""Fitted models of scikit-learn as layers, read by their attributes: scikit-learn is not imported."""

from pwconv.estimators.models import Model, read

__all__ = ["Model", "read"]
