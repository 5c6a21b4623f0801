"""A classifier for every pixel: pointwise convolutions whose logits are reduced to labels in cache."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments, estimators, links, reference, runtime
from pwconv.arguments import Float32Array
from pwconv.costs import Cost
from pwconv.layers import Immutable, PointwiseConv
from pwconv.several import PointwiseChain, run_masked


class PixelClassifier(Immutable):
    """A linear classifier that is applied to each pixel of a map.

    The logits of pixel p are `sum_i weight[class, i] * x[i, p] + bias[class]`. Labels and probabilities are computed
    while a block of logits is in cache, so the complete map of logits never exists. A weight with a single row makes a
    binary classifier as in scikit-learn: the row gives the logit of class 1, and the logit of class 0 is 0.

    The label of a pixel is the class with the largest logit; the lowest such class if there are several. NaN counts as
    the largest value, as in `numpy.argmax`. A classifier is immutable, picklable, and safe to call from many threads.
    The argument `x` of all methods, and the errors that they raise, are those of `pwconv.pointwise_conv`.

    Methods take `mask`, bool with the shape of the pixels of `x` or one that broadcasts to it: True where a pixel
    counts. `x` may be a masked array (`numpy.ma`); then a pixel with a masked channel does not count. `fill` is the
    result of pixels that do not count: for labels an index, or a name, of no class (by default -1 where indices are
    returned); for logits and probabilities a number (by default NaN). Given a mask or `fill`, pixels with a NaN logit
    do not count either. Blocks without a pixel that counts are not computed. A mask without a `fill` that the result
    can hold is a ValueError.

    Parameters
    ----------
    weight : float32, shape (classes, C_in), with any trailing axes of length 1; or (1, C_in) for two classes.
    bias : float32, shape (classes,) or (1,).
    layout : as in `pwconv.pointwise_conv`.
    classes : a name for each class, of any type; None means that classes are named by their index.
    precision, backend : as in `pwconv.pointwise_conv`.
    link : how `predict_proba` computes probabilities from logits. "softmax" (for two classes the logistic function);
        "one_vs_rest", logistic functions divided by their sum; "modified_huber", clip(v / 2 + 1/2, 0, 1) divided by its
        sum, or equal probabilities if the sum is 0; "multilabel", a logistic function for each class by itself, whose
        classes do not exclude each other; or None for a classifier without probabilities.

    Attributes
    ----------
    classes, link : the arguments; `classes` is a read-only array.
    layers : the `PointwiseConv`s that compute the logits, one behind the other; one unless made by `from_chain` or
        `from_sklearn`.
    layer : the last of them.
    head : the same with a row for each class, also for a binary classifier, whose `layer` has only one.

    Examples
    --------
    >>> ground = pwconv.PixelClassifier(np.eye(3, dtype=np.float32), layout="HWC", classes=["red", "green", "blue"])
    >>> ground.predict(np.array([[[9, 1, 2], [0, 7, 5], [9, 1, np.nan]]], np.float32), fill="nodata")
    array([['red', 'green', 'nodata']], dtype='<U6')
    """

    __slots__ = ("_logits", "classes", "head", "layers", "link")

    _logits: PointwiseConv | PointwiseChain
    classes: NDArray[Any] | None
    head: PointwiseConv
    layers: tuple[PointwiseConv, ...]
    link: str | None

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
        layer = PointwiseConv(weight, bias, layout=layout, precision=precision, backend=backend)
        return cls._of((layer,), classes, link)

    @classmethod
    def _of(cls, layers: tuple[PointwiseConv, ...], classes: Any, link: str | None) -> Self:
        """Return a classifier with the logits of layers that fit together."""
        if link not in links.LINKS:
            raise ValueError(f"link must be one of {', '.join(map(repr, links.LINKS))}, got {link!r}")
        head = layers[-1]
        if head.out_dtype != "float32":
            raise ValueError(f"the last layer of a classifier must have out_dtype float32, got {head.out_dtype}")
        if head.out_channels == 1 and link != "multilabel":
            head = _with_two_rows(head)
        classifier = super().__new__(cls)
        classifier._set(
            layers=layers,
            head=head,
            classes=arguments.class_names(classes, head.out_channels),
            link=link,
            _logits=layers[0] if len(layers) == 1 else PointwiseChain(layers),
        )
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
        """Turn a fitted classifier of scikit-learn into a classifier for every pixel.

        Labels and probabilities are those of `estimator`: a LogisticRegression, LinearSVC, SGDClassifier,
        RidgeClassifier, LinearDiscriminantAnalysis, MLPClassifier, a Pipeline that ends in one of them, or any object
        with `coef_`, `intercept_` and `classes_`. `pwconv.from_sklearn` says what a pipeline may hold. `**kw` are
        `layout`, `classes`, `link`, `precision` and `backend`.

        Raises TypeError if an attribute is missing; ValueError if the estimator has no linear function per class, or
        for a step of a pipeline that is neither affine nor a known activation.
        """
        model = estimators.read(estimator, "estimator")
        if not model.is_classifier:
            raise TypeError(f"estimator must be a classifier, got {type(estimator).__name__}: use pwconv.from_sklearn")
        return cls._of_model(model, **kw)

    @classmethod
    def _of_model(
        cls,
        model: estimators.Model,
        *,
        layout: str = "NCHW",
        classes: Any = ...,
        link: Any = ...,
        precision: str = "highest",
        backend: str = "auto",
    ) -> Self:
        """Return the classifier of a model that was read; `classes` and `link` are its own unless given."""
        layers = [PointwiseConv(layout=layout, precision=precision, backend=backend, **layer) for layer in model.layers]
        given = model.classes if classes is ... else classes, model.link if link is ... else link
        return cls._of(tuple(layers), *given)

    @classmethod
    def from_chain(
        cls,
        chain: PointwiseChain | PointwiseConv,
        *,
        classes: Sequence[Any] | NDArray[Any] | None = None,
        link: str | None = "softmax",
    ) -> Self:
        """Turn a chain whose last layer computes logits into a classifier for every pixel.

        Maps between the layers and the map of logits never exist as a whole. Logits have the bits of the layers called
        one by one. `classes` and `link` are those of the constructor.

        Raises TypeError for anything but a chain or a layer; ValueError for a last layer with another out_dtype than
        float32, or with a single out channel (a binary classifier) and an activation, since class 0 has the logit 0.

        Examples
        --------
        >>> deep, head = (pwconv.PointwiseConv(np.ones(s, np.float32)) for s in ((64, 32), (21, 64)))
        >>> labels = pwconv.PixelClassifier.from_chain(pwconv.PointwiseChain([deep, head]))
        >>> labels.predict(np.ones((1, 32, 16, 16), np.float32), size=(128, 128)).shape
        (1, 128, 128)
        """
        if not isinstance(chain, PointwiseChain | PointwiseConv):
            raise TypeError(f"chain must be a PointwiseChain or a PointwiseConv, got {type(chain).__name__}")
        layers = chain.layers if isinstance(chain, PointwiseChain) else (chain,)
        return cls._of(layers, classes, link)

    @property
    def layer(self) -> PointwiseConv:
        """The layer that computes the logits."""
        return self.layers[-1]

    @property
    def all_layers(self) -> tuple[PointwiseConv, ...]:
        """The layers, of which the last is `head`."""
        return (*self.layers[:-1], self.head)

    @property
    def backend(self) -> str:
        """The backend: "native" or "numpy"."""
        return "numpy" if any(layer.spec.backend == "numpy" for layer in self.layers) else "native"

    def decision_function(
        self, x: Any, *, mask: Any = None, fill: float | None = None, out: Any = None, num_threads: int | None = None
    ) -> Float32Array:
        """Return the logits as a layer does: one channel per class, or a single channel for a binary classifier."""
        if mask is None and fill is None and not arguments.hides_elements(x):
            logits: Any = self._logits(x, out=out, num_threads=num_threads)
            return logits
        return run_masked(self.layers, x, mask, fill, out, num_threads)

    def predict(
        self,
        x: Any,
        *,
        size: Sequence[int] | None = None,
        mask: Any = None,
        fill: Any = None,
        out: Any = None,
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Return the label of each pixel, without a channel axis: int32 indices, or class names.

        With link="multilabel", return int32 with a channel for each class: 1 where its logit is above 0, else 0.

        Parameters
        ----------
        size : height and width (the two spatial axes of `layout`, in its order). The labels are those of logits that
            are resized bilinearly to this size, with half-pixel centres, as torch's `interpolate(mode="bilinear",
            align_corners=False)` does. A label does not count if a pixel that it is interpolated from does not; `mask`
            is that of the pixels of `x`.
        out : array of any integer dtype that can hold all indices; receives indices and is returned.

        Raises ValueError for a `size` with link="multilabel".

        Examples
        --------
        >>> ground = pwconv.PixelClassifier(np.eye(2, dtype=np.float32), layout="NC", classes=["sea", "wood"])
        >>> ground.predict(np.array([[9, np.nan], [0, 7]], np.float32), fill="nodata")
        array(['nodata', 'wood'], dtype='<U6')
        """
        if self.backend == "numpy":
            return reference.predict(self, x, size=size, mask=mask, fill=fill, out=out, num_threads=num_threads)
        call, labels, _, names = arguments.check_predict(
            self.all_layers, self.link, self.classes, x, size, mask, fill, out, num_threads
        )
        axis = call.out_layout.index("C")
        dtype, names = _index_dtype(names)
        if self.link == "multilabel":
            labels = np.empty(call.out_shape, np.int32) if labels is None else labels
            runtime.engine.indicate(self.all_layers, call.x, labels, call.mask, call.fill, call.num_threads)
            return labels if out is None else out
        if labels is None:
            labels = np.empty(arguments.without(axis, call.out_shape), dtype)
        index: Any = call.fill
        receiver = np.expand_dims(labels, axis)
        if size is None:
            runtime.engine.classify(self.all_layers, call.x, receiver, None, 1, call.mask, index, call.num_threads)
        else:
            runtime.engine.classify_resized(self.all_layers, call.x, receiver, call.mask, index, call.num_threads)
        return _named(labels, names) if out is None else out

    def top_k(
        self,
        x: Any,
        k: int,
        *,
        mask: Any = None,
        fill: Any = None,
        out: Sequence[Any] | None = None,
        num_threads: int | None = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the k classes with the largest logits of each pixel, and these logits, largest first along the C axis.

        `out` is None or a pair of arrays, which receive indices (any integer dtype that can hold them) and logits
        (float32). Where a pixel does not count, all k labels are `fill` and the logits NaN.
        """
        if self.backend == "numpy":
            return reference.top_k(self, x, k, mask=mask, fill=fill, out=out, num_threads=num_threads)
        call, labels, logits, names = arguments.check_top_k(
            self.all_layers, self.classes, x, k, mask, fill, out, num_threads
        )
        dtype, names = _index_dtype(names)
        if labels is None or logits is None:
            labels, logits = np.empty(call.out_shape, dtype), np.empty(call.out_shape, np.float32)
        places = call.out_shape[call.out_layout.index("C")]
        index: Any = call.fill
        runtime.engine.classify(self.all_layers, call.x, labels, logits, places, call.mask, index, call.num_threads)
        return (_named(labels, names), logits) if out is None else (out[0], out[1])

    def predict_proba(
        self, x: Any, *, mask: Any = None, fill: float | None = None, out: Any = None, num_threads: int | None = None
    ) -> Float32Array:
        """Return the probabilities: one channel per class, two for a binary classifier.

        Raises AttributeError if `link` is None.
        """
        if self.backend == "numpy":
            return reference.predict_proba(self, x, mask=mask, fill=fill, out=out, num_threads=num_threads)
        call = arguments.check_probabilities(self.all_layers, self.link, x, mask, fill, out, num_threads)
        probabilities = np.empty(call.out_shape, np.float32) if call.out is None else call.out
        binary = self.head is not self.layer
        # The softmax of 0 and a logit has the logistic functions of its negative and of itself.
        link: Any = "softmax" if binary and self.link == "one_vs_rest" else self.link
        runtime.engine.probabilities(
            self.all_layers, call.x, probabilities, link, binary, call.mask, call.fill, call.num_threads
        )
        return probabilities if out is None else out

    def cost(self, shape: Sequence[int]) -> Cost:
        """Return the cost of the logits for an `x` of this shape; maps between the layers are not moved."""
        return self._logits.cost(shape)

    def plan(self, shape: Sequence[int], num_threads: int | None = None) -> Any:
        """Return a description, for people, of how the logits of an `x` of this shape are computed."""
        return self._logits.plan(tuple(shape), num_threads)

    def __repr__(self) -> str:
        first = self.layers[0]
        between = "".join(f"{layer.out_channels}, " for layer in self.layers[:-1])
        shown = [f"{first.in_channels}, {between}{self.head.out_channels}, layout={first.layout!r}"]
        if self.layer.bias is None:
            shown.append("bias=False")
        if self.link != "softmax":
            shown.append(f"link={self.link!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._of, (self.layers, self.classes, self.link)


def _index_dtype(names: NDArray[Any] | None) -> tuple[Any, NDArray[Any] | None]:
    """Return the dtype of indices for classes with these names, and the names unless they are the indices.

    Names of integers from 0 on, as many estimators have, need no lookup: the engine writes their dtype. For others the
    indices have the dtype in which NumPy looks up fastest.
    """
    if names is None:
        return np.int32, None
    if names.dtype.kind in "iu" and names.dtype.isnative and np.array_equal(names, np.arange(len(names))):
        return names.dtype, None
    return np.intp, names


def _named(indices: NDArray[Any], names: NDArray[Any] | None) -> NDArray[Any]:
    """Return class names in place of indices; the indices themselves if `names` is None."""
    return indices if names is None else names.take(indices)


def _with_two_rows(layer: PointwiseConv) -> PointwiseConv:
    """Return a layer whose channels are 0 and the single one of a binary classifier."""
    if layer.spec.activation != arguments.NO_ACTIVATION:
        raise ValueError(
            f"the last layer of a binary classifier must have no activation, got {layer.activation!r}: "
            "the logit of class 0 is 0"
        )
    weight = np.concatenate([np.zeros_like(layer.matrix), layer.matrix])
    bias = None if layer.bias is None else np.concatenate([np.zeros_like(layer.bias), layer.bias])
    options = layer._options() | {"weight_layout": "OI"}
    if options.get("output_scale") is not None:
        options["output_scale"] = np.concatenate([np.ones(1, np.float32), options["output_scale"]])
    return PointwiseConv(weight, bias, **options)
