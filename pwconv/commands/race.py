"""The race: pwconv and its peers compute a layer from the same arrays, timed in rotating order."""

import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pwconv import reference, runtime
from pwconv.arguments import PRECISIONS
from pwconv.commands.limits import Limit, Machine, measure_transfer
from pwconv.commands.peers import PEERS, Call, Operands, pwconv_ways
from pwconv.commands.workloads import Workload
from pwconv.tuning import forget_plans, tune

# The environment of a race --------------------------------------------------------------------------------------------

# Environment variables that limit the instruction sets of peers as PWCONV_ISA limits that of pwconv.
_ISA_LIMITS = {
    "baseline": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}


def race_environment(environ: Mapping[str, str], threads: int, isa: str) -> dict[str, str]:
    """Return `environ` with the race's settings of threads and instruction set, without settings that slow a peer."""
    limits = {name for names in _ISA_LIMITS.values() for name in names}
    kept = {name: value for name, value in environ.items() if name not in limits and not name.startswith("OPENBLAS_")}
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PWCONV_NUM_THREADS")
    limit = {} if isa == runtime.engine.isa_supported()[-1] else _ISA_LIMITS.get(isa, {})
    return kept | limit | dict.fromkeys(counts, str(threads)) | {"PWCONV_ISA": isa}


def elsewhere(command: Sequence[str], threads: int, isa: str) -> int | None:
    """Run `command` in the environment of a race and return its exit status; None if this process has it already.

    Libraries read their settings when they are loaded, and NumPy is loaded here, so the race needs another process.
    """
    environment = race_environment(os.environ, threads, isa)
    if environment == os.environ:
        return None
    for name in sorted(os.environ.keys() - environment.keys()):
        print(f"{name}={os.environ[name]} is ignored: it would slow a peer.")
    sys.stdout.flush()
    return subprocess.call(command, env=environment)


# Racing ---------------------------------------------------------------------------------------------------------------

# Times in seconds. Worker threads of some libraries spin for 100 ms after a call, which slows down the next contender;
# in an idle pause the CPU would lower its clock. So each contender makes untimed calls during that time.
WARM_UP = 0.120
# With one thread there are no workers; caches and clock still need some calls.
SHORT_WARM_UP = 0.010
BLOCK = 0.020  # the timed block of calls


def race(
    contenders: Mapping[Any, Call], *, rounds: int, threads: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, list[float]]:
    """Return the seconds per call of each contender, one figure for each round.

    In each round every contender has a turn, which is its warm-up followed by a timed block of calls. Each round begins
    with another contender.
    """
    warm_up = WARM_UP if threads > 1 else SHORT_WARM_UP
    seconds: dict[Any, list[float]] = {name: [] for name in contenders}
    order = deque(contenders)
    for _ in range(rounds):
        for name in order:
            seconds[name].append(_turn(contenders[name], warm_up, clock))
        order.rotate(-1)
    return seconds


def _turn(call: Call, warm_up: float, clock: Callable[[], float]) -> float:
    """Return the seconds of a call in a timed block, after the warm-up."""
    calls, spent, start = 0, 0.0, clock()
    while spent < warm_up:
        call()
        calls += 1
        spent = clock() - start
    calls = max(1, round(BLOCK * calls / spent))
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


# A peer that is faster by more than this share has won.
MARGIN = 0.03
# Errors as a share of the largest value: below this for float32, far above it where bfloat16 is multiplied.
FLOAT32_ERROR = 1e-5


