"""Principal components of channels against scikit-learn, and low-rank factors against the original weights."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys

import numpy as np
import oracle
import pytest
from skimage import data
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted
from test_views import LIMIT, extra_memory, needs_proc

import pwconv
from pwconv import ChannelReducer, PointwiseConv, factorize, factorize_kernel

SIZES = {"N": 2, "H": 31, "W": 37, "D": 5, "L": 101}
LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC", "NLC", "LC", "NCDHW", "NHCW")


def mixture(seed, pixels, channels=20, sources=6, offset=3.0):
    """An array (pixels, channels) of mixtures of a few sources with very different variances, and some noise."""
    rng = np.random.default_rng(seed)
    strength = 4.0 ** -np.arange(sources)
    mixed = (rng.standard_normal((pixels, sources)) * strength) @ rng.standard_normal((sources, channels))
    return (mixed + 1e-5 * rng.standard_normal((pixels, channels)) + offset).astype(np.float32)


def as_map(samples, layout):
    """Samples as a map of this layout; `as_samples` is the inverse."""
    sizes = SIZES | {"C": samples.shape[1]}
    order = layout.replace("C", "") + "C"
    shape = [sizes[letter] for letter in order]
    return np.ascontiguousarray(np.einsum(f"{order}->{layout}", samples.reshape(shape)))


def as_samples(map_, layout):
    return np.einsum(f"{layout}->{layout.replace('C', '')}C", map_).reshape(-1, map_.shape[layout.index("C")])


def count_of(layout):
    return int(np.prod([SIZES[letter] for letter in layout if letter != "C"]))


def assert_same_components(reducer, pca):
    """Components agree within float32 rounding errors relative to the largest variance."""
    np.testing.assert_allclose(reducer.mean_, pca.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(reducer.components_, pca.components_, atol=2e-4)
    np.testing.assert_allclose(reducer.explained_variance_, pca.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(reducer.explained_variance_ratio_, pca.explained_variance_ratio_, rtol=1e-4)
    assert reducer.n_samples_seen_ == pca.n_samples_
    assert reducer.n_features_in_ == pca.n_features_in_
    assert reducer.n_components_ == pca.n_components_


# Against scikit-learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pca_of_every_layout(layout, whiten):
    samples = mixture(1, count_of(layout))
    x = as_map(samples, layout)
    pca = PCA(4, whiten=whiten).fit(samples.astype(np.float64))
    reducer = ChannelReducer(4, layout=layout, whiten=whiten)
    assert reducer.fit(x) is reducer
    assert_same_components(reducer, pca)

    expected = pca.transform(samples.astype(np.float64))
    scale = np.abs(expected).max()
    z = reducer.transform(x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(as_samples(z, layout), expected, atol=2e-4 * scale)
    np.testing.assert_allclose(as_samples(reducer.as_layer()(x), layout), expected, atol=2e-4 * scale)
    back = pca.inverse_transform(expected)
    np.testing.assert_allclose(as_samples(reducer.inverse_transform(z), layout), back, atol=1e-4 * np.abs(back).max())


@pytest.mark.parametrize("options", [{"svd_solver": "full"}, {"svd_solver": "covariance_eigh"}], ids=str)
def test_signs_as_scikit_learn_fixes_them(options):
    """All components of noise, which have no preferred direction."""
    rng = np.random.default_rng(2)
    samples = (rng.standard_normal((3000, 12)) * np.linspace(1, 3, 12)).astype(np.float32)
    pca = PCA(12, **options).fit(samples.astype(np.float64))
    reducer = ChannelReducer(12, layout="NC").fit(samples)
    np.testing.assert_allclose(reducer.components_, pca.components_, atol=1e-4)
    np.testing.assert_allclose(reducer.components_ @ reducer.components_.T, np.eye(12), atol=1e-12)


def test_a_scene_of_many_bands():
    """A photograph's colours mixed into 100 uint16 bands, whose mean is far larger than their deviation."""
    rng = np.random.default_rng(3)
    colours = data.astronaut()[::4, ::4].astype(np.float64)
    scene = (20000 + 10 * colours @ rng.random((3, 100)) + rng.normal(0, 2, (128, 128, 100))).astype(np.uint16)
    pca = PCA(3).fit(scene.reshape(-1, 100).astype(np.float64))
    reducer = ChannelReducer(3, layout="HWC").fit(scene)
    assert_same_components(reducer, pca)
    expected = pca.transform(scene.reshape(-1, 100).astype(np.float64))
    np.testing.assert_allclose(reducer.transform(scene).reshape(-1, 3), expected, atol=1e-5 * np.abs(expected).max())


