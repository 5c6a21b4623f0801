"""Sweeps of images, sizes and channels, whose times are compared with the limit to find steps in the cost.

    python benchmarks/sweep.py [--layout NHWC] [--threads N] [--sweeps images,size] [--plot sweep.png]

The excess of a point is its time divided by its limit; up to 1.25 is accepted. The step of a point is its excess
divided by that of the better of its two neighbours. It shows cliffs at powers of two and their neighbours.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pwconv
from pwconv import runtime
from pwconv.commands.limits import Limit, Machine, measure
from pwconv.commands.peers import Operands, pwconv_ways
from pwconv.commands.race import race
from pwconv.commands.workloads import LAYOUTS, Workload

MOST = 1.25
ROUNDS = 5


def around(numbers: Sequence[int]) -> set[int]:
    """Return the numbers and their neighbours."""
    return {number + step for number in numbers for step in (-1, 0, 1)}


POWERS = [1 << exponent for exponent in range(4, 13)]
CHANNELS = sorted(around(POWERS) | {3 * power // 2 for power in POWERS[:-1]})
SIZES = sorted(around([8, 16, 32, 64, 128, 256]) | {11, 14, 23, 28, 45, 56, 91, 112, 181, 224, 362, 448, 511, 512})
SWEEPS = {
    "images": {n: Workload("images", str(n), n, 14, 14, 256, 256) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)},
    "size": {n: Workload("size", str(n), 1, n, n, 64, 128) for n in SIZES},
    "pixels": {n: Workload("pixels", str(n), 1, 1, n, 256, 256) for n in range(768, 833)},
    "ins": {n: Workload("ins", str(n), 1, 28, 28, n, 256) for n in CHANNELS},
    "outs": {n: Workload("outs", str(n), 1, 28, 28, 256, n) for n in CHANNELS},
}


class Point(NamedTuple):
    """The seconds of a workload by column: "pwconv" makes its result, "out=" is given a buffer."""

    workload: Workload
    limit: Limit
    seconds: dict[str, float]

    def excess(self, column: str) -> float:
        """Return the time as a multiple of the limit."""
        return self.seconds[column] / self.limit.seconds

    def per_macs(self, seconds: float) -> float:
        """Return picoseconds per multiply-add."""
        return seconds / (self.workload.flops / 2) * 1e12


def main() -> None:
    """Run the sweeps, print tables, and draw them if asked to."""
    parser = argparse.ArgumentParser(description="Sweep images, sizes and channels.")
    parser.add_argument("--layout", choices=LAYOUTS, default="NCHW")
    parser.add_argument("--threads", type=int, default=pwconv.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--sweeps", default=",".join(SWEEPS), help="(default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="needs matplotlib")
    options = parser.parse_args()
    pwconv.set_num_threads(options.threads)
    machine = measure(runtime.engine.isa_active(), options.threads)
    print(f"{runtime.config()['cpu']}, {machine.isa}, {options.layout}, threads: {options.threads}")
    sweeps = {}
    for name in options.sweeps.split(","):
        print(f"\n{name:>6}{'us':>12}{'ps/MAC':>9}{'x limit':>9}{'step':>7}{'out=':>9}{'step':>7}  bound by")
        points = sweeps[name] = {}
        for n, workload in SWEEPS[name].items():
            points[n] = measured(workload, options.layout, machine)
        for n in points:
            print(line(n, points))
        for column in ("pwconv", "out="):
            print(verdict(column, points))
    if options.plot:
        draw(options, sweeps)


def measured(workload: Workload, layout: str, machine: Machine) -> Point:
    """Time one workload."""
    limit = machine.limit(workload.flops, workload.bytes_read(layout), workload.bytes_written)
    times = race(pwconv_ways(Operands(workload, layout)), rounds=ROUNDS, threads=machine.threads)
    return Point(workload, limit, {column: statistics.median(rounds) for column, rounds in times.items()})


def step(n: int, points: Mapping[int, Point], column: str) -> float | None:
    """Return the excess of a point relative to that of its better neighbour, or None if no neighbour was measured."""
    neighbours = [points[m].excess(column) for m in (n - 1, n + 1) if m in points]
    return points[n].excess(column) / min(neighbours) if neighbours else None


def line(n: int, points: Mapping[int, Point]) -> str:
    """Return a point's line of the table; a star marks times over the accepted multiple of the limit."""
    point = points[n]
    text = f"{n:>6}{point.seconds['pwconv'] * 1e6:>12.1f}{point.per_macs(point.seconds['pwconv']):>9.2f}"
    for column in ("pwconv", "out="):
        excess, more = point.excess(column), step(n, points, column)
        text += f"{excess:>8.2f}{'*' if excess > MOST else ' '}{'' if more is None else f'{more:.2f}':>7}"
    return f"{text}  {point.limit.bound_by}"


def verdict(column: str, points: Mapping[int, Point]) -> str:
    """Return a sentence about the worst point and the largest step of a sweep."""
    worst = max(points, key=lambda n: points[n].excess(column))
    over = sum(point.excess(column) > MOST for point in points.values())
    most = points[worst].excess(column)
    text = f"{column}: {over} of {len(points)} points over {MOST} x limit, worst {most:.2f} at {worst}"
    steps = {n: more for n in points if (more := step(n, points, column)) is not None}
    if steps:
        cliff = max(steps, key=steps.__getitem__)
        text += f"; largest step {steps[cliff]:.2f} at {cliff}"
    return text


def draw(options: argparse.Namespace, sweeps: Mapping[str, Mapping[int, Point]]) -> None:
    """Draw the time per multiply-add and the limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(sweeps), 5), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps.items(), strict=True):
        for column in ("pwconv", "out="):
            times = [point.per_macs(point.seconds[column]) for point in points.values()]
            axes.plot(list(points), times, ".-", linewidth=1, label=column)
        limits = [point.per_macs(point.limit.seconds) for point in points.values()]
        axes.plot(list(points), limits, color="black", label="limit")
        axes.plot(list(points), [MOST * limit for limit in limits], "--", color="gray", label=f"{MOST} x limit")
        axes.set(xscale="log", yscale="log", title=name)
    axes.legend()
    figure.supxlabel(f"{options.layout}, threads: {options.threads}")
    figure.supylabel("picoseconds per multiply-add")
    figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
    main()
