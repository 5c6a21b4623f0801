"""Denormal numbers count as zero inside the kernels, and the floating-point state outside of them does not change.

The kernels flush: a denormal input is a zero of its sign, and so is a result that would be denormal. They switch this
on for themselves, so the floating-point state of the caller and of every worker thread is afterwards what it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import threading

import floats
import numpy as np
import oracle
import process
import pytest
from floats import control, libm, state

import pwconv

LAYOUTS = ("NCHW", "NHWC")
FUSED = {"input_scale", "input_shift", "output_scale", "residual"}
ADDENDS = {"bias", "input_shift", "residual"}
WORK = np.ones((1, 256, 56, 56), np.float32), np.ones((256, 256), np.float32)
OPENMP, COMPILER = pwconv.config()["openmp"]["enabled"], pwconv.config()["compiler"]
DENORMALS = np.float32([1e-40, -1e-40, 1e-45, -1.1e-38])


def normal(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def arguments(layout, *, channels=300, outs=37, size=(9, 11), scale=1.0, seed=0):
    """Arrays for a call with everything fused; x and weights are multiplied by `scale`."""
    rng = np.random.default_rng(seed)

    def axes(c):
        return (2, c, *size) if layout == "NCHW" else (2, *size, c)

    return {
        "x": normal(rng, *axes(channels), scale=scale),
        "weight": normal(rng, outs, channels, scale=scale),
        "bias": normal(rng, outs),
        "input_scale": normal(rng, 2, channels),
        "input_shift": normal(rng, channels),
        "output_scale": normal(rng, outs),
        "residual": normal(rng, *axes(outs)),
    }


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", arguments("NCHW"))
@pytest.mark.parametrize("fused", [(), FUSED], ids=["plain", "fused"])
def test_a_denormal_input_is_a_zero_of_its_sign(isa, layout, name, fused):
    """Factors of 1e19 would make a denormal visible in the result, and nothing is added that could hide it."""
    given = {
        key: np.float32(1e19) * array for key, array in arguments(layout).items() if key not in FUSED - {name, *fused}
    }
    for addend in ADDENDS & given.keys():
        given[addend][:] = 0
    if name in ADDENDS:
        given["x"][:] = 0
    given[name] = np.random.default_rng(1).choice(DENORMALS, given[name].shape)
    with_denormals = pwconv.pointwise_conv(**given, layout=layout)
    given[name] = np.copysign(np.float32(0), given[name])
    assert oracle.same_bits(with_denormals, pwconv.pointwise_conv(**given, layout=layout))


def test_half_precision_denormals_are_float32_numbers(isa):
    """float16 is widened first: its denormals, down to 6e-8, are normal float32 numbers and not flushed."""
    x = np.arange(1, 1024, dtype=np.uint16).view(np.float16).reshape(1, 1, 1, -1)
    assert not (x >= np.finfo(np.float16).smallest_normal).any()
    expected = x.astype(np.float32)
    assert expected.all()
    assert oracle.same_bits(pwconv.pointwise_conv(x, np.ones((1, 1), np.float32)), expected)


# Results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", [(), ("residual",)], ids=["plain", "residual"])
def test_results_near_the_smallest_normal_number(isa, layout, activation, fused):
    """Sums around 2^-126 are within the bound for flushing to zero, and no result is denormal."""
    given = arguments(layout, channels=40, scale=2.0**-65)
    given["bias"][:] = 0
    given["residual"] *= np.float32(2.0**-126)
    given = {name: array for name, array in given.items() if name not in FUSED or name in fused}
    truth = oracle.pointwise(**given, layout=layout)
    assert (np.abs(truth.value) < oracle.TINY).any()
    assert (np.abs(truth.value) > oracle.TINY).any()
    result = pwconv.pointwise_conv(**given, layout=layout, activation=activation)
    truth = oracle.pointwise(**given, layout=layout, activation=activation)
    assert truth.accepts(result), truth.explain(result)
    assert np.all((result == 0) | (np.abs(result) >= oracle.TINY))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flushed_result_keeps_its_sign(isa, layout):
    given = {name: array for name, array in arguments(layout, channels=1).items() if name in ("x", "weight")}
    scale = np.full(37, 2.0**-100, np.float32)
    given["x"] *= np.float32(2.0**-40)
    result = pwconv.pointwise_conv(**given, output_scale=scale, layout=layout)
    truth = oracle.pointwise(**given, layout=layout)
    assert not result.any()
    np.testing.assert_array_equal(np.signbit(result), np.signbit(truth.value))


# The floating-point state ---------------------------------------------------------------------------------------------

UPWARD, DIVIDED_BY_ZERO = {"x86_64": (0x800, 4), "aarch64": (0x400000, 2)}[platform.machine()]


@contextlib.contextmanager
def changed(name):
    """Set a caller's state: default, rounding upward, a division by zero flagged, or traps on invalid operations."""
    before = floats.environment()
    try:
        assert libm.feclearexcept(-1) == 0
        usual = state()
        if name == "rounds upward":
            assert libm.fesetround(UPWARD) == 0
        elif name == "has divided by zero":
            assert libm.feraiseexcept(DIVIDED_BY_ZERO) == 0
        elif name == "traps invalid operations" and libm.feenableexcept(1) == -1:
            pytest.skip("this processor has no traps for floating-point exceptions")
        assert (state() == usual) == (name == "usual")
        yield
    finally:
        libm.fesetenv(before)


