"""The demo: two uses of pointwise convolutions, on inputs with known results: ``python -m pwconv demo [IMAGE]``.

All work goes through the public interface. NumPy is enough; a picture needs Pillow, and scikit-image's need that too.
"""

import math
import os
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pwconv
from pwconv.commands.page import duration, heading, say, table, terminal_width
from pwconv.commands.race import race

# ---- checks

ROUNDS = 3


class Check(NamedTuple):
    """A layer against NumPy: the seconds of a call by name, and the largest error as a share of the largest value."""

    layer: str
    seconds: dict[str, float]
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def _both_layouts(name: str, make_layer: Callable[..., pwconv.PointwiseConv], x: np.ndarray) -> list[Check]:
    """Check `make_layer(layout=...)` on the map `x` (N, C, H, W) and on the same map with its channels last."""
    checks = []
    for layout, axes in {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}.items():
        layer, numpy_layer = make_layer(layout=layout), make_layer(layout=layout, backend="numpy")
        map_ = np.ascontiguousarray(x.transpose(axes))
        # NumPy's BLAS uses all CPUs, whatever the number of our threads.
        seconds = race(
            {"pwconv": partial(layer, map_), "NumPy": partial(numpy_layer, map_)},
            rounds=ROUNDS,
            threads=os.cpu_count() or 1,
        )
        checks.append(
            Check(
                f"{name}  {layout}",
                {contender: statistics.median(rounds) for contender, rounds in seconds.items()},
                pwconv.verify(layer, map_).relative_error,
                # the error of a float32 sum of K products is about sqrt(K) roundings of 6e-8 each
                1e-7 * (4 * math.sqrt(layer.in_channels) + 8),
            )
        )
    return checks


def _show_checks(checks: Iterable[Check]) -> None:
    table(
        [
            {
                "layer": check.layer,
                **{contender: duration(seconds) for contender, seconds in check.seconds.items()},
                "ratio": f"{check.seconds['NumPy'] / check.seconds['pwconv']:.2f}",
                "error": f"{check.error:.0e}",
                "check": "ok" if check.passed else "WRONG",
            }
            for check in checks
        ]
    )


def nearest_prototype(prototypes: np.ndarray, **options: Any) -> pwconv.PointwiseConv:
    """A linear classifier whose largest score belongs to the prototype, a row of (classes, C), nearest to the pixel.

    |x - p|^2 = |x|^2 - 2 (p.x - |p|^2 / 2), and |x|^2 is the same for every class.
    """
    return pwconv.PointwiseConv(prototypes, -0.5 * (prototypes**2).sum(axis=1), **options)


# ---- use 1: a classifier for every pixel


