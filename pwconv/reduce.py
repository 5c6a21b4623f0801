"""Fewer channels: the principal components of the pixels of a map."""

import importlib
import inspect
import math
import sys
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments, reference, runtime
from pwconv.arguments import Float32Array
from pwconv.layers import PointwiseConv
from pwconv.several import run_masked

_SAMPLE_PIXELS = 512  # pixels whose mean is the provisional mean
_PADDING = 64  # zeros behind the provisional mean, of which the engine reads whole vectors
_ROUNDING = 2.0**-24  # variances of this share of the largest are rounding errors of the sums


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


class Spectrum(NamedTuple):
    """Principal components, with their variances and shares of the variance of all channels."""

    components: NDArray[np.float64]
    variances: NDArray[np.float64]
    ratios: NDArray[np.float64]


class ChannelReducer:
    """Principal component analysis of channels: each pixel of a map is a sample, each channel a feature.

    Maps in any layout are read in place. The rounding error of covariances does not grow with the map: products of
    deviations from a provisional mean are summed in float32 over at most 1,024 pixels and in float64 beyond.
    Eigenvectors are computed in float64. Results do not depend on the number of threads. Attributes and signs are those
    of `sklearn.decomposition.PCA`. A reducer is an estimator in the sense of scikit-learn, but does not import it.

    Parameters
    ----------
    n_components : number of components, which are the channels of the result. None keeps all: as many as there are
        channels or pixels, whichever are fewer. A float between 0 and 1 keeps as few as explain more than this share of
        the variance.
    layout : as in `pwconv.pointwise_conv`.
    whiten : whether `transform` scales its channels to unit variance. Components whose variance is at most 2^-24 of the
        largest, which is what rounding leaves of none (constant channels, channels that depend on others), become 0.

    Attributes
    ----------
    components_ : float64, shape (n_components, C); the directions of largest variance. The entry with the largest
        magnitude of each is positive.
    mean_ : float64, shape (C,).
    explained_variance_ : float64, shape (n_components,); variances with n - 1 degrees of freedom.
    explained_variance_ratio_ : the same as a share of the variance of all channels; 0 if all channels are constant.
    n_samples_seen_, n_features_in_, n_components_ : numbers of pixels, channels and components.

    After `partial_fit`, components are computed when they are first wanted. If there are too few pixels by then, that
    raises `NotFittedError`, which is a ValueError.

    Examples
    --------
    >>> bands = np.random.default_rng(0).random((200, 300, 12), np.float32)
    >>> pwconv.ChannelReducer(3, layout="HWC").fit_transform(bands).shape
    (200, 300, 3)
    """

    _moments: Moments | None = None
    _computed: Spectrum | None = None

    def __init__(self, n_components: int | float | None = None, *, layout: str = "NCHW", whiten: bool = False) -> None:
        self.n_components = n_components
        self.layout = layout
        self.whiten = whiten

    def fit(self, x: Any, y: None = None, *, mask: Any = None, num_threads: int | None = None) -> Self:
        """Compute the components of the pixels of `x`. Pixels of former calls do not count.

        Parameters
        ----------
        x : as for a layer; a list of maps is joined along C. Of a masked array (`numpy.ma`), pixels with a masked
            channel do not count.
        y : ignored.
        mask : bool, with the shape of `x` without C or one that broadcasts to it; True where a pixel counts.

        Raises
        ------
        TypeError and ValueError as a layer does; ValueError for NaN or infinity in pixels that count, and for fewer
        channels or pixels than components.
        """
        moments = _moments(self.layout, x, mask, num_threads)
        if moments.pixels < 2:
            raise ValueError(f"x must have at least two pixels that count, got {moments.pixels}")
        arguments.component_count(self.n_components, len(moments.mean), moments.pixels)
        self._computed = _decompose(moments, self.n_components)
        self._moments = moments
        return self

    def partial_fit(self, x: Any, y: None = None, *, mask: Any = None, num_threads: int | None = None) -> Self:
        """Add the pixels of `x` to those of all calls since `fit`, or of all calls if there was none.

        Arguments are as for `fit`. A chunk may have any number of pixels, one or none too.
        """
        moments = _moments(self.layout, x, mask, num_threads)
        if self._moments is not None:
            if len(moments.mean) != self.n_features_in_:
                raise ValueError(f"x must have {self.n_features_in_} channels as before, got {len(moments.mean)}")
            moments = self._moments.merged(moments)
        arguments.component_count(self.n_components, len(moments.mean))
        self._moments, self._computed = moments, None
        return self

    def transform(
        self,
        x: Any,
        out: Any = None,
        *,
        mask: Any = None,
        fill: float | None = None,
        out_dtype: Any = None,
        num_threads: int | None = None,
    ) -> Float32Array:
        """Return the components of each pixel, in the layout of `x`.

        Parameters
        ----------
        x, out, out_dtype, num_threads : as for a layer. `x` may be a masked array.
        mask : as for `fit`.
        fill : the components of pixels that do not count; by default NaN. Given a mask or `fill`, pixels with NaN do
            not count either. Blocks without a pixel that counts are not computed. For a result of integers, a mask
            without a `fill` is a ValueError.
        """
        layer = self._layer(out_dtype)
        if mask is None and fill is None and not arguments.hides_elements(x):
            return layer(x, out=out, num_threads=num_threads)
        return run_masked((layer,), x, mask, fill, out, num_threads)

    def fit_transform(
        self,
        x: Any,
        y: None = None,
        *,
        mask: Any = None,
        fill: float | None = None,
        out: Any = None,
        out_dtype: Any = None,
        num_threads: int | None = None,
    ) -> Float32Array:
        """Return `fit(x, mask=mask).transform(x, out, mask=mask, fill=fill, out_dtype=out_dtype)`."""
        self.fit(x, mask=mask, num_threads=num_threads)
        return self.transform(x, out, mask=mask, fill=fill, out_dtype=out_dtype, num_threads=num_threads)

    def inverse_transform(
        self, z: Any, out: Any = None, *, out_dtype: Any = None, num_threads: int | None = None
    ) -> Float32Array:
        """Return the pixels whose components are `z`, in the layout of `z`. Arguments are as for a layer."""
        matrix = self.components_.T * self._deviations()
        layer = PointwiseConv(
            matrix.astype(np.float32), self.mean_.astype(np.float32), layout=self.layout, out_dtype=out_dtype
        )
        return layer(z, out=out, num_threads=num_threads)

    def as_layer(self) -> PointwiseConv:
        """Return `transform` as a layer, which gives the same bits."""
        return self._layer()

    @property
    def components_(self) -> NDArray[np.float64]:
        """The directions of largest variance."""
        return self._spectrum().components

    @property
    def mean_(self) -> NDArray[np.float64]:
        """The mean of each channel."""
        return self._seen(1).mean

    @property
    def explained_variance_(self) -> NDArray[np.float64]:
        """The variance of each component."""
        return self._spectrum().variances

    @property
    def explained_variance_ratio_(self) -> NDArray[np.float64]:
        """The variance of each component as a share of that of all channels."""
        return self._spectrum().ratios

    @property
    def n_components_(self) -> int:
        """The number of components."""
        return len(self._spectrum().components)

    @property
    def n_samples_seen_(self) -> int:
        """The number of pixels that counted."""
        return self._seen(0).pixels

    @property
    def n_features_in_(self) -> int:
        """The number of channels."""
        return len(self._seen(0).mean)

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
        return self._computed is not None or (
            self._moments is not None and self._moments.pixels >= self._needed_pixels()
        )

    def __sklearn_tags__(self) -> Any:
        utils = importlib.import_module("sklearn.utils")  # only scikit-learn itself asks for tags
        return utils.Tags(
            estimator_type="transformer",
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(preserves_dtype=["float32"]),
        )

    def _needed_pixels(self) -> int:
        return max(2, self.n_components) if isinstance(self.n_components, int | np.integer) else 2

    def _seen(self, needed: int) -> Moments:
        """Return the moments of all pixels; NotFittedError if fewer than `needed` counted."""
        if self._moments is not None and self._moments.pixels >= needed:
            return self._moments
        if self._moments is None:
            message = f"this {type(self).__name__} is not fitted yet: call fit first"
        else:
            message = (
                f"this {type(self).__name__} with n_components={self.n_components} needs {needed} pixels that count, "
                f"got {self._moments.pixels} so far: call partial_fit with more"
            )
        loaded = sys.modules.get("sklearn.exceptions")
        raise (NotFittedError if loaded is None else loaded.NotFittedError)(message)

    def _spectrum(self) -> Spectrum:
        if self._computed is None:
            self._computed = _decompose(self._seen(self._needed_pixels()), self.n_components)
        return self._computed

    def _deviations(self) -> NDArray[np.float64]:
        """Return the standard deviations of components if `whiten`, else ones."""
        return np.sqrt(self.explained_variance_) if self.whiten else np.ones(self.n_components_)

    def _layer(self, out_dtype: Any = None) -> PointwiseConv:
        """Return the layer of `transform`."""
        matrix = self.components_
        if self.whiten:
            variances = self.explained_variance_
            varies = variances > _ROUNDING * variances[0]
            scale = np.zeros(len(variances))
            scale[varies] = 1 / np.sqrt(variances[varies])
            matrix = matrix * scale[:, np.newaxis]
        # The mean, rounded to float32, is subtracted from x; the bias holds the rest. With the whole mean in the bias,
        # the result would be the difference of two large sums, which loses digits.
        shift = self.mean_.astype(np.float32)
        bias = (matrix @ (shift - self.mean_)).astype(np.float32)
        return PointwiseConv(
            matrix.astype(np.float32), bias, layout=self.layout, input_shift=-shift, out_dtype=out_dtype
        )


