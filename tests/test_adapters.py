"""Conversion of torch modules, Keras layers and batch norms, and the errors for those that cannot be converted."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import oracle
import pytest

import pwconv
from pwconv import PointwiseConv


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed (the extra `peers` has it)")


# torch ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2},
        {"groups": 4},
        {"dilation": 3},
        {"padding": "same"},
        {"padding": "valid", "stride": 3},
    ],
    ids=str,
)
def test_convolutions_of_torch(torch, rank, options):
    module = getattr(torch.nn, f"Conv{rank}d")(12, 8, 1, **options)
    x = normal(1, 2, 12, *(7, 6, 5)[:rank])
    layer = PointwiseConv.from_torch(module)
    assert layer.layout == {1: "NCL", 2: "NCHW", 3: "NCDHW"}[rank]
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    last = PointwiseConv.from_torch(module, layout="channels_last", activation="relu")
    np.testing.assert_allclose(
        np.moveaxis(last(np.moveaxis(x, 1, -1)), -1, 1), np.maximum(expected, 0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NWHC", "channels_last"])
def test_strides_follow_the_axes_of_the_layout(torch, layout):
    module = torch.nn.Conv2d(6, 4, 1, stride=(1, 3))
    x = normal(1, 2, 6, 7, 8)
    letters = oracle.letters(layout, 4)
    result = PointwiseConv.from_torch(module, layout=layout)(np.einsum(f"NCHW->{letters}", x))
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.einsum(f"{letters}->NCHW", result), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 12), (2, 9, 12), (2, 3, 4, 12)])
def test_linear_of_torch(torch, shape):
    module, x = torch.nn.Linear(12, 8), normal(1, *shape)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    layer = PointwiseConv.from_torch(module)
    assert layer.layout == "channels_last"
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_weights_of_torch_in_other_dtypes(torch, dtype):
    module = torch.nn.Conv2d(12, 8, 1).to(getattr(torch, dtype))
    layer = PointwiseConv.from_torch(module)
    assert np.array_equal(layer.weight, module.weight.detach().float().numpy())
    assert np.array_equal(layer.bias, module.bias.detach().float().numpy())
    before = layer.weight.copy()
    with torch.no_grad():
        module.weight.zero_()
    assert np.array_equal(layer.weight, before)


def test_torch_modules_that_are_not_pointwise(torch):
    nn = torch.nn
    for module, error, message in (
        (nn.Conv2d(4, 4, 3), ValueError, r"^module must have a kernel of one pixel, got 3 x 3$"),
        (nn.Conv1d(4, 4, 2), ValueError, r"^module must have a kernel of one pixel, got 2$"),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), ValueError, r"^module must have a kernel .*, got 1 x 3$"),
        (nn.Conv2d(4, 4, 1, padding=1), ValueError, r"^module must not pad .*, got padding=\(1, 1\)$"),
        (nn.ConvTranspose2d(4, 4, 1), ValueError, r"^module must not be a transposed .*, got ConvTranspose2d$"),
        (nn.BatchNorm2d(4), TypeError, r"^module must be a Conv1d, .* or Linear, got BatchNorm2d$"),
        (nn.Embedding(4, 4), TypeError, r"^module must be a Conv1d, .* or Linear, got Embedding$"),
        (nn.MaxPool2d(1), TypeError, r"^module must be a Conv1d, .* or Linear, got MaxPool2d$"),
    ):
        with pytest.raises(error, match=message):
            PointwiseConv.from_torch(module)


def test_batch_norm_of_torch(torch):
    """A batch norm in evaluation mode between convolution and activation is folded into the layer."""
    module = torch.nn.Sequential(torch.nn.Conv2d(12, 8, 1), torch.nn.BatchNorm2d(8, eps=1e-3), torch.nn.ReLU())
    norm = module[1]
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_(), norm.running_mean.normal_(), norm.running_var.uniform_(0.1, 4)
    x = normal(1, 2, 12, 7, 6)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    layer = PointwiseConv.from_torch(module[0], activation="relu")
    folded = layer.fold_batchnorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    np.testing.assert_allclose(folded(x), expected, rtol=1e-5, atol=1e-6)


# Keras: stand-ins with its attributes ---------------------------------------------------------------------------------


class Variable:
    """A stand-in for a Keras variable, which NumPy reads through __array__."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def linear(x):
    return x