def made_scene(
    rng: np.random.Generator, *, classes: int, channels: int, size: int, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make patches of known classes; each pixel is the prototype of its class plus noise.

    Returns x (1, channels, size, size), the true labels (size, size) and the prototypes (classes, channels).
    """
    prototypes = rng.standard_normal((classes, channels), dtype=np.float32)
    centres = size * rng.random((2, 3 * classes, 1, 1))
    row, column = np.indices((size, size))
    truth = np.hypot(row - centres[0], column - centres[1]).argmin(axis=0) % classes
    x = noise * rng.standard_normal((1, channels, size, size), dtype=np.float32)
    x += np.moveaxis(prototypes[truth], -1, 0)
    return x, truth, prototypes


def _drawing(labels: np.ndarray, rows: int, columns: int) -> str:
    """Draw a sample of a label map with one letter per class."""
    height, width = labels.shape
    sample = labels[np.ix_(np.arange(rows) * height // rows, np.arange(columns) * width // columns)]
    return "\n".join("".join(chr(ord("a") + label) for label in line) for line in sample)


def _pixel_classifier(rng: np.random.Generator) -> tuple[list[Check], bool]:
    classes, channels, size, noise = 21, 256, 128, 3
    x, truth, prototypes = made_scene(rng, classes=classes, channels=channels, size=size, noise=noise)
    labels = nearest_prototype(prototypes)(x)[0].argmax(axis=0)
    right = np.count_nonzero(labels == truth)

    heading("1  A classifier for every pixel")
    say(
        f"A score layer, {channels} channels to {classes} classes, on a made scene of {size}x{size} pixels whose truth"
        f" is known and whose noise is {noise} times the signal in every single channel. A pixel's label, here a"
        f" letter, is the class of its largest score: {right:,} of {truth.size:,} are right ({right / truth.size:.2%})."
    )
    print(textwrap.indent(_drawing(labels, 12, min(64, terminal_width() - 2)), "  "), end="\n\n")
    checks = _both_layouts(f"{channels} -> {classes}  {size}x{size}", partial(nearest_prototype, prototypes), x)
    _show_checks(checks)
    return checks, bool(right > 0.99 * truth.size)


# ---- use 2: fewer channels


class Conv(NamedTuple):
    """A convolution that keeps the size of its map."""

    in_channels: int
    out_channels: int
    kernel: int = 1


class Stage(NamedTuple):
    """A 3x3 layer on maps of `size` x `size`: alone, and with 1x1 layers before and after it."""

    size: int
    plain: tuple[Conv, ...]
    reduced: tuple[Conv, ...]


STAGES = (
    Stage(56, (Conv(128, 128, 3),), (Conv(128, 10), Conv(10, 128, 3))),
    Stage(56, (Conv(256, 256, 3),), (Conv(256, 64), Conv(64, 64, 3), Conv(64, 256))),
    Stage(7, (Conv(128, 128, 3),), (Conv(128, 10), Conv(10, 128, 3))),
)


class Cost(NamedTuple):
    """The cost of a sequence of convolutions; `activations` are the elements that its 3x3 layer reads."""

    multiply_adds: int
    weights: int
    activations: int


def cost(size: int, path: tuple[Conv, ...]) -> Cost:
    """The cost of `path` on maps of `size` x `size`."""
    weights = sum(conv.in_channels * conv.out_channels * conv.kernel**2 for conv in path)
    activations = sum(size**2 * conv.in_channels for conv in path if conv.kernel > 1)
    return Cost(size**2 * weights, weights, activations)


def _costs(stage: Stage) -> list[dict[str, str]]:
    def name(path: tuple[Conv, ...]) -> str:
        steps = [f" -> {conv.out_channels}" if conv.kernel == 1 else f" -> 3x3 -> {conv.out_channels}" for conv in path]
        return f"{stage.size}x{stage.size}x{path[0].in_channels}" + "".join(steps)

    plain, reduced = cost(stage.size, stage.plain), cost(stage.size, stage.reduced)
    lines = {
        name(stage.plain): [f"{count:,}" for count in plain],
        name(stage.reduced): [f"{count:,}" for count in reduced],
        "  saves": [f"{1 - after / before:.0%}" for before, after in zip(plain, reduced, strict=True)],
    }
    columns = [field.replace("_", "-") for field in Cost._fields]
    return [{"path": line, **dict(zip(columns, counts, strict=True))} for line, counts in lines.items()]


def _channel_reduction(rng: np.random.Generator) -> list[Check]:
    early, late = STAGES[0], STAGES[-1]
    saved = {
        stage: cost(stage.size, stage.plain).activations - cost(stage.size, stage.reduced).activations
        for stage in (early, late)
    }

    heading("2  Fewer channels before a costly layer")
    say(
        "A 1x1 layer in front of a 3x3 layer thins the map that this has to read (its activations); in a ResNet"
        " bottleneck a second one widens the map again."
    )
    table(*(_costs(stage) for stage in STAGES))
    say(
        f"Where it saves little: on the late {late.size}x{late.size} map the shares are the same, yet {saved[late]:,}"
        f" activations are saved in place of {saved[early]:,}. The small map was cheap before."
    )
    checks = []
    for stage in STAGES:
        for conv in stage.reduced:
            if conv.kernel == 1:
                x = rng.standard_normal((1, conv.in_channels, stage.size, stage.size), dtype=np.float32)
                weight = rng.standard_normal((conv.out_channels, conv.in_channels), dtype=np.float32)
                bias = rng.standard_normal(conv.out_channels, dtype=np.float32)
                checks += _both_layouts(
                    f"{conv.in_channels} -> {conv.out_channels}  {stage.size}x{stage.size}",
                    partial(pwconv.PointwiseConv, weight, bias, activation="relu"),
                    x,
                )
    _show_checks(checks)
    return checks


# ---- both uses on a picture


def find_colours(pixels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Find at most `count` representative colours of the `pixels` (P, 3) by k-means."""
    colours = rng.choice(pixels, 1)
    while len(colours) < count:
        distance = ((pixels[:, None] - colours) ** 2).sum(axis=-1, dtype=np.float64).min(axis=1)
        if not distance.any():
            break
        colours = np.vstack([colours, rng.choice(pixels, 1, p=distance / distance.sum())])
    for _ in range(20):
        labels = nearest_prototype(colours, layout="NC")(pixels).argmax(axis=1)
        colours = np.stack([pixels[labels == k].mean(axis=0) for k in np.unique(labels)])
    return colours


def principal_components(samples: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean (C,) of the `samples` (P, C), and the `count` directions (count, C) along which they vary most."""
    mean = samples.mean(axis=0, dtype=np.float64)
    centred = samples - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    return mean.astype(np.float32), directions[:, : -count - 1 : -1].T.astype(np.float32)


def to_blocks(picture: np.ndarray, edge: int) -> np.ndarray:
    """A picture (H, W, C) as a map of blocks (H / edge, W / edge, edge * edge * C)."""
    height, width, channels = picture.shape
    blocks = picture.reshape(height // edge, edge, width // edge, edge, channels).swapaxes(1, 2)
    return blocks.reshape(height // edge, width // edge, edge * edge * channels)


def from_blocks(blocks: np.ndarray, edge: int) -> np.ndarray:
    """The picture of which `to_blocks` made `blocks`."""
    rows, columns, channels = blocks.shape
    picture = blocks.reshape(rows, columns, edge, edge, channels // edge**2).swapaxes(1, 2)
    return picture.reshape(rows * edge, columns * edge, channels // edge**2)


def read_picture(image: str) -> tuple[np.ndarray, Path]:
    """A picture as float32 (H, W, 3) between 0 and 1, and the path beside which files about it are written.

    `image` is a file, or "skimage:coffee" for the photograph of scikit-image that is called coffee; files about that
    are written to the current folder. Raises OSError where there is no such picture, ImportError without Pillow or
    scikit-image.
    """
    from PIL import Image, ImageOps

    source, _, name = image.partition(":")
    if source == "skimage":
        from skimage import data

        if name not in data.__all__:
            raise OSError(f"scikit-image has no picture called {name!r}")
        path, opened = Path(name), Image.fromarray(getattr(data, name)())
    else:
        path, opened = Path(image), ImageOps.exif_transpose(Image.open(image))
    with opened:
        return np.asarray(opened.convert("RGB"), dtype=np.float32) / 255, path


def side_by_side(panels: Sequence[np.ndarray], path: Path) -> None:
    """Write pictures (H, W, 3), which hold 0 to 1, next to each other and of one size: 1,400 pixels or less in all."""
    from PIL import Image

    gap = 10
    height, width, _ = panels[0].shape
    shown = min(width, (1400 - gap * (len(panels) - 1)) // len(panels))
    size = shown, max(1, round(height * shown / width))
    whole = Image.new("RGB", (len(panels) * (shown + gap) - gap, size[1]), "white")
    for place, panel in enumerate(panels):
        whole.paste(_image(panel).resize(size), (place * (shown + gap), 0))
    whole.save(path, quality=90, optimize=True)


def _image(picture: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray((255 * picture).round().clip(0, 255).astype(np.uint8))


def _as_colours(components: np.ndarray, edge: int) -> np.ndarray:
    """The first three components of blocks (H, W, C) as red, green and blue: each from its lowest to its highest 1%."""
    low, high = np.percentile(components[..., :3], (1, 99), axis=(0, 1))
    stretched = (components[..., :3] - low) / np.maximum(high - low, 1e-6)
    return stretched.clip(0, 1).repeat(edge, axis=0).repeat(edge, axis=1)


def _picture_demo(image: str, rng: np.random.Generator, composite: Path | None) -> list[Check]:
    from PIL import Image

    picture, path = read_picture(image)
    height, width, _ = picture.shape

    colours = find_colours(rng.choice(picture.reshape(-1, 3), 4096), 8, rng)
    labels = nearest_prototype(colours, layout="HWC")(picture).argmax(axis=-1)
    label_map = Image.fromarray(labels.astype(np.uint8))
    label_map.putpalette((255 * colours).round().astype(np.uint8).tobytes())
    labels_path = path.with_name(f"{path.stem}.labels.png")
    label_map.save(labels_path)

    edge, kept = 3, 6
    blocks = to_blocks(np.pad(picture, ((0, -height % edge), (0, -width % edge), (0, 0)), mode="edge"), edge)
    mean, directions = principal_components(blocks.reshape(-1, blocks.shape[-1]), kept)
    reduce = partial(pwconv.PointwiseConv, directions, -directions @ mean)
    widen = partial(pwconv.PointwiseConv, directions.T, mean)
    components = reduce(layout="HWC")(blocks)
    rebuilt = from_blocks(widen(layout="HWC")(components), edge)[:height, :width]
    error = np.sqrt(np.mean((rebuilt - picture) ** 2))
    rebuilt_path = path.with_name(f"{path.stem}.reduced.png")
    _image(rebuilt).save(rebuilt_path)

    heading(f"{path.name}, {width}x{height}")
    say(f"A classifier for every pixel: its label is the nearest of the colours found in the picture ({len(colours)}).")
    print(f"  label map: {labels_path}\n")
    say(
        f"Fewer channels: blocks of {edge}x{edge} pixels are a map of {blocks.shape[-1]} channels. One 1x1 layer"
        f" reduces them to their {kept} principal components, another brings them back with an RMS error of"
        f" {255 * error:.1f} of 255 levels."
    )
    print(f"  rebuilt picture: {rebuilt_path}\n")
    if composite:
        side_by_side([picture, colours[labels], _as_colours(components, edge)[:height, :width]], composite)
        say("Side by side: the picture, the labels in their colours, and three components as red, green and blue.")
        print(f"  composite: {composite}\n")
    checks = []
    for name, layer, map_ in (
        (f"3 -> {len(colours)}", partial(nearest_prototype, colours), picture),
        (f"{blocks.shape[-1]} -> {kept}", reduce, blocks),
        (f"{kept} -> {blocks.shape[-1]}", widen, components),
    ):
        checks += _both_layouts(f"{name}  {map_.shape[1]}x{map_.shape[0]}", layer, map_[None].transpose(0, 3, 1, 2))
    _show_checks(checks)
    return checks


def main(image: str | os.PathLike[str] | None = None, composite: Path | None = None) -> int:
    """Run the demo, on a picture if one is given, which may also be written beside its results into `composite`.

    Returns 0 if every check is passed, 1 if one is not, and 2 if the picture cannot be read or written.
    """
    rng = np.random.default_rng(20140)
    settings = pwconv.config()
    engine = settings["isa"]["active"] if settings["backend"] == "native" else "NumPy itself, without the engine"
    say(
        f"pwconv {pwconv.__version__} ({engine}; threads: {settings['threads']}) beside its fallback in NumPy"
        f" {np.__version__} (threads: as its BLAS takes). Times are medians of {ROUNDS} rounds; the ratio is NumPy's"
        f" time to pwconv's; errors are shares of the largest value."
    )
    labels_are_right = True
    if image is None:
        checks, labels_are_right = _pixel_classifier(rng)
        checks += _channel_reduction(rng)
    else:
        try:
            checks = _picture_demo(os.fspath(image), rng, composite)
        except ImportError as error:
            package = {"PIL": "Pillow", "skimage": "scikit-image"}.get(error.name or "")
            needs = f"needs {package}: python -m pip install {package.lower()}" if package else f"cannot run: {error}"
            print(f"demo IMAGE {needs}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"demo IMAGE: {error}", file=sys.stderr)
            return 2
    wrong = sum(not check.passed for check in checks) + (not labels_are_right)
    print(f"Checks that failed: {wrong}" if wrong else f"All {len(checks)} layers agree with NumPy.")
    return int(wrong > 0)
