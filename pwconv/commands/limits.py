"""What a machine allows: its FMA peak, the bandwidths of its caches and memory, and the model that bounds a layer."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import NamedTuple

from pwconv import runtime


class Level(NamedTuple):
    """A cache level or memory: the bytes that it holds for all threads together, and its GB/s for them together."""

    name: str
    capacity: float
    read: float
    write: float
    copy: float

    def seconds(self, read: float, written: float) -> float:
        """Return the time of so many bytes read and written: copied while there are both, and the rest alone."""
        both = min(read, written)
        return (both / self.copy + (read - both) / self.read + (written - both) / self.write) * 1e-9


class Limit(NamedTuple):
    """The least seconds that some work can take, and what bounds it."""

    seconds: float
    bound_by: str  # "FMA", or the farthest level that its bytes come from


class Machine(NamedTuple):
    """What so many threads reach together: GFLOP/s, and the levels from the nearest one to memory."""

    isa: str
    threads: int
    peak: float
    levels: tuple[Level, ...]

    def limit(self, flops: float, read: float, written: float) -> Limit:
        """Bound the time of a call, one of many alike, that does so many operations and moves each of its bytes once.

        Of the bytes that the call before it moved, no level can have kept more than it holds: the nearest one serves
        that many, the next one what it holds beyond them, memory the rest. Transfers and arithmetic overlap at best, so
        the slower of the two is the limit.
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


# What is surely larger than this machine's share of a last-level cache, whatever its size is said to be.
_PLENTY = 1 << 28


def footprints(threads: int) -> dict[str, tuple[float, int]]:
    """Return, by level, the bytes that it holds for all threads, and those to move in each thread to measure it."""
    caches = runtime.engine.caches()
    l1d, l2, l3 = caches["l1d"], caches["l2"], caches["l3"]
    levels: dict[str, tuple[float, int]] = {"L1": (l1d * threads, l1d // 2), "L2": (l2 * threads, l2 // 2)}
    if l3 > l2 * threads:
        # Half-way between a thread's own L2 and its part of what they share.
        levels["L3"] = l3, (l2 + l3 // threads) // 2
    levels["memory"] = math.inf, min(4 * max(l2, l3), _PLENTY)
    return levels


def measure(isa: str, threads: int, passes: int = 5, seconds: float = 0.02) -> Machine:
    """Measure what `threads` threads reach together: the best of some passes, since neighbours can only slow it."""
    engine = runtime.engine
    levels = footprints(threads)
    together = Barrier(threads, timeout=60)  # all end if one of them fails
    probes: dict[tuple[str, str], Callable[[], float]] = {("FMA", ""): partial(engine.fma_peak, isa, seconds)}
    for name, (_, size) in levels.items():
        # A copy has two buffers, each half of what shall be in motion.
        for kind, nbytes in (("read", size), ("write", size), ("copy", size // 2)):
            probes[name, kind] = partial(engine.bandwidth, isa, kind, nbytes, seconds, together.wait)
    best = dict.fromkeys(probes, 0.0)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(passes):
            for key, probe in probes.items():
                jobs = [pool.submit(probe) for _ in range(threads)]
                best[key] = max(best[key], sum(job.result() for job in jobs))
    measured = tuple(
        Level(name, capacity, *(best[name, kind] for kind in ("read", "write", "copy")))
        for name, (capacity, _) in levels.items()
    )
    return Machine(isa, threads, best["FMA", ""], measured)
