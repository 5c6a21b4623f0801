"""The limits of a machine: FMA peak, bandwidths of caches and memory, and the time that they imply for a layer."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, NamedTuple

from pwconv import runtime


class Level(NamedTuple):
    """A cache level or memory: its capacity in bytes and its bandwidths in GB/s, each for all threads together."""

    name: str
    capacity: float
    read: float
    write: float
    copy: float

    def seconds(self, read: float, written: float) -> float:
        """Return the time to move these bytes: copied as far as both are left, the rest read or written alone."""
        both = min(read, written)
        return (both / self.copy + (read - both) / self.read + (written - both) / self.write) * 1e-9


class Limit(NamedTuple):
    """A lower bound of the time of a computation, and the resource that sets it."""

    seconds: float
    bound_by: str  # "FMA", or the name of the farthest level that bytes come from


class Machine(NamedTuple):
    """The limits of an instruction set and a number of threads: peak GFLOP/s, and the levels from L1 to memory."""

    isa: str
    threads: int
    peak: float
    levels: tuple[Level, ...]

    def limit(self, flops: float, read: float, written: float) -> Limit:
        """Return the limit of one of many equal calls, each of which moves each of its bytes once.

        Each level has kept bytes of the call before, up to its capacity: the nearest level serves as many bytes as it
        holds, the next one as many as it holds beyond these, and so on; memory serves the rest. Arithmetic and
        transfers overlap at best, so the slower of the two is the limit.
        """
        size = read + written
        transfer, served, farthest = 0.0, 0.0, "FMA"
        for level in self.levels:
            here = min(size, level.capacity) - served
            if here > 0:
                transfer += level.seconds(read * here / size, written * here / size)
                served += here
                farthest = level.name
        return max(Limit(flops / self.peak * 1e-9, "FMA"), Limit(transfer, farthest))


# The most bytes that are moved to measure memory. A virtual machine may report a last-level cache that is larger than
# the part that it can use; this size exceeds the part.
_LARGEST_BUFFER = 1 << 28


def footprints(threads: int) -> dict[str, tuple[float, int]]:
    """Return by level its capacity for all threads together, and the bytes that each thread moves to measure it."""
    caches = runtime.engine.caches()
    l1d, l2, l3 = caches["l1d"], caches["l2"], caches["l3"]
    levels: dict[str, tuple[float, int]] = {"L1": (l1d * threads, l1d // 2), "L2": (l2 * threads, l2 // 2)}
    if l3 > l2 * threads:
        # Half-way between the L2 cache of a thread and its share of the L3 cache.
        levels["L3"] = l3, (l2 + l3 // threads) // 2
    levels["memory"] = math.inf, min(4 * max(l2, l3), _LARGEST_BUFFER)
    return levels


class _Move(NamedTuple):
    """Bytes that each thread moves: "read", "write" or "copy", whose two buffers have this size each."""

    kind: str
    nbytes: int
    may_pass_caches: bool  # stores that do not read the lines that they replace are tried too


def _fastest(
    isa: str, threads: int, moves: Mapping[Any, _Move], passes: int, seconds: float, peak: Any = None
) -> dict[Any, float]:
    """Return the best GB/s of each move, all threads together: other load can only slow them.

    `peak`: if not None, the key of the GFLOP/s of FMAs, which are measured in turn with the moves.
    """
    engine = runtime.engine
    together = Barrier(threads, timeout=60)  # if one thread fails, the others stop waiting
    probes: list[tuple[Any, Callable[[], float]]] = []
    if peak is not None:
        probes.append((peak, partial(engine.fma_peak, isa, seconds)))
    for key, move in moves.items():
        past = [f"{move.kind} past caches"] if move.may_pass_caches and move.kind != "read" else []
        for kind in (move.kind, *past):
            probes.append((key, partial(engine.bandwidth, isa, kind, move.nbytes, seconds, together.wait)))
    best = dict.fromkeys((key for key, _ in probes), 0.0)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(passes):
            for key, probe in probes:
                jobs = [pool.submit(probe) for _ in range(threads)]
                best[key] = max(best[key], sum(job.result() for job in jobs))
    return best


def measure_transfer(isa: str, threads: int, read: float, written: float, passes: int = 3) -> float:
    """Return the seconds to move so many bytes, measured with buffers of their size.

    That is the slowest of copying as many bytes, of reading alone and of writing alone. Between the caches' sizes and
    where pages and cache sets count, it is nearer to what can be reached than the bandwidths of levels.
    """
    sizes = {"read": read, "write": written, "copy": (read + written) / 2}
    moves = {kind: _Move(kind, max(int(size / threads), 4096), True) for kind, size in sizes.items()}
    best = _fastest(isa, threads, moves, passes, 0.01)
    return max(size / best[kind] for kind, size in sizes.items()) * 1e-9


def measure(isa: str, threads: int, passes: int = 5, seconds: float = 0.02) -> Machine:
    """Measure the limits of `threads` threads: the best of several passes."""
    levels = footprints(threads)
    moves = {}
    for name, (_, size) in levels.items():
        # A copy has two buffers, which have this size together.
        for kind, nbytes in (("read", size), ("write", size), ("copy", size // 2)):
            moves[name, kind] = _Move(kind, nbytes, name == "memory")
    best = _fastest(isa, threads, moves, passes, seconds, peak="FMA")
    measured = tuple(
        Level(name, capacity, *(best[name, kind] for kind in ("read", "write", "copy")))
        for name, (capacity, _) in levels.items()
    )
    return Machine(isa, threads, best["FMA"], measured)
