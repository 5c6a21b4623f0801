"""The command line and the demo: its figures are right, its text fits 80 columns, and a wrong result fails it."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.decomposition import PCA

import pwconv
from pwconv import __main__ as command_line
from pwconv.commands import bench, demo


@pytest.fixture
def no_clock(monkeypatch):
    """Run timed calls once, without a clock."""
    monkeypatch.setattr(
        demo, "race", lambda contenders, **_: {name: [(call(), 1e-3)[1]] for name, call in contenders.items()}
    )


def run(*words, **environment):
    """Run ``python -m pwconv`` as a user in a pipe would."""
    return subprocess.run(
        [sys.executable, "-m", "pwconv", *map(str, words)],
        env=os.environ | environment,
        capture_output=True,
        encoding="ascii",
        check=False,
    )


# ---- the command line


def test_no_command_prints_the_configuration(capsys):
    assert command_line.main([]) == 0
    printed = capsys.readouterr().out
    pwconv.show_config()
    assert printed == capsys.readouterr().out
    assert pwconv.__version__ in printed
    assert command_line.main(["config"]) == 0
    assert capsys.readouterr().out == printed


def test_bench_gets_its_own_words(monkeypatch):
    words = []
    monkeypatch.setattr(bench, "main", lambda argv: words.extend(argv) or 3)
    assert command_line.main(["bench", "--threads", "1", "--help"]) == 3
    assert words == ["--threads", "1", "--help"]


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["dmeo"])
    assert stopped.value.code == 2
    assert "invalid choice: 'dmeo'" in capsys.readouterr().err


def test_a_reader_who_leaves_early_sees_no_traceback():
    process = subprocess.Popen([sys.executable, "-m", "pwconv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


# ---- the demo

# Worked out by hand: size^2 k^2 in out multiply-adds, k^2 in out weights, size^2 in elements read by the 3x3 layer.
COSTS = [
    (56, [(128, 128, 3)], (462_422_016, 147_456, 401_408)),
    (56, [(128, 10, 1), (10, 128, 3)], (40_140_800, 12_800, 31_360)),
    (56, [(256, 256, 3)], (1_849_688_064, 589_824, 802_816)),
    (56, [(256, 64, 1), (64, 64, 3), (64, 256, 1)], (218_365_952, 69_632, 200_704)),
    (7, [(128, 128, 3)], (7_225_344, 147_456, 6_272)),
    (7, [(128, 10, 1), (10, 128, 3)], (627_200, 12_800, 490)),
]


def test_demo_page(monkeypatch, capsys, no_clock):
    monkeypatch.setenv("COLUMNS", "132")
    assert command_line.main(["demo"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("A classifier for every pixel") < text.index("Fewer channels")
    checked = [line for line in text.splitlines() if line.endswith("  ok")]
    assert ["  ".join(line.split("  ")[:3]) for line in checked] == [
        f"{layer}  {layout}"
        for layer in (
            "256 -> 21  128x128",
            "128 -> 10  56x56",
            "256 -> 64  56x56",
            "64 -> 256  56x56",
            "128 -> 10  7x7",
        )
        for layout in ("NCHW", "NHWC")
    ]
    counted = [line.rsplit(maxsplit=3)[1:] for line in text.splitlines() if " -> 3x3 -> " in line]
    assert counted == [[f"{count:,}" for count in counts] for *_, counts in COSTS]
    assert text.endswith("All 10 layers agree with NumPy.\n")


def test_demo_in_a_narrow_pipe():
    result = run("demo", COLUMNS="40", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 40
    assert "128 -> 10  56x56  NHWC\n    pwconv " in result.stdout


@pytest.mark.parametrize(("error", "status"), [(np.nan, 1), (8e-6, 1), (3e-6, 0)])
def test_a_wrong_result_fails_the_demo(monkeypatch, capsys, no_clock, error, status):
    verify = pwconv.verify
    monkeypatch.setattr(pwconv, "verify", lambda layer, x: dataclasses.replace(verify(layer, x), relative_error=error))
    assert demo.main() == status
    text = capsys.readouterr().out
    assert text.count("WRONG\n") == 10 * status
    assert ("Checks that failed: 10\n" in text) == bool(status)


def test_wrong_labels_fail_the_demo(monkeypatch, capsys, no_clock):
    classifier = demo.nearest_prototype
    monkeypatch.setattr(
        demo, "nearest_prototype", lambda prototypes, **options: classifier(prototypes[::-1].copy(), **options)
    )
    assert demo.main() == 1
    assert "Checks that failed: 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "path", "expected"), COSTS)
def test_cost(size, path, expected):
    assert demo.cost(size, tuple(demo.Conv(*conv) for conv in path)) == expected


def test_nearest_prototype_is_the_nearest():
    rng = np.random.default_rng(1)
    x, truth, prototypes = demo.made_scene(rng, classes=26, channels=64, size=40, noise=0.5)
    assert np.unique(truth).size == 26
    distance = ((x[0, None].astype(np.float64) - prototypes[:, :, None, None]) ** 2).sum(axis=1)
    np.testing.assert_array_equal(demo.nearest_prototype(prototypes)(x)[0].argmax(axis=0), distance.argmin(axis=0))
    np.testing.assert_array_equal(distance.argmin(axis=0), truth)


# ---- the demo on a picture


def test_picture(tmp_path, capsys, no_clock):
    """A picture of four stripes has four labels in the stripes' colours, and six components restore all its blocks."""
    colours = np.array([[200, 30, 30], [30, 160, 60], [20, 40, 220], [240, 240, 200]], np.uint8)
    stripes = np.repeat(np.repeat([0, 1, 2, 3], [5, 4, 7, 6])[None], 10, axis=0)
    Image.fromarray(colours[stripes]).save(tmp_path / "photo.bmp")
    assert command_line.main(["demo", str(tmp_path / "photo.bmp")]) == 0
    text = capsys.readouterr().out
    assert text.endswith("All 6 layers agree with NumPy.\n")

    labels, rebuilt = Image.open(tmp_path / "photo.labels.png"), Image.open(tmp_path / "photo.reduced.png")
    assert labels.mode == "P"
    assert np.unique(np.asarray(labels)).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.asarray(labels.convert("RGB")), colours[stripes])
    np.testing.assert_allclose(np.asarray(rebuilt, float), colours[stripes], atol=1)
    assert f"label map: {tmp_path / 'photo.labels.png'}\n" in text
    assert f"rebuilt picture: {tmp_path / 'photo.reduced.png'}\n" in text