def relu(x):
    return np.maximum(x, 0)


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def keras_conv(rank, *, activation=linear, kernel=1, groups=1, bias=True, **attributes):
    return SimpleNamespace(
        **{
            "kernel": Variable(normal(1, *(kernel,) * rank, 12 // groups, 8)),
            "bias": Variable(normal(2, 8)) if bias else None,
            "kernel_size": (kernel,) * rank,
            "strides": (1,) * rank,
            "padding": "valid",
            "dilation_rate": (1,) * rank,
            "data_format": "channels_last",
            "groups": groups,
            "activation": activation,
        }
        | attributes
    )


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "attributes", [{}, {"bias": False}, {"groups": 4}, {"activation": relu}, {"padding": "same"}], ids=str
)
def test_convolutions_of_keras(rank, data_format, attributes):
    layer = keras_conv(rank, data_format=data_format, strides=(2,) * rank, **attributes)
    spatial = {1: "L", 2: "HW", 3: "DHW"}[rank]
    layout = f"N{spatial}C" if data_format == "channels_last" else f"NC{spatial}"
    sizes = {"N": 2, "C": 12, "L": 7, "D": 5, "H": 6, "W": 4}
    x = normal(3, *(sizes[letter] for letter in layout))
    truth = oracle.pointwise(
        x,
        layer.kernel.values,
        None if layer.bias is None else layer.bias.values,
        weight_layout="IO",
        groups=layer.groups,
        stride=2,
        layout=layout,
        activation="relu" if layer.activation is relu else None,
    )
    converted = PointwiseConv.from_keras(layer)
    assert converted.layout == layout
    assert truth.accepts(converted(x)), truth.explain(converted(x))


def test_dense_of_keras():
    dense = SimpleNamespace(kernel=Variable(normal(1, 12, 8).astype(float)), bias=None, units=8, activation=None)
    x = normal(2, 3, 5, 12)
    truth = oracle.pointwise(x, normal(1, 12, 8), weight_layout="IO", layout="NLC")
    layer = PointwiseConv.from_keras(dense)
    assert layer.layout == "channels_last"
    assert truth.accepts(layer(x)), truth.explain(layer(x))
    assert PointwiseConv.from_keras(dense, layout="NLC", activation="gelu").activation == "gelu"


def test_activations_of_keras():
    def named(name):
        def function(x):
            return x

        function.__name__ = name
        return function

    for name in ("relu", "relu6", "sigmoid", "tanh", "silu", "gelu"):
        assert PointwiseConv.from_keras(keras_conv(2, activation=named(name))).activation == name
    assert PointwiseConv.from_keras(keras_conv(2, activation=named("swish"))).activation == "silu"
    with pytest.raises(ValueError, match=r"^layer must have one of the activations linear, .*, got elu: give activ"):
        PointwiseConv.from_keras(keras_conv(2, activation=elu))
    assert PointwiseConv.from_keras(keras_conv(2, activation=elu), activation=None).activation is None


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (keras_conv(2, kernel=3), ValueError, r"^layer must have a kernel of one pixel, got 3 x 3$"),
        (keras_conv(2, output_padding=None), ValueError, r"^layer must not be a transposed or depthwise"),
        (keras_conv(2, depth_multiplier=1), ValueError, r"^layer must not be a transposed or depthwise"),
        (SimpleNamespace(units=8), TypeError, r"^layer must be a built Conv1D, .* or Dense, got SimpleNamespace$"),
        (
            SimpleNamespace(kernel=np.ones((3, 4))),
            TypeError,
            r"^layer must be a built Conv1D, .*, got SimpleNamespace$",
        ),
    ],
)
def test_keras_layers_that_are_not_pointwise(layer, error, message):
    with pytest.raises(error, match=message):
        PointwiseConv.from_keras(layer)


# Batch norms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("weight_layout", "shape"), [("OI", (8, 6, 1, 1)), ("IO", (1, 1, 6, 8))])
def test_fold_batchnorm(backend, bias, weight_layout, shape):
    layer = PointwiseConv(
        normal(1, *shape),
        normal(2, 8) if bias else None,
        groups=2,
        weight_layout=weight_layout,
        activation="silu",
        layout="NHWC",
        backend=backend,
    )
    gamma, beta, mean, var = normal(3, 8), normal(4, 8).astype(float), normal(5, 8), normal(6, 8) ** 2
    x = normal(7, 2, 5, 6, 12)
    linear = oracle.pointwise(x, layer.weight, layer.bias, groups=2, weight_layout=weight_layout, layout="NHWC").value
    norm = gamma * (linear - mean) / np.sqrt(var.astype(float) + 1e-3) + beta
    folded = layer.fold_batchnorm(gamma, beta, mean, var, eps=1e-3)
    np.testing.assert_allclose(folded(x), oracle.activate("silu", norm), rtol=1e-4, atol=1e-5)
    assert folded.weight.shape == shape
    assert repr(folded).replace(", bias=False", "") == repr(layer).replace(", bias=False", "")


def test_fold_a_norm_without_gamma_and_beta():
    layer, mean, var = PointwiseConv(normal(1, 8, 6)), normal(5, 8), normal(6, 8) ** 2
    ones, zeros = np.ones(8), np.zeros(8)
    assert np.array_equal(
        layer.fold_batchnorm(None, None, mean, var).weight, layer.fold_batchnorm(ones, zeros, mean, var).weight
    )


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("gamma", np.ones(7), ValueError, r"^gamma must have shape \(C_out,\) = \(8,\), got \(7,\)$"),
        ("beta", np.ones((8, 1)), ValueError, r"^beta must have shape \(C_out,\) = \(8,\), got \(8, 1\)$"),
        ("mean", 0.0, ValueError, r"^mean must have shape \(C_out,\) = \(8,\), got \(\)$"),
        ("mean", None, TypeError, r"^mean must hold real numbers, got object$"),
        ("var", ["a"] * 8, TypeError, r"^var must hold real numbers, got <U1$"),
        ("var", -np.ones(8), ValueError, r"^var \+ eps must be positive, got -0.99"),
        ("var", np.full(8, np.nan), ValueError, r"^var \+ eps must be positive, got nan$"),
    ],
)
def test_errors_of_fold_batchnorm(name, value, error, message):
    norm = {"gamma": np.ones(8), "beta": np.ones(8), "mean": np.ones(8), "var": np.ones(8)} | {name: value}
    with pytest.raises(error, match=message):
        PointwiseConv(normal(1, 8, 6)).fold_batchnorm(**norm)


def test_neither_torch_nor_keras_is_imported():
    """`import pwconv` imports NumPy, and neither torch nor Keras."""
    sources = [vars(sys.modules[name]) for name in ("pwconv.adapters", "pwconv.classify", "pwconv.layers")]
    modules = {
        value.__name__.split(".")[0] for source in sources for value in source.values() if type(value) is type(np)
    }
    assert modules <= {"numpy", "pwconv", *sys.stdlib_module_names}
    assert pwconv.PointwiseConv is PointwiseConv
