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
from typing import Any

from pwconv import runtime
from pwconv._limits import Machine, measure
from pwconv._race import LAYOUTS, MARGIN, NETWORKS, PEERS, Operands, Result, compete, elsewhere, select
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
    """Return the options; `layers` are workloads, `peers` names, `without` says why the other peers do not race."""
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
    add("--precision", choices=("highest", "high", "medium"), default="highest", help="of pwconv (default: highest)")
    add("--rounds", type=_positive, default=7, metavar="N", help="whose median counts (default: 7)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--plot", type=Path, metavar="FILE", help="draw a roofline with the layers on it (needs matplotlib)")
    options = parser.parse_args(argv)

    obstacles = {name: peer.obstacle(options.layout, options.isa != supported[-1]) for name, peer in PEERS.items()}
    for name in options.peers or ():
        if name not in PEERS:
            parser.error(f"argument --peers: there is no {name!r}, but {', '.join(PEERS)}")
        if obstacles[name]:
            parser.error(f"argument --peers: {name} {obstacles[name]}")
    options.without = {}
    if options.peers is None:
        options.peers = [name for name in PEERS if not obstacles[name]]
        options.without = {name: obstacle for name, obstacle in obstacles.items() if obstacle}
    try:
        options.layers = NETWORKS if options.layers is None else select(options.layers)
    except ValueError as error:
        parser.error(f"argument --layers: {error}")
    for path in (options.json, options.plot):
        if path and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent} to write to")
    if options.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("argument --plot: matplotlib is not installed (pip install matplotlib)")
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
    headings = [PEERS[name].heading for name in options.peers]
    print(line("layer", ["pwconv", "limit", "out=", "limit", *headings, "ratio"]))
    results = []
    for number, workload in enumerate(options.layers, 1):
        _progress(f"{number} of {len(options.layers)}: {workload}")
        operands = Operands(workload, options.layout, options.precision)
        results.append(result := compete(operands, options.peers, machine, rounds=options.rounds))
        _progress()
        print(figures(str(workload), options.peers, result.gflops, result.shares, result.ratio()), flush=True)
    means = geometric_means(results)
    best = means["ratios"].get("best")
    print(figures("geometric mean", options.peers, means["gflops"], means["shares"], best))
    print()
    print("\n".join(conclusion(results, means)))
    if options.json:
        options.json.write_text(json.dumps(record(options, machine, results, means), indent=1) + "\n")
    if options.plot:
        draw_roofline(options, machine, results)


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
    paragraphs = [
        f"pwconv {config['version']} ({options.isa}, {options.precision} precision) against {peers}, {threads}, "
        f"{options.layout}, bias and ReLU included, on {config['cpu']}, {config['platform']}, {config['python']}. "
        "Machines differ: these figures are for this one, now.",
        f"Measured just before: {machine.peak:.0f} GFLOP/s of float32 FMAs; to read/write/copy "
        f"{', '.join(bandwidths)} GB/s.",
        f"GFLOP/s, medians of {options.rounds} rounds in rotating order. limit: the share of what FMAs and bandwidths "
        "allow. out=: into a given buffer. ratio: how many times as fast as the best peer.",
    ]
    if bare:
        paragraphs[-1] += f" {_listed(bare)}: neither bias nor ReLU, and a given buffer, so compared with out=."
    if options.without:
        paragraphs.append(" ".join(f"Without {name}: it {obstacle}." for name, obstacle in options.without.items()))
    return [textwrap.fill(paragraph, terminal_width()) for paragraph in paragraphs]


def line(name: str, cells: Sequence[str]) -> str:
    """Return a line of the table; on a narrow terminal the name has one of its own."""
    row = "".join(f"{cell:>{6 if 0 < i < 4 else 7}}" for i, cell in enumerate(cells))
    return f"{name:<25}{row}" if 25 + len(row) <= terminal_width() else f"{name}\n{row}"