def test_picture_of_a_single_pixel(tmp_path, no_clock):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "dot.png")
    assert demo.main(tmp_path / "dot.png") == 0
    for name in ("dot.labels.png", "dot.reduced.png"):
        assert Image.open(tmp_path / name).convert("RGB").getpixel((0, 0)) == (10, 20, 30)


def test_a_photograph_of_scikit_image_beside_its_results(tmp_path, monkeypatch, no_clock):
    """The composite shows the photograph, the coloured labels and the components side by side, equally wide."""
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["demo", "skimage:coffee", "--composite", "all.png"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"coffee.labels.png", "coffee.reduced.png", "all.png"}
    photo, whole = Image.fromarray(skimage.data.coffee()), Image.open("all.png")
    assert whole.width == 3 * 460 + 2 * 10
    size = 460, whole.height
    panels = [whole.crop((left, 0, left + 460, whole.height)) for left in (0, 470, 940)]
    labels = Image.open("coffee.labels.png").convert("RGB")
    for panel, expected in zip(panels, (photo, labels), strict=False):
        difference = np.asarray(panel, float) - np.asarray(expected.resize(size), float)
        assert np.abs(difference).max() <= 2
    spread = np.ptp(np.asarray(panels[2]).reshape(-1, 3), axis=0)
    assert spread.min() > 200
    assert np.asarray(whole)[:, 460:470].min() == 255


def test_components_as_colours_are_stretched():
    components = np.random.default_rng(5).normal(3, 2, (50, 40, 6))
    colours = demo._as_colours(components, 2)
    assert colours.shape == (100, 80, 3)
    np.testing.assert_array_equal(colours[::2, ::2], colours[1::2, 1::2])
    low, high = np.percentile(components[..., :3], (1, 99), axis=(0, 1))
    inside = (components[..., :3] > low) & (components[..., :3] < high)
    np.testing.assert_allclose(((components[..., :3] - low) / (high - low))[inside], colours[::2, ::2][inside])
    assert (colours.min(), colours.max()) == (0, 1)
    assert (demo._as_colours(np.ones((2, 2, 3)), 1) == 0).all()  # a flat picture


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["skimage:teacup"], "scikit-image has no picture called 'teacup'"),
        (["--composite", "all.png"], "name a picture, too"),
    ],
)
def test_a_picture_that_is_not_there(words, message, capsys):
    try:
        status = command_line.main(["demo", *words])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_picture_name_that_the_terminal_cannot_encode(tmp_path):
    Image.new("RGB", (6, 6)).save(tmp_path / "写真.png")
    result = run("demo", tmp_path / "写真.png", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "写真.labels.png").exists()


def test_without_pillow(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert demo.main(tmp_path / "photo.png") == 2
    assert "needs Pillow: python -m pip install pillow" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert demo.main("skimage:coffee") == 2
    assert "needs scikit-image: python -m pip install scikit-image" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"not a picture"], ids=["missing", "no picture"])
def test_unreadable_picture(content, capsys, tmp_path):
    path = tmp_path / "photo.png"
    if content is not None:
        path.write_bytes(content)
    assert demo.main(path) == 2
    assert str(path) in capsys.readouterr().err


def test_blocks():
    picture = np.random.default_rng(2).random((6, 9, 2))
    blocks = demo.to_blocks(picture, 3)
    for row, column in np.ndindex(2, 3):
        block = picture[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(blocks[row, column], block.ravel())
    np.testing.assert_array_equal(demo.from_blocks(blocks, 3), picture)


def test_principal_components_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    samples = (rng.standard_normal((500, 5)) @ rng.standard_normal((5, 8)) + rng.standard_normal(8)).astype(np.float32)
    mean, directions = demo.principal_components(samples, 3)
    truth = PCA(3).fit(samples.astype(np.float64))
    np.testing.assert_allclose(mean, truth.mean_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.abs((directions * truth.components_).sum(axis=1)), 1, rtol=1e-5)


def test_find_colours_stops_at_the_number_of_distinct_colours():
    rng = np.random.default_rng(4)
    colours = rng.random((5, 3), dtype=np.float32)
    found = demo.find_colours(rng.choice(colours, 300), 8, rng)
    np.testing.assert_allclose(found[found[:, 0].argsort()], colours[colours[:, 0].argsort()], rtol=1e-5)
