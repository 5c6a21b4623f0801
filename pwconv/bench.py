"""The benchmark command: pwconv and its peers on the layers of published networks, and what the machine allows."""

import argparse
import importlib.util
import itertools
import json
import math
import statistics
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pwconv import runtime
from pwconv._limits import Machine, measure
from pwconv._race import (
    FLOAT32_ERROR,
    LAYOUTS,
    MARGIN,
    NETWORKS,
    PEERS,
    Operands,
    Result,
    compete,
    elsewhere,
    select,
)
from pwconv.arguments import PRECISIONS
from pwconv.demo import terminal_width


def main(argv: Sequence[str]) -> int:
    """Run ``python -m pwconv bench`` with these arguments and return the exit status of the process."""
    if runtime.resolve_backend("auto") != "native":
        print("There is nothing to race: pwconv computes with NumPy here, without its engine.", file=sys.stderr)
        return 1
    options = parse(argv)
    try:
        status = elsewhere([sys.executable, "-m", "pwconv", "bench", *argv], options.threads, options.isa)
        if status is None:
            run(options)
        return status or 0
    except KeyboardInterrupt:
        return 130


# Options --------------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; `layers` are workloads, `peers` names, `without` says why the other peers do not race.

    Of the precisions that are float32 here, `float32`, only the first is left among `precisions`.
    """
    supported = runtime.engine.isa_supported()
    parser = argparse.ArgumentParser(
        prog="python -m pwconv bench",
        description="Race pwconv and the peers that are installed on the 1x1 layers of published networks.",
    )
    add = parser.add_argument
    add("--layout", choices=LAYOUTS, default="NCHW", help="of input and result (default: NCHW)")
    add(
        "--threads",
        type=_positive,
        default=runtime.get_num_threads(),
        metavar="N",
        help="of each library (default: %(default)s)",
    )
    add("--peers", type=_names, metavar="LIST", help=f"some of {','.join(PEERS)} (default: all that are installed)")
    add(
        "--layers",
        type=_names,
        metavar="LIST",
        help="parts of their names, like resnet50 or 'c?.reduce', 'shapes' for shapes that are in no network, "
        "or shapes of your own: NxHxWxCxC_OUT, with /STRIDE if it is not 1 (default: all layers of the networks)",
    )
    add("--isa", choices=supported, default=runtime.engine.isa_active(), help="instruction set, also of the peers")
    add(
        "--precision",
        type=_names,
        default=["highest"],
        dest="precisions",
        metavar="LIST",
        help=f"of pwconv, some of {','.join(PRECISIONS)} (default: highest); all race, and limits, ratios and what is "
        "lost are the first one's. torch-bf16 races beside those that multiply bfloat16, as a peer of medium",
    )
    add("--rounds", type=_positive, default=7, metavar="N", help="whose median counts (default: 7)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--plot", type=Path, metavar="FILE", help="draw a roofline with the layers on it (needs matplotlib)")
    add("--plot-errors", type=Path, metavar="FILE", help="draw errors against times (needs matplotlib)")
    options = parser.parse_args(argv)

    if not options.precisions:
        parser.error("argument --precision: name at least one")
    for name in options.precisions:
        if name not in PRECISIONS:
            parser.error(f"argument --precision: there is no {name!r}, but {', '.join(PRECISIONS)}")
    units = runtime.engine.isa_kernel_sets(options.isa)
    chosen = list(dict.fromkeys(options.precisions))
    options.float32 = [name for name in chosen if units[name] == units["highest"]]
    options.precisions = [name for name in chosen if name not in options.float32[1:]]

    obstacles = {name: peer.obstacle(options.layout, options.isa != supported[-1]) for name, peer in PEERS.items()}
    all_float32 = {*options.precisions} <= {*options.float32}
    uncalled = [name for name, peer in PEERS.items() if peer.coarse and all_float32]
    obstacles |= dict.fromkeys(uncalled, "races beside a --precision that multiplies bfloat16 here")
    for name in options.peers or ():
        if name not in PEERS:
            parser.error(f"argument --peers: there is no {name!r}, but {', '.join(PEERS)}")
        if obstacles[name]:
            parser.error(f"argument --peers: {name} {obstacles[name]}")
    options.without = {}
    if options.peers is None:
        options.peers = [name for name in PEERS if not obstacles[name]]
        options.without = {name: obstacle for name, obstacle in obstacles.items() if obstacle and name not in uncalled}
    try:
        options.layers = NETWORKS if options.layers is None else select(options.layers)
    except ValueError as error:
        parser.error(f"argument --layers: {error}")
    for path in (options.json, options.plot, options.plot_errors):
        if path and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent} to write to")
    for option, path in (("--plot", options.plot), ("--plot-errors", options.plot_errors)):
        if path and not importlib.util.find_spec("matplotlib"):
            parser.error(f"argument {option}: matplotlib is not installed (pip install matplotlib)")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# The race, as it is told ----------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Race, print and write, in the environment of race_environment."""
    _progress("measuring what the machine allows")
    machine = measure(options.isa, options.threads)
    _progress()
    print("\n\n".join(introduction(options, machine)))
    print()
    table = Table(options.precisions, options.peers)
    print(table.heading())
    results = []
    for number, workload in enumerate(options.layers, 1):
        _progress(f"{number} of {len(options.layers)}: {workload}")
        operands = Operands(workload, options.layout, options.precisions)
        results.append(result := compete(operands, options.peers, machine, rounds=options.rounds))
        _progress()
        print(table.figures(str(workload), result.gflops, result.shares, result.errors, result.ratio()), flush=True)
    means = geometric_means(results)
    best = means["ratios"].get("best")
    print(table.figures("geometric mean", means["gflops"], means["shares"], means["errors"], best))
    print()
    print("\n".join(conclusion(results, means)))
    if options.json:
        options.json.write_text(json.dumps(record(options, machine, results, means), indent=1) + "\n")
    if options.plot:
        draw_roofline(options, machine, results)
    if options.plot_errors:
        draw_errors(options, machine, results)