def test_means_far_away_cost_no_digits():
    """Components of a map with a mean of 10,000 are as exact as around 0, up to the rounding of the map itself."""
    samples = (mixture(4, 20000, offset=0) + np.float32(10000)).astype(np.float32)
    pca = PCA(3).fit(samples.astype(np.float64))
    reducer = ChannelReducer(3, layout="NC").fit(samples)
    largest = pca.explained_variance_[0]
    np.testing.assert_allclose(reducer.explained_variance_, pca.explained_variance_, atol=oracle.UNIT * largest)
    np.testing.assert_allclose(np.abs(reducer.components_ @ pca.components_.T), np.eye(3), atol=1e-5)


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16"])
def test_narrow_numbers(dtype):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 100, (2, 5, 40, 30)).astype(dtype)
    one, other = (ChannelReducer(3).fit(map_) for map_ in (x, x.astype(np.float32)))
    assert np.array_equal(one.components_, other.components_)
    assert np.array_equal(one.mean_, other.mean_)
    assert oracle.same_bits(one.transform(x), other.transform(x))


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed (the extra `peers` has it)")
    x = np.random.default_rng(5).standard_normal((1, 5, 40, 30)).astype(ml_dtypes.bfloat16)
    one, other = (ChannelReducer(3).fit(map_) for map_ in (x, x.astype(np.float32)))
    assert np.array_equal(one.components_, other.components_)


def assert_same_moments(one, other):
    for name in ("components_", "mean_", "explained_variance_"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("view", [np.s_[:, :, ::-1, 1:-2], np.s_[:, ::2, ::3], np.s_[:, ::-1, :, ::-1]], ids=str)
def test_views(view):
    x = as_map(mixture(6, count_of("NCHW")), "NCHW")[view]
    assert_same_moments(*(ChannelReducer(3).fit(map_) for map_ in (x, np.ascontiguousarray(x))))


def test_a_list_of_maps():
    x = as_map(mixture(7, count_of("HWC")), "HWC")
    one, other = (ChannelReducer(3, layout="HWC").fit(map_) for map_ in (x, [x[..., :7], x[..., 7:]]))
    assert_same_moments(one, other)
    assert oracle.same_bits(other.transform([x[..., :7], x[..., 7:]]), other.transform(x))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels", [1, 5, 16, 33, 204, 300])
def test_layouts_and_instruction_sets_change_no_bit(engine, channels, masked):
    """Sums over one to many blocks of pixels, in one block of channels and in several."""
    x = np.random.default_rng(28).standard_normal((2, 60, 70, channels), np.float32)
    mask = np.random.default_rng(29).random((2, 60, 70)) < 0.7 if masked else None
    before, fits = engine.isa_active(), []
    try:
        for isa in [name for name in engine.isa_supported() if name != "baseline"]:
            engine.set_isa(isa)
            for layout in ("NHWC", "NCHW", "NHCW"):
                map_ = np.ascontiguousarray(np.einsum(f"NHWC->{layout}", x))
                fits.append(ChannelReducer(layout=layout).fit(map_, mask=mask))
    finally:
        engine.set_isa(before)
    for other in fits[1:]:
        assert_same_moments(fits[0], other)


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("channels", [5, 40])
def test_covariances_are_as_exact_as_numpys(isa, channels, layout):
    """The error is no larger than that of NumPy's float32 product of the same centred samples; mostly far smaller."""
    samples = mixture(30, 90000, channels=channels)
    exact = np.cov(samples.T.astype(np.float64))
    centred = samples - samples.mean(axis=0, dtype=np.float64).astype(np.float32)
    numpy = centred.T @ centred / np.float32(len(samples) - 1)
    x = samples.reshape(300, 300, channels)
    x = x if layout == "HWC" else np.ascontiguousarray(np.moveaxis(x, -1, 0))
    reducer = ChannelReducer(layout=layout).fit(x)
    covariance = (reducer.components_.T * reducer.explained_variance_) @ reducer.components_
    assert np.abs(covariance - exact).max() <= np.abs(numpy - exact).max()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW"])
def test_mask(layout):
    """Masked pixels may have any values, even if all pixels of the first sample are masked."""
    samples = mixture(8, count_of(layout))
    x = as_map(samples, layout)
    letters = layout.replace("C", "")
    mask = np.random.default_rng(9).random([SIZES[letter] for letter in letters]) < 0.3
    hidden = x.copy()
    np.einsum(f"{layout}->{letters}C", hidden)[~mask] = np.nan
    pca = PCA(3).fit(samples[mask.ravel()].astype(np.float64))
    assert_same_components(ChannelReducer(3, layout=layout).fit(hidden, mask=mask), pca)


def test_mask_for_all_images():
    x = as_map(mixture(10, count_of("NCHW")), "NCHW")
    mask = np.zeros((31, 37), bool)
    mask[3:20, 5:30] = True
    inside = ChannelReducer(3).fit(x[:, :, 3:20, 5:30])
    np.testing.assert_allclose(ChannelReducer(3).fit(x, mask=mask).components_, inside.components_, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 3, 11, 13), (1, 5, 30, 36)])