def _decompose(moments: Moments, n_components: Any) -> Spectrum:
    """Return the components of at least two pixels."""
    channels = len(moments.mean)
    count = arguments.component_count(n_components, channels, moments.pixels)
    values, vectors = np.linalg.eigh(moments.scatter / (moments.pixels - 1))
    most = min(channels, moments.pixels)
    variances = np.maximum(values[::-1], 0)
    ratios = variances / (variances.sum() or 1)  # 0 for a flat image
    kept = arguments.components_kept(count, ratios[:most])
    components = vectors.T[::-1][:kept]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(kept), largest])[:, np.newaxis]
    return Spectrum(components, variances[:kept], ratios[:kept])


def _moments(layout: str, x: Any, mask: Any, num_threads: int | None) -> Moments:
    """Return the moments of those pixels of a map that count."""
    parts, counted, allowed = arguments.check_pixels(layout, x, mask, num_threads)
    pixels = math.prod(parts[0].shape[1:]) if counted is None else int(np.count_nonzero(counted))
    shift = _provisional_mean(parts, counted)
    channels = len(shift)
    scatter, sums = np.zeros((channels, channels)), np.zeros(channels)
    if pixels and channels:
        _add_products(parts, counted, shift, scatter, sums, allowed)
    if not (np.isfinite(scatter).all() and np.isfinite(sums).all()):
        raise ValueError("x must not have NaN or infinity (or overflow) in pixels that count: mask= says which do")
    scatter -= np.outer(sums, sums) / max(1, pixels)
    return Moments(pixels, shift + sums / max(1, pixels), scatter)


