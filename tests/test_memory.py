"""Memory: no access outside of any array, no leaks, bounded caches, and a MemoryError that leaves everything usable."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from functools import partial

import fences
import numpy as np
import oracle
import process
import pytest

import pwconv
from pwconv import _engine as engine

pytestmark = process.needs_linux

MEBIBYTE = 1 << 20


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Fences ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", engine.isa_supported())
def test_no_access_outside_of_the_arrays(isa, threads):
    process.run(fences.compute_between_fences, isa, threads, range(200), timeout=120)


@pytest.mark.parametrize("where", ["before", "after", "inside"])
def test_an_access_beyond_a_fence_crashes(where):
    with pytest.raises(AssertionError, match="Segmentation fault"):
        process.run(fences.step_over, where)


# Leaks and caches -----------------------------------------------------------------------------------------------------


def growth(repeat, count):
    """Bytes and Python objects by which `count` calls grow the process, after as many calls that may fill caches."""
    for turn in range(2):
        gc.collect()
        before, objects = process.bytes_of("resident"), sys.getallocatedblocks()
        for i in range(count):
            repeat(turn * count + i)
    gc.collect()
    return process.bytes_of("resident") - before, sys.getallocatedblocks() - objects


def good_calls():
    """Calls on the fast path, with new arrays each time, so that a reference that is not released keeps memory."""
    layer = pwconv.PointwiseConv(normal(0, 7, 5), normal(1, 7), activation="relu")
    x, given = normal(2, 1, 5, 3, 3), {"output_scale": normal(3, 7), "residual": normal(4, 1, 7, 3, 3)}
    chain = pwconv.PointwiseChain([layer, pwconv.PointwiseConv(normal(5, 2, 7))])

    def calls(_):
        new = {name: array.copy() for name, array in given.items()}
        layer(x.copy())
        layer(x.astype(np.float16), out=np.empty((1, 7, 3, 3), np.float32), num_threads=2, **new)
        layer([x[:, :2].copy(), x[:, 2:].copy()], input_scale=np.ones(5, np.float32))
        pwconv.pointwise_conv(x.copy(), layer.weight.copy(), layer.bias.copy())
        chain(x.copy(), residual={0: new["residual"]})

    return calls


def calls_that_need_checking():
    """Calls off the fast path: pwconv.arguments has to convert their arguments."""
    weight, scale = normal(0, 7, 5), normal(1, 10)[::2]
    x, swapped = normal(2, 1, 5, 3, 3), memoryview(normal(3, 1, 5, 3, 3))

    def calls(_):
        pwconv.pointwise_conv(x, weight, input_scale=scale)
        pwconv.pointwise_conv(swapped, weight, stride=(2, 1), activation=("clip", 0, 1))

    return calls


def errors():
    layer = pwconv.PointwiseConv(normal(0, 7, 5))
    x = normal(1, 1, 5, 3, 3)
    wrong = [
        {"x": x[:, 1:]},
        {"x": x.astype(np.float64)},
        {"x": [x, x]},
        {"x": x, "out": x},
        {"x": x, "residual": x},
        {"x": x, "output_scale": "wrong"},
        {"x": x, "num_threads": 0},
        {"x": object()},
    ]

    def calls(i):
        with contextlib.suppress(TypeError, ValueError):
            layer(**wrong[i % len(wrong)])
            raise AssertionError("no error")

    return calls


def new_layers():
    x = normal(1, 1, 5, 3, 3)

    def calls(i):
        pwconv.PointwiseConv(normal(0, 7 + i % 3, 5), stride=1 + i % 5)(x)

    return calls


def new_shapes():
    """Calls with new sizes, strides and options each time, so that caches of plans must be bounded."""
    layers = [pwconv.PointwiseConv(normal(0, 7, 2), layout=layout) for layout in ("channels_first", "channels_last")]
    weight = normal(1, 3, 2)
    flat = normal(2, 4000)

    def calls(i):
        width, step = 1 + i % 900, 1 + i // 900 % 2
        x = flat[: 2 * step * width : step].reshape(1, 2, 1, width)
        layers[0](x)
        layers[1](x.transpose(0, 2, 3, 1))
        layers[0](x.reshape((1, 2) + (1,) * (i % 10) + (width,)))
        pwconv.pointwise_conv(x, weight, stride=1 + i)
        pwconv.pointwise_conv(x, weight, stride=(1, 1 + i), activation=("leaky_relu", 1 / (1 + i)))

    return calls


SCENES = {good_calls: 20_000, calls_that_need_checking: 5_000, errors: 10_000, new_layers: 5_000, new_shapes: 5_000}


def repeat(name):
    scene = globals()[name]
    grown, objects = growth(scene(), SCENES[scene])
    print(grown, objects)
    assert grown < MEBIBYTE // 2
    assert objects < 500


@pytest.mark.measures
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_memory_does_not_grow_with_calls(scene):
    """More than 10^5 calls in all."""
    process.run(repeat, scene.__name__)


@pytest.mark.measures
def test_scratch_memory_of_large_calls_is_freed():
    process.run(compute_once_with_large_scratch_memory)


def compute_once_with_large_scratch_memory():
    weight = np.ones((3000, 6000), np.float32)  # 72 MB, packed for this call
    x = np.ones((1, 6000, 1, 1), np.float32)
    pwconv.pointwise_conv(x, weight[:30])
    before = process.bytes_of("resident")
    assert (pwconv.pointwise_conv(x, weight) == 6000).all()
    assert process.bytes_of("resident") - before < 8 * MEBIBYTE


# Too little memory ----------------------------------------------------------------------------------------------------


def run_out_of_memory():
    """Each allocation fails in turn, as the limit on memory grows from nothing to enough."""
    x, weight, bias = normal(0, 1, 1500, 40, 40), normal(1, 1500, 1500), normal(2, 1500)
    expected = pwconv.pointwise_conv(x, weight, bias, num_threads=1)
    whole = pwconv.PointwiseConv(weight, bias)
    out = np.empty_like(expected)
    start = {"layer": None}

    def new_layer():
        start["layer"] = pwconv.PointwiseConv(weight, bias)
        return None

    operations = {
        "function into out": lambda: pwconv.pointwise_conv(x, weight, bias, out=out, num_threads=1),
        "function": lambda: pwconv.pointwise_conv(x, weight, bias, num_threads=1),
        "new layer": new_layer,
        "its first call": lambda: start["layer"](x, num_threads=1),
        "chain": lambda: pwconv.PointwiseChain([whole, whole])(x, keep=(0,), num_threads=1)[0],
        "fused": lambda: pwconv.pointwise_conv(
            x, weight, bias, output_scale=np.ones(1500, np.float32), input_activation="leaky_relu", num_threads=1
        ),
    }
    fused = pwconv.pointwise_conv(x, weight, bias, input_activation="leaky_relu", num_threads=1)
    for name, operation in operations.items():
        engine.after_fork_in_child()  # forgets the scratch memory of earlier calls
        outcomes = []
        for room in range(0, 100 * MEBIBYTE, MEBIBYTE // 2):
            out.fill(-1)
            result = None
            with process.room_for(room):
                try:
                    result = operation()
                    outcomes.append("done")
                except MemoryError:
                    outcomes.append("MemoryError")
            if outcomes[-1] == "MemoryError":
                assert (out == -1).all()
            elif result is not None:
                assert oracle.same_bits(result, fused if name == "fused" else expected), name
            if outcomes[-2:] == ["done", "done"]:
                break
        print(name, outcomes.count("MemoryError"))
        assert outcomes[0] == "MemoryError"
        assert outcomes[-1] == "done"
    assert oracle.same_bits(start["layer"](x), expected)


def test_out_of_memory_leaves_everything_unchanged():
    # With this setting, malloc returns freed blocks to the system at once, so each call has to allocate anew.
    process.run(run_out_of_memory, MALLOC_MMAP_THRESHOLD_="65536")


def start_teams_without_room(before, in_a_child):
    """Computes where no memory is left for the stacks of more threads. The calls `before` may have started some."""
    x, weight = normal(0, 1, 256, 112, 56), normal(1, 256, 256)
    layer = pwconv.PointwiseConv(weight)
    expected = layer(x, num_threads=1)
    for threads in before:
        layer(x, num_threads=threads)
    if in_a_child and (child := os.fork()):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return
    out = np.full_like(expected, -1)
    with process.room_for(4 * MEBIBYTE):
        layer(x, out=out, num_threads=4)
    assert oracle.same_bits(out, expected)
    assert oracle.same_bits(layer(x, num_threads=4), expected)


@pytest.mark.parametrize("in_a_child", [False, True], ids=["", "in a child"])
@pytest.mark.parametrize("before", [(), (2,)], ids=str)
def test_calls_compute_without_threads_that_cannot_be_started(before, in_a_child):
    process.run(start_teams_without_room, before, in_a_child)


def zeros(*shape):
    """An array of any shape in four bytes of memory."""
    return np.broadcast_to(np.float32(0), shape)


def one_output(channels, input_activation=None):
    array = zeros(1, channels)
    return pwconv.pointwise_conv(array, array, layout="NC", input_activation=input_activation)


# Sizes in bytes that overflow if they are multiplied without a check. Each call would take more than 2^40 bytes.
TOO_LARGE = {
    "result": lambda: pwconv.pointwise_conv(zeros(1, 1, 2**30, 2**30), zeros(8, 1)),
    "result of many images": lambda: pwconv.pointwise_conv(zeros(2**60, 1), zeros(4, 1), layout="NC"),
    "result without elements to sum": lambda: pwconv.pointwise_conv(zeros(2**40, 0), zeros(4, 0), layout="NC"),
    "result in a layer": lambda: pwconv.PointwiseConv(zeros(8, 1))(zeros(1, 1, 2**30, 2**30)),
    "weights in a layer": lambda: pwconv.PointwiseConv(zeros(1, 2**60)),
    "tables in a layer": lambda: pwconv.PointwiseConv(zeros(2**40, 0), layout="NC")(zeros(2, 0)),
    "tables in a layer that wrap around": lambda: pwconv.PointwiseConv(zeros(2**61 - 16, 0)),
    **{f"2^{n} weights": partial(one_output, 2**n - 16) for n in (57, 58, 59, 60, 61)},
    **{f"2^{n} weights and tables": partial(one_output, 2**n - 16, "relu") for n in (57, 58, 59, 60, 61)},
}


def ask_for_too_much(name):
    with pytest.raises(MemoryError):
        TOO_LARGE[name]()


@pytest.mark.parametrize("name", TOO_LARGE)
def test_sizes_beyond_all_memory(name):
    process.run(ask_for_too_much, name)


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


def interrupt(*_):
    """Ctrl-C, once."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def interrupt_again_and_again():
    """Interrupts at any moment: in the middle of a kernel, of a check, of making a layer."""
    signal.signal(signal.SIGALRM, interrupt)
    x, weight = normal(0, 1, 100, 60, 60), normal(1, 100, 100)
    expected = pwconv.pointwise_conv(x, weight)
    layer = pwconv.PointwiseConv(weight)
    interrupts = 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            delay = 0.0005 + 0.0001 * (interrupts % 37)
            signal.setitimer(signal.ITIMER_REAL, delay)
            late = time.monotonic() + delay + 0.02
            while time.monotonic() < late:  # an interrupt during the construction of another exception is lost
                layer(x)
                pwconv.pointwise_conv(x, weight, input_scale=np.ones(200, np.float32)[::2])
                layer = pwconv.PointwiseConv(weight)
                with contextlib.suppress(ValueError):
                    layer(x[:, 1:])
        except KeyboardInterrupt:
            interrupts += 1
        assert oracle.same_bits(layer(x), expected)
        assert oracle.same_bits(pwconv.pointwise_conv(x, weight), expected)
    assert interrupts > 20
    # No interrupted call still counts as running, so a call gets all its threads.
    assert process.threads_that_compute(lambda: layer(x, num_threads=2)) == 1 + engine.openmp()["enabled"]


@pytest.mark.thread_unsafe(reason="its processes compete for time in which to be interrupted")
def test_calls_work_after_an_interrupt():
    process.run(interrupt_again_and_again)
