"""Sequential modules of torch and Keras as chains, against torch in float64."""

from __future__ import annotations

import collections
import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

import pwconv
from pwconv import PixelClassifier, PointwiseChain, PointwiseConv


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed (the extra `peers` has it)")


def with_statistics(torch, module, seed=0):
    """The module in evaluation, whose batch norms have statistics and weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.1, 4, generator=generator)
            if part.affine:
                torch.nn.init.normal_(part.weight, generator=generator)
                torch.nn.init.normal_(part.bias, generator=generator)
    return module.eval()


def expected_of(torch, module, x):
    with torch.no_grad():
        return copy.deepcopy(module).double()(torch.from_numpy(x.astype(np.float64))).numpy()


def check(torch, module, x, layers, **options):
    """A chain with so many layers computes what the module does; returned for more questions."""
    chain = PointwiseChain.from_torch(module, **options)
    assert len(chain.layers) == layers
    expected = expected_of(torch, module, x)
    np.testing.assert_allclose(chain(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return chain


def networks(nn):
    """Sequentials of modules for maps of 12 channels, and how many layers their chains have."""
    conv, norm = nn.Conv2d, nn.BatchNorm2d
    return {
        "convolution": (conv(12, 8, 1), 1),
        "three": (nn.Sequential(conv(12, 8, 1), nn.ReLU(), conv(8, 6, 1, bias=False), nn.SiLU(), conv(6, 5, 1)), 3),
        "norm behind": (nn.Sequential(conv(12, 8, 1, bias=False), norm(8, eps=1e-3), nn.ReLU6()), 1),
        "norm before": (nn.Sequential(norm(12), conv(12, 8, 1, groups=4), nn.Tanh()), 1),
        "pre-activation": (nn.Sequential(norm(12), nn.ReLU(), conv(12, 8, 1), norm(8), nn.ReLU(), conv(8, 6, 1)), 2),
        "affine=False": (nn.Sequential(norm(12, affine=False), conv(12, 8, 1), norm(8, affine=False)), 1),
        "norm between": (nn.Sequential(conv(12, 8, 1), nn.GELU(), norm(8), conv(8, 6, 1)), 2),
        "norm at the end": (nn.Sequential(conv(12, 8, 1), nn.GELU("tanh"), norm(8)), 2),
        "norm alone": (nn.Sequential(norm(12)), 1),
        "norms": (nn.Sequential(norm(12), norm(12), nn.Hardswish(), norm(12), conv(12, 8, 1), norm(8), norm(8)), 2),
        "activations": (nn.Sequential(nn.Sigmoid(), conv(12, 8, 1), nn.Tanh(), nn.LeakyReLU(0.3), conv(8, 8, 1)), 2),
        "activation at the end": (nn.Sequential(conv(12, 8, 1), nn.Hardtanh(-0.5, 0.25), nn.Hardsigmoid()), 2),
        "three activations": (nn.Sequential(conv(12, 8, 1), nn.Tanh(), nn.ReLU(), nn.Sigmoid(), conv(8, 6, 1)), 3),
        "stride": (
            nn.Sequential(nn.Dropout(), conv(12, 8, 1, stride=(2, 3)), nn.Identity(), nn.ReLU(), conv(8, 3, 1)),
            2,
        ),
        "nested": (
            nn.Sequential(
                collections.OrderedDict(
                    stem=nn.Sequential(conv(12, 8, 1), nn.Sequential(norm(8), nn.ReLU()), nn.Dropout2d()),
                    head=nn.Sequential(conv(8, 6, 1, groups=2)),
                )
            ),
            2,
        ),
    }


NETWORKS = ("convolution", "three", "norm behind", "norm before", "pre-activation", "affine=False", "norm between",
            "norm at the end", "norm alone", "norms", "activations", "activation at the end", "three activations",
            "stride", "nested")  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions(torch, name):
    torch.manual_seed(5)
    every = networks(torch.nn)
    assert set(every) == set(NETWORKS)
    module, layers = every[name]
    with_statistics(torch, module)
    chain = check(torch, module, normal(1, 2, 12, 9, 7), layers)
    assert chain.layers[0].layout == ("channels_first" if name == "norm alone" else "NCHW")
    if name != "stride":
        last = PointwiseChain.from_torch(module, layout="NHWC", out_layout="NCHW", backend="numpy")
        x = normal(1, 2, 12, 9, 7)
        np.testing.assert_allclose(last(np.moveaxis(x, 1, -1)), chain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_fully_connected(torch, dtype):
    nn = torch.nn
    torch.manual_seed(6)
    module = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5, bias=False))
    with_statistics(torch, module.to(getattr(torch, dtype)))
    x = normal(2, 40, 12)
    chain = check(torch, module, x, 2)
    assert chain.layers[0].layout == "channels_last"
    np.testing.assert_allclose(chain(x.reshape(2, 4, 5, 12)).reshape(40, 5), chain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(torch, rank):
    nn = torch.nn
    torch.manual_seed(7)
    conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    module = with_statistics(torch, nn.Sequential(norm(12), conv(12, 8, 1), nn.ReLU(), norm(8), conv(8, 4, 1)))
    check(torch, module, normal(1, 2, 12, *(5, 4, 3)[:rank]), 2)


def test_a_mean_stays_in_front(torch):
    """Maps near 10^6: a mean in a float32 bias would cost all digits."""
    nn = torch.nn
    torch.manual_seed(8)
    module = with_statistics(torch, nn.Sequential(nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1)))
    module[0].running_mean += 1e6
    x = normal(3, 1, 12, 8, 8) + np.float32(1e6)
    check(torch, module, x, 1)


def test_what_a_chain_of_torch_refuses(torch):
    nn = torch.nn
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    pointwise = r"must be a pointwise convolution, .* or a Sequential of these, got"

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    for module, message in (
        (nn.Sequential(conv, nn.Conv2d(4, 4, 3)), r"^module\[1\]: module must have a kernel of one pixel, got 3 x 3$"),
        (nn.Sequential(conv, nn.Sequential(nn.MaxPool2d(2))), rf"^module\[1\]\[0\] {pointwise} MaxPool2d$"),
        (nn.Sequential(collections.OrderedDict(a=conv, pool=nn.Flatten())), rf"^module\.pool {pointwise} Flatten$"),
        (nn.Sequential(conv, nn.ELU()), rf"^module\[1\] {pointwise} ELU$"),
        (nn.Sequential(conv, nn.LayerNorm(4)), rf"^module\[1\] {pointwise} LayerNorm$"),
        (nn.Sequential(conv, nn.Softmax(1)), rf"^module\[1\] {pointwise} Softmax: without it, .*from_chain"),
        (nn.Sequential(Residual(conv)), rf"^module\[0\] {pointwise} Residual$"),
        (nn.Sequential(conv, nn.LazyConv2d(3, 1)), rf"^module\[1\] {pointwise} LazyConv2d that has no weights yet$"),
        (nn.Sequential(conv, norm), r"^module\[1\] must be in evaluation mode, got BatchNorm2d in training: call eval"),
        (
            nn.Sequential(conv, nn.BatchNorm2d(4, track_running_stats=False)).eval(),
            r"^module\[1\] must have statistics",
        ),
        (
            nn.Sequential(conv, nn.Linear(4, 4)),
            r"^module\[1\] must take maps of layout 'NCHW' .*, got 'channels_last'$",
        ),
        (
            nn.Sequential(conv, nn.BatchNorm1d(4)).eval(),
            r"^module\[1\] must norm maps of layout 'NCHW', got BatchNorm1d",
        ),
        (nn.Sequential(conv, nn.Conv2d(4, 4, 1, stride=2)), r"^module\[1\] must have no stride, .*, got 2$"),
        (nn.Sequential(conv, nn.Conv2d(5, 4, 1)), r"^module\[1\] must take the 4 channels before it, got 5$"),
        (nn.Sequential(conv, nn.BatchNorm2d(5)).eval(), r"^module\[1\] must take the 4 channels before it, got 5$"),
        (nn.Sequential(nn.ReLU()), r"^module\[0\] must follow what tells the number of channels, got an activation"),
        (nn.Sequential(nn.Dropout()), r"^module must have a convolution, a fully connected layer or a batch norm"),
    ):
        with pytest.raises(ValueError, match=message):
            PointwiseChain.from_torch(module)
    with pytest.raises(TypeError, match=r"^a chain of a module has no argument activation, groups$"):
        PointwiseChain.from_torch(conv, activation="relu", groups=2)


def test_a_network_as_a_classifier(torch):
    """Labels, probabilities and resized labels of a head of two layers with a batch norm."""
    nn = torch.nn
    torch.manual_seed(9)
    module = nn.Sequential(nn.Conv2d(24, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 7, 1))
    with_statistics(torch, module)
    clf = PixelClassifier.from_chain(PointwiseChain.from_torch(module), classes=list("abcdefg"))
    x = normal(4, 2, 24, 10, 12)
    with torch.no_grad():
        logits = module(torch.from_numpy(x))
        resized = nn.functional.interpolate(logits, (40, 48), mode="bilinear").numpy()
    np.testing.assert_allclose(clf.predict_proba(x), logits.softmax(1).numpy(), rtol=1e-4, atol=1e-6)
    names = np.array(list("abcdefg"))
    assert np.mean(clf.predict(x) == names[logits.numpy().argmax(1)]) > 0.99
    assert np.mean(clf.predict(x, size=(40, 48)) == names[resized.argmax(1)]) > 0.99


# Keras, by stand-ins that have its attributes -------------------------------------------------------------------------


class Variable:
    """What Keras keeps weights in: NumPy gets them by __array__."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def keras(kind, **attributes):
    """An object of a class of this name."""
    instance = type(kind, (SimpleNamespace,), {"call": lambda self, x: x})(**attributes)
    return instance


