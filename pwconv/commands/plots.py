"""The pictures of the benchmark, drawn with matplotlib.

A figure is 9 inches wide and saved with 160 dots an inch, 1,440 pixels. Where a page shows 900 of them, text of 7.5
points is 10 pixels high.
"""

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pwconv.commands.limits import Machine
from pwconv.commands.peers import PEERS
from pwconv.commands.race import Result

WIDTH, DPI = 9.0, 160
SMALL = 7.5

# Colours that colour-blind eyes tell apart (Okabe and Ito, 2008): warm ones for pwconv, cold ones for peers.
STYLES = {
    "highest": ("o", "#D55E00"),
    "high": ("o", "#CC79A7"),
    "medium": ("o", "#E69F00"),
    "numpy": ("s", "#0072B2"),
    "torch": ("D", "#009E73"),
    "torch-bf16": ("^", "#000000"),
    "onnxruntime": ("v", "#56B4E9"),
    "mkl": ("P", "#999999"),
    "opencv": ("X", "#332288"),
}


def roofline_path(path: Path) -> Path:
    """Return where the roofline goes that is drawn beside the bars in `path`: chart.png has chart.roofline.png."""
    return path.with_suffix(f".roofline{path.suffix}")


def draw_bars(options: argparse.Namespace, results: Sequence[Result], path: Path) -> None:
    """Draw every contender's GFLOP/s as bars, one group a layer, with the limit; and pwconv's ratios to its peers.

    Pictures, whose limits differ by more than bars can show, have shares of the limit in place of GFLOP/s.
    """
    from matplotlib.figure import Figure

    columns = ["pwconv", *results[0].others, *(name for name in options.peers)]
    pictures = all(result.workload.plain for result in results)
    limits = [result.workload.flops / result.limit.seconds * 1e-9 for result in results]
    units = [limit / 100 if pictures else 1.0 for limit in limits]
    thickness = 0.84 / len(columns)
    rows = range(len(results))
    figure = Figure(figsize=(WIDTH, 1.5 + len(results) * max(0.36, 0.1 * len(columns))), layout="constrained")
    rates, ratios = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for place, column in enumerate(columns):
        name = options.precisions[0] if column == "pwconv" else column
        marker, colour = STYLES[name]
        offset = (place - (len(columns) - 1) / 2) * thickness
        rates.barh(
            [row + offset for row in rows],
            [result.gflops.get(column, 0.0) / unit for result, unit in zip(results, units, strict=True)],
            thickness,
            color=colour,
            label=_label(name, options),
            zorder=2,
        )
        if column in options.peers:
            # A peer that may multiply bfloat16 is compared with the first precision that does so.
            points = [(ratio, row) for row, ratio in enumerate(_ratios(results, column)) if ratio is not None]
            if points:
                style: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.5}
                ratios.plot(*zip(*points, strict=True), marker, color=colour, zorder=3, **style)
    limits = [limit / unit for limit, unit in zip(limits, units, strict=True)]
    edges = [row - 0.46 for row in rows], [row + 0.46 for row in rows]
    rates.vlines(limits, *edges, color="black", linewidth=1.5, label="limit of FMAs or bandwidths", zorder=3)
    rates.set(xlim=(0, 1.04 * max(*limits, *rates.get_xlim())))
    unit = "% of the limit" if pictures else "GFLOP/s"
    rates.set_xlabel(f"{unit} (longer is faster)", fontsize=SMALL)
    rates.set_yticks(rows, [_described(result) for result in results], fontsize=SMALL)
    rates.set_ylim(len(results) - 0.4, -0.6)
    rates.grid(axis="x", color="0.9")
    ratios.set_xscale("log")
    ratios.set_xlabel("times as fast as the peer", fontsize=SMALL)
    ratios.axvline(1, color="black", linewidth=1)
    low, high = ratios.get_xlim()
    ratios.set_xlim(min(low, 0.8), max(high, 2.2))
    _number(ratios.xaxis)
    ratios.grid(axis="x", color="0.9")
    for axes in (rates, ratios):
        axes.tick_params(axis="both", length=0)
        axes.tick_params(axis="x", labelsize=SMALL)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.hlines([row + 0.5 for row in rows[:-1]], 0, 1, transform=axes.get_yaxis_transform(), color="0.9", lw=0.5)
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(
        handles[1:] + handles[:1],  # the limit, a collection of lines, comes first by itself
        labels[1:] + labels[:1],
        title=f"{'Pictures and rasters' if pictures else '1x1 layers with bias and ReLU'}: {_circumstances(options)}",
        title_fontsize=9,
        loc="outside upper center",
        ncols=len(columns) + 1,
        fontsize=SMALL,
        frameon=False,
    )
    figure.savefig(path, dpi=DPI)


