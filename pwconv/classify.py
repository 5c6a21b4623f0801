"""A linear classifier for every pixel: a pointwise convolution whose logits are reduced to labels in cache."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments, reference, runtime
from pwconv.arguments import Float32Array
from pwconv.layers import Immutable, PointwiseConv

LINKS = ("softmax", "one_vs_rest", "modified_huber", None)


class PixelClassifier(Immutable):
    """A linear classifier that is applied to each pixel of a map.

    The logits of pixel p are `sum_i weight[class, i] * x[i, p] + bias[class]`. Labels and probabilities are computed
    while a block of logits is in cache, so the complete map of logits never exists. A weight with a single row makes a
    binary classifier as in scikit-learn: the row gives the logit of class 1, and the logit of class 0 is 0.

    The label of a pixel is the class with the largest logit; the lowest such class if there are several. NaN counts as
    the largest value, as in `numpy.argmax`. A classifier is immutable, picklable, and safe to call from many threads.
    The argument `x` of all methods, and the errors that they raise, are those of `pwconv.pointwise_conv`.

    Parameters
    ----------
    weight : float32, shape (classes, C_in), with any trailing axes of length 1; or (1, C_in) for two classes.
    bias : float32, shape (classes,) or (1,).
    layout : as in `pwconv.pointwise_conv`.
    classes : a name for each class, of any type; None means that classes are named by their index.
    precision, backend : as in `pwconv.pointwise_conv`.
    link : how `predict_proba` computes probabilities from logits. "softmax" (for two classes the logistic function);
        "one_vs_rest", logistic functions divided by their sum; "modified_huber", clip(v / 2 + 1/2, 0, 1) divided by its
        sum; or None for a classifier without probabilities. Where a sum is 0, all classes are equally probable.

    Attributes
    ----------
    classes, link : the arguments; `classes` is a read-only array.
    layer : the `PointwiseConv` that computes the logits.
    head : the same with a row for each class, also for a binary classifier, whose `layer` has only one.
    scores : the `PointwiseConv` that computes probabilities before they are divided by their sum; None for "softmax".

    Examples
    --------
    >>> ground = pwconv.PixelClassifier(np.eye(3, dtype=np.float32), layout="HWC", classes=["red", "green", "blue"])
    >>> ground.predict(np.array([[[9, 1, 2], [0, 7, 5]]], np.uint8))
    array([['red', 'green']], dtype='<U5')
    """

    __slots__ = ("classes", "head", "layer", "link", "scores")

    classes: NDArray[Any] | None
    head: PointwiseConv
    layer: PointwiseConv
    link: str | None
    scores: PointwiseConv | None

    def __new__(
        cls,
        weight: Any,
        bias: Any = None,
        *,
        layout: str = "NCHW",
        classes: Sequence[Any] | NDArray[Any] | None = None,
        precision: str = "highest",
        backend: str = "auto",
        link: str | None = "softmax",
    ) -> Self:
        if link not in LINKS:
            raise ValueError(f"link must be one of {', '.join(map(repr, LINKS))}, got {link!r}")
        layer = PointwiseConv(weight, bias, layout=layout, precision=precision, backend=backend)
        matrix = layer.matrix
        vector = np.zeros(len(matrix), np.float32) if layer.bias is None else layer.bias

        def per_class(rows: NDArray[Any], bias: NDArray[Any], activation: Any = None) -> PointwiseConv:
            return PointwiseConv(rows, bias, layout=layout, activation=activation, precision=precision, backend=backend)

        head, scores = layer, None
        if len(matrix) == 1:
            head = per_class(_stacked(np.zeros_like(matrix), matrix), _stacked(np.zeros_like(vector), vector))
            matrix, vector = _stacked(-matrix, matrix), _stacked(-vector, vector)
        if link == "one_vs_rest":
            scores = per_class(matrix, vector, "sigmoid")
        elif link == "modified_huber":
            scores = per_class(matrix / 2, vector / 2 + np.float32(0.5), ("clip", 0, 1))

        classifier = super().__new__(cls)
        names = arguments.class_names(classes, head.out_channels)
        classifier._set(layer=layer, head=head, scores=scores, classes=names, link=link)
        return classifier

    @classmethod
    def from_linear(cls, weight: Any, bias: Any = None, **kw: Any) -> Self:
        """Turn a fully connected layer into a classifier for every pixel.

        The weights, of shape (classes, C_in), may be float64 or part of an autograd graph; they are rounded to float32.
        `**kw` are arguments of the constructor.

        Raises ValueError for weights that cover more than one pixel: a fully connected layer that reads a map of 7 x 7
        pixels (fc6 of VGG) is a convolution with a 7 x 7 kernel.
        """
        matrix = arguments.foreign_array(weight, "weight")
        if matrix.ndim > 2 and any(length != 1 for length in matrix.shape[2:]):
            kernel = " x ".join(map(str, matrix.shape[2:]))
            raise ValueError(
                f"weight must look at one pixel at a time, got shape {matrix.shape}: a fully connected layer behind a "
                f"map of {kernel} pixels is a convolution with a {kernel} kernel; those that follow it are 1x1"
            )
        return cls(matrix, None if bias is None else arguments.foreign_array(bias, "bias"), **kw)

    @classmethod
    def from_sklearn(cls, estimator: Any, **kw: Any) -> Self:
        """Turn a fitted linear classifier of scikit-learn into a classifier for every pixel.

        Labels and probabilities are those of `estimator`: a LogisticRegression, LinearSVC, SGDClassifier,
        RidgeClassifier, LinearDiscriminantAnalysis, or any object with their attributes. `coef_`, `intercept_` and
        `classes_` are read, and rounded to float32. `**kw` are arguments of the constructor.

        Raises TypeError if an attribute is missing, ValueError if the estimator has no linear function per class.
        """
        for name in ("coef_", "intercept_", "classes_"):
            if not hasattr(estimator, name):
                raise TypeError(f"estimator must be linear and fitted, got {type(estimator).__name__} without {name}")
        # Two classes have one row; RidgeClassifier stores it as a vector.
        coef = np.atleast_2d(arguments.foreign_array(estimator.coef_, "coef_"))
        names = np.asarray(estimator.classes_)
        rows = 1 if len(names) == 2 else len(names)
        if coef.ndim != 2 or len(coef) not in (rows, len(names)) or hasattr(estimator, "support_vectors_"):
            raise ValueError(
                f"estimator must have one linear function per class, got {type(estimator).__name__} with coef_ of "
                f"shape {coef.shape} for {len(names)} classes"
            )
        bias = np.broadcast_to(arguments.foreign_array(estimator.intercept_, "intercept_"), len(coef))
        return cls(coef, bias, **({"classes": names, "link": _link_of(estimator)} | kw))

    @property
    def backend(self) -> str:
        """The backend: "native" or "numpy"."""
        return self.head.spec.backend

    def decision_function(self, x: Any, *, out: Any = None, num_threads: int | None = None) -> Float32Array:
        """Return the logits as a layer does: one channel per class, or a single channel for a binary classifier."""
        return self.layer(x, out=out, num_threads=num_threads)

    def predict(
        self, x: Any, *, size: Sequence[int] | None = None, out: Any = None, num_threads: int | None = None
    ) -> NDArray[Any]:
        """Return the label of each pixel, without a channel axis: int32 indices, or class names.

        Parameters
        ----------
        size : height and width (the two spatial axes of `layout`, in its order). The labels are those of logits that
            are resized bilinearly to this size, with half-pixel centres, as torch's `interpolate(mode="bilinear",
            align_corners=False)` does.
        out : array of any integer dtype that can hold all indices; receives indices and is returned.
        """
        if self.backend == "numpy":
            return reference.predict(self, x, size=size, out=out, num_threads=num_threads)
        call, labels = arguments.check_predict(self.head, x, size, out, num_threads)
        axis = call.out_layout.index("C")
        if labels is None:
            labels = np.empty(arguments.without(axis, call.out_shape), np.int32)
        receiver = np.expand_dims(labels, axis)
        if size is None:
            runtime.engine.classify((self.head,), call.x, receiver, None, 1, None, None, call.num_threads)
        else:
            runtime.engine.classify_resized((self.head,), call.x, receiver, None, None, call.num_threads)
        return self.named(labels) if out is None else out

    def top_k(
        self, x: Any, k: int, *, out: Sequence[Any] | None = None, num_threads: int | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the k classes with the largest logits of each pixel, and these logits, largest first along the C axis.

        `out` is None or a pair of arrays, which receive indices (any integer dtype that can hold them) and logits
        (float32).
        """
        if self.backend == "numpy":
            return reference.top_k(self, x, k, out=out, num_threads=num_threads)
        call, labels, logits = arguments.check_top_k(self.head, x, k, out, num_threads)
        if labels is None or logits is None:
            labels, logits = np.empty(call.out_shape, np.int32), np.empty(call.out_shape, np.float32)
        places = call.out_shape[call.out_layout.index("C")]
        runtime.engine.classify((self.head,), call.x, labels, logits, places, None, None, call.num_threads)
        return (self.named(labels), logits) if out is None else (out[0], out[1])

    def predict_proba(self, x: Any, *, out: Any = None, num_threads: int | None = None) -> Float32Array:
        """Return the probabilities: one channel per class, two for a binary classifier.

        Raises AttributeError if `link` is None.
        """
        if self.backend == "numpy":
            return reference.predict_proba(self, x, out=out, num_threads=num_threads)
        call = arguments.check_probabilities(self.head, self.link, x, out, num_threads)
        probabilities = np.empty(call.out_shape, np.float32) if call.out is None else call.out
        if self.scores is None:
            runtime.engine.classify((self.head,), call.x, probabilities, None, 0, None, None, call.num_threads)
        else:
            self.scores(call.x, out=probabilities, num_threads=call.num_threads)
            probabilities[...] = reference.shares(probabilities, call.out_layout.index("C"))
        return probabilities if out is None else out

    def named(self, indices: NDArray[Any]) -> NDArray[Any]:
        """Return class names in place of indices; the indices themselves if classes have no names."""
        return indices if self.classes is None else self.classes[indices]

    def __repr__(self) -> str:
        shown = [f"{self.head.in_channels}, {self.head.out_channels}, layout={self.layer.layout!r}"]
        if self.layer.bias is None:
            shown.append("bias=False")
        if self.link != "softmax":
            shown.append(f"link={self.link!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.layer, self.classes, self.link)


def _stacked(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([first, second])


def _restore(
    cls: type[PixelClassifier], layer: PointwiseConv, classes: NDArray[Any] | None, link: str | None
) -> PixelClassifier:
    return cls(
        layer.weight,
        layer.bias,
        layout=layer.layout,
        classes=classes,
        precision=layer.precision,
        backend=layer.backend,
        link=link,
    )


def _link_of(estimator: Any) -> str | None:
    """Return the link of an estimator, which its attributes tell."""
    if not hasattr(estimator, "predict_proba"):
        return None
    loss = getattr(estimator, "loss", None)
    if loss == "modified_huber":
        return loss
    # SGDClassifier, and LogisticRegression in versions of scikit-learn that have multi_class
    one_vs_rest = loss == "log_loss" or getattr(estimator, "multi_class", None) == "ovr"
    return "one_vs_rest" if one_vs_rest else "softmax"