def named(name):
    def function(x):
        return x

    function.__name__ = name
    return function


def dense(seed, ins, outs, activation="linear", bias=True):
    kernel, vector = Variable(normal(seed, ins, outs)), Variable(normal(seed + 1, outs)) if bias else None
    return keras("Dense", kernel=kernel, bias=vector, units=outs, activation=named(activation))


def conv(seed, ins, outs, data_format="channels_last", activation="linear", **attributes):
    return keras(
        "Conv2D",
        **{
            "kernel": Variable(normal(seed, 1, 1, ins, outs)),
            "bias": Variable(normal(seed + 1, outs)),
            "kernel_size": (1, 1),
            "strides": (1, 1),
            "padding": "valid",
            "dilation_rate": (1, 1),
            "data_format": data_format,
            "groups": 1,
            "activation": named(activation),
        }
        | attributes,
    )


def batch_norm(seed, channels, axis=-1, affine=True):
    return keras(
        "BatchNormalization",
        gamma=Variable(normal(seed, channels)) if affine else None,
        beta=Variable(normal(seed + 1, channels)) if affine else None,
        moving_mean=Variable(normal(seed + 2, channels)),
        moving_variance=Variable(normal(seed + 3, channels) ** 2),
        epsilon=1e-3,
        axis=axis,
    )


