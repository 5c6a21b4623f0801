"""Links: how the logits of a classifier become probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwconv.activations import activate
from pwconv.arguments import SIGMOID, Activation

LINKS = ("softmax", "one_vs_rest", "modified_huber", "multilabel", None)


@np.errstate(all="ignore")
def probabilities(link: str | None, logits: NDArray[Any], axis: int, *, binary: bool = False) -> NDArray[Any]:
    """Return the probabilities of logits with a channel for each class, in their dtype.

    `binary` says that the channels are 0 and the logit v of class 1: -v speaks for class 0.

    Probabilities are right however far from 0 the logits are. A logistic function of v is e^min(v, 0) / (1 + e^-|v|).
    What all classes have in common of e^min(v, 0) is divided out before it is computed, so the largest of these
    functions is at least 1/2, and their sum does not underflow.
    """
    if link == "multilabel":
        return activate(Activation(SIGMOID), logits)
    if link == "modified_huber":
        if binary:
            v = logits.take([1], axis)
            logits = np.concatenate([-v, v], axis)
        parts = np.clip(logits, -1, 1) + 1
        parts = np.where((parts == 0).all(axis=axis, keepdims=True), parts.dtype.type(1), parts)
    elif link == "softmax" or binary:  # the softmax of 0 and v has the logistic functions of -v and v
        parts = np.exp(logits - logits.max(axis=axis, keepdims=True))
    else:
        # Infinities would have no difference.
        low = np.clip(logits, np.finfo(logits.dtype).min, 0)
        parts = np.exp(low - low.max(axis=axis, keepdims=True)) / (1 + np.exp(-np.abs(logits)))
    return parts / parts.sum(axis=axis, keepdims=True)
