"""The pictures of the benchmark, drawn with matplotlib."""

import argparse
import math
import statistics
from collections.abc import Sequence
from typing import Any

from pwconv import runtime
from pwconv.commands.limits import Machine
from pwconv.commands.peers import PEERS
from pwconv.commands.race import Result


def draw_roofline(options: argparse.Namespace, machine: Machine, results: Sequence[Result]) -> None:
    """Draw what the machine allows for so many operations a byte, and where the layers lie below it."""
    from matplotlib.figure import Figure

    def intensity(result: Result) -> float:
        workload = result.workload
        return workload.flops / (workload.bytes_read(options.layout) + workload.bytes_written)

    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(subplot_kw={"xscale": "log", "yscale": "log"})
    left, right = min(map(intensity, results)) / 1.5, max(map(intensity, results)) * 1.5
    for level in machine.levels:
        corner = machine.peak / level.read
        if corner > left:
            axes.plot([left, corner], [level.read * left, machine.peak], "--", color="gray", linewidth=1)
            axes.annotate(f" {level.name}, {level.read:.0f} GB/s", (left, level.read * left), va="top", color="gray")
    axes.plot([left, right], [machine.peak] * 2, color="black")
    axes.annotate(f"FMA, {machine.peak:.0f} GFLOP/s", (right, machine.peak), ha="right", va="bottom")
    for number, network in enumerate(dict.fromkeys(result.workload.network for result in results)):
        layers = [result for result in results if result.workload.network == network]
        x = [intensity(result) for result in layers]
        own = [result.gflops["pwconv"] for result in layers]
        best = [
            max((result.gflops[name] for name in result.ratios if not PEERS[name].coarse), default=math.nan)
            for result in layers
        ]
        color = f"C{number % 10}"
        axes.vlines(x, own, best, color=color, linewidth=1)
        axes.plot(x, best, "o", color=color, markersize=4, markerfacecolor="white")
        axes.plot(x, own, "o" if number < 10 else "s", color=color, markersize=5, label=network)
        for layer, right_of, above in zip(layers, x, own, strict=True):
            axes.annotate(layer.workload.name, (right_of, above), (3, 2), textcoords="offset points", fontsize=6)
    axes.set(
        xlabel="floating-point operations per byte of input, weights and result",
        ylabel="GFLOP/s",
        xlim=(left, right),
        title=f"pwconv {options.precisions[0]} (filled), best peer (hollow): {_circumstances(options)}",
    )
    _number(axes.xaxis)
    _number(axes.yaxis)
    figure.legend(loc="outside right center")
    figure.savefig(options.plot, dpi=150)


# Colours that colour-blind eyes tell apart (Okabe and Ito, 2008): warm ones for pwconv, cold ones for peers.
STYLES = {
    "highest": ("o", "#D55E00"),
    "high": ("o", "#CC79A7"),
    "medium": ("o", "#E69F00"),
    "numpy": ("s", "#0072B2"),
    "torch": ("D", "#009E73"),
    "torch-bf16": ("^", "#56B4E9"),
    "onnxruntime": ("v", "#000000"),
    "mkl": ("P", "#999999"),
}


def draw_errors(options: argparse.Namespace, machine: Machine, results: Sequence[Result]) -> None:
    """Draw errors against times: a small mark for each layer, a large one for the geometric means of a contender."""
    from matplotlib.figure import Figure

    def picoseconds(gflops: float) -> float:
        return 2 / gflops * 1e3

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(subplot_kw={"xscale": "log", "yscale": "log"})
    for column in ("pwconv", *results[0].others, *options.peers):
        name = options.precisions[0] if column == "pwconv" else column
        marker, colour = STYLES[name]
        # An error of zero has no place on this axis.
        points = [(picoseconds(r.gflops[column]), error) for r in results if (error := r.errors.get(column))]
        if points:
            times, errors = zip(*points, strict=True)
            mean = statistics.geometric_mean(times), statistics.geometric_mean(errors)
            label = f"{'' if name in PEERS else 'pwconv '}{name}\n{mean[0]:.1f} ps, {mean[1]:.0e}"
            axes.plot(times, errors, marker, color=colour, markersize=4, markeredgewidth=0, alpha=0.5)
            axes.plot(*mean, marker, color=colour, markersize=11, markeredgecolor="white", label=label, zorder=3)
    aside: dict[str, Any] = {"color": "gray", "ha": "right"}
    for name, bits in (("float32", 24), ("bfloat16", 8)):
        height, text = 2.0**-bits, f"rounding to {name}, $2^{{-{bits}}}$ "
        axes.axhline(height, color="gray", linestyle=":", linewidth=1)
        axes.annotate(text, (1, height), xycoords=("axes fraction", "data"), va="bottom", **aside)
    peak, text = picoseconds(machine.peak), "float32 FMAs at their peak"
    axes.axvline(peak, color="gray", linestyle=":", linewidth=1)
    axes.annotate(text, (peak, 0.45), xycoords=("data", "axes fraction"), va="center", rotation=90, **aside)
    axes.margins(y=0.1)
    axes.set(
        xlabel="time of a multiply-add in picoseconds",
        ylabel="largest error, as a share of the largest value",
        title=f"Error and time of 1x1 layers ({len(results)}): {_circumstances(options)}",
    )
    _number(axes.xaxis)
    figure.legend(title="geometric means of\nthe layers (small marks)", loc="outside right center", labelspacing=0.9)
    figure.savefig(options.plot_errors, dpi=150)


def _circumstances(options: argparse.Namespace) -> str:
    return f"{options.layout}, threads: {options.threads}, {options.isa}, {runtime.config()['cpu']}"


def _number(axis: Any) -> None:
    """Write 1, 2 and 5 times powers of ten beside a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