def run_keras(layers, x):
    """The definition in float64, channels last."""
    y = x.astype(np.float64)
    functions = {"relu": lambda v: np.maximum(v, 0), "tanh": np.tanh, "linear": lambda v: v}
    for layer in layers:
        match type(layer).__name__:
            case "Dense" | "Conv2D":
                y = y @ np.asarray(layer.kernel, np.float64).reshape(y.shape[-1], -1)
                y = y + (0 if layer.bias is None else np.asarray(layer.bias, np.float64))
                y = functions[layer.activation.__name__](y)
            case "BatchNormalization":
                y = (y - np.asarray(layer.moving_mean)) / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
                if layer.gamma is not None:
                    y = y * np.asarray(layer.gamma) + np.asarray(layer.beta)
            case "Activation":
                y = functions[layer.activation.__name__](y)
            case "ReLU":
                y = np.where(
                    y < 0, layer.negative_slope * y, y if layer.max_value is None else np.minimum(y, layer.max_value)
                )
            case "LeakyReLU":
                y = np.where(y < 0, layer.negative_slope * y, y)
            case "Sequential":
                y = run_keras(layer.layers, y)
    return y


ACTIVATION = keras("Activation", activation=named("tanh"))
LEAKY = keras("ReLU", max_value=None, negative_slope=0.1, threshold=0)
KERAS = {
    "dense": ([dense(1, 12, 8, "relu"), keras("Dropout"), dense(3, 8, 5)], 2),
    "norms": ([batch_norm(5, 12), dense(1, 12, 8), batch_norm(9, 8, affine=False), ACTIVATION], 1),
    "convolutions": (
        [
            keras("InputLayer"),
            conv(1, 12, 8),
            keras("ReLU", max_value=1.5, negative_slope=0.0, threshold=0.0),
            batch_norm(5, 8, axis=3),
            conv(3, 8, 6),
            keras("LeakyReLU", negative_slope=0.3),
        ],
        2,
    ),
    "nested": ([keras("Sequential", layers=[dense(1, 12, 8), LEAKY]),
                keras("SpatialDropout2D"), dense(3, 8, 3, "tanh", bias=False)], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", KERAS)
def test_keras(name):
    layers, count = KERAS[name]
    chain = PointwiseChain.from_keras(keras("Sequential", layers=layers))
    x = normal(7, 2, 5, 6, 12)
    expected = run_keras(layers, x)
    assert len(chain.layers) == count
    assert chain.layers[0].layout == ("NHWC" if name == "convolutions" else "channels_last")
    np.testing.assert_allclose(chain(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_keras_channels_first():
    layers = [conv(1, 12, 8, "channels_first"), batch_norm(5, 8, axis=[1])]
    chain = PointwiseChain.from_keras(keras("Sequential", layers=layers))
    x = normal(7, 2, 12, 5, 6)
    expected = np.moveaxis(run_keras(layers, np.moveaxis(x, 1, -1)), -1, 1)
    assert chain.layers[0].layout == "NCHW"
    np.testing.assert_allclose(chain(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [dense(1, 4, 4), dense(1, 4, 4, "softmax")],
            r"^model\.layers\[1\]: .*, got softmax: without it, .*from_chain",
        ),
        ([dense(1, 4, 4), dense(1, 4, 4, "elu")], r"^model\.layers\[1\]: layer must have one of the .*, got elu$"),
        (
            [conv(1, 4, 4, kernel=Variable(normal(1, 3, 3, 4, 4)))],
            r"^model\.layers\[0\]: layer must have a kernel of one",
        ),
        ([dense(1, 4, 4), keras("Flatten")], r"^model\.layers\[1\] must be a pointwise convolution, .*, got Flatten$"),
        (
            [keras("Sequential", layers=[keras("Functional")])],
            r"^model\.layers\[0\]\.layers\[0\] must be .* Functional$",
        ),
        (
            [conv(1, 4, 4), batch_norm(1, 4, axis=1)],
            r"^model\.layers\[1\] must norm the channels of layout 'NHWC', got axis",
        ),
        (
            [dense(1, 4, 4), batch_norm(1, 4, axis=1)],
            r"^model\.layers\[1\] must norm the channels of .*_last', got axis 1$",
        ),
        (
            [dense(1, 4, 4), conv(1, 4, 4)],
            r"^model\.layers\[1\] must take maps of layout 'channels_last' .*, got 'NHWC'$",
        ),
        (
            [dense(1, 4, 4), keras("ReLU", max_value=6.0, negative_slope=0.1, threshold=0.0)],
            r"^model\.layers\[1\] must be a ReLU without a threshold",
        ),
    ],
)
def test_what_a_chain_of_keras_refuses(layers, message):
    with pytest.raises(ValueError, match=message):
        PointwiseChain.from_keras(keras("Sequential", layers=layers))


def test_a_dense_norm_with_a_known_rank():
    """A built BatchNormalization of Keras counts its axis from the front, and knows how many there are."""
    norm = batch_norm(5, 8, axis=1)
    norm.input_spec = SimpleNamespace(ndim=2)
    layers = [dense(1, 12, 8), norm]
    x = normal(7, 20, 12)
    chain = PointwiseChain.from_keras(keras("Sequential", layers=layers))
    np.testing.assert_allclose(chain(x), run_keras(layers, x), rtol=1e-4, atol=1e-5)


def test_pickles_costs_and_plans_of_a_chain(torch):
    module = torch.nn.Sequential(torch.nn.Conv2d(12, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1))
    chain, x = PointwiseChain.from_torch(module), normal(1, 1, 12, 20, 30)
    assert np.array_equal(pickle.loads(pickle.dumps(chain))(x), chain(x))
    assert chain.cost(x.shape).macs == 600 * (12 * 8 + 8 * 4)
    plan = chain.plan(x.shape)
    assert len(plan) == 2
    assert repr(plan).splitlines() == [f"({i}): {each!r}" for i, each in enumerate(plan)]
    assert "8 out channels" in repr(plan[0])
    assert pwconv.verify(chain, x).relative_error < 1e-5
    assert isinstance(chain.layers[0], PointwiseConv)