def _progress(text: str = "") -> None:
    """Say what is going on until the next call, where somebody may be looking."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def introduction(options: argparse.Namespace, machine: Machine) -> list[str]:
    """Return the paragraphs above the table: what races where, and how to read it."""
    config = runtime.config()
    peers = _listed([f"{name} {PEERS[name].version}" for name in options.peers])
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    bandwidths = [f"{level.name} {level.read:.0f}/{level.write:.0f}/{level.copy:.0f}" for level in machine.levels]
    bare = [name for name in options.peers if PEERS[name].bare]
    coarse = [name for name in options.peers if PEERS[name].coarse]
    beside = "limit: the share of what FMAs and bandwidths allow. out=: into a given buffer."
    precision, best, given = "precision", "float32 peer" if coarse else "peer", "out="
    if len(options.precisions) > 1:
        beside = "error: the largest, as a share of the largest value."
        precision, best, given = "precisions", f"{best} {options.precisions[0]} is", f"{options.precisions[0]} into one"
    paragraphs = [
        f"pwconv {config['version']} ({options.isa}, {_listed(options.precisions)} {precision}) against {peers}, "
        f"{threads}, {options.layout}, bias and ReLU included, on {config['cpu']}, {config['platform']}, "
        f"{config['python']}. Machines differ: these figures are for this one, now.",
        f"Measured just before: {machine.peak:.0f} GFLOP/s of float32 FMAs; to read/write/copy "
        f"{', '.join(bandwidths)} GB/s.",
        f"GFLOP/s, medians of {options.rounds} rounds in rotating order. {beside} ratio: how many times as fast as the "
        f"best {best}.",
    ]
    if bare:
        paragraphs[-1] += f" {_listed(bare)}: neither bias nor ReLU, and a given buffer, so compared with {given}."
    if coarse:
        paragraphs[-1] += f" {_listed(coarse)}: may multiply bfloat16, so it is compared with medium alone."
    if options.float32 not in ([], ["highest"]):
        verb, *together = ["are", f", so {options.float32[0]} races for all"] if options.float32[1:] else ["is"]
        paragraphs.append(f"{_listed(options.float32)} {verb} float32 on this machine{''.join(together)}.")
    if options.without:
        paragraphs.append(" ".join(f"Without {name}: it {obstacle}." for name, obstacle in options.without.items()))
    return [textwrap.fill(paragraph, terminal_width()) for paragraph in paragraphs]


class Table(NamedTuple):
    """The table's columns: one precision has its share of the limit beside its rates, several their errors."""

    precisions: Sequence[str]
    peers: Sequence[str]

    def own(self) -> list[str]:
        """Return the headings of pwconv's columns."""
        if len(self.precisions) == 1:
            return ["pwconv", "limit", "out=", "limit"]
        return [heading for name in self.precisions for heading in (name, "error")]

    def heading(self) -> str:
        """Return the line above the others."""
        return self.line("layer", [*self.own(), *(PEERS[name].heading for name in self.peers), "ratio"])

    def line(self, name: str, cells: Sequence[str]) -> str:
        """Return a line; on a narrow terminal the name has one of its own."""
        widths = [max(6, len(heading) + 1) for heading in self.own()]
        row = "".join(f"{cell:>{width}}" for cell, width in itertools.zip_longest(cells, widths, fillvalue=7))
        return f"{name:<25}{row}" if 25 + len(row) <= terminal_width() else f"{name}\n{row}"

    def figures(
        self,
        name: str,
        gflops: Mapping[str, float],
        shares: Mapping[str, float],
        errors: Mapping[str, float],
        ratio: float | None,
    ) -> str:
        """Return a line from its figures; there are none of a peer that was left out."""

        def rate(column: str) -> str:
            value = gflops.get(column)
            return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"

        if len(self.precisions) == 1:
            beside = {column: f"{share:.0%}" for column, share in shares.items()}
        else:
            beside = {column: f"{errors.get(column, 0.0):.0e}" for column in ("pwconv", *self.precisions[1:])}
        own = [cell for column, remark in beside.items() for cell in (rate(column), remark)]
        return self.line(name, [*own, *map(rate, self.peers), "-" if ratio is None else f"{ratio:.2f}x"])


