"""Wrong and hostile arguments: a TypeError, ValueError or MemoryError, never a crash or another exception."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import fences
import fuzz
import numpy as np
import process
import pytest
from numpy.lib.stride_tricks import as_strided

import pwconv

ONES = np.ones((2, 4, 3, 3), np.float32)
WEIGHT = np.ones((5, 4), np.float32)


# The fuzzer -----------------------------------------------------------------------------------------------------------


def look(*options):
    """Runs `python tests/fuzz.py`."""
    program = str(Path(fuzz.__file__))
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, program, *options],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_hostile_arguments():
    """The same cases every time; `python tests/fuzz.py` looks for new ones."""
    done = look("--seed", "0", "--cases", "12000", "--seconds", "500")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "12000 cases from seed 0: nothing found\n"


def outcome(seed):
    case = fuzz.Scene(random.Random(seed)).case()
    try:
        case.function(**case.arguments)
    except fuzz.EXPECTED as error:
        return type(error).__name__.lstrip("_").replace("ArrayMemoryError", "MemoryError")
    return "a result"


@pytest.mark.filterwarnings("ignore")
def test_cases_are_of_every_kind():
    assert {outcome(seed) for seed in range(300)} == {"a result", "TypeError", "ValueError", "MemoryError", "Theirs"}


WRONG = {
    "exception": lambda: 1 / 0,
    "crash": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "ignored exception": lambda: fuzz.Strange(__del__=fuzz.raising()),
    "wrong result afterwards": lambda: fuzz.good()[2].fill(0),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the fuzzer forks")
@pytest.mark.parametrize("name", WRONG)
def test_the_fuzzer_reports(monkeypatch, capfd, name):
    case = fuzz.Case(lambda: WRONG[name](), {})
    monkeypatch.setattr(fuzz.Scene, "case", lambda scene: case)
    assert not fuzz.survives(range(1))
    case = fuzz.Case(lambda: None, {})
    assert fuzz.survives(range(3))
    capfd.readouterr()


# Regressions that the fuzzer found ------------------------------------------------------------------------------------


def call_without_axes():
    for layout in ("channels_first", "channels_last", "C", "NC"):
        for x in (np.float32(1), np.array(1, np.float32), [np.float32(1)]):
            with pytest.raises(ValueError, match="axes for layout"):
                pwconv.pointwise_conv(x, np.ones((3, 1), np.float32), layout=layout)


def test_maps_and_weights_without_axes():
    process.run(call_without_axes)


class Pretender:
    """An object whose dtype is named bfloat16, but whose `view` returns another dtype."""

    def __init__(self, view):
        self.dtype = fuzz.Strange(name="bfloat16")
        self.view = fuzz.returning(view)


def pretend_to_hold_bfloat16():
    """Single bytes right before a fence: reading two bytes per element would cross the fence."""
    x, _ = fences.place(random.Random(0), np.ones((1, fences.PAGE, 1, 1), np.uint8), views=False)
    with pytest.raises(TypeError):
        pwconv.pointwise_conv(Pretender(x), np.ones((3, fences.PAGE), np.float32))


@process.needs_linux
def test_objects_that_pretend_to_hold_bfloat16():
    process.run(pretend_to_hold_bfloat16)


def test_a_list_of_maps_with_different_ranks():
    layer = pwconv.PointwiseConv(WEIGHT, layout="NHWC")
    with pytest.raises(ValueError, match=r"x\[1\] must have the shape"):
        layer([np.ones((2, 3, 3, 4), np.float32), np.ones((2, 3, 3), np.float32)])


def test_a_number_beyond_all_addresses_in_an_array_interface():
    interface = ONES.__array_interface__ | {"data": (2**70, False)}
    with pytest.raises(ValueError, match="x must be a float32 array, got Strange"):
        pwconv.pointwise_conv(fuzz.Strange(__array_interface__=interface), WEIGHT)


def test_integers_of_numpy_and_beyond_all_types():
    """Arithmetic with NumPy's narrow integers must not overflow, and numbers beyond any type raise with a name."""
    assert pwconv.conv_cost(40, 50, 3, 100, groups=np.int8(1)) == pwconv.conv_cost(40, 50, 3, 100)
    layer, ones = pwconv.PointwiseConv(WEIGHT), np.ones(5, np.float32)
    for name in ("gamma", "beta", "mean", "var"):
        norm = {"gamma": ones, "beta": ones, "mean": ones, "var": ones} | {name: [2**64] * 4 + [-1]}
        with pytest.raises((TypeError, ValueError), match=name):
            layer.fold_batchnorm(**norm)
    with pytest.raises(ValueError, match="eps must fit a float"):
        layer.fold_batchnorm(ones, ones, ones, ones, eps=10**400)