def _add_products(
    parts: list[NDArray[Any]],
    counted: NDArray[np.bool_] | None,
    shift: Float32Array,
    scatter: NDArray[np.float64],
    sums: NDArray[np.float64],
    num_threads: int | None,
) -> None:
    """Store the sums over pixels of the channels, less `shift`, and of the products of all pairs of them."""
    if runtime.resolve_backend("auto") == "numpy":
        reference.sums_of_products(parts, counted, shift, scatter, sums)
        return
    padded = np.concatenate([shift, np.zeros(_PADDING, np.float32)])
    mask = None if counted is None else counted[np.newaxis]
    runtime.engine.sums_of_products(parts, None, scatter, sums, 1, padded, mask, num_threads)


@np.errstate(all="ignore")  # _moments checks that sums are finite
def _provisional_mean(parts: list[NDArray[Any]], counted: NDArray[np.bool_] | None) -> Float32Array:
    """Return the mean of some evenly spaced pixels."""
    pixels = parts[0].shape[1:]
    places = range(math.prod(pixels)) if counted is None else np.flatnonzero(counted)
    if not len(places):
        return np.zeros(sum(map(len, parts)), np.float32)
    sampled: tuple[Any, ...] = np.unravel_index(np.asarray(places[:: -(-len(places) // _SAMPLE_PIXELS)]), pixels)
    return np.concatenate([part[:, *sampled].mean(axis=1, dtype=np.float64) for part in parts]).astype(np.float32)