def figures(
    name: str, peers: Sequence[str], gflops: Mapping[str, float], shares: Mapping[str, float], ratio: float | None
) -> str:
    """Return a line of the table from its figures; there are none of a peer that was left out."""

    def rate(column: str) -> str:
        value = gflops.get(column)
        return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"

    own = [cell for column, share in shares.items() for cell in (rate(column), f"{share:.0%}")]
    return line(name, [*own, *map(rate, peers), "-" if ratio is None else f"{ratio:.2f}x"])


def geometric_means(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return the means over the layers: rates and shares by column, ratios by peer and to the best on each layer."""

    def means(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
        columns: dict[str, list[float]] = {}
        for name, value in itertools.chain.from_iterable(row.items() for row in rows):
            if value is not None:
                columns.setdefault(name, []).append(value)
        return {name: statistics.geometric_mean(values) for name, values in columns.items()}

    return {
        "gflops": means(result.gflops for result in results),
        "shares": means(result.shares for result in results),
        "errors": means({name: error or None for name, error in result.errors.items()} for result in results),
        "ratios": means(
            {**result.ratios, "best framework": result.ratio(bare=False), "best": result.ratio()} for result in results
        ),
    }


def conclusion(results: Sequence[Result], means: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the lines below the table."""
    paragraphs = []
    if means["ratios"]:
        ratios = [f"{name} {ratio:.2f}x" for name, ratio in means["ratios"].items()]
        lost = [f"{result.workload} ({', '.join(result.lost)})" for result in results if result.lost]
        paragraphs += [
            f"How many times as fast as each peer and as each layer's best, geometric means: {', '.join(ratios)}.",
            f"Lost twice in a row, by over {MARGIN:.0%}: {'; '.join(lost) or 'none'}.",
        ]
    for column, mean in means["shares"].items():
        worst = min(results, key=lambda result: result.shares[column])
        paragraphs.append(
            f"Share of the limit, {column}: geometric mean {mean:.0%}, worst {worst.shares[column]:.0%} "
            f"({worst.workload}, bound by {worst.limit.bound_by})."
        )
    errors = [f"{name} {error:.1e}" for name, error in means["errors"].items() if name != "out="]
    if errors:
        paragraphs.append(f"Largest error as a share of the largest value, geometric means: {', '.join(errors)}.")
    wrong = [f"{', '.join(result.wrong)} on {result.workload}" for result in results if result.wrong]
    if wrong:
        paragraphs.append(f"Left out, since they compute something else: {'; '.join(wrong)}.")
    return [textwrap.fill(paragraph, terminal_width()) for paragraph in paragraphs]


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
        "options": {name: getattr(options, name) for name in ("layout", "threads", "isa", "precision", "rounds")},
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
                "lost": result.lost,
                "wrong": result.wrong,
                "seconds": {" ".join(contender).strip(): rounds for contender, rounds in result.seconds.items()},
            }
            for result in results
        ],
        "geometric_means": means,
    }


def draw_roofline(options: argparse.Namespace, machine: Machine, results: Sequence[Result]) -> None:
    """Draw what the machine allows for so many operations a byte, and where the layers lie below it."""
    from matplotlib.figure import Figure

    def intensity(result: Result) -> float:
        workload = result.workload
        return workload.flops / (workload.bytes_read(options.layout) + workload.bytes_written)

    figure = Figure(figsize=(15, 7), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=[3, 1], subplot_kw={"xscale": "log", "yscale": "log"})
    draw_errors(beside, geometric_means(results))
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
        best = [max((result.gflops[name] for name in result.ratios), default=math.nan) for result in layers]
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
        title=f"pwconv (filled), best peer (hollow): {options.layout}, {options.isa}, threads: {options.threads}",
    )
    figure.legend(loc="outside right center")
    figure.savefig(options.plot, dpi=150)


def draw_errors(axes: Any, means: Mapping[str, Mapping[str, float]]) -> None:
    """Draw how exact pwconv and its peers are against how fast: geometric means over the layers."""
    for name, error in means["errors"].items():
        axes.plot(means["gflops"][name], error, "o")
        axes.annotate(name, (means["gflops"][name], error), (4, 4), textcoords="offset points")
    axes.set(xlabel="GFLOP/s", ylabel="largest error, as a share of the largest value", title="error against speed")
