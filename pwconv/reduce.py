"""Fewer channels: the principal components of the pixels of a map."""

import importlib
import inspect
import math
import sys
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments, runtime
from pwconv.arguments import Float32Array
from pwconv.boxes import boxes_of
from pwconv.functional import pointwise_conv
from pwconv.layers import PointwiseConv
from pwconv.scalars import integer

_SAMPLE_PIXELS = 512  # pixels whose mean is the provisional mean
# Products are summed in float32 within a block, and in float64 over the blocks.
_BLOCK_ELEMENTS = 1 << 20
_MAX_BLOCK_PIXELS = 4096  # more pixels would add to the rounding error
_STRIP_CHANNELS = 80  # channels whose products with all others are computed at a time
_TASKS = 16  # tasks that threads take in turn; the number is fixed, so that sums do not depend on the threads


class NotFittedError(ValueError, AttributeError):
    """A reducer was used before it was fitted. If scikit-learn is loaded, its class of this name is raised instead."""


class Moments(NamedTuple):
    """The number of some pixels, their mean, and the sum of the outer products of their deviations from the mean."""

    pixels: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of pixels together (Chan, Golub and LeVeque, "Updating formulae", 1979)."""
        pixels = self.pixels + other.pixels
        share = other.pixels / max(1, pixels)
        difference = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(difference, difference) * (self.pixels * share)
        return Moments(pixels, self.mean + difference * share, scatter)


class ChannelReducer:
    """Principal component analysis of channels: each pixel of a map is a sample, each channel a feature.

    Maps in any layout are read in place. The rounding error of covariances does not grow with the map: products of
    deviations from a provisional mean are summed in float32 over at most 4,096 pixels and in float64 beyond.
    Eigenvectors are computed in float64. Results do not depend on the number of threads. Attributes and signs are those
    of `sklearn.decomposition.PCA`. A reducer is an estimator in the sense of scikit-learn, but does not import it.

    Parameters
    ----------
    n_components : number of components, which are the channels of the result.
    layout : as in `pwconv.pointwise_conv`.
    whiten : whether `transform` scales its channels to unit variance.

    Attributes
    ----------
    components_ : float64, shape (n_components, C); the directions of largest variance. The entry with the largest
        magnitude of each is positive.
    mean_ : float64, shape (C,).
    explained_variance_ : float64, shape (n_components,); variances with n - 1 degrees of freedom.
    explained_variance_ratio_ : the same as a share of the variance of all channels; 0 if all channels are constant.
    n_samples_seen_, n_features_in_, n_components_ : numbers of pixels, channels and components.

    Examples
    --------
    >>> bands = np.random.default_rng(0).random((200, 300, 12), np.float32)
    >>> pwconv.ChannelReducer(3, layout="HWC").fit_transform(bands).shape
    (200, 300, 3)
    """

    components_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    explained_variance_: NDArray[np.float64]
    explained_variance_ratio_: NDArray[np.float64]
    n_samples_seen_: int
    n_features_in_: int
    n_components_: int

    def __init__(self, n_components: int, *, layout: str = "NCHW", whiten: bool = False) -> None:
        self.n_components = n_components
        self.layout = layout
        self.whiten = whiten

    def fit(self, x: Any, y: None = None, *, mask: Any = None, num_threads: int | None = None) -> Self:
        """Compute the components of the pixels of `x`. Pixels of former calls do not count.

        Parameters
        ----------
        x : as for a layer; a list of maps is joined along C.
        y : ignored.
        mask : bool, with the shape of `x` without C or one that broadcasts to it; True where a pixel counts.

        Raises
        ------
        TypeError and ValueError as a layer does; ValueError for NaN or infinity in pixels that count, and for fewer
        channels or pixels than components.
        """
        return self._learn(_moments(self.layout, x, mask, num_threads))

    def partial_fit(self, x: Any, y: None = None, *, mask: Any = None, num_threads: int | None = None) -> Self:
        """Compute the components of these pixels and of those of all calls since `fit`. Arguments are as for `fit`."""
        moments = _moments(self.layout, x, mask, num_threads)
        if self.__sklearn_is_fitted__():
            if len(moments.mean) != self.n_features_in_:
                raise ValueError(f"x must have {self.n_features_in_} channels as before, got {len(moments.mean)}")
            moments = self._moments.merged(moments)
        return self._learn(moments)

    def transform(self, x: Any, out: Any = None, *, num_threads: int | None = None) -> Float32Array:
        """Return the components of each pixel, in the layout of `x`; `out` and `num_threads` are as for a layer."""
        return self.as_layer()(x, out=out, num_threads=num_threads)

    def fit_transform(
        self, x: Any, y: None = None, *, mask: Any = None, out: Any = None, num_threads: int | None = None
    ) -> Float32Array:
        """Return `fit(x, mask=mask).transform(x, out)`."""
        return self.fit(x, mask=mask, num_threads=num_threads).transform(x, out, num_threads=num_threads)

    def inverse_transform(self, z: Any, out: Any = None, *, num_threads: int | None = None) -> Float32Array:
        """Return the pixels whose components are `z`, in the layout of `z`."""
        scale = self._scale()
        return self._layer(self.components_.T * scale, self.mean_)(z, out=out, num_threads=num_threads)

    def as_layer(self) -> PointwiseConv:
        """Return `transform` as a layer."""
        matrix = self._projection()
        # The mean, rounded to float32, is subtracted from x; the bias holds the rest. With the whole mean in the bias,
        # the result would be the difference of two large sums, which loses digits.
        shift = self.mean_.astype(np.float32)
        return self._layer(matrix, matrix @ (shift - self.mean_), input_shift=-shift)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor by name. Raises ValueError for any other name."""
        for name in params:
            if name not in self.get_params():
                raise ValueError(f"{type(self).__name__} has the parameters {', '.join(self.get_params())}, not {name}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "components_")

    def __sklearn_tags__(self) -> Any:
        utils = importlib.import_module("sklearn.utils")  # only scikit-learn itself asks for tags
        return utils.Tags(
            estimator_type="transformer",
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(preserves_dtype=["float32"]),
        )

    def _learn(self, moments: Moments) -> Self:
        if moments.pixels < 2:
            raise ValueError(f"x must have at least two pixels that count, got {moments.pixels}")
        channels = len(moments.mean)
        kept = integer(self.n_components, "n_components", 1, min(channels, moments.pixels))
        values, vectors = np.linalg.eigh(moments.scatter / (moments.pixels - 1))
        variances = np.maximum(values[::-1], 0)
        components = vectors.T[::-1][:kept]
        largest = np.abs(components).argmax(axis=1)
        self._moments = moments
        self.components_ = components * np.sign(components[np.arange(kept), largest])[:, np.newaxis]
        self.mean_ = moments.mean
        self.explained_variance_ = variances[:kept]
        self.explained_variance_ratio_ = variances[:kept] / (variances.sum() or 1)  # 0 for a flat image
        self.n_samples_seen_, self.n_features_in_, self.n_components_ = moments.pixels, channels, kept
        return self

    def _scale(self) -> NDArray[np.float64]:
        """Return the divisors of the components: standard deviations if `whiten`, else ones."""
        if not self.__sklearn_is_fitted__():
            loaded = sys.modules.get("sklearn.exceptions")
            error = NotFittedError if loaded is None else loaded.NotFittedError
            raise error(f"this {type(self).__name__} is not fitted yet: call fit first")
        if not self.whiten:
            return np.ones(self.n_components_)
        return np.maximum(np.sqrt(self.explained_variance_), np.finfo(np.float64).eps)

    def _projection(self) -> NDArray[np.float64]:
        """Return the matrix of `transform`."""
        scale = self._scale()
        return self.components_ / scale[:, np.newaxis]

    def _layer(self, matrix: NDArray[np.float64], bias: NDArray[np.float64], **options: Any) -> PointwiseConv:
        return PointwiseConv(matrix.astype(np.float32), bias.astype(np.float32), layout=self.layout, **options)


def _moments(layout: str, x: Any, mask: Any, num_threads: int | None) -> Moments:
    """Return the moments of those pixels of a map that count."""
    parts, counted, allowed = arguments.check_pixels(layout, x, mask, num_threads)
    shift = _provisional_mean(parts, counted)
    channels = len(shift)
    boxes = list(boxes_of(parts[0].shape[1:], min(_MAX_BLOCK_PIXELS, max(1, _BLOCK_ELEMENTS // (channels + 1)))))
    tasks = [task for i in range(_TASKS) if (task := boxes[i::_TASKS])]
    threads = min(len(tasks), allowed or runtime.get_num_threads())
    summed = partial(_sum_of_products, parts, counted, shift)
    total = np.zeros((channels + 1, channels + 1))
    if threads > 1:
        from concurrent.futures import ThreadPoolExecutor  # late, since it would slow down importing pwconv

        with ThreadPoolExecutor(threads) as pool:
            total += sum(pool.map(summed, tasks))
    else:
        total += sum(map(summed, tasks))
    if not np.isfinite(total).all():
        raise ValueError("x must not have NaN or infinity (or overflow) in pixels that count: mask= says which do")
    pixels, sums = int(total[channels, channels]), total[:channels, channels]
    scatter = total[:channels, :channels] - np.outer(sums, sums) / max(1, pixels)
    scatter = np.triu(scatter) + np.triu(scatter, 1).T
    return Moments(pixels, shift + sums / max(1, pixels), scatter)


@np.errstate(all="ignore")  # _moments checks that sums are finite
def _provisional_mean(parts: list[NDArray[Any]], counted: NDArray[np.bool_] | None) -> Float32Array:
    """Return the mean of some evenly spaced pixels."""
    pixels = parts[0].shape[1:]
    places = range(math.prod(pixels)) if counted is None else np.flatnonzero(counted)
    if not len(places):
        return np.zeros(sum(map(len, parts)), np.float32)
    sampled: tuple[Any, ...] = np.unravel_index(np.asarray(places[:: -(-len(places) // _SAMPLE_PIXELS)]), pixels)
    return np.concatenate([part[:, *sampled].mean(axis=1, dtype=np.float64) for part in parts]).astype(np.float32)


@np.errstate(all="ignore")
def _sum_of_products(
    parts: list[NDArray[Any]],
    counted: NDArray[np.bool_] | None,
    shift: Float32Array,
    boxes: list[tuple[slice, ...]],
) -> NDArray[np.float64]:
    """Return the sums of products of all pairs of channels, less `shift`, over all pixels in boxes.

    Only the upper triangle of the result is valid. An additional channel of ones adds the channels' sums and the number
    of pixels to the products. Such sums are a pointwise convolution whose channels are the pixels.
    """
    channels = len(shift)
    # The copy of a block has the axis order of the map.
    channels_last = all(abs(part.strides[0]) <= part.itemsize for part in parts)
    scratch = np.empty(0, np.float32)
    total = np.zeros((channels + 1, channels + 1))
    strip = -(-(channels + 1) // -(-(channels + 1) // _STRIP_CHANNELS))
    for box in boxes:
        shape = parts[0][:, *box].shape[1:]
        size = (channels + 1) * math.prod(shape)
        if len(scratch) < size:
            scratch = np.empty(size, np.float32)
        if channels_last:
            block = np.moveaxis(scratch[:size].reshape(*shape, channels + 1), -1, 0)
            matrix = scratch[:size].reshape(-1, channels + 1).T
        else:
            block = scratch[:size].reshape(channels + 1, *shape)
            matrix = scratch[:size].reshape(channels + 1, -1)
        first = 0
        for part in parts:
            last = first + len(part)
            np.subtract(part[:, *box], shift[first:last].reshape(-1, *(1,) * len(shape)), out=block[first:last])
            first = last
        block[channels] = 1
        if counted is not None:
            block[:, ~counted[box]] = 0
        for start in range(0, channels + 1, strip):
            rows = slice(start, start + strip)
            total[rows, start:] += pointwise_conv(matrix[rows], matrix[start:], layout="NC", num_threads=1)
    return total
