"""Costs of a call beside its arithmetic: the time of a small call, the memory of a large one, and the import.

Also the cost of denormal numbers, and the slowdown of a NumPy product right after a call.

python benchmarks/overheads.py [small_call | memory | denormals | aftermath | import_time ...]
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import pwconv
from pwconv import runtime
from pwconv.commands.peers import PEERS, Operands, installed, pwconv_ways
from pwconv.commands.race import elsewhere, race
from pwconv.commands.workloads import LAYOUTS, Workload

SMALL = Workload("overheads", "small", 1, 4, 4, 16, 16)
MEDIUM = Workload("overheads", "medium", 1, 56, 56, 256, 64)
LARGE = Workload("overheads", "large", 16, 112, 112, 256, 256)
ROUNDS = 15


def main() -> int:
    """Print all measurements, or those named on the command line, and return the exit status."""
    status = elsewhere([sys.executable, *sys.argv], pwconv.get_num_threads(), runtime.engine.isa_active())
    if status is None:
        print(f"{runtime.config()['cpu']}, threads: {pwconv.get_num_threads()}")
        measurements = {one.__name__: one for one in (small_call, memory, denormals, aftermath, import_time)}
        for name in sys.argv[1:] or measurements:
            measurements[name]()
    return status or 0


# Time of a small call -------------------------------------------------------------------------------------------------


def small_call() -> None:
    """Race on a map so small that one thread computes it."""
    operands = Operands(SMALL, "NCHW")
    calls = {
        "layer": pwconv_ways(operands)["pwconv"],
        "function": partial(pwconv.pointwise_conv, operands.x, operands.weight, operands.bias, activation="relu"),
    }
    for name in installed("NCHW"):
        calls |= {f"{name} {way}": call for way, call in PEERS[name].ways(operands).items()}
    seconds = {name: statistics.median(times) for name, times in race(calls, rounds=ROUNDS, threads=1).items()}
    print("\nA call on 16 channels of 4 x 4 pixels, with bias and ReLU:")
    for name, median in seconds.items():
        print(f"{name:<24}{median * 1e6:>8.2f} us{median / seconds['numpy matmul']:>8.2f} of NumPy's")


# Memory of a large call -----------------------------------------------------------------------------------------------


def memory() -> None:
    """Run a layer of every library, each in a process of its own, on maps of 205 MB."""
    if not sys.platform.startswith("linux"):
        print("\nMemory beyond input, weights and result is only known on Linux.")
        return
    print("\nMemory beyond input, weights and result, on 16 maps of 112 x 112 pixels, 256 -> 256 channels:")
    cases = [(column, layout, False) for layout in LAYOUTS for column in ("pwconv", *installed(layout))]
    cases += [("pwconv", layout, True) for layout in LAYOUTS]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        jobs = [processes.submit(extra_bytes, *case) for case in cases]
        for (column, layout, cropped), extra in zip(cases, (job.result() for job in jobs), strict=True):
            print(f"{column + (' on a crop' if cropped else ''):<24}{layout:<5}{extra / 1e6:>8.1f} MB")


def extra_bytes(column: str, layout: str, cropped: bool) -> int:
    """Return the growth of the process at its peak during its first large call, without the result."""
    # A first call, so that memory that a library keeps after any call is not counted.
    contender(column, Operands(SMALL, layout))()
    operands = Operands(LARGE, layout)
    if cropped:
        operands.x = crop_of(operands.x, layout)
    operands.out.fill(0)
    call = contender(column, operands)
    # Resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = call()
    given = column in PEERS and PEERS[column].bare
    return resident("VmHWM") - before - (0 if given else np.asarray(result).nbytes)


def contender(column: str, operands: Operands):
    """Return a call of pwconv, or of a peer in the first of its ways."""
    ways = PEERS[column].ways(operands) if column in PEERS else pwconv_ways(operands)
    return next(iter(ways.values()))


def crop_of(x: np.ndarray, layout: str) -> np.ndarray:
    """Return an equal map that lies inside a larger one, with a margin of a pixel."""
    around = np.pad(x, [(1, 1) if axis in "HW" else (0, 0) for axis in layout])
    return around[tuple(slice(1, -1) if axis in "HW" else slice(None) for axis in layout)]


def resident(field: str) -> int:
    """Return the bytes of this process that are in memory: now (VmRSS), or at the most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


# Denormal numbers -----------------------------------------------------------------------------------------------------


def denormals() -> None:
    """Time every library on denormal inputs, weights or sums, relative to normal numbers."""
    print("\nDenormal numbers, on a map of 56 x 56 pixels, 256 -> 64 channels, in times of normal ones:")
    scales = {"normal": (1, 1), "input": (1e-39, 1), "weights": (1, 1e-39), "sums": (1e-20, 1e-20)}
    calls = {}
    for what, (of_x, of_weight) in scales.items():
        operands = Operands(MEDIUM, "NCHW")
        operands.x *= np.float32(of_x)
        operands.weight *= np.float32(of_weight)
        operands.bias *= np.float32(of_x * of_weight)
        calls |= {(column, what): contender(column, operands) for column in ("pwconv", *installed("NCHW"))}
    times = race(calls, rounds=ROUNDS, threads=pwconv.get_num_threads())
    seconds = {key: statistics.median(of_rounds) for key, of_rounds in times.items()}
    print(f"{'':<24}" + "".join(f"{what:>10}" for what in list(scales)[1:]))
    for column in ("pwconv", *installed("NCHW")):
        ratios = (seconds[column, what] / seconds[column, "normal"] for what in list(scales)[1:])
        print(f"{column:<24}" + "".join(f"{ratio:>10.2f}" for ratio in ratios))


# The next library -----------------------------------------------------------------------------------------------------


def aftermath() -> None:
    """Time NumPy's product of two matrices right after a call of each library, and after a pause."""
    a, b = np.random.default_rng(0).random((2, 1000, 1000), np.float32)
    operands = Operands(MEDIUM, "NCHW")
    before = {"a pause": partial(time.sleep, 0.2)}
    before |= {column: contender(column, operands) for column in ("pwconv", *installed("NCHW"))}
    seconds: dict[str, list[float]] = {name: [] for name in before}
    for _ in range(ROUNDS):
        for name, call in before.items():
            time.sleep(0.2)  # long enough for idle workers to fall asleep
            # NumPy's threads are warm, and those of the library may still spin.
            np.matmul(a, b)
            call()
            start = time.perf_counter()
            np.matmul(a, b)
            seconds[name].append(time.perf_counter() - start)
    alone = statistics.median(seconds["a pause"])
    print("\nNumPy's product of two 1000 x 1000 matrices right after")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<24}{median * 1e3:>8.2f} ms{median / alone:>8.2f} of that after a pause")


# Time of the import ---------------------------------------------------------------------------------------------------


def import_time() -> None:
    """Time the import after NumPy's, in new processes, from compiled files, as installers leave them."""
    code = "import numpy, time; start = time.perf_counter(); import pwconv; print(time.perf_counter() - start)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = [subprocess.check_output([sys.executable, "-c", code], env=environment) for _ in range(ROUNDS)]
    print(f"\nThe import, beyond NumPy's: {statistics.median(map(float, runs)) * 1e3:.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