def geometric_means(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return the means over the layers: rates and shares by column, ratios by peer and to the best on each layer."""
    return {
        "gflops": _means(result.gflops for result in results),
        "shares": _means(result.shares for result in results),
        "errors": _means({name: error or None for name, error in result.errors.items()} for result in results),
        "ratios": _means(
            {**result.ratios, "best framework": result.ratio(bare=False), "best": result.ratio()} for result in results
        ),
    }


def _means(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    columns: dict[str, list[float]] = {}
    for name, value in itertools.chain.from_iterable(row.items() for row in rows):
        if value is not None:
            columns.setdefault(name, []).append(value)
    return {name: statistics.geometric_mean(values) for name, values in columns.items()}


def other_ratios(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return the means of the ratios of each precision that is not the first: to the peers and to the best of them."""
    return {
        name: _means({**result.ratios_of(name), "best framework": result.ratio(name)} for result in results)
        for name in results[0].others
    }


def conclusion(results: Sequence[Result], means: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the lines below the table."""
    coarse = [name for name in means["gflops"] if name in PEERS and PEERS[name].coarse]
    best = "best float32 peer" if coarse else "best"
    paragraphs = []
    for name, ratios in {"pwconv": means["ratios"], **other_ratios(results)}.items():
        if ratios:
            subject = f" {_shown(name, results)} is" if results[0].others else ""
            told = ", ".join(f"{peer} {ratio:.2f}x" for peer, ratio in ratios.items())
            paragraphs.append(
                f"How many times as fast{subject} as each peer and as each layer's {best}, geometric means: {told}."
            )
    if means["ratios"]:
        lost = [f"{result.workload} ({', '.join(result.lost)})" for result in results if result.lost]
        paragraphs.append(f"Lost twice in a row, by over {MARGIN:.0%}: {'; '.join(lost) or 'none'}.")
    for column, mean in means["shares"].items():
        worst = min(results, key=lambda result: result.shares[column])
        paragraphs.append(
            f"Share of the limit, {_shown(column, results)}: geometric mean {mean:.0%}, "
            f"worst {worst.shares[column]:.0%} ({worst.workload}, bound by {worst.limit.bound_by})."
        )
    errors = [f"{_shown(name, results)} {error:.1e}" for name, error in means["errors"].items() if name != "out="]
    if errors:
        paragraphs.append(f"Largest error as a share of the largest value, geometric means: {', '.join(errors)}.")
    medium = [name for name in ("pwconv", *results[0].others) if results[0].precision_of(name) == "medium"]
    for name in (*medium, *coarse):
        exact = sum(result.errors.get(name, math.inf) < FLOAT32_ERROR for result in results)
        if exact:
            paragraphs.append(
                f"{_shown(name, results)} computed float32 all the same on {exact} of {len(results)} layers."
            )
    wrong = [f"{', '.join(result.wrong)} on {result.workload}" for result in results if result.wrong]
    if wrong:
        paragraphs.append(f"Left out, since they compute something else: {'; '.join(wrong)}.")
    return [textwrap.fill(paragraph, terminal_width()) for paragraph in paragraphs]


def _shown(column: str, results: Sequence[Result]) -> str:
    """Return a column's name for readers: the first precision's own, if there are others."""
    return results[0].precision if column == "pwconv" and results[0].others else column


def _listed(names: Sequence[str]) -> str:
    *most, last = names or ["nobody"]
    return f"{', '.join(most)} and {last}" if most else last


# What it leaves behind ------------------------------------------------------------------------------------------------


def record(
    options: argparse.Namespace, machine: Machine, results: Sequence[Result], means: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that was measured, in what JSON can hold."""
    return {
        "pwconv": runtime.config(),
        "peers": {name: PEERS[name].version for name in options.peers},
        "options": {
            name: getattr(options, name) for name in ("layout", "threads", "isa", "precisions", "float32", "rounds")
        },
        "machine": {
            "peak_gflops": machine.peak,
            "levels": [
                level._asdict() | {"capacity": level.capacity if math.isfinite(level.capacity) else None}
                for level in machine.levels
            ],
        },
        "layers": [
            {
                **result.workload._asdict(),
                "gflops": result.gflops,
                "limit_gflops": result.workload.flops / result.limit.seconds * 1e-9,
                "bound_by": result.limit.bound_by,
                "shares": result.shares,
                "errors": result.errors,
                "ratios": result.ratios,
                "other_ratios": {name: result.ratios_of(name) for name in result.others},
                "lost": result.lost,
                "wrong": result.wrong,
                "seconds": {" ".join(contender).strip(): rounds for contender, rounds in result.seconds.items()},
            }
            for result in results
        ],
        "geometric_means": {**means, "other_ratios": other_ratios(results)},
    }


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
