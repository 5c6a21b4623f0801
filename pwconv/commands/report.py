"""The text of the benchmark: what it prints above its table, the table, and the conclusions below it."""

import argparse
import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pwconv import runtime
from pwconv.commands.limits import Level, Limit, Machine
from pwconv.commands.page import terminal_width
from pwconv.commands.peers import PEERS
from pwconv.commands.race import FLOAT32_ERROR, MARGIN, Result
from pwconv.commands.workloads import Workload


def introduction(options: argparse.Namespace, machine: Machine) -> list[str]:
    """Return the paragraphs above the table: the contenders, the machine, and the meaning of the columns."""
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
        f"{threads}, {options.layout}, {_what(options.layers)}, on {config['cpu']}, {config['platform']}, "
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


def _what(workloads: Sequence[Workload]) -> str:
    """Return what the layers compute."""
    plain = {workload.plain for workload in workloads}
    if plain == {True}:
        return "products alone"
    return "bias and ReLU included" + (" but in pictures" if True in plain else "")


class Table(NamedTuple):
    """The table of rates. With one precision its columns show shares of the limit, with several they show errors."""

    precisions: Sequence[str]
    peers: Sequence[str]
    tuned: bool = False

    def own(self) -> list[str]:
        """Return the headings of pwconv's columns."""
        if len(self.precisions) == 1:
            return ["pwconv", "limit", "out=", "limit"]
        return [heading for name in self.precisions for heading in (name, "error")]

    def heading(self) -> str:
        """Return the line of headings."""
        peers = (PEERS[name].heading for name in self.peers)
        return self.line("layer", [*self.own(), *peers, "ratio", *["tuned"] * self.tuned])

    def line(self, name: str, cells: Sequence[str]) -> str:
        """Return a line of the table; on a narrow terminal the name is on a line above."""
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
        gain: float | None = None,
    ) -> str:
        """Return the line of a layer; a dash stands for a peer that was left out, and for what was not tuned."""

        def rate(column: str) -> str:
            value = gflops.get(column)
            return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"

        if len(self.precisions) == 1:
            beside = {column: f"{share:.0%}" for column, share in shares.items()}
        else:
            beside = {column: f"{errors.get(column, 0.0):.0e}" for column in ("pwconv", *self.precisions[1:])}
        own = [cell for column, remark in beside.items() for cell in (rate(column), remark)]
        ratios = ["-" if times is None else f"{times:.2f}x" for times in (ratio, gain)[: 1 + self.tuned]]
        return self.line(name, [*own, *map(rate, self.peers), *ratios])


def geometric_means(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return geometric means over the layers: rates, shares and errors by column, ratios by peer and to the best."""
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


def mean_gain(results: Sequence[Result]) -> float | None:
    """Return how many times as fast tuned plans are, as a geometric mean; None if nothing was tuned."""
    gains = [result.tuned for result in results if result.tuned is not None]
    return statistics.geometric_mean(gains) if gains else None


def other_ratios(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return the mean ratios of all precisions but the first: to each peer and to the best of them."""
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
            listed = ", ".join(f"{peer} {ratio:.2f}x" for peer, ratio in ratios.items())
            paragraphs.append(
                f"How many times as fast{subject} as each peer and as each layer's {best}, geometric means: {listed}."
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
    gain = mean_gain(results)
    if gain is not None:
        most = max(results, key=lambda result: result.tuned or 1.0)
        paragraphs.append(
            f"With plans found by trying, pwconv is {gain:.3f} times as fast as with the cost model's (geometric mean; "
            f"most: {most.tuned:.2f}, {most.workload})."
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
    """Return the name of a column in text: "pwconv" is called by its precision if several precisions race."""
    return results[0].precision if column == "pwconv" and results[0].others else column


def _listed(names: Sequence[str]) -> str:
    *most, last = names or ["nobody"]
    return f"{', '.join(most)} and {last}" if most else last


def record(
    options: argparse.Namespace, machine: Machine, results: Sequence[Result], means: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that was measured, in types that JSON represents."""
    return {
        "pwconv": runtime.config(),
        "date": options.date,
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
                "tuned": result.tuned,
                "lost": result.lost,
                "wrong": result.wrong,
                "seconds": {" ".join(contender).strip(): rounds for contender, rounds in result.seconds.items()},
            }
            for result in results
        ],
        "geometric_means": {**means, "other_ratios": other_ratios(results), "tuned": mean_gain(results)},
    }


def restore(saved: Mapping[str, Any]) -> tuple[argparse.Namespace, Machine, list[Result]]:
    """Return what `record` was given, as far as the pictures need it: the options, the machine and the races.

    Raises KeyError, TypeError or ValueError where `saved` is no such record.
    """
    options = argparse.Namespace(
        **saved["options"], peers=[*saved["peers"]], cpu=saved["pwconv"]["cpu"], date=saved["date"]
    )
    unknown = {*options.peers} - {*PEERS}
    if unknown:
        raise ValueError(f"there is no peer {', '.join(sorted(unknown))}")
    levels = [
        Level(**level | {"capacity": math.inf if level["capacity"] is None else level["capacity"]})
        for level in saved["machine"]["levels"]
    ]
    machine = Machine(options.isa, options.threads, saved["machine"]["peak_gflops"], tuple(levels))
    results = []
    for layer in saved["layers"]:
        workload = Workload(**{name: layer[name] for name in Workload._fields if name in layer})
        results.append(
            Result(
                workload,
                Limit(workload.flops / layer["limit_gflops"] * 1e-9, layer["bound_by"]),
                {_contender(name): rounds for name, rounds in layer["seconds"].items()},
                tuple(layer["wrong"]),
                tuple(layer["lost"]),
                layer["errors"],
                options.precisions[0],
            )
        )
    if not results:
        raise ValueError("there is no layer")
    return options, machine, results


def _contender(name: str) -> tuple[str, str]:
    """Return column and way of what `record` wrote as one word or several."""
    column, _, way = name.partition(" ")
    return column, way