@pytest.mark.parametrize("stride", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_any_stride_on_an_axis_of_length_1(monkeypatch, stride):
    """The stride of an axis of length 1, and the layer's stride on it, are never used in an address."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    x = as_strided(ONES, (1, 4, 3, 1), (stride, 36, 12, stride))
    out = as_strided(np.empty(30, np.float32), (1, 5, 3, 1), (stride, 24, 8, stride))
    assert (pwconv.pointwise_conv(x, WEIGHT, out=out) == 4).all()
    assert (pwconv.pointwise_conv(x, WEIGHT, stride=(1, 2**30 - 1)) == 4).all()
    weight = as_strided(WEIGHT, (1, 1), (stride, stride))
    x = as_strided(ONES, (1, 1, 3, 1), (stride, stride, 12, stride))
    out = as_strided(np.empty(3, np.float32), (1, 1, 3, 1), (stride, stride, 4, stride))
    assert (pwconv.pointwise_conv(x, weight, out=out) == 1).all()
    last = x.transpose(0, 2, 3, 1), out.transpose(0, 2, 3, 1)
    assert (pwconv.pointwise_conv(last[0], weight, layout="NHWC", out=last[1]) == 1).all()
    assert not ignored


# Pickles --------------------------------------------------------------------------------------------------------------

LAYERS = [pwconv.PointwiseConv(WEIGHT[:4], layout="NCHW"), pwconv.PointwiseConv(-WEIGHT)]
COMPOSED = {
    "chain": (pwconv.PointwiseChain(LAYERS), lambda chain: chain(ONES)),
    "branches": (pwconv.PointwiseBranches(LAYERS), lambda branches: branches(ONES, out="concat")),
    "classifier": (pwconv.PixelClassifier(WEIGHT, WEIGHT[:, 0]), lambda classifier: classifier.decision_function(ONES)),
}


def load_damaged(name):
    whole, compute = COMPOSED[name]
    data, expected = pickle.dumps(whole), compute(whole)

    def load(damaged):
        with process.room_for(1 << 28):  # a damaged index makes pickle itself allocate gigabytes
            return pickle.loads(damaged)

    harmless = 0
    for place, restored in fuzz.restored_from_damage(data, load):
        harmless += 1
        assert not isinstance(restored, type(whole)) or np.array_equal(compute(restored), expected), place
    assert harmless < len(data) // 10


@pytest.mark.parametrize("name", COMPOSED)
def test_damaged_pickles(name):
    """A pickle with one damaged byte raises, or gives a usable object. For layers see test_layer.py."""
    process.run(load_damaged, name)


# Errors of the caller's objects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "weight", "bias", "input_scale", "output_scale", "residual", "out"])
def test_an_objects_own_error_passes_through(name):
    error = fuzz.Theirs("mine")

    class Raises:
        def __array__(self, *arguments, **options):
            raise error

    given = {"x": ONES, "weight": WEIGHT} | {name: Raises()}
    with pytest.raises(fuzz.Theirs) as caught:
        pwconv.pointwise_conv(**given)
    assert caught.value is error