def _label(name: str, options: argparse.Namespace) -> str:
    """Return a contender's name for the legend."""
    if name in PEERS:
        return f"{name} (product alone)" if PEERS[name].bare else name
    return "pwconv" if options.precisions == ["highest"] else f"pwconv {name}"


def _ratios(results: Sequence[Result], peer: str) -> list[float | None]:
    """Return the ratio of each layer to a peer, of the first precision that is compared with that peer."""
    columns = ("pwconv", *results[0].others)
    found = ([result.ratios_of(column).get(peer) for column in columns] for result in results)
    return [next((ratio for ratio in ratios if ratio is not None), None) for ratios in found]


def _described(result: Result) -> str:
    workload = result.workload
    images = f"{workload.images} x " if workload.images > 1 else ""
    stride = f", stride {workload.stride}" if workload.stride > 1 else ""
    if workload.plain:  # the name has channels and types
        return f"{workload.name} on {workload.height}x{workload.width}"
    size = f"{workload.height}x{workload.width}"
    return f"{workload}\n{images}{size}, {workload.in_channels} to {workload.out_channels}{stride}"


def draw_roofline(options: argparse.Namespace, machine: Machine, results: Sequence[Result], path: Path) -> None:
    """Draw what the machine allows for so many operations a byte, and where the layers lie below it."""
    from matplotlib.figure import Figure

    def intensity(result: Result) -> float:
        workload = result.workload
        return workload.flops / (workload.bytes_read(options.layout) + workload.bytes_written)

    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    axes = figure.subplots(subplot_kw={"xscale": "log", "yscale": "log"})
    x = [intensity(result) for result in results]
    own = [result.gflops["pwconv"] for result in results]
    best = [_fastest_peer(result) for result in results]
    left, right = min(x) / 1.5, max(x) * 1.5
    bottom = min(rate for rate in own + best if rate == rate) / 1.6
    axes.set(
        xlim=(left, right),
        ylim=(bottom, machine.peak * 1.3),
    )
    axes.set_title(f"Roofline of 1x1 layers: {_circumstances(options)}", fontsize=9)
    axes.set_xlabel("operations for each byte of input, weights and result (FLOP/byte)", fontsize=SMALL)
    axes.set_ylabel("GFLOP/s", fontsize=SMALL)
    lines = [([left, right], [machine.peak] * 2)]
    axes.plot(*lines[0], color="black", linewidth=1.5)
    notes = [
        axes.annotate(f"FMA peak, {machine.peak:.0f} GFLOP/s", (right, machine.peak), (-4, 4), **_NOTE, ha="right")
    ]
    for level in machine.levels:
        start, corner = max(left, bottom / level.read), machine.peak / level.read
        if corner > left:
            lines.append(([start, corner], [level.read * start, machine.peak]))
            axes.plot(*lines[-1], "--", color="0.5", linewidth=1)
            # The lowest line may lie closely below the next one: its name is on the other side.
            lowest = level.read == min(level.read for level in machine.levels)
            offset, side = ((16, 0), "top") if lowest else ((4, 14), "baseline")
            along: dict[str, Any] = {
                "rotation": 45,
                "rotation_mode": "anchor",
                "transform_rotates_text": True,
                "color": "0.4",
            }
            text = f"{level.name}, {level.read:.0f} GB/s"
            notes.append(axes.annotate(text, (start, level.read * start), offset, **_NOTE, **along, va=side))
    marker, colour = STYLES[options.precisions[0]]
    axes.vlines(x, own, best, color="0.6", linewidth=1)
    axes.plot(x, best, "o", color=STYLES["numpy"][1], markersize=5, markerfacecolor="white", label="fastest peer")
    axes.plot(x, own, marker, color=colour, markersize=5, label=_label(options.precisions[0], options))
    _number(axes.xaxis)
    _number(axes.yaxis)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=SMALL, frameon=False)
    names = [str(result.workload) for result in results]
    if len(results) > MOST_NAMES:
        listed = "\n".join(f"{number}  {name}" for number, name in enumerate(names, 1))
        axes.annotate(listed, (1.01, 0.5), xycoords="axes fraction", va="center", fontsize=SMALL - 0.5, linespacing=1.1)
        names = [str(number) for number in range(1, len(names) + 1)]
    lines += [([at, at], ends) for at, *ends in zip(x, own, best, strict=True)]
    figure.draw_without_rendering()  # from here on, points have their places in pixels
    _name_points(axes, list(zip(names, x, own, strict=True)), list(zip(x, best, strict=True)), lines, notes)
    figure.savefig(path, dpi=DPI)