def test_values_that_are_not_finite_raise(value, place):
    x = as_map(mixture(11, count_of("NCHW"), channels=6), "NCHW")
    reducer = ChannelReducer(2).fit(x)
    before = reducer.components_
    x[place] = value
    for learn in (reducer.fit, reducer.partial_fit):
        with pytest.raises(ValueError, match=r"^x must not have NaN or infinity .*: mask= says which do$"):
            learn(x)
    assert reducer.components_ is before
    reducer.fit(x, mask=np.isfinite(x).all(axis=1))


# Chunks and threads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(0, 1000, 4000), (0, 3999, 4000), (0, 7, 50, 51, 3000, 4000)])
def test_chunk_by_chunk(cuts):
    """Chunks with different means, because rows are sorted by brightness."""
    samples = mixture(12, 4000)
    samples = samples[np.argsort(samples.sum(axis=1))]
    whole, chunks = ChannelReducer(4, layout="NC").fit(samples), ChannelReducer(4, layout="NC")
    for start, stop in itertools.pairwise(cuts):
        assert chunks.partial_fit(samples[start:stop]) is chunks
    np.testing.assert_allclose(chunks.mean_, whole.mean_, rtol=1e-6)
    largest = whole.explained_variance_[0]
    np.testing.assert_allclose(chunks.explained_variance_, whole.explained_variance_, atol=oracle.UNIT * largest)
    np.testing.assert_allclose(chunks.components_, whole.components_, atol=1e-3)
    assert chunks.n_samples_seen_ == 4000


def test_chunks_without_counted_pixels():
    samples = mixture(13, 500)
    reducer = ChannelReducer(3, layout="NC").fit(samples)
    before = reducer.components_
    reducer.partial_fit(samples * np.float32(np.nan), mask=np.zeros(500, bool))
    assert np.array_equal(reducer.components_, before)


def test_fit_discards_earlier_fits():
    samples, other = mixture(14, 500), mixture(15, 400)
    reducer = ChannelReducer(3, layout="NC").fit(other).partial_fit(other).fit(samples)
    assert np.array_equal(reducer.components_, ChannelReducer(3, layout="NC").fit(samples).components_)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_threads_change_no_bit(fma_isa, layout):
    x = np.random.default_rng(16).standard_normal((4, 150, 120, 20), np.float32)
    x = x if layout == "NHWC" else np.moveaxis(x, -1, 1)
    fits = [ChannelReducer(3, layout=layout).fit(x, num_threads=threads) for threads in (1, 2, 5, None)]
    for reducer in fits:
        assert np.array_equal(reducer.components_, fits[0].components_)
        assert np.array_equal(reducer.explained_variance_, fits[0].explained_variance_)


@pytest.mark.measures
@needs_proc
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("view", ["", "[:, 3:, ::-1]"])
def test_no_copy_of_the_map(layout, view):
    """A fit on a map of 100 MB needs scratch memory for blocks and threads only."""
    call = "(np.full(2, 64) if pwconv.ChannelReducer(2, layout=layout).fit(x, num_threads=1) is not None else None)"
    view = view if layout == "NHWC" else view.replace("3:", ":")
    assert extra_memory(layout, view, call) < LIMIT


@pytest.mark.parametrize("size", [1, 7, 10, 4000])
def test_chunks_of_few_pixels(size):
    """Fewer than components; with an empty chunk, and one in which nothing counts, first, last and in between."""
    samples = mixture(23, 97)
    whole, chunks = ChannelReducer(20, layout="NC").fit(samples), ChannelReducer(20, layout="NC")
    nothing = np.full((5, 20), np.nan, np.float32)
    for start in range(0, 97, size):
        chunks.partial_fit(samples[:0]).partial_fit(samples[start : start + size])
        chunks.partial_fit(nothing, mask=np.zeros(5, bool)).partial_fit(np.ma.masked_invalid(nothing))
    np.testing.assert_allclose(chunks.mean_, whole.mean_, rtol=1e-6)
    largest = whole.explained_variance_[0]
    np.testing.assert_allclose(chunks.explained_variance_, whole.explained_variance_, atol=oracle.UNIT * largest)
    np.testing.assert_allclose(chunks.components_[:4], whole.components_[:4], atol=1e-3)
    assert chunks.n_samples_seen_ == 97


def test_too_few_pixels_are_an_error_when_components_are_wanted():
    samples = mixture(24, 40)
    reducer = ChannelReducer(15, layout="NC")
    for method in (reducer.transform, reducer.inverse_transform):
        with pytest.raises(NotFittedError, match=r"^this ChannelReducer is not fitted yet: call fit first$"):
            method(samples)
    reducer.partial_fit(samples[:0])
    assert (reducer.n_samples_seen_, reducer.n_features_in_) == (0, 20)
    assert not hasattr(reducer, "mean_")
    reducer.partial_fit(samples[:10])
    np.testing.assert_allclose(reducer.mean_, samples[:10].mean(axis=0), rtol=1e-6)
    message = r"^this ChannelReducer with n_components=15 needs 15 pixels that count, got 10 so far: call partial_fit"
    for wanted in (
        lambda: reducer.components_,
        lambda: reducer.explained_variance_,
        lambda: reducer.explained_variance_ratio_,
        lambda: reducer.n_components_,
        lambda: reducer.transform(samples),
        reducer.as_layer,
    ):
        with pytest.raises(NotFittedError, match=message) as raised:
            wanted()
        assert isinstance(raised.value, ValueError)
    assert not hasattr(reducer, "components_")
    with pytest.raises(NotFittedError):
        check_is_fitted(reducer)
    reducer.partial_fit(samples[10:15])
    check_is_fitted(reducer)
    assert reducer.components_.shape == (15, 20)
    for n_components in (None, 1, 0.5):
        with pytest.raises(NotFittedError, match=r"needs 2 pixels that count, got 1 so far"):
            ChannelReducer(n_components, layout="NC").partial_fit(samples[:1]).as_layer()


