"""torch as a second oracle: convolutions with kernels of length 1 and its own activations."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

import pwconv

torch = pytest.importorskip("torch", reason="torch is not installed (the extra `peers` has it)")
functional = torch.nn.functional

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
SIZES = {1: (29,), 2: (13, 10), 3: (5, 7, 6)}
ACTIVATIONS = {
    None: lambda v: v,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    ("leaky_relu", 0.2): lambda v: functional.leaky_relu(v, 0.2),
    ("clip", -0.75, 1.25): lambda v: functional.hardtanh(v, -0.75, 1.25),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
    "hardsigmoid": functional.hardsigmoid,
    "hardswish": functional.hardswish,
}


def channels_last(array):
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


class Problem:
    """One random layer for torch, and for pwconv in both layouts."""

    def __init__(self, rank, *, channels=40, outs=24, groups=1, stride=1):
        rng = np.random.default_rng([rank, channels, outs, groups])
        self.x = rng.standard_normal((2, channels, *SIZES[rank]), np.float32)
        self.weight = rng.standard_normal((outs, channels // groups, *(1,) * rank), np.float32)
        self.bias = rng.standard_normal(outs, np.float32)
        self.options = {"groups": groups, "stride": stride}
        arrays = (torch.from_numpy(array).double() for array in (self.x, self.weight, self.bias))
        self.linear = CONVOLUTIONS[rank](*arrays, **self.options)
        self.bound = oracle.pointwise(
            self.x, self.weight, self.bias, layout="channels_first", **self.options
        ).bound  # of the sum; an activation enlarges an error by at most half
        self.residual = rng.standard_normal(self.linear.shape).astype(np.float32)

    def assert_agrees(self, expected, **fused):
        """Compare function and layer, in both layouts, with torch's result."""
        expected = expected.numpy()
        bound = 1.5 * self.bound + 6 * oracle.UNIT * (np.abs(expected) + 2)
        for layout, relaid in (("channels_first", np.asarray), ("channels_last", channels_last)):
            per_call = {name: relaid(fused[name]) for name in fused.keys() & {"residual"}}
            fixed = {name: fused[name] for name in fused.keys() & {"activation"}} | self.options | {"layout": layout}
            layer = pwconv.PointwiseConv(self.weight, self.bias, **fixed)
            operation = pwconv.pointwise_conv(relaid(self.x), self.weight, self.bias, **fixed, **per_call)
            for result in (operation, layer(relaid(self.x), **per_call)):
                first = result if layout == "channels_first" else np.moveaxis(result, -1, 1)
                truth = oracle.Truth(expected, bound)
                assert truth.accepts(first), truth.explain(first)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strides_and_groups(rank, groups, stride):
    case = Problem(rank, groups=groups, stride=stride)
    case.assert_agrees(case.linear)


@pytest.mark.parametrize("stride", [(1, 2), (3, 1), (2, 5)])
def test_a_stride_per_axis(stride):
    case = Problem(2, stride=stride)
    case.assert_agrees(case.linear)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(rank, activation):
    case = Problem(rank)
    case.assert_agrees(ACTIVATIONS[activation](case.linear), activation=activation)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_residuals(rank, activation):
    """ResNet's order: the shortcut is added before the activation."""
    case = Problem(rank, channels=300)
    expected = ACTIVATIONS[activation](case.linear + torch.from_numpy(case.residual))
    case.assert_agrees(expected, activation=activation, residual=case.residual)


def test_tensors_are_not_copied():
    case = Problem(2)
    expected = pwconv.pointwise_conv(case.x, case.weight, case.bias)
    x, weight, bias = (torch.from_numpy(array.copy()) for array in (case.x, case.weight, case.bias))
    np.testing.assert_array_equal(pwconv.pointwise_conv(x, weight, bias), expected)
    np.testing.assert_array_equal(pwconv.PointwiseConv(weight, bias)(x), expected)
    # torch's own view of NHWC memory as NCHW
    np.testing.assert_array_equal(
        pwconv.pointwise_conv(x.contiguous(memory_format=torch.channels_last), weight, bias), expected
    )
    np.testing.assert_array_equal(
        pwconv.pointwise_conv(x, weight, bias, residual=torch.from_numpy(case.residual)),
        pwconv.pointwise_conv(case.x, case.weight, case.bias, residual=case.residual),
    )
    out = torch.zeros(case.linear.shape)
    assert pwconv.pointwise_conv(x, weight, bias, out=out) is out
    np.testing.assert_array_equal(out.numpy(), expected)


def test_a_tensor_that_records_gradients_is_refused():
    x = torch.zeros((1, 3, 4, 4), requires_grad=True)
    with pytest.raises(TypeError, match=r"\.detach\(\)"):
        pwconv.pointwise_conv(x, np.zeros((2, 3), np.float32))