@dataclass(frozen=True)
class Result:
    """The race of one workload."""

    workload: Workload
    limit: Limit
    seconds: dict[tuple[str, str], list[float]]  # by column ("pwconv", "out=", other precisions, peers) and way
    wrong: tuple[str, ...] = ()  # contenders that were left out because their results are wrong
    lost: tuple[str, ...] = ()  # peers that won twice in a row
    # By column: the largest error of the fastest way, as a share of the largest value.
    errors: dict[str, float] = field(default_factory=dict)
    precision: str = "highest"  # of the columns "pwconv" and "out="
    tuned: float | None = (
        None  # how many times as fast pwconv is with a plan found by trying; None: none was looked for
    )

    @property
    def ways(self) -> dict[str, str]:
        """The fastest way of each column, by the median over the rounds."""
        names: dict[str, list[str]] = {}
        for column, way in self.seconds:
            names.setdefault(column, []).append(way)
        return {column: min(ways, key=lambda way: self._median(column, way)) for column, ways in names.items()}

    def _median(self, column: str, way: str) -> float:
        return statistics.median(self.seconds[column, way])

    @property
    def gflops(self) -> dict[str, float]:
        """GFLOP/s by column: the median over the rounds of the fastest way."""
        return {column: self.workload.flops / self._median(column, way) * 1e-9 for column, way in self.ways.items()}

    @property
    def shares(self) -> dict[str, float]:
        """The rates of pwconv as a share of the limit, with a new result and with out=."""
        allowed, rates = self.workload.flops / self.limit.seconds * 1e-9, self.gflops
        return {column: rates[column] / allowed for column in ("pwconv", "out=")}

    @property
    def others(self) -> list[str]:
        """The columns of all precisions but the first."""
        return [name for name in PRECISIONS if (name, "") in self.seconds]

    def precision_of(self, column: str) -> str:
        """Return the precision of a column of pwconv."""
        return self.precision if column in ("pwconv", "out=") else column

    @property
    def ratios(self) -> dict[str, float]:
        """The speed of pwconv divided by that of each peer; pwconv has a buffer where the peer has one."""
        return self.ratios_of("pwconv")

    def ratios_of(self, column: str) -> dict[str, float]:
        """Return the ratios of a precision's column; `bare` peers are compared with out= of the first precision."""
        rates, first, medium = self.gflops, column == "pwconv", self.precision_of(column) == "medium"
        return {
            name: rates["out=" if peer.bare else column] / rates[name]
            for name, peer in PEERS.items()
            if name in rates and (first or not peer.bare) and (medium or not peer.coarse)
        }

    def ratio(self, column: str = "pwconv", *, bare: bool = True) -> float | None:
        """Return the ratio to the fastest float32 peer; `bare`: include peers that compute neither bias nor ReLU."""
        ratios = self.ratios_of(column).items()
        candidates = (ratio for name, ratio in ratios if not PEERS[name].coarse and (bare or not PEERS[name].bare))
        return min(candidates, default=None)

    @property
    def winners(self) -> set[str]:
        """The peers that are faster than pwconv by more than `MARGIN`."""
        return {name for name, ratio in self.ratios.items() if ratio < 1 - MARGIN}


def compete(operands: Operands, peers: Iterable[str], machine: Machine, *, rounds: int) -> Result:
    """Race pwconv and its peers; if a peer wins, race a second time to rule out chance."""
    workload = operands.workload
    calls = {(column, ""): call for column, call in pwconv_ways(operands).items()}
    narrow = (workload.dtype, workload.out_dtype) != ("float32", "float32")
    for name in peers:
        if PEERS[name].narrow or not narrow:
            calls |= {(name, way): call for way, call in PEERS[name].ways(operands).items()}
    errors = _errors(operands, calls)
    # The tolerance admits bfloat16; results of another computation exceed it by far.
    wrong = [contender for contender, error in errors.items() if not error <= 0.01]
    for column, way in wrong:
        if column not in PEERS:
            raise RuntimeError(f"pwconv computes {workload} wrong in {operands.layout}, compared with pwconv.reference")
        del calls[column, way]

    moved = workload.bytes_read(operands.layout), workload.bytes_written
    limit = machine.limit(workload.flops, *moved)
    if workload.plain:
        # Pictures are bound by moving bytes, so how fast as many bytes are moved is measured beside them.
        arithmetic, transfer = machine.limit(workload.flops, 0, 0), machine.limit(0.0, *moved)
        seconds_moving = measure_transfer(machine.isa, machine.threads, *moved)
        limit = max(arithmetic, Limit(seconds_moving, transfer.bound_by))
    precision, results = operands.precisions[0], list[Result]()
    while len(results) < 2 and (not results or results[0].winners):
        seconds = race(calls, rounds=rounds, threads=machine.threads)
        left_out = tuple(" ".join(contender) for contender in wrong)
        results.append(Result(workload, limit, seconds, left_out, precision=precision))
    lost = set.intersection(*(result.winners for result in results))
    by_column = {column: errors[column, way] for column, way in results[0].ways.items()}
    return replace(results[0], lost=tuple(sorted(lost)), errors=by_column)


def tuned(operands: Operands, seconds: float) -> float:
    """Return how many times as fast a plan is that was found in this time as the cost model's, and forget it."""
    call = pwconv_ways(operands)["pwconv"]
    try:
        return tune(lambda x: call(), None, seconds=seconds).speedup
    finally:
        forget_plans()


def _errors(operands: Operands, calls: Mapping[tuple[str, str], Call]) -> dict[tuple[str, str], float]:
    """Return the largest error of each contender against `pwconv.reference` in float64, over the largest value."""
    o, errors = operands, {}
    expected = reference.pointwise_conv(
        o.x, o.weight, o.bias, stride=o.workload.stride, layout=o.layout, activation=o.activation, dtype=np.float64
    )
    largest = float(expected.max(initial=1.0))
    for contender, call in calls.items():
        peer, result = PEERS.get(contender[0]), call()
        if peer and peer.coarse:
            result = result.float()  # NumPy cannot view torch's bfloat16
        result = np.asarray(result).reshape(expected.shape)
        if peer and peer.bare and o.bias is not None:
            result = np.maximum(result + o.bias, 0)
        errors[contender] = float(np.abs(result - expected).max(initial=0.0)) / largest
    return errors
