"""Calls from many threads: same results, no more worker threads than asked for, and idle workers that sleep."""

from __future__ import annotations

import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import process
import pytest
import threadpoolctl

import pwconv

OPENMP = pwconv.config()["openmp"]["enabled"]
BY_GCC = not pwconv.config()["compiler"].startswith("Clang")
with_openmp = pytest.mark.skipif(not OPENMP, reason="a build without OpenMP has one thread for each call")

# Maps for which a layer's weights are A or B, packed for other tiles, and computed on other numbers of threads.
SIZES = ((1, 1), (1, 7), (3, 3), (5, 6), (7, 7), (14, 13), (28, 28), (40, 45))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_one_layer_in_many_threads_while_the_setting_changes():
    """A layer needs more packings than it keeps, so some are dropped while other threads compute with them."""
    weight, bias = normal(0, 70, 80), normal(1, 70)
    maps = [normal(2, 1 + i % 3, 80, *size) for i, size in enumerate(SIZES)]
    maps += [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in maps]
    expected = [pwconv.pointwise_conv(x, weight, bias, activation="gelu", num_threads=1) for x in maps]
    layer = pwconv.PointwiseConv(weight, bias, activation="gelu")
    stop = threading.Event()

    def change_the_setting():
        for n in random.Random(0).choices((1, 2, 3, 5, 64), k=10**6):
            pwconv.set_num_threads(n)
            if stop.wait(0.001):
                return

    def work(seed):
        """Call the layer on all maps in random order; return the maps whose results were wrong."""
        order = random.Random(seed)
        wrong = set()
        for _ in range(150):
            i = order.randrange(len(maps))
            threads = order.choice((None, None, 1, 2, 3))
            if order.random() < 0.7:
                result = layer(maps[i], num_threads=threads)
            else:
                result = pwconv.pointwise_conv(maps[i], weight, bias, activation="gelu", num_threads=threads)
            if not oracle.same_bits(result, expected[i]):
                wrong.add(i)
        return wrong

    before = pwconv.get_num_threads()
    changer = threading.Thread(target=change_the_setting)
    changer.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set().union(*pool.map(work, range(8))) == set()
    finally:
        stop.set()
        changer.join()
        pwconv.set_num_threads(before)


# How many threads run -------------------------------------------------------------------------------------------------

X, WEIGHT = normal(0, 4, 256, 56, 56), normal(1, 256, 256)


def threads_of_each_count():
    layer = pwconv.PointwiseConv(WEIGHT)
    for threads in (1, 2, 3):
        assert process.threads_that_compute(lambda n=threads: layer(X, num_threads=n)) == threads


@pytest.mark.measures
@process.needs_linux
@with_openmp
def test_a_call_runs_on_the_threads_that_it_was_given():
    process.run(threads_of_each_count)


def compute_under_limits():
    layer = pwconv.PointwiseConv(WEIGHT)
    assert process.threads_that_compute(lambda: layer(X)) == 2
    with threadpoolctl.threadpool_limits(1):
        assert process.threads_that_compute(lambda: layer(X)) == 1
    assert process.threads_that_compute(lambda: layer(X)) == 2


@pytest.mark.measures
@process.needs_linux
@with_openmp
def test_threadpoolctl_is_obeyed():
    process.run(compute_under_limits, OMP_NUM_THREADS="2", PWCONV_NUM_THREADS="4")


def callers_share_the_threads():
    """A call that finds no free worker runs on its caller's thread: six callers share two workers."""
    layer = pwconv.PointwiseConv(WEIGHT)
    assert process.threads_at_once(lambda: layer(X, num_threads=3)) >= 2  # the measurement sees workers
    assert process.threads_at_once(lambda: layer(X, num_threads=3), callers=6) <= 6 + 2


@pytest.mark.measures
@process.needs_linux
@with_openmp
def test_no_more_threads_run_than_were_asked_for():
    process.run(callers_share_the_threads)


def compute_in_a_callers_pool():
    layer = pwconv.PointwiseConv(WEIGHT)
    pwconv.set_num_threads(1)
    with ThreadPoolExecutor(3) as pool:
        # The main thread only waits.
        assert process.threads_that_compute(lambda: list(pool.map(layer, [X] * 3)), seconds=0.5) == 3


@pytest.mark.measures
@process.needs_linux
def test_a_callers_pool_with_one_thread_for_each_call():
    process.run(compute_in_a_callers_pool)


# Afterwards -----------------------------------------------------------------------------------------------------------

NAP = 0.05


def cpu_time_while_asleep():
    """The median CPU time that the whole process uses while the caller sleeps right after a call on several threads."""
    layer = pwconv.PointwiseConv(WEIGHT)
    used = []
    for _ in range(9):
        layer(X, num_threads=2)
        before = time.process_time()
        time.sleep(NAP)
        used.append(time.process_time() - before)
    print(statistics.median(used))


@pytest.mark.measures
@process.needs_linux
@with_openmp
@pytest.mark.thread_unsafe(reason="measures CPU time, for which its processes compete")
def test_workers_fall_asleep_soon():
    assert float(process.run(cpu_time_while_asleep)) < NAP / 4


@with_openmp
@pytest.mark.skipif(not BY_GCC, reason="only GCC's OpenMP says how long its workers wait")
@pytest.mark.parametrize(
    ("asked", "turns"),
    [({}, 20000), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "passive"}, 0)],
    ids=["by default", "turns asked for", "policy asked for"],
)
def test_spin_count_of_gcc_openmp(asked, turns):
    """The spin count of GCC's OpenMP is 300,000 turns, 3 to 4 ms, unless the user's environment sets another."""
    settings = process.python("import os; os.dup2(1, 2); import pwconv", OMP_DISPLAY_ENV="verbose", **asked)
    assert f"GOMP_SPINCOUNT = '{turns}'" in settings


@pytest.mark.parametrize("engine", ["there", "missing"])
def test_the_import_leaves_the_environment_alone(engine):
    """The environment stays as it was, for this process and for those that it starts."""
    process.python(f"""
import os, subprocess, sys, warnings

def environment():
    show = "import os; print(sorted(os.environ.items()))"
    return dict(os.environ), subprocess.check_output([sys.executable, "-c", show])

before = environment()
if {engine == "missing"}:
    sys.modules["pwconv._engine"] = None
    warnings.simplefilter("ignore")
import pwconv
assert pwconv.config()["backend"] == {"numpy" if engine == "missing" else "native"!r}
assert environment() == before
""")


@pytest.mark.measures
@process.needs_linux
@with_openmp
@pytest.mark.thread_unsafe(reason="measures CPU time, for which its processes compete")
def test_the_measurement_sees_workers_that_stay_awake():
    assert float(process.run(cpu_time_while_asleep, OMP_WAIT_POLICY="active")) > NAP / 3
