"""Models of other libraries as layers, chains and classifiers."""

from typing import Any

from pwconv import estimators
from pwconv.classify import PixelClassifier
from pwconv.layers import PointwiseConv
from pwconv.several import PointwiseChain


def from_sklearn(model: Any, *, layout: str = "NCHW", **kw: Any) -> PixelClassifier | PointwiseConv | PointwiseChain:
    """Turn a fitted model of scikit-learn into one for every pixel of a map: a pixel is a sample, a channel a feature.

    ...
    """
    read = estimators.read(model, "model")
    if read.is_classifier:
        return PixelClassifier.from_model(read, layout=layout, **kw)
    layers = layers_of(read.layers, {"layout": layout} | kw)
    return layers[0] if len(layers) == 1 else PointwiseChain(layers)
