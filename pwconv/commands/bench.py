"""The benchmark command: pwconv and its peers on the layers of published networks, beside the machine's limits."""

import argparse
import datetime
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pwconv import runtime
from pwconv.arguments import PRECISIONS
from pwconv.commands.limits import Machine, measure
from pwconv.commands.peers import PEERS, Operands
from pwconv.commands.plots import draw_bars, draw_errors, draw_roofline, roofline_path
from pwconv.commands.race import Result, compete, elsewhere, tuned
from pwconv.commands.report import Table, conclusion, geometric_means, introduction, mean_gain, record, restore
from pwconv.commands.workloads import LAYOUTS, NETWORKS, select


def main(argv: Sequence[str]) -> int:
    """Run ``python -m pwconv bench`` with these arguments and return the exit status of the process."""
    if runtime.resolve_backend("auto") != "native":
        print("There is nothing to race: pwconv computes with NumPy here, without its engine.", file=sys.stderr)
        return 1
    options = parse(argv)
    if options.replot:
        draw(options, *options.saved)
        return 0
    try:
        status = elsewhere([sys.executable, "-m", "pwconv", "bench", *argv], options.threads, options.isa)
        if status is None:
            run(options)
        return status or 0
    except KeyboardInterrupt:
        return 130


# Options --------------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options: `layers` are workloads, `peers` names, and `without` says why other peers are left out.

    `float32` are those of the requested precisions that compute in float32 here; only the first of them stays in
    `precisions`.
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
        help="parts of their names, like resnet50 or 'c?.reduce', 'pictures' for photographs and rasters, 'shapes' for "
        "other shapes that are in no network, or shapes of your own: NxHxWxCxC_OUT, with /STRIDE if it is not 1 "
        "(default: all layers of the networks)",
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
    add(
        "--tune",
        type=_positive,
        default=0,
        metavar="SECONDS",
        help="look so long for a faster plan of each layer, and race it beside the cost model's",
    )
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw bars of GFLOP/s and ratios into this file, like chart.png, and a roofline into chart.roofline.png "
        "(needs matplotlib)",
    )
    add("--plot-errors", type=Path, metavar="FILE", help="draw errors against times (needs matplotlib)")
    add(
        "--replot",
        type=Path,
        metavar="JSON",
        help="race nothing: draw what an earlier --json kept, into the files of --plot and --plot-errors",
    )
    options = parser.parse_args(argv)
    options.cpu, options.date = runtime.config()["cpu"], datetime.date.today().isoformat()

    if not options.precisions:
        parser.error("argument --precision: name at least one")
    for name in options.precisions:
        if name not in PRECISIONS:
            parser.error(f"argument --precision: there is no {name!r}, but {', '.join(PRECISIONS)}")
    kernel_sets = runtime.engine.isa_kernel_sets(options.isa)
    chosen = list(dict.fromkeys(options.precisions))
    options.float32 = [name for name in chosen if kernel_sets[name] == kernel_sets["highest"]]
    options.precisions = [name for name in chosen if name not in options.float32[1:]]

    try:
        options.layers = NETWORKS if options.layers is None else select(options.layers)
    except ValueError as error:
        parser.error(f"argument --layers: {error}")
    pictures = any(workload.plain for workload in options.layers)
    obstacles = {
        name: peer.obstacle(options.layout, options.isa != supported[-1], pictures) for name, peer in PEERS.items()
    }
    all_float32 = {*options.precisions} <= {*options.float32}
    uncalled = [name for name, peer in PEERS.items() if peer.coarse and all_float32]
    obstacles |= dict.fromkeys(uncalled, "races beside a --precision that multiplies bfloat16 here")
    uncalled += [name for name, peer in PEERS.items() if peer.pictures and not pictures]
    for name in options.peers or ():
        if name not in PEERS:
            parser.error(f"argument --peers: there is no {name!r}, but {', '.join(PEERS)}")
        if obstacles[name]:
            parser.error(f"argument --peers: {name} {obstacles[name]}")
    options.without = {}
    if options.peers is None:
        options.peers = [name for name in PEERS if not obstacles[name]]
        options.without = {name: obstacle for name, obstacle in obstacles.items() if obstacle and name not in uncalled}
    for path in (options.json, options.plot, options.plot_errors):
        if path and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent} to write to")
    for option, path in (("--plot", options.plot), ("--plot-errors", options.plot_errors)):
        if path and not importlib.util.find_spec("matplotlib"):
            parser.error(f"argument {option}: matplotlib is not installed (pip install matplotlib)")
    if options.replot:
        if not (options.plot or options.plot_errors):
            parser.error("argument --replot: name a picture, by --plot or --plot-errors")
        try:
            options.saved = restore(json.loads(options.replot.read_text(encoding="utf-8")))
        except OSError as error:
            parser.error(f"argument --replot: {error}")
        except (KeyError, TypeError, ValueError) as error:
            parser.error(f"argument --replot: {options.replot} is not what --json writes: {error!r}")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# The race -------------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Race, print the report and write files; the environment is that of `race_environment`."""
    _progress("measuring the limits of the machine")
    machine = measure(options.isa, options.threads)
    _progress()
    print("\n\n".join(introduction(options, machine)))
    print()
    table = Table(options.precisions, options.peers, options.tune > 0)
    print(table.heading())
    results = []
    for number, workload in enumerate(options.layers, 1):
        _progress(f"{number} of {len(options.layers)}: {workload}")
        operands = Operands(workload, options.layout, options.precisions)
        result = compete(operands, options.peers, machine, rounds=options.rounds)
        if options.tune:
            result = replace(result, tuned=tuned(operands, options.tune))
        results.append(result)
        _progress()
        figures = (result.gflops, result.shares, result.errors, result.ratio(), result.tuned)
        print(table.figures(str(workload), *figures), flush=True)
    means = geometric_means(results)
    figures = (means["gflops"], means["shares"], means["errors"], means["ratios"].get("best"), mean_gain(results))
    print(table.figures("geometric mean", *figures))
    print()
    print("\n".join(conclusion(results, means)))
    if options.json:
        options.json.write_text(json.dumps(record(options, machine, results, means), indent=1) + "\n")
    draw(options, options, machine, results)


def draw(files: argparse.Namespace, options: argparse.Namespace, machine: Machine, results: Sequence[Result]) -> None:
    """Draw the pictures that `files` names of a race that had these `options`."""
    if files.plot:
        draw_bars(options, results, files.plot)
        draw_roofline(options, machine, results, roofline_path(files.plot))
    if files.plot_errors:
        draw_errors(options, machine, results, files.plot_errors)


def _progress(text: str = "") -> None:
    """Show a line on a terminal until the next call replaces it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