def test_more_components_than_channels_are_an_error_at_once():
    reducer = ChannelReducer(21, layout="NC")
    with pytest.raises(ValueError, match=r"^n_components must be from 1 to 20, got 21$"):
        reducer.partial_fit(mixture(25, 3))
    assert not hasattr(reducer, "n_samples_seen_")


def test_fit_after_chunks_and_chunks_after_fit():
    samples = mixture(26, 400)
    whole = ChannelReducer(3, layout="NC").fit(samples)
    reducer = ChannelReducer(3, layout="NC").partial_fit(mixture(27, 50)).fit(samples[:300]).partial_fit(samples[300:])
    np.testing.assert_allclose(reducer.explained_variance_, whole.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(reducer.components_, whole.components_, atol=1e-4)
    assert reducer.components_ is reducer.components_
    for duplicate in (pickle.loads(pickle.dumps(reducer)), copy.deepcopy(reducer)):
        assert np.array_equal(duplicate.components_, reducer.components_)


# How many components --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_components", [None, 1, 12, np.int64(3), 0.01, 0.5, 0.9, 0.99, 0.9999999, np.float32(0.75)])
@pytest.mark.parametrize("pixels", [9, 500])
def test_numbers_of_components_are_those_of_scikit_learn(n_components, pixels):
    """With nine pixels, there are nine components of twelve channels."""
    if pixels == 9 and n_components == 12:
        return
    rng = np.random.default_rng(28)
    samples = (rng.standard_normal((pixels, 12)) * 0.7 ** np.arange(12)).astype(np.float32)
    number = float(n_components) if isinstance(n_components, np.floating) else n_components
    pca = PCA(number, svd_solver="full").fit(samples.astype(np.float64))
    for reducer in (
        ChannelReducer(n_components, layout="NC").fit(samples),
        ChannelReducer(n_components, layout="NC").partial_fit(samples[:4]).partial_fit(samples[4:]),
    ):
        assert reducer.n_components_ == pca.n_components_
        np.testing.assert_allclose(reducer.explained_variance_ratio_, pca.explained_variance_ratio_, atol=1e-6)
        assert reducer.transform(samples).shape == (pixels, pca.n_components_)
    reference = pwconv.reference.principal_components(samples, n_components, layout="NC")
    np.testing.assert_allclose(reference.components, pca.components_, atol=1e-9)


def test_none_keeps_all_components():
    samples = mixture(29, 300)
    reducer = ChannelReducer(layout="NC")
    assert repr(reducer) == "ChannelReducer(n_components=None, layout='NC', whiten=False)"
    z = reducer.fit_transform(samples)
    assert z.shape == (300, 20)
    np.testing.assert_allclose(reducer.inverse_transform(z), samples, atol=1e-5)


def test_a_share_of_a_flat_image_is_one_component():
    reducer = ChannelReducer(0.9, layout="NC").fit(np.full((9, 4), 3, np.uint8))
    assert reducer.n_components_ == 1
    assert pwconv.reference.principal_components(np.full((9, 4), 3, np.uint8), 0.9, layout="NC").components.shape == (
        1,
        4,
    )


# As a layer -----------------------------------------------------------------------------------------------------------


def test_pixels_near_100000(isa):
    """Half a step from the mean in both of two bands is 0.70711; a mean in a float32 bias would make it 0.7059."""
    x = np.float32([[100000, 100000], [100001, 100001]])
    reducer = ChannelReducer(1, layout="NC").fit(x)
    expected = PCA(1).fit_transform(x.astype(np.float64))
    for z in (reducer.transform(x), reducer.as_layer()(x)):
        np.testing.assert_allclose(z, expected, rtol=1e-6)
        np.testing.assert_allclose(np.abs(z), np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("whiten", [False, True])
def test_as_layer_has_the_bits_of_transform(layout, whiten):
    x = as_map(mixture(30, count_of(layout), offset=100000), layout)
    reducer = ChannelReducer(3, layout=layout, whiten=whiten).fit(x)
    layer = reducer.as_layer()
    assert oracle.same_bits(layer(x), reducer.transform(x))
    assert np.array_equal(layer.input_shift, -reducer.mean_.astype(np.float32))
    assert oracle.same_bits(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_narrow_results():
    """A photograph's colours to bytes and back, a rounding error of half a step apart."""
    picture = data.astronaut()
    reducer = ChannelReducer(layout="HWC").fit(picture)
    z = reducer.transform(picture, out_dtype="int16")
    assert z.dtype == np.int16
    assert np.array_equal(z, np.rint(reducer.transform(picture)))
    back = reducer.inverse_transform(z, out_dtype=np.uint8)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - picture).max() <= 2
    out = np.empty(picture.shape, np.uint8)
    assert reducer.inverse_transform(z, out) is out
    assert np.array_equal(out, back)
    with pytest.raises(TypeError, match=r"^out must be int8 as out_dtype says, got uint8$"):
        reducer.inverse_transform(z, out, out_dtype="int8")


# An estimator ---------------------------------------------------------------------------------------------------------


def test_parameters():
    reducer = ChannelReducer(3, layout="NHWC", whiten=True)
    assert reducer.get_params() == reducer.get_params(deep=False)
    assert reducer.get_params() == {"n_components": 3, "layout": "NHWC", "whiten": True}
    assert reducer.set_params(n_components=2, layout="NC") is reducer
    assert (reducer.n_components, reducer.layout) == (2, "NC")
    assert repr(reducer) == "ChannelReducer(n_components=2, layout='NC', whiten=True)"
    with pytest.raises(
        ValueError, match=r"^ChannelReducer has the parameters n_components, layout, whiten, not solver$"
    ):
        reducer.set_params(solver="full", layout="NCHW")
    assert reducer.layout == "NC"


def test_scikit_learn_takes_it():
    samples = mixture(17, 300)
    reducer = ChannelReducer(3, layout="NC", whiten=True)
    with pytest.raises(NotFittedError):
        check_is_fitted(reducer)
    copied = clone(reducer.fit(samples))
    assert copied.get_params() == reducer.get_params()
    assert not hasattr(copied, "components_")
    check_is_fitted(reducer)
    pipeline = make_pipeline(ChannelReducer(5, layout="NC"), ChannelReducer(2, layout="NC"))
    expected = PCA(2).fit_transform(PCA(5).fit_transform(samples.astype(np.float64)))
    np.testing.assert_allclose(pipeline.fit_transform(samples), expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(pipeline.transform(samples), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "as_layer"])
def test_not_fitted(method):
    arguments = () if method == "as_layer" else (mixture(1, 5),)
    with pytest.raises(NotFittedError, match=r"^this ChannelReducer is not fitted yet: call fit first$"):
        getattr(ChannelReducer(2, layout="NC"), method)(*arguments)


def test_not_fitted_without_scikit_learn():
    program = (
        "import sys, numpy, pwconv\n"
        "try: pwconv.ChannelReducer(2).transform(numpy.zeros((1, 3, 2, 2), numpy.float32))\n"
        "except ValueError as error: print(isinstance(error, AttributeError), type(error).__name__)\n"
        "print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "NotFittedError", "False"]


def test_copies_and_pickles():
    samples = mixture(18, 300)
    reducer = ChannelReducer(3, layout="NC").fit(samples)
    for duplicate in (pickle.loads(pickle.dumps(reducer)), copy.deepcopy(reducer)):
        assert oracle.same_bits(duplicate.transform(samples), reducer.transform(samples))
        duplicate.partial_fit(samples)
        assert (duplicate.n_samples_seen_, reducer.n_samples_seen_) == (600, 300)


@pytest.mark.parametrize("whiten", [False, True])
def test_out_and_fit_transform(whiten):
    x = as_map(mixture(19, count_of("NCHW")), "NCHW")
    reducer = ChannelReducer(3, whiten=whiten)
    out = np.empty((2, 31, 37, 3), np.float32).transpose(0, 3, 1, 2)
    assert reducer.fit_transform(x, out=out) is out
    assert oracle.same_bits(out, reducer.transform(x))
    assert reducer.transform(x, out, num_threads=1) is out
    back = np.empty_like(x)
    assert reducer.inverse_transform(out, back) is back
    if whiten:
        np.testing.assert_allclose(out.std(axis=(0, 2, 3), ddof=1), 1, rtol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("offset", [0, 100])
def test_whitening_of_components_without_variance(offset):
    """Constant channels, and channels that depend on others: such components are 0, the others have unit variance."""
    rng = np.random.default_rng(22)
    samples = np.zeros((5000, 7), np.float32)
    samples[:, :3] = rng.integers(-9, 10, (5000, 3))
    samples[:, 3], samples[:, 4] = samples[:, 0] + samples[:, 1], 2 * samples[:, 2]
    samples += np.float32(offset)
    reducer = ChannelReducer(layout="NC", whiten=True).fit(samples)
    assert reducer.n_components_ == 7
    assert np.all(reducer.explained_variance_[3:] <= oracle.UNIT * reducer.explained_variance_[0])
    z = reducer.transform(samples)
    np.testing.assert_array_equal(z[:, 3:], 0)
    np.testing.assert_allclose(z[:, :3].std(axis=0, ddof=1), 1, rtol=1e-4)
    expected = PCA(3, whiten=True).fit(samples.astype(np.float64)).transform(samples)
    np.testing.assert_allclose(z[:, :3], expected, atol=1e-3)
    np.testing.assert_allclose(reducer.inverse_transform(z), samples, atol=1e-2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0, 7, 0.1, -1e30])
def test_a_flat_image(value):
    """A flat image has variances and ratios of 0, where scikit-learn divides 0 by 0."""
    x = np.full((1, 3, 40, 50), value, np.float32)
    x[:, 1] *= np.float32(0.7)
    reducer = ChannelReducer(2, whiten=True)
    for fit in (reducer.fit, reducer.partial_fit):
        fit(x)
        np.testing.assert_array_equal(reducer.explained_variance_, [0, 0])
        np.testing.assert_array_equal(reducer.explained_variance_ratio_, [0, 0])
        np.testing.assert_array_equal(reducer.mean_, x[0, :, 0, 0])
        assert np.isfinite(reducer.components_).all()
        np.testing.assert_array_equal(reducer.transform(x), 0)
    assert ChannelReducer(1, layout="NC").fit(np.zeros((5, 2), np.uint8)).explained_variance_ratio_ == [0]
    reference = pwconv.reference.principal_components(np.zeros((1, 3, 4, 5), np.float32), 2)
    np.testing.assert_array_equal(reference.explained_variance_ratio, [0, 0])


@pytest.mark.filterwarnings("error")
def test_one_flat_channel_among_others():
    samples = mixture(21, 300)
    samples[:, 4] = 3
    reducer = ChannelReducer(5, layout="NC").fit(samples)
    pca = PCA(5).fit(samples.astype(np.float64))
    largest = pca.explained_variance_[0]
    np.testing.assert_allclose(reducer.explained_variance_, pca.explained_variance_, rtol=1e-5, atol=1e-7 * largest)
    np.testing.assert_allclose(reducer.explained_variance_ratio_, pca.explained_variance_ratio_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(reducer.components_[:, 4], 0, atol=1e-7)


def test_reference():
    samples = mixture(20, count_of("NCHW"))
    x = as_map(samples, "NCHW")
    pca = PCA(4).fit(samples.astype(np.float64))
    reference = pwconv.reference.principal_components(x, 4)
    np.testing.assert_allclose(reference.components, pca.components_, atol=1e-9)
    np.testing.assert_allclose(reference.mean, pca.mean_, rtol=1e-12)
    np.testing.assert_allclose(reference.explained_variance, pca.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(reference.explained_variance_ratio, pca.explained_variance_ratio_, rtol=1e-9)
    mask = np.zeros((2, 31, 37), bool)
    mask[0] = True
    np.testing.assert_allclose(
        pwconv.reference.principal_components([x[:, :9], x[:, 9:]], 4, mask=mask).components,
        PCA(4).fit(samples[: 31 * 37].astype(np.float64)).components_,
        atol=1e-9,
    )


X = np.zeros((2, 4, 5, 6), np.float32)


@pytest.mark.parametrize(
    ("parameters", "arguments", "error", "message"),
    [
        ({}, {"x": X.astype(float)}, TypeError, r"^x must be float32, .*, got float64"),
        ({}, {"x": X[0]}, ValueError, r"^x must have 4 axes for layout 'NCHW', got 3: .* has layout 'CHW'$"),
        ({}, {"x": [X, X[:, :, 1:]]}, ValueError, r"^x\[1\] must have the shape \(2, 4, 5, 6\) of x\[0\], but for"),
        ({"layout": "NHW"}, {}, ValueError, r"^layout must name every axis of x"),
        ({"n_components": 0}, {}, ValueError, r"^n_components must be from 1 to 4, got 0$"),
        ({"n_components": 5}, {}, ValueError, r"^n_components must be from 1 to 4, got 5$"),
        ({"n_components": "mle"}, {}, TypeError, r"^n_components must be an integer, got str$"),
        ({"n_components": True}, {}, TypeError, r"^n_components must be an integer, got bool$"),
        ({"n_components": 1.0}, {}, ValueError, r"^n_components must be None, an integer, or a share .*, got 1.0$"),
        ({"n_components": np.float32(-0.5)}, {}, ValueError, r"^n_components must be None, .* 0 and 1, got -0.5$"),
        ({"n_components": 4}, {"x": X[:1, :, :1, :3]}, ValueError, r"^n_components must be from 1 to 3, got 4$"),
        ({}, {"x": X[:1, :, :1, :1]}, ValueError, r"^x must have at least two pixels that count, got 1$"),
        ({}, {"x": X[:0]}, ValueError, r"^x must have at least two pixels that count, got 0$"),
        ({}, {"mask": np.zeros((5, 6), bool)}, ValueError, r"^x must have at least two pixels that count, got 0$"),
        ({}, {"mask": np.ones((2, 5, 5), bool)}, ValueError, r"^mask must have shape \(2, 5, 6\), .*got \(2, 5, 5\)$"),
        ({}, {"mask": np.ones((2, 5, 6), int)}, TypeError, r"^mask must be bool, got int64: mask != 0 makes it"),
        (
            {},
            {"mask": np.ones((2, 4, 5, 6), bool)},
            ValueError,
            r"^mask must have .*: mask.all\(axis=1\) has one value",
        ),
        ({}, {"num_threads": 0}, ValueError, r"^num_threads must be from 1 to \d+, got 0$"),
    ],
)
def test_wrong_arguments_are_explained(parameters, arguments, error, message):
    reducer = ChannelReducer(**({"n_components": 2} | parameters))
    with pytest.raises(error, match=message):
        reducer.fit(**({"x": X} | arguments))
    assert not hasattr(reducer, "components_")


def test_chunks_have_the_channels_of_the_first():
    reducer = ChannelReducer(2, layout="NC").fit(mixture(21, 50))
    with pytest.raises(ValueError, match=r"^x must have 20 channels as before, got 19$"):
        reducer.partial_fit(mixture(21, 50)[:, 1:])


# Low-rank factors -----------------------------------------------------------------------------------------------------


def low_rank_weight(seed, outs, ins, rank):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((outs, rank)) @ rng.standard_normal((rank, ins))).astype(np.float32)


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_the_rank_of_a_low_rank_layer_is_found(backend):
    """The factors of a layer keep its other arguments."""
    weight = low_rank_weight(1, 30, 40, 5)
    options = {"layout": "NHWC", "out_layout": "NCHW", "stride": (2, 1), "activation": "silu"}
    layer = PointwiseConv(
        weight, weight[:, 0] * 0.1, input_activation="tanh", precision="high", backend=backend, **options
    )
    chain = factorize(layer, energy=0.999999)
    assert isinstance(chain, pwconv.PointwiseChain)
    assert (chain.rank, chain.in_channels, chain.out_channels) == (5, 40, 30)
    assert chain.energy == pytest.approx(1, abs=1e-6)
    assert chain.layers[0].input_activation == "tanh"
    assert {layer.precision for layer in chain.layers} == {"high"}
    x = np.random.default_rng(2).standard_normal((2, 9, 8, 40), dtype=np.float32)
    np.testing.assert_allclose(chain(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight_layout", ["OI", "IO"])
@pytest.mark.parametrize("rank", [1, 7, 20])
def test_the_closest_of_its_rank(rank, weight_layout):
    """Eckart and Young: the squared error is the sum of the squares of the omitted singular values."""
    weight = np.random.default_rng(3).standard_normal((20, 32), dtype=np.float32)
    given = weight if weight_layout == "OI" else weight.T[np.newaxis, np.newaxis]
    chain = factorize(PointwiseConv(given, weight_layout=weight_layout), rank=rank)
    product = chain.layers[1].weight.astype(float) @ chain.layers[0].weight
    values = np.linalg.svd(weight.astype(float), compute_uv=False)
    error = np.linalg.norm(product - weight)
    assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-4, abs=1e-4)
    assert chain.energy == pytest.approx((values[:rank] ** 2).sum() / (values**2).sum())
    restored = pickle.loads(pickle.dumps(chain))
    assert (type(restored), restored.energy, restored.rank) == (type(chain), chain.energy, rank)


@pytest.mark.parametrize("energy", [0.01, 0.5, 0.9, 0.99, 1.0, 1])
def test_the_smallest_rank_with_the_wanted_energy(energy):
    weight = np.random.default_rng(4).standard_normal((20, 32), dtype=np.float32)
    chain = factorize(PointwiseConv(weight), energy=energy)
    shares = np.cumsum(np.linalg.svd(weight.astype(float), compute_uv=False) ** 2)
    shares /= shares[-1]
    assert shares[chain.rank - 1] >= energy - 1e-12
    assert chain.rank == 1 or shares[chain.rank - 2] < energy


def test_a_layer_of_zeros():
    chain = factorize(PointwiseConv(np.zeros((4, 3), np.float32), np.ones(4, np.float32)), energy=0.9)
    assert (chain.rank, chain.energy) == (1, 1)
    assert np.all(chain(np.ones((1, 3, 2, 2), np.float32)) == 1)


def test_cost_of_a_factorized_layer():
    layer = PointwiseConv(np.random.default_rng(5).standard_normal((128, 256), dtype=np.float32), stride=2)
    shape = (1, 256, 56, 56)
    chain = factorize(layer, rank=32)
    assert chain.saved(shape) == layer.cost(shape) - chain.cost(shape)
    assert (chain.saved(shape) / layer.cost(shape)).macs == pytest.approx(1 - 32 * (128 + 256) / (128 * 256))
    assert factorize(layer, rank=128).saved(shape).macs < 0


def convolved(x, weight):
    """A valid convolution of (C, ...) maps in float64, from its definition."""
    kernel = weight.shape[2:]
    axes = tuple(range(1, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), kernel, axes)
    taps = "uvw"[: len(kernel)]
    space = "xyz"[: len(kernel)]
    return np.einsum(f"c{space}{taps},oc{taps}->o{space}", windows, weight.astype(np.float64))


@pytest.mark.parametrize("kernel", [(3, 3), (1, 7), (5,), (3, 3, 3), (1, 1), ()])
def test_a_factorized_kernel(kernel):
    rng = np.random.default_rng(6)
    low_rank = np.einsum("or...,ri->oi...", rng.standard_normal((8, 4, *kernel)), rng.standard_normal((4, 12)))
    reduce, thin = factorize_kernel(low_rank, rank=4, layout="C" + "DHW"[3 - len(kernel) :])
    assert (reduce.in_channels, reduce.out_channels, thin.shape) == (12, 4, (8, 4, *kernel))
    assert thin.dtype == np.float32
    x = rng.standard_normal((12, *(9,) * len(kernel)), dtype=np.float32)
    np.testing.assert_allclose(convolved(reduce(x), thin), convolved(x, low_rank), rtol=1e-3, atol=1e-3)


def test_cost_of_a_factorized_kernel():
    weight = np.random.default_rng(7).standard_normal((64, 96, 3, 3), dtype=np.float32)
    pair = factorize_kernel(weight, energy=0.5)
    rank = pair.reduce.out_channels
    assert 1 < rank < 96
    saved = pair.saved(28)
    assert saved.macs == 28 * 28 * (64 * 96 * 9 - rank * (96 + 64 * 9))
    assert saved.parameters == 64 * 96 * 9 - rank * (96 + 64 * 9)
    assert pair.saved((28, 28)) == saved


LAYER = PointwiseConv(np.ones((6, 4), np.float32))


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (factorize, (LAYER,), ValueError, r"^give either rank or energy, got rank=None, energy=None$"),
        (factorize, (LAYER, 2, 0.5), ValueError, r"^give either rank or energy, got rank=2, energy=0.5$"),
        (factorize, (LAYER, 0), ValueError, r"^rank must be from 1 to 4, got 0$"),
        (factorize, (LAYER, 5), ValueError, r"^rank must be from 1 to 4, got 5$"),
        (factorize, (LAYER, 2.0), TypeError, r"^rank must be an integer, got float$"),
        (factorize, (LAYER, None, 0.0), ValueError, r"^energy must be above 0 and at most 1, got 0.0$"),
        (factorize, (LAYER, None, 1.5), ValueError, r"^energy must be above 0 and at most 1, got 1.5$"),
        (factorize, (LAYER, None, "1"), TypeError, r"^energy must be a number, got str$"),
        (factorize, (np.ones((3, 3)), 2), TypeError, r"^layer must be a PointwiseConv, got ndarray$"),
        (
            factorize,
            (PointwiseConv(np.ones((6, 4), np.float32), groups=2), 2),
            ValueError,
            r"^layer must have no groups, got groups=2$",
        ),
        (factorize_kernel, (np.ones(3), 1), ValueError, r"^weight must have shape \(C_out, C_in, ...\), got \(3,\)$"),
        (factorize_kernel, (np.ones((2, 3, 3, 3)), 4), ValueError, r"^rank must be from 1 to 3, got 4$"),
        (factorize_kernel, (np.ones((2, 3, 1), complex), 1), TypeError, r"^weight must hold real numbers, got complex"),
    ],
)
def test_errors_of_factorization(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_hidden_pixels_of_a_masked_array_do_not_count():
    x = np.ma.masked_equal(np.array([[[1.0], [2.0], [3.0], [-9999.0]]], np.float32), -9999.0)
    reducer = pwconv.ChannelReducer(1, layout="HWC").fit(x)
    assert reducer.mean_ == 2
    assert reducer.n_samples_seen_ == 3
    bands = np.random.default_rng(0).random((20, 30, 5), np.float32)
    hidden = np.ma.masked_greater(bands, 0.9)
    shown = ~np.ma.getmaskarray(hidden).any(axis=2)
    fitted = pwconv.ChannelReducer(3, layout="HWC").fit(hidden)
    expected = pwconv.ChannelReducer(3, layout="HWC").fit(bands, mask=shown)
    assert np.array_equal(fitted.components_, expected.components_)
    again = pwconv.ChannelReducer(3, layout="HWC").fit(hidden, mask=shown)
    assert np.array_equal(again.components_, expected.components_)


def test_the_layer_far_from_zero_is_the_transform():
    x = np.array([[[100000, 100001], [100001, 100000], [100002, 100003], [100003, 100002]]], np.float32)
    reducer = pwconv.ChannelReducer(2, layout="HWC").fit(x)
    z = reducer.transform(x)
    assert np.array_equal(reducer.as_layer()(x), z)
    expected = (x.reshape(-1, 2).astype(np.float64) - reducer.mean_) @ reducer.components_.T
    assert np.abs(z.reshape(-1, 2) - expected).max() < 1e-6
