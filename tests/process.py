"""Run functions in processes of their own, and read the threads and memory of a process from /proc (Linux).

Tests that may crash, hang, run out of memory or leave worker threads behind use such a process, with a time limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, which is Linux's")


def python(code, *, timeout=60, **environment):
    """Run code in a fresh interpreter that sees only the given settings of pwconv and OpenMP; return what it printed.

    A process that fails, crashes or takes too long (all it started is then ended with it) fails the test.
    """
    settings = ("PWCONV_", "OMP_", "GOMP_", "KMP_")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env=ours | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"no end after {timeout} s\n{out}\n{err}")
    assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err}"
    return out


def run(function, *arguments, timeout=60, **environment):
    """Call a function of a test module, with arguments that `repr` can write, in a fresh interpreter."""
    name = function.__module__
    return python(f"import {name}; {name}.{function.__name__}(*{arguments!r})", timeout=timeout, **environment)


def tasks():
    """The ids of this process's threads."""
    return [int(name) for name in os.listdir("/proc/self/task")]


def _read(task, name):
    """The text of a file in /proc about a thread; empty if the thread has just ended."""
    try:
        return Path(f"/proc/self/task/{task}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def running():
    """The number of other threads of this process that run or wait for a core."""
    me = threading.get_native_id()
    states = (_read(task, "stat").rpartition(")")[2].split() for task in tasks() if task != me)
    return sum(state[:1] == ["R"] for state in states)


def seconds_of_cpu():
    """The CPU time of each thread so far."""
    return {task: int((_read(task, "schedstat") or "0").split()[0]) * 1e-9 for task in tasks()}


def threads_that_compute(call, seconds=0.3):
    """The number of threads that use at least a twentieth of the time while a call is repeated."""
    before = seconds_of_cpu()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        call()
    after = seconds_of_cpu()
    return sum(used - before.get(task, 0.0) > seconds / 20 for task, used in after.items())


def threads_at_once(call, callers=1, seconds=0.5):
    """The ninth decile of the number of threads that run at once while `callers` threads repeat a call.

    The median would be lower on a busy machine, where all threads wait for one that waits for a core.
    """
    stop = threading.Event()

    def work():
        while not stop.is_set():
            call()

    with ThreadPoolExecutor(callers) as pool:
        for _ in range(callers):
            pool.submit(work)
        time.sleep(0.2)
        samples = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            samples.append(running())
            time.sleep(0.001)
        stop.set()
    return statistics.quantiles(samples, n=10)[-1]


def bytes_of(kind):
    """The `size` of this process in bytes of addresses, the `resident` bytes in memory, or their `peak`."""
    field = {"size": "VmSize:", "resident": "VmRSS:", "peak": "VmHWM:"}[kind]
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@contextlib.contextmanager
def room_for(nbytes):
    """Limit this process to `nbytes` more bytes of addresses (on Linux; elsewhere there is no limit)."""
    if sys.platform != "linux":
        yield
        return
    import resource

    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_of("size") + nbytes, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
