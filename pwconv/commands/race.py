"""The race: a layer computed by pwconv and its peers from the same arrays, in rotating order."""

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
from pwconv.commands.limits import Limit, Machine
from pwconv.commands.peers import PEERS, Call, Operands, pwconv_ways
from pwconv.commands.workloads import Workload

# The environment of a race --------------------------------------------------------------------------------------------

# What limits the peers' instruction sets as PWCONV_ISA limits ours.
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
    """Return `environ` with all that libraries read from it when they are loaded, without what would slow a peer."""
    limits = {name for names in _ISA_LIMITS.values() for name in names}
    kept = {name: value for name, value in environ.items() if name not in limits and not name.startswith("OPENBLAS_")}
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PWCONV_NUM_THREADS")
    limit = {} if isa == runtime.engine.isa_supported()[-1] else _ISA_LIMITS.get(isa, {})
    return kept | limit | dict.fromkeys(counts, str(threads)) | {"PWCONV_ISA": isa}


def elsewhere(command: Sequence[str], threads: int, isa: str) -> int | None:
    """Run this program's command in the environment of a race and return its status; None if this one is it.

    Libraries read their settings when they are loaded, and NumPy is: so the race is for another process.
    """
    environment = race_environment(os.environ, threads, isa)
    if environment == os.environ:
        return None
    for name in sorted(os.environ.keys() - environment.keys()):
        print(f"{name}={os.environ[name]} is ignored: it would slow a peer.")
    sys.stdout.flush()
    return subprocess.call(command, env=environment)


# Racing ---------------------------------------------------------------------------------------------------------------

# Workers of some libraries spin for 100 ms after a call and would be charged to the next contender, while an idle pause
# leaves the machine cold: so a contender's own untimed calls fill that time.
WARM_UP = 0.120
# With one thread nobody spins; caches and the clock still have to settle.
SHORT_WARM_UP = 0.010
BLOCK = 0.020


def race(
    contenders: Mapping[Any, Call], *, rounds: int, threads: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, list[float]]:
    """Return every contender's seconds per call, one figure for each round.

    All take a turn in each round, and each round begins with the next of them. A turn is the contender's own warm-up,
    then a timed block.
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


# A peer that is faster by more than this has won.
MARGIN = 0.03
# As a share of the largest value, sums of float32 are wrong by less than this, products of bfloat16 by far more.
FLOAT32_ERROR = 1e-5


@dataclass(frozen=True)
class Result:
    """The race of one workload."""

    workload: Workload
    limit: Limit
    seconds: dict[tuple[str, str], list[float]]  # by column ("pwconv", "out=", other precisions, peers) and way
    wrong: tuple[str, ...] = ()  # contenders left out, since they compute something else
    lost: tuple[str, ...] = ()  # peers that won twice in a row
    # By column: the largest of its fastest way, as a share of the largest value.
    errors: dict[str, float] = field(default_factory=dict)
    precision: str = "highest"  # of the columns "pwconv" and "out="

    @property
    def ways(self) -> dict[str, str]:
        """Each column's fastest way, by the median of the rounds."""
        names: dict[str, list[str]] = {}
        for column, way in self.seconds:
            names.setdefault(column, []).append(way)
        return {column: min(ways, key=lambda way: self._median(column, way)) for column, ways in names.items()}

    def _median(self, column: str, way: str) -> float:
        return statistics.median(self.seconds[column, way])

    @property
    def gflops(self) -> dict[str, float]:
        """GFLOP/s by column, from the median of the rounds of its fastest way."""
        return {column: self.workload.flops / self._median(column, way) * 1e-9 for column, way in self.ways.items()}

    @property
    def shares(self) -> dict[str, float]:
        """What pwconv reaches of the limit, with a buffer and without."""
        allowed, rates = self.workload.flops / self.limit.seconds * 1e-9, self.gflops
        return {column: rates[column] / allowed for column in ("pwconv", "out=")}

    @property
    def others(self) -> list[str]:
        """The columns of the other precisions."""
        return [name for name in PRECISIONS if (name, "") in self.seconds]

    def precision_of(self, column: str) -> str:
        """Return the precision of a column of pwconv."""
        return self.precision if column in ("pwconv", "out=") else column

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as fast as each peer pwconv is; it gets a buffer where the peer gets one."""
        return self.ratios_of("pwconv")

    def ratios_of(self, column: str) -> dict[str, float]:
        """Return how many times as fast as each peer a precision is; only the first has a buffer as `bare` peers do."""
        rates, first, medium = self.gflops, column == "pwconv", self.precision_of(column) == "medium"
        return {
            name: rates["out=" if peer.bare else column] / rates[name]
            for name, peer in PEERS.items()
            if name in rates and (first or not peer.bare) and (medium or not peer.coarse)
        }

    def ratio(self, column: str = "pwconv", *, bare: bool = True) -> float | None:
        """Return the ratio to the best float32 peer; `bare`: those that do less than the layer count."""
        ratios = self.ratios_of(column).items()
        counted = (ratio for name, ratio in ratios if not PEERS[name].coarse and (bare or not PEERS[name].bare))
        return min(counted, default=None)

    @property
    def winners(self) -> set[str]:
        """The peers that are clearly faster than pwconv."""
        return {name for name, ratio in self.ratios.items() if ratio < 1 - MARGIN}


def compete(operands: Operands, peers: Iterable[str], machine: Machine, *, rounds: int) -> Result:
    """Race pwconv and its peers; once more if a peer wins, to know whether it was chance."""
    workload = operands.workload
    calls = {(column, ""): call for column, call in pwconv_ways(operands).items()}
    for name in peers:
        calls |= {(name, way): call for way, call in PEERS[name].ways(operands).items()}
    errors = _errors(operands, calls)
    # Wide enough for bfloat16, far too narrow for anything that is not this layer.
    wrong = [contender for contender, error in errors.items() if not error <= 0.01]
    for column, way in wrong:
        if column not in PEERS:
            raise RuntimeError(f"pwconv computes {workload} wrong in {operands.layout}, compared with its NumPy twin")
        del calls[column, way]

    limit = machine.limit(workload.flops, workload.bytes_read(operands.layout), workload.bytes_written)
    precision, results = operands.precisions[0], list[Result]()
    while len(results) < 2 and (not results or results[0].winners):
        seconds = race(calls, rounds=rounds, threads=machine.threads)
        left_out = tuple(" ".join(contender) for contender in wrong)
        results.append(Result(workload, limit, seconds, left_out, precision=precision))
    lost = set.intersection(*(result.winners for result in results))
    by_column = {column: errors[column, way] for column, way in results[0].ways.items()}
    return replace(results[0], lost=tuple(sorted(lost)), errors=by_column)


def _errors(operands: Operands, calls: Mapping[tuple[str, str], Call]) -> dict[tuple[str, str], float]:
    """Return each contender's largest error, as a share of the largest value that NumPy's twin finds in float64."""
    o, errors = operands, {}
    expected = reference.pointwise_conv(
        o.x, o.weight, o.bias, stride=o.workload.stride, layout=o.layout, activation="relu", dtype=np.float64
    )
    largest = float(expected.max(initial=1.0))
    for contender, call in calls.items():
        peer, result = PEERS.get(contender[0]), call()
        if peer and peer.coarse:
            result = result.float()  # NumPy does not know torch's bfloat16
        result = np.asarray(result).reshape(expected.shape)
        if peer and peer.bare:
            result = np.maximum(result + o.bias, 0)
        errors[contender] = float(np.abs(result - expected).max(initial=0.0)) / largest
    return errors
