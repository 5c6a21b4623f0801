"""A process that computes on several threads may fork at any moment: parent and children go on computing.

Each scene runs in a process of its own with a time limit: a child that waits for threads which it does not have would
wait for ever.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading

import numpy as np
import process
import pytest

import pwconv

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

START_METHODS = ("fork", "spawn", "forkserver")
CHILDREN = 4
PATIENCE = 40  # seconds that a scene may take, and four times as many as a child may; both need one or two

rng = np.random.default_rng(0)
WEIGHT, BIAS = rng.standard_normal((96, 64), np.float32), rng.standard_normal(96, np.float32)
X = rng.standard_normal((2, 64, 40, 40), np.float32)  # work enough for several threads


def compute(seed=0, layer=None):
    """The bytes of a result, after checking that the layer and the function agree; the same for every seed."""
    layer = layer or pwconv.PointwiseConv(WEIGHT, BIAS, activation="relu")
    result = layer(X, num_threads=2 + seed % 2).tobytes()
    assert pwconv.pointwise_conv(X, WEIGHT, BIAS, activation="relu", num_threads=2).tobytes() == result
    return result


def compute_everywhere(layer, expected):
    """Compute in the main thread and in two threads at once, with the parent's layer and a new one, after an error."""
    assert compute(layer=layer) == compute() == expected
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert set(pool.map(compute, range(8))) == {expected}
    with contextlib.suppress(ValueError):
        layer(X[:, 1:])
    pwconv.set_num_threads(3)
    assert compute(layer=layer) == expected


@contextlib.contextmanager
def busy(layer):
    """Another thread calls the layer on several threads during the whole block."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            layer(X, num_threads=2)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def fork(body):
    """The id of a child that runs `body()` and exits with 0, or prints the traceback of its error and exits with 1."""
    child = os.fork()
    if child:
        return child
    signal.alarm(PATIENCE // 4)  # a child must not wait for ever if its parent is killed
    code = 1
    try:
        body()
        code = 0
    finally:
        os._exit(code)


def wait_for(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def fork_while(computing):
    """Children, and a child of one child, compute the parent's result; the parent can still compute afterwards."""
    layer = pwconv.PointwiseConv(WEIGHT, BIAS, activation="relu")
    expected = compute(layer=layer)
    with busy(layer) if computing else contextlib.nullcontext():
        children = [fork(lambda: compute_everywhere(layer, expected)) for _ in range(CHILDREN)]
        children.append(fork(lambda: wait_for(fork(lambda: compute_everywhere(layer, expected)))))
        compute_everywhere(layer, expected)
        for child in children:
            wait_for(child)


@pytest.mark.parametrize("computing", [False, True], ids=["at rest", "while another thread computes"])
def test_children_compute(computing):
    process.run(fork_while, computing, timeout=PATIENCE)


def fork_while_all_threads_are_taken():
    """A child can use all threads, although the parent's were taken by other callers at the time of the fork."""
    layer = pwconv.PointwiseConv(np.ones((256, 256), np.float32))
    x = np.ones((4, 256, 56, 56), np.float32)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            layer(x, num_threads=1)

    def body():
        assert process.threads_at_once(lambda: layer(x, num_threads=3)) >= 2
        assert len(process.tasks()) < 10  # no thread is left over

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    child = fork(body)
    stop.set()
    for worker in workers:
        worker.join()
    wait_for(child)


@pytest.mark.measures
@process.needs_linux
@pytest.mark.skipif(not pwconv.config()["openmp"]["enabled"], reason="a build without OpenMP has no threads to share")
def test_children_get_their_threads_back():
    process.run(fork_while_all_threads_are_taken, timeout=PATIENCE)


def fork_after_another_library_used_openmp():
    """The parent's OpenMP threads were started by another library that uses the same OpenMP runtime."""
    with open("/proc/self/maps") as maps:
        (path,) = {line.split()[-1] for line in maps if any(name in line for name in ("libgomp", "libomp", "libiomp"))}
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
    ctypes.CDLL(path).GOMP_parallel(body, None, 2, 0)
    expected = pwconv.pointwise_conv(X, WEIGHT, BIAS, activation="relu", num_threads=1).tobytes()
    layer = pwconv.PointwiseConv(WEIGHT, BIAS, activation="relu")
    wait_for(fork(lambda: compute_everywhere(layer, expected)))


@process.needs_linux
@pytest.mark.skipif(not pwconv.config()["openmp"]["enabled"], reason="a build without OpenMP shares none")
def test_children_of_a_process_where_another_library_used_openmp():
    process.run(fork_after_another_library_used_openmp, timeout=PATIENCE)


# Pools of processes ---------------------------------------------------------------------------------------------------


def pools_of(method):
    """Pools of multiprocessing and concurrent.futures, which receive the layer as a pickle."""
    layer = pwconv.PointwiseConv(WEIGHT, BIAS, activation="relu")
    expected = compute(layer=layer)
    context = multiprocessing.get_context(method)
    work = [(seed, layer) for seed in range(6)]
    with busy(layer):
        with context.Pool(2) as pool:
            assert set(pool.starmap(compute, work)) == {expected}
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
            assert set(executor.map(compute, *zip(*work, strict=True))) == {expected}


@pytest.mark.parametrize("method", START_METHODS)
def test_pools_of_processes(method):
    process.run(pools_of, method, timeout=PATIENCE)


def joblib_with(backend):
    import joblib

    layer = pwconv.PointwiseConv(WEIGHT, BIAS, activation="relu")
    expected = compute(layer=layer)
    with busy(layer):
        results = joblib.Parallel(2, backend=backend)(joblib.delayed(compute)(seed, layer) for seed in range(6))
    assert set(results) == {expected}


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(backend):
    process.run(joblib_with, backend, timeout=PATIENCE)
