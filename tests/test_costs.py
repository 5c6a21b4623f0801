"""Costs of convolutions (multiply-adds, parameters, bytes) against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

import pwconv
from pwconv import Cost, PointwiseBranches, PointwiseChain, PointwiseConv, conv_cost


def conv(outs, ins, bias=False, **options):
    return PointwiseConv(np.ones((outs, ins), np.float32), np.ones(outs, np.float32) if bias else None, **options)


def test_a_layer_by_hand():
    """ResNet-50's first reduction: 56 x 56 pixels, 256 -> 64 channels."""
    cost = conv(64, 256).cost((1, 256, 56, 56))
    assert cost == Cost(56 * 56 * 256 * 64, 256 * 64, 4 * (56 * 56 * (256 + 64) + 256 * 64))
    assert cost == conv_cost(256, 64, 1, 56)


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_everything_that_a_layer_can_have(backend):
    layer = conv(6, 4, bias=True, groups=2, stride=(2, 3), layout="NHWC", out_layout="NCHW", backend=backend)
    pixels = 5 * 4 * 3
    assert layer.cost((5, 7, 9, 8)) == Cost(pixels * 4 * 6, 24 + 6, 4 * (pixels * (8 + 6) + 24 + 6))
    assert conv(6, 4).cost([0, 4, 7, 9]) == Cost(0, 24, 96)
    assert conv(6, 4, layout="C").cost((4,)).macs == 24
    assert conv(6, 4, out_dtype="uint8", backend=backend).cost((1, 4, 5, 3)).bytes == 15 * (4 * 4 + 6) + 4 * 24


def test_a_chain_of_narrow_layers():
    """The map in between stays in cache, whatever its dtype; the last is stored as int16."""
    chain = PointwiseChain([conv(6, 4, out_dtype="float16"), conv(3, 6, out_dtype="int16")])
    assert chain.cost((1, 4, 5, 3)).bytes == 15 * (4 * 4 + 2 * 3) + 4 * (24 + 18)


def test_the_arithmetic_of_costs():
    one, other = Cost(8, 6, 4), Cost(2, 3, 4)
    assert one + other == sum([one, other]) == Cost(10, 9, 8)
    assert one - other == Cost(6, 3, 0)
    assert one / other == Cost(4, 2, 1)
    assert one / 2 == Cost(4, 3, 2)
    assert repr(one) == "Cost(macs=8, parameters=6, bytes=4)"
    assert hash(one) == hash(Cost(8, 6, 4))
    for wrong in (lambda: one + 1, lambda: 1 + one, lambda: one - 1):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        one.macs = 3


def test_a_convolution_by_hand():
    assert conv_cost(8, 12, 3, 10).macs == 8 * 12 * 9 * 100
    assert conv_cost(8, 12, 3, 10).parameters == 8 * 12 * 9
    assert conv_cost(8, 12, (1, 7), 10) == conv_cost(8, 12, [1, 7], (10, 10))
    assert conv_cost(8, 12, 3, (5, 6, 7)).macs == 8 * 12 * 27 * 210
    assert conv_cost(8, 8, 3, (10, 10), groups=8) == Cost(100 * 8 * 9, 72, 4 * (1600 + 72))


def test_what_a_reduction_saves():
    """A reduction leaves a tenth of the multiply-adds of a 5x5 layer. In late layers most bytes are weights."""
    direct = conv_cost(192, 32, 5, 28)
    reduced = conv_cost(192, 16, 1, 28) + conv_cost(16, 32, 5, 28)
    assert (reduced / direct).macs == pytest.approx((192 * 16 + 16 * 32 * 25) / (192 * 32 * 25))
    late = conv_cost(832, 128, 5, 7)
    assert (late / conv_cost(192, 32, 5, 28)).macs > 1  # more channels on fewer pixels
    assert late.bytes > 0.9 * 4 * late.parameters  # almost all of its bytes are weights


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_chains_and_branches(backend):
    """A chain moves no bytes of hidden maps, and branches read their input once."""
    first, second = conv(30, 10, bias=True, stride=2, backend=backend), conv(20, 30, backend=backend)
    pixels = 2 * 3 * 4
    cost = PointwiseChain([first, second]).cost((2, 10, 5, 8))
    assert cost == Cost(pixels * (300 + 600), 300 + 30 + 600, 4 * (pixels * (10 + 20) + 930))
    cost = PointwiseBranches([first, first]).cost((2, 10, 5, 8))
    assert cost == Cost(pixels * 600, 660, 4 * (pixels * (10 + 60) + 660))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4, 1, 5), ValueError, r"^in_channels must be from 1 to \d+, got 0$"),
        ((4, 4.0, 1, 5), TypeError, r"^out_channels must be an integer, got float$"),
        ((4, 4, True, 5), TypeError, r"^kernel must be an integer, got bool$"),
        ((4, 4, (3, 0), 5), ValueError, r"^kernel\[1\] must be from 1 to \d+, got 0$"),
        ((4, 4, 3, "ab"), TypeError, r"^spatial must be an integer, got str$"),
        ((4, 4, (3, 3), (5, 5, 5)), ValueError, r"^spatial must be one integer, or one for each of 2 axes, got"),
        ((4, 6, 3, 5, 4), ValueError, r"^groups must divide in_channels=4 and out_channels=6, got 4$"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        conv_cost(*arguments)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"^x must have 4 channels on axis 1"):
        conv(6, 4).cost((1, 5, 7, 7))
    with pytest.raises(TypeError, match=r"^shape must be a tuple of integers, got int$"):
        PointwiseChain([conv(6, 4)]).cost(4)
    assert pwconv.conv_cost is conv_cost