# So many points of a roofline have their names beside them; more are numbered.
MOST_NAMES = 18
_NOTE: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL}


def _fastest_peer(result: Result) -> float:
    """Return the GFLOP/s of the fastest float32 peer; NaN if there is none."""
    return max((result.gflops[name] for name in result.ratios if not PEERS[name].coarse), default=math.nan)


def _name_points(
    axes: Any,
    points: Sequence[tuple[str, float, float]],
    others: Sequence[tuple[float, float]],
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    notes: Sequence[Any],
) -> None:
    """Write each point's name as near to the point as it covers nothing, with a line to the point where that is far.

    The name keeps clear of all points, of the `others`, of the `lines`, each from one point to another, of the `notes`
    and of the names before it. Places around the point are tried, the nearest first.
    """
    pixels = axes.figure.dpi / 72  # of a point of the typographer's

    def around(x: float, y: float, half: float) -> tuple[float, float, float, float]:
        return x - half * pixels, y - half * pixels, x + half * pixels, y + half * pixels

    places = [(x, y) for _, x, y in points] + [(x, y) for x, y in others if not math.isnan(y)]
    marks = axes.transData.transform(places)
    taken = [around(x, y, 4) for x, y in marks]
    for ends in lines:
        (x0, y0), (x1, y1) = axes.transData.transform(list(zip(*ends, strict=True)))
        if not math.isnan(y1):
            steps = 1 + int(math.hypot(x1 - x0, y1 - y0) / (3 * pixels))
            shares = [step / steps for step in range(steps + 1)]
            taken += [around(x0 + share * (x1 - x0), y0 + share * (y1 - y0), 0.5) for share in shares]
    taken += [tuple(note.get_window_extent().extents) for note in notes]
    left, bottom, right, top = axes.get_window_extent().padded(-3 * pixels).extents
    for name, *point in sorted(points, key=lambda point: point[1:]):
        text = axes.annotate(name, point, (0, 0), **_NOTE, ha="center", va="center")
        box = text.get_window_extent()
        half_width, half_height = box.width / 2 + pixels, box.height / 2
        centre = axes.transData.transform(point)
        for away, angle in _places():
            across = math.cos(angle) * (away * pixels + half_width)
            up = math.sin(angle) * (away * pixels + half_height)
            edges = (
                centre[0] + across - half_width,
                centre[1] + up - half_height,
                centre[0] + across + half_width,
                centre[1] + up + half_height,
            )
            inside = edges[0] > left and edges[1] > bottom and edges[2] < right and edges[3] < top
            if inside and not any(_overlap(edges, other) for other in taken):
                break
        taken.append(edges)
        place = across / pixels, up / pixels
        text.set_position(place)
        if away > FAR:
            arrow = {"arrowstyle": "-", "color": "0.5", "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, place, textcoords="offset points", arrowprops=arrow, zorder=1)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})


# In points: a name farther than that from its point has a line to it.
FAR = 11


def _places() -> Iterable[tuple[float, float]]:
    """Yield distances in points and angles: the nearest first, and to the sides before above and below."""
    for away in range(7, 240, 4):
        for angle in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90):
            yield away, math.radians(angle)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Do two rectangles (left, bottom, right, top) share a point?"""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_errors(options: argparse.Namespace, machine: Machine, results: Sequence[Result], path: Path) -> None:
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
    figure.savefig(path, dpi=DPI)


def _circumstances(options: argparse.Namespace) -> str:
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    return f"{options.layout}, {threads}, {options.isa}, {options.cpu}, {options.date}"


def _number(axis: Any) -> None:
    """Write 1, 2 and 5 times powers of ten beside a logarithmic axis, and more where it is short, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
