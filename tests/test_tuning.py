"""Plans: that none changes a bit, that they are found, kept, saved and loaded, and that damaged files do no harm."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import threading
import warnings

import fuzz
import numpy as np
import oracle
import process
import pytest

import pwconv
from pwconv import ChannelReducer, PixelClassifier, PointwiseBranches, PointwiseChain, PointwiseConv, tuning

pytestmark = pytest.mark.thread_unsafe(reason="plans are those of the whole process")


@pytest.fixture(autouse=True)
def no_plans():
    pwconv.forget_plans()
    yield
    pwconv.forget_plans()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def flat(result):
    """The arrays of a result that may be a tuple or a list."""
    if isinstance(result, list | tuple):
        return [array for part in result for array in flat(part)]
    return [result]


# Bits -----------------------------------------------------------------------------------------------------------------


def all_choices(engine, key, choice):
    """Every way to compute a layer, and all variations of it; for a pass, the variations of its choice."""
    ways = [*engine.ways_to_compute(key), choice]
    return dict.fromkeys([*ways, *(other for way in ways for other in engine.variations(key, way))])


def check_all_plans(engine, run, least):
    """Force every choice of every problem of a call once, and compare the bits of its results."""
    expected = run()
    for key, choice in engine.watch_choices(run).items():
        choices = all_choices(engine, key, choice)
        for other in choices:
            engine.keep_choice(key, other)
            result = []
            used = engine.watch_choices(lambda result=result: result.append(run()))
            # Blocks are at most the whole map; there are no more threads than tasks.
            assert used[key][:-2] == other[:-2]
            for one, whole in zip(flat(result[0]), flat(expected), strict=True):
                assert oracle.same_bits(one, whole), (engine.fields_of(key, other), int(np.sum(one != whole)))
        engine.keep_choice(key, None)
        least -= len(choices)
    assert least <= 0, "fewer plans than expected were tried"


LAYERS = {
    "pointwise": (300, 70, (1, 17, 19), {}),
    "few channels": (13, 8, (1, 40, 50), {"activation": "relu"}),
    "picture": (3, 3, (1, 40, 50), {}),
    "ten classes": (70, 10, (1, 20, 31), {}),
    "wide rows": (40, 64, (1, 20, 30), {}),
    "wider rows": (20, 230, (1, 10, 30), {"activation": "relu"}),
    "one out channel": (200, 1, (2, 20, 30), {}),
    "long sums": (1100, 40, (1, 9, 9), {"activation": "silu"}),
    "groups": (128, 96, (2, 11, 13), {"groups": 4}),
    "stride": (60, 33, (2, 21, 22), {"stride": 2, "input_activation": "relu"}),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_plan_of_a_layer_gives_the_same_bits(isa, engine, name, layout):
    channels, outs, (batch, height, width), options = LAYERS[name]
    weight, bias = normal(1, outs, channels // options.get("groups", 1)), normal(2, outs)
    layer = PointwiseConv(weight, bias, layout=layout, **options)
    sizes = {"N": batch, "C": channels, "H": height, "W": width}
    x = normal(3, *(sizes[letter] for letter in layout))
    check_all_plans(engine, lambda: layer(x, num_threads=3), 15)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_every_plan_of_a_precision_gives_the_same_bits(bf16_isa, engine, layout, precision):
    layer = PointwiseConv(normal(1, 70, 300), normal(2, 70), layout=layout, precision=precision)
    x = normal(3, *((1, 300, 17, 19) if layout == "NCHW" else (1, 17, 19, 300)))
    check_all_plans(engine, lambda: layer(x, num_threads=3), 15)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16"])
def test_every_plan_of_narrow_maps_gives_the_same_bits(fma_isa, engine, dtype):
    x = np.random.default_rng(4).integers(0, 99, (40, 50, 13)).astype(dtype)
    weight = normal(1, 8, 13)
    check_all_plans(
        engine, lambda: pwconv.pointwise_conv(x, weight, layout="HWC", out_dtype="uint8", num_threads=2), 15
    )


def test_every_plan_of_several_layers_gives_the_same_bits(fma_isa, engine):
    layers = [PointwiseConv(normal(i, 300, 300) / 20, activation="relu") for i in range(3)]
    x = normal(9, 2, 300, 15, 16)
    check_all_plans(engine, lambda: PointwiseChain(layers)(x, keep=(1,), num_threads=2), 40)
    check_all_plans(engine, lambda: PointwiseBranches(layers)(x, num_threads=2), 15)
    clf = PixelClassifier(normal(5, 7, 300))
    for method in (clf.predict, clf.predict_proba):
        check_all_plans(engine, lambda method=method: method(x, num_threads=2), 10)
    check_all_plans(engine, lambda: clf.predict(x, size=(31, 29), num_threads=2), 10)


def test_impossible_choices_are_never_used(engine):
    """Whatever is kept for a problem: either it is a plan of it, or the model decides."""
    layer, x = PointwiseConv(normal(1, 40, 300)), normal(2, 1, 300, 12, 13)
    expected = layer(x)
    ((key, choice),) = engine.watch_choices(lambda: layer(x)).items()
    rng = random.Random(5)
    numbers = [-(2**61), -256, -1, 0, 1, 2, 3, 4, 5, 7, 16, 64, 100, 256, 300, 512, 2**31, 2**61]
    for _ in range(2000):
        other = [rng.choice(numbers) if rng.random() < 0.3 else number for number in choice]
        engine.keep_choice(key, tuple(other))
        assert oracle.same_bits(layer(x), expected)
    clf = PixelClassifier(normal(5, 7, 300))
    labels = clf.predict(x)
    *_, (key, _) = engine.watch_choices(lambda: clf.predict(x)).items()
    for block in numbers:
        for threads in numbers:
            engine.keep_choice(key, (block, threads))
            assert np.array_equal(clf.predict(x), labels)


# Tuning ---------------------------------------------------------------------------------------------------------------


def targets():
    weight, x = normal(1, 24, 32), normal(2, 2, 32, 14, 14)
    layer = PointwiseConv(weight, activation="relu")
    chain = PointwiseChain([layer, PointwiseConv(normal(3, 40, 24))])
    clf = PixelClassifier(normal(4, 5, 32), classes=list("abcde"))
    grad_y = normal(5, 2, 24, 14, 14)
    reducer = ChannelReducer(4).fit(x)
    return {
        "function": (pwconv.pointwise_conv, x, {"weight": weight, "stride": 2}),
        "layer": (layer, x, {"residual": grad_y}),
        "medium": (PointwiseConv(normal(1, 64, 32), precision="medium"), x, {}),
        "list": (layer, [x[:, :20], x[:, 20:]], {}),
        "chain": (chain, x, {}),
        "branches": (PointwiseBranches([layer, PointwiseConv(weight[:3])]), x, {}),
        "classifier": (clf, x, {}),
        "top_k": (clf.top_k, x, {"k": 2}),
        "resized": (clf.predict, x, {"size": (20, 30)}),
        "reducer": (reducer, x, {}),
        "gradients": (pwconv.pointwise_conv_backward, x, {"grad_y": grad_y, "weight": weight}),
        "backward": (layer.backward, x, {"grad_y": grad_y}),
    }


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("name", targets())
def test_tuning_changes_no_result(engine, name, num_threads):
    target, x, call = targets()[name]
    compute = {"classifier": getattr(target, "predict", None), "reducer": getattr(target, "transform", None)}
    run = compute.get(name) or target
    expected = flat(run(x=x, **call))
    report = pwconv.tune(target, x, seconds=0.1, num_threads=num_threads, **call)
    assert report.tried > 1
    assert 0 < report.seconds_after <= report.seconds_before
    assert report.speedup >= 1
    assert len(report.changes) >= 1
    assert f"{report.tried} plans tried" in repr(report)
    for change in report.changes:
        assert change.problem in repr(report)
        assert change.before in repr(report)
        assert change.after in repr(report)
    used = engine.watch_choices(lambda: run(x=x, num_threads=num_threads, **call))
    assert {key: engine.choices_kept()[key] for key in used} == used
    for one, whole in zip(flat(run(x=x, num_threads=num_threads, **call)), expected, strict=True):
        assert np.array_equal(one, whole)


def test_a_bad_plan_is_replaced(engine):
    """A plan far worse than others is in use: tuning finds a better one, and `plan` tells it."""
    layer, x = PointwiseConv(normal(1, 256, 256)), normal(2, 1, 256, 40, 40)
    before = repr(layer.plan(x.shape, num_threads=1))
    ((key, _),) = engine.watch_choices(lambda: layer(x, num_threads=1)).items()
    fields, worst = engine.fields_of(key, engine.ways_to_compute(key)[-1])
    engine.keep_choice(key, engine.from_fields(fields, worst | {"pixel_block": 1})[1])
    bad = repr(layer.plan(x.shape, num_threads=1))
    assert bad != before
    report = pwconv.tune(layer, x.shape, seconds=1.5, num_threads=1)
    assert report.speedup > 1.1
    assert repr(layer.plan(x.shape, num_threads=1)) != bad
    pwconv.forget_plans()
    assert repr(layer.plan(x.shape, num_threads=1)) == before


def test_progress_is_shown_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    layer, shape = PointwiseConv(normal(1, 8, 8)), (1, 8, 4, 4)
    for stream, seconds, shown in ((Terminal(), 1.01, True), (Terminal(), 0.05, False), (io.StringIO(), 1.01, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        pwconv.tune(layer, shape, seconds=seconds)
        assert ("plans tried" in stream.getvalue()) == shown
    monkeypatch.setattr(sys, "stderr", None)
    pwconv.tune(layer, shape, seconds=1.01)


def test_without_the_engine_there_is_nothing_to_try(monkeypatch):
    layer = PointwiseConv(normal(1, 8, 8), backend="numpy")
    report = pwconv.tune(layer, (1, 8, 4, 4), seconds=0.05)
    assert (report.changes, report.tried) == ((), 1)
    monkeypatch.setattr(tuning.runtime, "engine", None)
    assert pwconv.tune(layer, (1, 8, 4, 4), seconds=0.05).changes == ()
    pwconv.forget_plans()


def test_wrong_arguments_are_explained():
    layer, x = PointwiseConv(normal(1, 8, 8)), np.zeros((1, 8, 4, 4), np.float32)
    with pytest.raises(TypeError, match=r"^target must be a layer, .*, got int$"):
        pwconv.tune(3, x)
    for seconds in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"^seconds must be positive, got"):
            pwconv.tune(layer, x, seconds=seconds)
    with pytest.raises(TypeError, match=r"^seconds must be a number, got str$"):
        pwconv.tune(layer, x, seconds="long")
    with pytest.raises(ValueError, match=r"^num_threads must be from 1"):
        pwconv.tune(layer, x, num_threads=0)
    with pytest.raises(ValueError, match=r"^x must have 8 channels on axis 1"):
        pwconv.tune(layer, (1, 9, 4, 4))


def test_an_error_in_a_call_leaves_the_plans_as_they_were(engine):
    layer, x, calls = PointwiseConv(normal(1, 8, 8)), normal(2, 1, 8, 9, 9), []

    def failing(x, **call):
        calls.append(x)
        if len(calls) > 30:
            raise KeyError("thirty calls")
        return layer(x, **call)

    used = engine.watch_choices(lambda: layer(x))
    with pytest.raises(KeyError):
        pwconv.tune(failing, x, seconds=5)
    assert engine.watch_choices(lambda: layer(x)) == used
    assert pwconv.tune(layer, x, seconds=0.05).tried > 1


def test_threads_tune_and_call_at_once():
    layer, x = PointwiseConv(normal(1, 40, 300)), normal(2, 1, 300, 12, 13)
    expected, failures, stop = layer(x), [], threading.Event()

    def call():
        while not stop.is_set():
            if not oracle.same_bits(layer(x), expected):
                failures.append("another result")

    def tune():
        try:
            pwconv.tune(layer, x, seconds=0.3)
            pwconv.forget_plans()
        except Exception as error:
            failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(2)]
    tuners = [threading.Thread(target=tune) for _ in range(3)]
    for thread in callers + tuners:
        thread.start()
    for thread in tuners:
        thread.join()
    stop.set()
    for thread in callers:
        thread.join()
    assert failures == []


def tune_in_a_child():
    layer, x = PointwiseConv(normal(1, 40, 300)), normal(2, 1, 300, 12, 13)
    expected = layer(x)
    tuner = threading.Thread(target=lambda: pwconv.tune(layer, x, seconds=3))
    tuner.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork while a thread runs
        child = os.fork()
    if child == 0:
        good = pwconv.tune(layer, x, seconds=0.1).tried > 0 and oracle.same_bits(layer(x), expected)
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    tuner.join()


@process.needs_linux
def test_a_child_of_a_fork_tunes_while_its_parent_does():
    process.run(tune_in_a_child)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, engine):
    """A file with the plans of a layer and a chain, what they are, and a call that uses them."""
    layer = PointwiseConv(normal(1, 24, 300))
    chain, x = PointwiseChain([layer, PointwiseConv(normal(3, 40, 24))]), normal(2, 2, 300, 14, 14)

    def call():
        return layer(x), chain(x)

    for target in (layer, chain):
        pwconv.tune(target, x, seconds=0.1)
    path = tmp_path / "plans.json"
    pwconv.save_plans(path)
    return path, engine.choices_kept(), call


def test_saved_plans_are_used_again(engine, saved):
    path, kept, call = saved
    used = engine.watch_choices(call)
    pwconv.forget_plans()
    assert engine.choices_kept() == {}
    assert pwconv.load_plans(str(path)) == len(kept)
    assert engine.choices_kept() == kept
    assert engine.watch_choices(call) == used


def test_a_file_is_small_and_readable(engine, saved):
    path, kept, _ = saved
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1000 * len(kept) + 500
    content = json.loads(text)
    assert content["version"] == pwconv.__version__
    assert content["isa"] == engine.isa_active()
    assert pwconv.config()["cpu"] in content["cpu"]
    assert {"problem", "plan"} == {name for entry in content["plans"] for name in entry}
    assert {entry["problem"]["isa"] for entry in content["plans"]} == {engine.isa_active()}


@pytest.mark.parametrize("name", ["version", "cpu", "isa"])
def test_plans_of_another_machine_are_passed_over(engine, saved, name):
    path, _, _ = saved
    pwconv.forget_plans()
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {name: "another"}), encoding="utf-8")
    assert pwconv.load_plans(path) == 0
    assert engine.choices_kept() == {}


def test_plans_of_another_instruction_set_are_not_saved(engine, saved):
    path, kept, _ = saved
    supported, before = engine.isa_supported(), engine.isa_active()
    if len(supported) < 2:
        pytest.skip(f"needs two instruction sets, this machine has {supported}")
    try:
        engine.set_isa(supported[0])
        pwconv.save_plans(path)
        assert json.loads(path.read_text(encoding="utf-8"))["plans"] == []
    finally:
        engine.set_isa(before)
    assert engine.choices_kept() == kept


DAMAGED = {
    "empty": "",
    "no JSON": "{",
    "binary": "\ud800",
    "a list": "[]",
    "deep": "[" * 100_000,
    "no format": '{"plans": []}',
    "other format": '{"format": "pwconv plans 0", "plans": []}',
    "plans": '{"format": "pwconv plans 1", "plans": 3}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_an_error(engine, tmp_path, text):
    path = tmp_path / "plans.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"plans\.json' is no file of plans"):
        pwconv.load_plans(path)
    assert engine.choices_kept() == {}


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_LARGEST_FILE", 100)
    path = tmp_path / "plans.json"
    path.write_bytes(b" " * 101)
    with pytest.raises(ValueError, match="it has more than 100 bytes"):
        pwconv.load_plans(path)


def test_damaged_plans_do_no_harm(engine, saved):
    """Each number, name and list is replaced by junk: the file is refused as a whole, or calls have the same bits."""
    path, _, call = saved
    expected = call()
    content = json.loads(path.read_text(encoding="utf-8"))
    refused = 0
    junk = (None, True, -1, 0, 2**62, 10**30, 0.5, "avx2", "x" * 1000, [], [[1, 2]], [[1, 2, "3"]], {}, {"a": 1})
    for damaged in fuzz.damaged_values(content, junk):
        pwconv.forget_plans()
        path.write_text(json.dumps(damaged), encoding="utf-8")
        try:
            pwconv.load_plans(path)
        except ValueError:
            refused += 1
            assert engine.choices_kept() == {}
        for one, whole in zip(call(), expected, strict=True):
            assert oracle.same_bits(one, whole)
    assert refused > 100


def test_too_many_plans_are_an_error(engine, saved, tmp_path):
    path, _, _ = saved
    content = json.loads(path.read_text(encoding="utf-8"))
    entry = content["plans"][0]
    many = [entry | {"problem": entry["problem"] | {"pixels": i + 1}} for i in range(5000)]
    path.write_text(json.dumps(content | {"plans": many}), encoding="utf-8")
    pwconv.forget_plans()
    with pytest.raises(ValueError, match="more than 4096 plans"):
        pwconv.load_plans(path)
    assert engine.choices_kept() == {}


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        pwconv.load_plans(tmp_path / "none.json")


def test_plans_are_loaded_at_import(saved, tmp_path):
    path, kept, _ = saved
    code = "import pwconv; print(len(pwconv.runtime.engine.choices_kept()))"
    isa = {"PWCONV_ISA": os.environ["PWCONV_ISA"]} if "PWCONV_ISA" in os.environ else {}
    assert process.python(code, PWCONV_PLANS=str(path), **isa) == f"{len(kept)}\n"
    assert process.python(code, PWCONV_PLANS="", **isa) == "0\n"
    path.write_text("{", encoding="utf-8")
    for wrong, message in ((path, "is no file of plans"), (tmp_path / "none.json", "No such file")):
        warned = (
            "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')"
            "\n    import pwconv\nprint([str(warning.message) for warning in caught])"
        )
        out = process.python(warned, PWCONV_PLANS=str(wrong), **isa)
        assert "PWCONV_PLANS: " in out
        assert message in out