STATES = ("usual", "rounds upward", "has divided by zero", "traps invalid operations")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", STATES)
def test_the_callers_state(name, threads, precision):
    """The caller's state changes no bit of a result, and no call changes it, even by invalid operations."""
    given = arguments("NCHW", size=(40, 40))
    given["x"][0, :5, 0, 0] = [np.inf, np.nan, 1e-40, 1e30, -np.inf]
    given["weight"][:2, 0] = [1e-40, np.inf]
    options = {"activation": "silu", "precision": precision}

    def results():
        """A layer packs its weights once in the caller; a function call may pack them on several threads."""
        per_call = {name: array for name, array in given.items() if name not in ("x", "weight", "bias")}
        layer = pwconv.PointwiseConv(given["weight"], given["bias"], **options)
        yield layer(given["x"], **per_call, num_threads=threads)
        yield pwconv.pointwise_conv(**given, **options, num_threads=threads)

    expected = list(results())
    with changed(name):
        before = state()
        computed = list(results())
        after = state()
    assert after == before
    assert all(map(oracle.same_bits, computed, expected))


@pytest.mark.parametrize("error", [TypeError, ValueError, MemoryError])
@pytest.mark.parametrize("name", STATES)
def test_the_callers_state_after_an_error(name, error):
    x, weight = np.ones((1, 4, 5, 5), np.float32), np.ones((3, 4), np.float32)
    wrong = {
        TypeError: (x.astype(np.float64), weight),
        ValueError: (x[:, :3], weight),
        MemoryError: (np.broadcast_to(x[..., :1], (1, 4, 5, 2**54)), weight),
    }
    with changed(name):
        before = state()
        try:
            pwconv.pointwise_conv(*wrong[error])
        except error:
            raised = True
        after = state()
    assert raised
    assert after == before


def openmp_library():
    """The OpenMP library that pwconv uses, the only one of this process."""
    with open("/proc/self/maps") as maps:
        (path,) = {line.split()[-1] for line in maps if any(name in line for name in ("libgomp", "libomp", "libiomp"))}
    return ctypes.CDLL(path)


def in_team(library, action):
    """The result of `action()` in each thread of a team of two, by thread id."""
    found = {}
    together = threading.Barrier(2, timeout=20)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_):
        together.wait()
        found[threading.get_native_id()] = action()

    library.GOMP_parallel(body, None, 2, 0)
    assert len(found) == 2
    return found


def workers_compute_as_usual_afterwards():
    """A parallel region of the test reads the state of the team's two threads after a call."""
    usual = control()
    assert (pwconv.pointwise_conv(*WORK, num_threads=2) == 256).all()
    assert set(in_team(openmp_library(), control).values()) == {usual}


def workers_keep_their_state():
    """Workers with another rounding mode have it again after a call."""
    pwconv.pointwise_conv(*WORK, num_threads=2)
    library, usual = openmp_library(), state()
    assert set(in_team(library, lambda: libm.fesetround(UPWARD)).values()) == {0}
    unusual = in_team(library, state)
    assert usual not in unusual.values()
    assert (pwconv.pointwise_conv(*WORK, num_threads=2) == 256).all()
    assert in_team(library, state) == unusual


@process.needs_linux
@pytest.mark.skipif(not OPENMP, reason="a build without OpenMP has no workers")
@pytest.mark.parametrize("scene", [workers_compute_as_usual_afterwards, workers_keep_their_state])
def test_the_workers_state(scene):
    if scene is workers_keep_their_state and COMPILER.startswith("Clang"):
        pytest.skip("LLVM's OpenMP gives its workers the caller's state in each parallel region")
    process.run(scene)


def test_import_changes_nothing_in_numpy():
    process.python("""
import floats
import numpy as np

def behaviour():
    state = floats.state()
    halves = np.full(100, 1.2e-38, np.float32) * np.float32(0.5)
    assert halves.all()
    return state, halves.tobytes(), np.geterr(), np.get_printoptions()

x = np.full((1, 64, 64, 64), 1e-40, np.float32)
weight = np.ones((64, 64), np.float32)
behaviour()  # NumPy itself raises exceptions and clears others
before = behaviour()
import pwconv
assert behaviour() == before
pwconv.pointwise_conv(x, weight)
assert behaviour() == before
""")
