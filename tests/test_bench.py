"""The benchmark: its arithmetic, the fairness of its races, and its texts. No test depends on measured time."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pwconv
from pwconv import runtime
from pwconv.arguments import PRECISIONS
from pwconv.commands import bench, peers, plots
from pwconv.commands import race as racing
from pwconv.commands.limits import Level, Limit, Machine, footprints, measure, measure_transfer
from pwconv.commands.peers import PEERS, Operands, Peer, pwconv_ways
from pwconv.commands.race import Result, compete, race
from pwconv.commands.report import Table, conclusion, geometric_means, introduction, record, restore
from pwconv.commands.workloads import LAYOUTS, NETWORKS, PICTURES, SHAPES, Workload, select

STRIDED = Workload("a", "b", 2, 5, 6, 3, 4, 2)


# Workloads ------------------------------------------------------------------------------------------------------------


def test_a_workload_counts_its_result_and_the_bytes_it_moves():
    assert STRIDED.out_size == (3, 3)
    assert STRIDED.pixels == 18
    assert STRIDED.flops == 2 * 18 * 3 * 4
    assert STRIDED.shape("NCHW") == (2, 3, 5, 6)
    assert STRIDED.shape("NHWC", out=True) == (2, 3, 3, 4)
    assert STRIDED.bytes_written == 4 * 18 * 4
    weights = 4 * 3 + 4
    # Every other row is read. In NCHW whole rows count, since a cache line holds skipped pixels between sampled ones.
    assert STRIDED.bytes_read("NHWC") == 4 * (2 * 3 * 3 * 3 + weights)
    assert STRIDED.bytes_read("NCHW") == 4 * (2 * 3 * 6 * 3 + weights)


def test_layer_names_are_unique_and_fit_the_table():
    names = [str(workload) for workload in NETWORKS + SHAPES]
    assert len(NETWORKS) == 42
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 26


def test_select_takes_parts_of_names_patterns_and_shapes():
    assert {workload.network for workload in select(["resnet50"])} == {"resnet50"}
    assert len(select(["resnet50"])) == 14
    assert [str(workload) for workload in select(["c?.reduce", "vgg"])][-1] == "vgg reduce10"
    assert select(["nin", "nin cccp2"]) == select(["nin"])
    assert select(["shapes"]) == SHAPES
    assert select(["2x5x6x3x4/2"])[0][2:] == STRIDED[2:]
    assert select(["2x5x6x3x4"])[0].stride == 1


@pytest.mark.parametrize("pattern", ["resnet51", "1x2x3x4", "1x2x3x0x5", "1x2x3x4x5/0", "1x2x3x4x5/"])
def test_select_raises_where_nothing_matches(pattern):
    with pytest.raises(ValueError, match=pattern):
        select(["resnet50", pattern])


# Limits ---------------------------------------------------------------------------------------------------------------

MACHINE = Machine("avx2", 1, 100.0, (Level("L2", 1000.0, 40.0, 20.0, 10.0), Level("memory", math.inf, 4.0, 2.0, 1.0)))


def test_a_limit_is_the_slower_of_arithmetic_and_transfers():
    assert MACHINE.limit(1e6, 10.0, 10.0) == Limit(pytest.approx(1e-5), "FMA")
    # 100 bytes each way at 10 GB/s, the other 300 are read at 40.
    assert MACHINE.limit(1.0, 400.0, 100.0) == Limit(pytest.approx((100 / 10 + 300 / 40) * 1e-9), "L2")
    assert MACHINE.limit(1.0, 100.0, 400.0) == Limit(pytest.approx((100 / 10 + 300 / 20) * 1e-9), "L2")


def test_a_level_serves_at_most_its_capacity():
    # Of 4,000 bytes, as many read as written, 1,000 are in L2.
    expected = (500 / 10 + 1500 / 1) * 1e-9
    assert MACHINE.limit(1.0, 2000.0, 2000.0) == Limit(pytest.approx(expected), "memory")


def test_a_transfer_is_bound_by_its_slowest_part(monkeypatch):
    # In GB/s, as the engine measures them; sizes are those of one of two threads.
    rates = {"read": 20.0, "write": 10.0, "write past caches": 25.0, "copy": 4.0, "copy past caches": 5.0}
    measured = []

    def bandwidth(isa, kind, nbytes, seconds, ready):
        measured.append((isa, kind, nbytes))
        return rates[kind] / 2

    monkeypatch.setattr(runtime.engine, "bandwidth", bandwidth)
    assert measure_transfer("avx2", 2, 4e6, 2e6, passes=1) == pytest.approx(3e6 / 5e9)
    assert measure_transfer("avx2", 2, 4e7, 0.0, passes=1) == pytest.approx(2e7 / 5e9)
    rates["copy"] = 100.0
    assert measure_transfer("avx2", 2, 4e7, 0.0, passes=1) == pytest.approx(4e7 / 20e9)
    assert measure_transfer("avx2", 2, 0.0, 4e7, passes=1) == pytest.approx(4e7 / 25e9)
    assert ("avx2", "copy", 1_500_000) in measured
    assert ("avx2", "write past caches", 1_000_000) in measured


def test_limits_are_continuous_where_a_level_is_full():
    around = [MACHINE.limit(1.0, size, 0.0).seconds for size in (999.0, 1000.0, 1001.0)]
    assert around == sorted(around)
    assert around[2] / around[0] < 1.02


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("mib", [(1, 32), (2, 3), (1, 0), (2, 480)])
def test_buffers_fit_the_measured_level_and_no_nearer_one(monkeypatch, threads, mib):
    class Engine:
        @staticmethod
        def caches():
            return {"l1d": 48 << 10, "l2": mib[0] << 20, "l3": mib[1] << 20}

    monkeypatch.setattr(runtime, "engine", Engine)
    held = 0
    levels = footprints(threads)
    assert ("L3" in levels) == (mib[1] > mib[0] * threads)
    for name, (capacity, size) in levels.items():
        assert held < size * threads <= capacity or (name == "memory" and size == 1 << 28)
        held = capacity


def test_a_measured_machine_has_a_peak_and_levels():
    machine = measure(runtime.engine.isa_active(), 2, passes=1, seconds=0.0)
    assert machine.threads == 2
    assert machine.peak > 0
    assert [machine.levels[0].name, machine.levels[-1].name] == ["L1", "memory"]
    assert all(rate > 0 for level in machine.levels for rate in level[2:])


# The race -------------------------------------------------------------------------------------------------------------


class Clock:
    """A fake clock, which only the workers' calls advance."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def worker(self, name, seconds):
        def work():
            self.log.append((name, self.now))
            self.now += seconds

        return work


def test_turns_rotate_and_each_round_gives_a_figure():
    clock = Clock()
    contenders = {name: clock.worker(name, seconds) for name, seconds in (("a", 0.001), ("b", 0.05), ("c", 1.0))}
    times = race(contenders, rounds=3, threads=1, clock=clock)
    assert times == {
        "a": pytest.approx([0.001] * 3),
        "b": pytest.approx([0.05] * 3),
        "c": pytest.approx([1.0] * 3),
    }
    turns = [name for i, (name, _) in enumerate(clock.log) if i == 0 or clock.log[i - 1][0] != name]
    assert "".join(turns) == "abcbcacab"


@pytest.mark.parametrize(("threads", "warm_up"), [(1, 0.010), (2, 0.120)])
def test_a_turn_is_a_warm_up_and_a_block(threads, warm_up):
    clock = Clock()
    race({"a": clock.worker("a", 0.004)}, rounds=1, threads=threads, clock=clock)
    assert clock.now == pytest.approx(math.ceil(warm_up / 0.004) * 0.004 + 0.020)


def test_the_timed_block_is_what_counts():
    clock = Clock()
    calls = 0

    def first_call_is_slow():
        nonlocal calls
        calls += 1
        clock.now += 1.0 if calls == 1 else 0.001

    assert race({"a": first_call_is_slow}, rounds=1, threads=1, clock=clock) == {"a": [pytest.approx(0.001)]}


def result(precision="highest", errors=(), **seconds):
    """A race of one GFLOP, for which the limit is 0.01 s."""
    names = {
        "pwconv": ("pwconv", ""),
        "out": ("out=", ""),
        "high": ("high", ""),
        "medium": ("medium", ""),
        "bf16": ("torch-bf16", "conv2d"),
        "conv2d": ("torch", "conv2d"),
        "linear": ("torch", "linear"),
    }
    columns = {names.get(name, (name, "only")): rounds for name, rounds in seconds.items()}
    workload, limit = Workload("net", "layer", 1, 1000, 1000, 25, 20), Limit(0.01, "FMA")
    return Result(workload, limit, columns, errors=dict(errors), precision=precision)


def test_rates_are_medians_and_a_peer_is_its_best_way():
    heat = result(pwconv=[0.02, 9.0, 0.02], out=[0.0125], conv2d=[0.1, 0.04, 0.05], linear=[0.04, 0.025, 0.025])
    assert heat.gflops == pytest.approx({"pwconv": 50.0, "out=": 80.0, "torch": 40.0})
    assert heat.shares == pytest.approx({"pwconv": 0.5, "out=": 0.8})
    assert heat.ratios == pytest.approx({"torch": 1.25})


def test_peers_with_a_buffer_are_compared_with_out():
    heat = result(pwconv=[0.02], out=[0.0125], conv2d=[0.025], mkl=[0.0125])
    assert heat.ratios == pytest.approx({"torch": 1.25, "mkl": 1.0})
    assert heat.ratio() == pytest.approx(1.0)
    assert heat.ratio(bare=False) == pytest.approx(1.25)
    assert result(pwconv=[0.02], out=[0.02]).ratio() is None


def test_bfloat16_peers_are_compared_with_medium_only():
    seconds = {"pwconv": [0.02], "out": [0.02], "conv2d": [0.03], "mkl": [0.025], "bf16": [0.01]}
    several = result(high=[0.015], medium=[0.005], **seconds)
    assert several.others == ["high", "medium"]
    assert several.ratios == pytest.approx({"torch": 1.5, "mkl": 1.25})
    assert several.winners == set()
    # Only the first precision has a buffer, as MKL has.
    assert several.ratios_of("high") == pytest.approx({"torch": 2.0})
    assert several.ratios_of("medium") == pytest.approx({"torch": 6.0, "torch-bf16": 2.0})
    assert several.ratio("medium") == pytest.approx(6.0)
    medium = result("medium", **seconds)
    assert medium.ratios == pytest.approx({"torch": 1.5, "torch-bf16": 0.5, "mkl": 1.25})
    assert medium.ratio() == pytest.approx(1.25)
    assert medium.winners == {"torch-bf16"}


@pytest.mark.parametrize(("seconds", "winners"), [(0.0195, set()), (0.019, {"torch"})])
def test_a_peer_wins_by_more_than_three_percent(seconds, winners):
    assert result(pwconv=[0.02], out=[0.02], conv2d=[seconds]).winners == winners


# Contenders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", [STRIDED, Workload("a", "c", 3, 4, 5, 300, 33), Workload("a", "d", 1, 1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name in PEERS for layout in PEERS[name].layouts if not PEERS[name].pictures],
)
def test_peers_compute_what_pwconv_computes(name, layout, workload):
    obstacle = PEERS[name].obstacle(layout, limited=False)
    if obstacle:
        pytest.skip(f"{name} {obstacle}")
    precision = "medium" if PEERS[name].coarse else "highest"
    outcome = compete(Operands(workload, layout, [precision]), [name], MACHINE, rounds=1)
    assert outcome.wrong == ()
    assert name in outcome.ratios
    assert list(outcome.shares) == ["pwconv", "out="]


@pytest.mark.parametrize("workload", PICTURES[::3], ids=str)
@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in PEERS for layout in PEERS[name].layouts if not PEERS[name].coarse]
)
def test_peers_compute_pictures(name, layout, workload):
    """On a small part of each picture; a peer that cannot compute it has no way to."""
    peer, workload = PEERS[name], workload._replace(height=9, width=11)
    obstacle = peer.obstacle(layout, limited=False, pictures=True)
    if obstacle:
        pytest.skip(f"{name} {obstacle}")
    operands = Operands(workload, layout)
    outcome = compete(operands, [name], MACHINE, rounds=1)
    assert outcome.wrong == ()
    float32 = workload.dtype == workload.out_dtype == "float32"
    few = workload.out_channels <= 4 and workload.in_channels <= 64
    assert (name in outcome.ratios) == ((float32 or peer.narrow) and (few or not peer.pictures))
    assert (operands.bias, operands.activation) == (None, None)
    assert operands.x.dtype == workload.dtype
    assert pwconv_ways(operands)["pwconv"]().dtype == workload.out_dtype
    assert workload.bytes_read(layout) == operands.x.nbytes + 4 * (workload.in_channels + 1) * workload.out_channels
    assert workload.bytes_written == operands.out.nbytes


def test_precisions_race_on_the_same_arrays():
    operands = Operands(Workload("a", "b", 1, 9, 9, 300, 64), "NHWC", PRECISIONS)
    outcome = compete(operands, ["numpy"], MACHINE, rounds=1)
    assert [column for column, _ in outcome.seconds] == ["pwconv", "out=", "high", "medium", "numpy"]
    x, weight = operands.x.astype(np.float64), operands.weight.astype(np.float64)
    expected = np.maximum(x @ weight.T + operands.bias, 0)
    for precision, column in zip(PRECISIONS, ("pwconv", "high", "medium"), strict=True):
        layer = pwconv.PointwiseConv(
            operands.weight, operands.bias, layout="NHWC", activation="relu", precision=precision
        )
        error = np.abs(layer(operands.x) - expected).max() / expected.max()
        assert outcome.errors[column] == pytest.approx(error, rel=1e-6)
    assert compete(Operands(STRIDED, "NCHW", ["medium", "high"]), [], MACHINE, rounds=1).precision == "medium"


def test_torch_multiplies_bfloat16_in_calls_that_permit_it_and_in_no_others(monkeypatch):
    torch = pytest.importorskip("torch", minversion="2.9")
    seen, settings = [], (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)

    def now():
        return [setting.fp32_precision for setting in settings]

    def failing():
        seen.append(now())
        raise ValueError("a broken call")

    monkeypatch.setattr(
        peers, "_torch_ways", lambda o, dtype="float32": {"conv2d": lambda: seen.append(now()), "linear": failing}
    )
    before = now()
    ways = PEERS["torch-bf16"].ways(None)
    assert now() == before != ["bf16"] * 2
    ways["conv2d permitted"]()
    assert now() == before
    with pytest.raises(ValueError, match="broken"):
        ways["linear permitted"]()
    assert now() == before
    assert seen == [["bf16"] * 2] * 2
    ways["conv2d of bfloat16"]()
    assert seen[2] == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_is_given_bfloat16(layout):
    torch = pytest.importorskip("torch")
    ways = PEERS["torch-bf16"].ways(Operands(STRIDED, layout))
    given = {way: call().dtype for way, call in ways.items()}
    assert given == {way: torch.bfloat16 if "of bfloat16" in way else torch.float32 for way in ways}
    assert any("of bfloat16" in way for way in ways)


def test_the_time_of_torch_includes_the_stride(monkeypatch):
    """torch gets a strided view of the map, so the timed call pays for reading it, as with other peers."""
    torch = pytest.importorskip("torch")
    seen = []
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *_: seen.append(x) or x)
    operands = Operands(STRIDED, "NHWC")
    for dtype in ("float32", "bfloat16"):
        peers._torch_ways(operands, dtype)["linear"]()
    assert [x.is_contiguous() for x in seen] == [False, False]


@pytest.mark.parametrize("fastest", ["right", "coarse"])
def test_errors_are_those_of_the_fastest_way(monkeypatch, fastest):
    def ways(operands):
        right = racing.pwconv_ways(operands)["pwconv"]
        return {"right": right, "coarse": lambda: right() * np.float32(1.001)}

    def fake_race(contenders, *, rounds, threads):
        return {one: [0.5 if one[1] == fastest else 1.0] for one in contenders}

    fake_peer(monkeypatch, ways)
    monkeypatch.setattr(racing, "race", fake_race)
    outcome = compete(Operands(STRIDED, "NCHW"), ["fake"], MACHINE, rounds=1)
    assert outcome.ways["fake"] == fastest
    assert (outcome.errors["fake"] > 1e-5) == (fastest == "coarse")


def fake_peer(monkeypatch, ways):
    monkeypatch.setitem(PEERS, "fake", Peer("fake", ("numpy",), LAYOUTS, ways))


def test_a_wrong_peer_does_not_race(monkeypatch):
    def ways(operands):
        right = racing.pwconv_ways(operands)["pwconv"]
        return {"right": right, "wrong": lambda: right() + 0.1 * right().max()}

    fake_peer(monkeypatch, ways)
    outcome = compete(Operands(STRIDED, "NCHW"), ["fake"], MACHINE, rounds=1)
    assert outcome.wrong == ("fake wrong",)
    assert outcome.errors["fake"] == outcome.errors["pwconv"] < 1e-5
    assert ("fake", "right") in outcome.seconds
    assert ("fake", "wrong") not in outcome.seconds
    assert "fake wrong on a b" in " ".join(conclusion([outcome], geometric_means([outcome])))


def test_a_wrong_pwconv_is_an_error(monkeypatch):
    monkeypatch.setattr(racing, "pwconv_ways", lambda o: {"pwconv": lambda: o.out * 0 - 1, "out=": lambda: o.out})
    with pytest.raises(RuntimeError, match="a b wrong in NHWC"):
        compete(Operands(STRIDED, "NHWC"), ["numpy"], MACHINE, rounds=1)


@pytest.mark.parametrize(("second", "lost"), [(0.5, ("fake",)), (2.0, ())])
def test_a_layer_is_lost_when_it_is_lost_twice(monkeypatch, second, lost):
    fake_peer(monkeypatch, lambda operands: {"": racing.pwconv_ways(operands)["pwconv"]})
    races = iter([0.5, second])

    def fake_race(contenders, *, rounds, threads):
        peer = next(races)
        return {contender: [peer if contender[0] == "fake" else 1.0] for contender in contenders}

    monkeypatch.setattr(racing, "race", fake_race)
    outcome = compete(Operands(STRIDED, "NCHW"), ["fake"], MACHINE, rounds=1)
    assert outcome.lost == lost
    assert outcome.ratios == {"fake": 0.5}  # the first race is the one that is shown
    assert next(races, None) is None


def test_a_layer_that_is_won_is_raced_once(monkeypatch):
    fake_peer(monkeypatch, lambda operands: {"": racing.pwconv_ways(operands)["pwconv"]})
    races = []

    def fake_race(contenders, *, rounds, threads):
        races.append((rounds, threads))
        return {contender: [1.0] for contender in contenders}

    monkeypatch.setattr(racing, "race", fake_race)
    compete(Operands(STRIDED, "NCHW"), ["fake"], MACHINE._replace(threads=3), rounds=5)
    assert races == [(5, 3)]


# Environment ----------------------------------------------------------------------------------------------------------


def test_the_environment_sets_threads_and_drops_what_would_slow_a_peer(monkeypatch):
    monkeypatch.setattr(runtime.engine, "isa_supported", lambda: ("baseline", "avx2", "avx512", "avx512_bf16"))
    before = {"HOME": "/", "OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_L2_SIZE": "512", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    after = racing.race_environment(before, 3, "avx512")
    assert after == {"HOME": "/", "PWCONV_ISA": "avx512"} | dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PWCONV_NUM_THREADS"), "3"
    )
    limited = racing.race_environment(before, 3, "avx2")
    assert limited["ONEDNN_MAX_CPU_ISA"] == limited["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
    assert limited["OPENBLAS_CORETYPE"] == "Haswell"
    # A process started with it is not started again.
    assert racing.race_environment(limited, 3, "avx2") == limited
    assert racing.race_environment(after, 3, "avx512") == after
    monkeypatch.setattr(runtime.engine, "isa_supported", lambda: ("baseline", "avx2", "avx512", "avx512_bf16", "amx"))
    assert racing.race_environment(before, 3, "avx512_bf16")["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"
    # Where AVX2 is all there is, nothing is limited.
    monkeypatch.setattr(runtime.engine, "isa_supported", lambda: ("baseline", "avx2"))
    assert racing.race_environment(before, 3, "avx2") == after | {"PWCONV_ISA": "avx2"}


# Options --------------------------------------------------------------------------------------------------------------


def test_without_options_all_layers_and_peers_race():
    options = bench.parse([])
    assert options.layers == NETWORKS
    assert options.threads == runtime.get_num_threads()
    assert options.isa == runtime.engine.isa_active()
    assert "numpy" in options.peers
    assert {*options.peers, *options.without} == {*PEERS} - {"torch-bf16", "opencv"}
    assert options.without["mkl"] == "races in NHWC only"


def test_options_are_read():
    words = "--layout NHWC --threads 3 --peers numpy, --layers nin,1x2x3x4x5 --precision high --rounds 3 --json a.json"
    options = bench.parse(words.split())
    assert (options.layout, options.threads, options.precisions, options.rounds) == ("NHWC", 3, ["high"], 3)
    assert options.peers == ["numpy"]
    assert [str(workload) for workload in options.layers] == ["nin cccp2", "nin cccp4", "nin cccp8", "shape 1x2x3x4x5"]
    assert options.json.name == "a.json"
    assert bench.parse(["--peers", ""]).peers == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--peers nobody", "there is no 'nobody', but numpy, torch"),
        ("--peers mkl", "mkl races in NHWC only"),
        ("--layers resnet51", "no layer is called 'resnet51'; the networks are resnet50, "),
        ("--precision high,low", "there is no 'low', but highest, high, medium"),
        ("--precision ,", "name at least one"),
        ("--peers torch-bf16", "torch-bf16 races beside a --precision that multiplies bfloat16 here"),
        ("--threads 0", "must be 1 or more, got '0'"),
        ("--rounds x", "must be 1 or more, got 'x'"),
        ("--isa sse9", "invalid choice: 'sse9'"),
        ("--layout NCWH", "invalid choice"),
        ("--json nowhere/at/all.json", "there is no folder nowhere/at"),
        ("--replot race.json", "name a picture, by --plot or --plot-errors"),
    ],
)
def test_errors_of_options(capsys, words, message):
    with pytest.raises(SystemExit) as exit_:
        bench.parse(words.split())
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


KERNEL_SETS = {
    "none": dict.fromkeys(PRECISIONS, "avx512"),
    "one": {"highest": "avx512", "high": "avx512", "medium": "avx512_bf16"},
    "both": {"highest": "avx512", "high": "amx", "medium": "amx"},
}


@pytest.mark.parametrize(
    ("kernel_sets", "named", "precisions", "message"),
    [
        ("none", "highest", ["highest"], None),
        ("none", "highest,high,medium", ["highest"], "highest, high and medium are float32"),
        ("none", "medium,high", ["medium"], "medium and high are float32 on this machine, so medium races for all."),
        ("one", "highest,high,medium", ["highest", "medium"], "highest and high are float32 on this machine"),
        ("one", "medium,high,medium", ["medium", "high"], "high is float32 on this machine."),
        ("one", "highest,medium", ["highest", "medium"], None),
        ("both", "high,highest,medium", ["high", "highest", "medium"], None),
    ],
)
def test_precisions_that_are_float32_here_race_once(monkeypatch, kernel_sets, named, precisions, message):
    monkeypatch.setattr(runtime.engine, "isa_kernel_sets", lambda isa: KERNEL_SETS[kernel_sets])
    monkeypatch.setattr(peers, "_is_installed", lambda package: True)
    options = bench.parse(["--precision", named])
    assert options.precisions == precisions
    # torch-bf16 is a peer of lower precisions only.
    assert ("torch-bf16" in options.peers) == (kernel_sets != "none" and named != "highest")
    assert "torch-bf16" not in options.without
    options.peers = ["numpy"]
    text = " ".join(" ".join(introduction(options, MACHINE)).split())
    assert message in text if message else "on this machine" not in text


def test_a_peer_says_why_it_does_not_race(monkeypatch):
    peer = Peer("x", ("numpy", "no-such-package"), ("NHWC",), lambda operands: {}, follows_isa=False)
    assert peer.obstacle("NHWC", limited=False) == "is not installed (pip install no-such-package)"
    peer = peer._replace(packages=("numpy",))
    assert peer.obstacle("NHWC", limited=True) == "cannot be limited to an instruction set"
    assert peer.obstacle("NHWC", limited=False) is None
    assert peer.version == np.__version__


def test_a_plot_without_matplotlib_is_refused_before_the_race(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        bench.parse(["--plot", "roof.png"])
    assert "pip install matplotlib" in capsys.readouterr().err


def test_without_the_engine_there_is_no_race(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "_default_backend", "numpy")
    assert bench.main([]) == 1
    assert "nothing to race" in capsys.readouterr().err


# Printed and drawn results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_line_of_the_table_has_its_place(layout):
    peers = [name for name in PEERS if layout in PEERS[name].layouts]
    peers = [name for name in peers if not (PEERS[name].coarse or PEERS[name].pictures)]
    rates = dict.fromkeys(["pwconv", "out=", *peers], 12345.6) | {"torch": 9.87, "numpy": 123.4}
    shares = {"pwconv": 1.0, "out=": 0.004}
    text = Table(["highest"], peers).figures("x" * 25, rates, shares, {}, 12.345)
    assert text.split() == ["x" * 25, "12346", "100%", "12346", "0%", "123", "9.9", "12346", "12.35x"]
    assert len(text) <= 80


@pytest.mark.parametrize("precisions", [["highest", "high", "medium"], ["medium", "highest", "high"]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_precisions_have_their_errors_in_the_table(layout, precisions):
    peers = [name for name in PEERS if layout in PEERS[name].layouts and not PEERS[name].pictures]
    first, *others = precisions
    rates = dict.fromkeys([*others, *peers], 12345.6) | {"pwconv": 123.4, "out=": 1.0}
    errors = {"pwconv": 1.26e-7, "out=": 1.26e-7, others[0]: 2e-3, "numpy": 1.0}
    table = Table(precisions, peers)
    lines = [table.heading(), table.figures("x" * 25, rates, {"pwconv": 1.0, "out=": 1.0}, errors, 12.345)]
    (layer, headings), (name, cells) = (text.splitlines() for text in lines)
    assert (layer, name) == ("layer", "x" * 25)
    assert headings.split() == [
        first, "error", others[0], "error", others[1], "error", *(PEERS[peer].heading for peer in peers), "ratio",
    ]  # fmt: skip
    expected = ["123", "1e-07", "12346", "2e-03", "12346", "0e+00", *["12346"] * len(peers), "12.35x"]
    assert cells.split() == expected
    assert len(headings) == len(cells) <= 80


def test_missing_figures_are_printed_as_a_dash():
    table = Table(["highest"], ["torch"])
    text = table.figures("a", {"pwconv": 1, "out=": 2}, {"pwconv": 1, "out=": 1}, {}, None)
    assert text.split() == ["a", "1.0", "100%", "2.0", "100%", "-", "-"]


def test_means_are_geometric_and_taken_of_each_layers_best():
    one = result(pwconv=[0.02], out=[0.01], conv2d=[0.04], mkl=[0.01])
    other = result(pwconv=[0.02], out=[0.01], conv2d=[0.01], mkl=[0.04])
    means = geometric_means([one, other])
    assert means["gflops"] == pytest.approx({"pwconv": 50, "out=": 100, "torch": 50, "mkl": 50})
    assert means["shares"] == pytest.approx({"pwconv": 0.5, "out=": 1.0})
    assert means["ratios"] == pytest.approx(
        {"torch": 1.0, "mkl": 2.0, "best framework": 1.0, "best": math.sqrt(1.0 * 0.5)}
    )


def test_without_peers_there_are_no_ratios():
    alone = result(pwconv=[0.02], out=[0.01])
    means = geometric_means([alone])
    assert means["ratios"] == {}
    text = " ".join(conclusion([alone], means))
    assert "as fast" not in text
    assert "worst 50%" in text


def test_the_conclusion_of_several_precisions():
    seconds = {"pwconv": [0.02], "out": [0.02], "conv2d": [0.03], "bf16": [0.01]}
    layers = [
        result(high=[0.015], medium=[medium], errors={"pwconv": 1e-7, "medium": 2e-3, "torch-bf16": error}, **seconds)
        for medium, error in ((0.005, 1e-3), (0.02, 1e-7))
    ]
    means = geometric_means(layers)
    text = " ".join(" ".join(conclusion(layers, means)).split())
    assert "fast highest is as each peer and as each layer's best float32 peer, geometric means: torch 1.50x, b" in text
    assert "fast high is as each peer and as each layer's best float32 peer, geometric means: torch 2.00x, best" in text
    assert "means: torch 3.00x, torch-bf16 1.00x, best framework 3.00x." in text
    assert "geometric means: highest 1.0e-07, medium 2.0e-03, torch-bf16 1.0e-05." in text
    assert "torch-bf16 computed float32 all the same on 1 of 2 layers." in text
    assert "medium computed float32" not in text
    assert "Share of the limit, highest: geometric mean 50%" in text


def test_errors_are_drawn_against_times(monkeypatch):
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    drawn = []
    monkeypatch.setattr(figure_class, "savefig", lambda figure, path, dpi: drawn.append((figure, path)))
    seconds = {"pwconv": [0.02], "out": [0.02], "conv2d": [0.04]}
    layers = [
        result(medium=[medium], errors={"pwconv": 1e-7, "medium": 2e-3, "torch": error}, **seconds)
        for medium, error in ((0.005, 0.0), (0.02, 4e-7))
    ]
    options = bench.parse(["--peers", "", "--precision", "highest", "--threads", "1", "--plot-errors", "e.png"])
    options.precisions, options.peers = ["highest", "medium"], ["torch"]
    plots.draw_errors(options, MACHINE, layers, options.plot_errors)
    ((figure, path),) = drawn
    (axes,) = figure.axes
    # A GFLOP in 0.02 s is 40 ps for each of its 500 million multiply-adds.
    points = {line.get_label().split("\n")[0]: list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert points["pwconv highest"] == [(pytest.approx(40), pytest.approx(1e-7))]
    assert points["pwconv medium"] == [(pytest.approx(20), pytest.approx(2e-3))]
    assert points["torch"] == [(pytest.approx(80), pytest.approx(4e-7))]  # the layer without error is left out
    assert [(pytest.approx(10), pytest.approx(2e-3)), (pytest.approx(40), pytest.approx(2e-3))] in points.values()
    assert "picoseconds" in axes.get_xlabel()
    assert "NCHW, 1 thread" in axes.get_title()
    assert path.name == "e.png"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that the test's code saves, without files."""
    figures = []
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure_class, "savefig", lambda figure, path, dpi: figures.append(figure))
    return figures


def options_of(peers, precisions=("highest",)):
    options = bench.parse(["--peers", "", "--threads", "1"])
    options.peers, options.precisions = list(peers), list(precisions)
    return options


def test_bars_are_as_long_as_the_rates(drawn):
    layers = [
        result(pwconv=[0.02], out=[0.0125], conv2d=[0.04], mkl=[0.0125]),
        result(pwconv=[0.0125], out=[0.0125], conv2d=[0.01], mkl=[0.02]),
    ]
    plots.draw_bars(options_of(["torch", "mkl"]), layers, Path("a.png"))
    rates, ratios = drawn[0].axes
    bars = {bar.get_label(): [patch.get_width() for patch in bar] for bar in rates.containers}
    assert bars == {
        "pwconv": pytest.approx([50, 80]),
        "torch": pytest.approx([25, 100]),
        "mkl (product alone)": pytest.approx([80, 50]),
    }
    tops = [sorted(patch.get_y() for patch in bar) for bar in rates.containers]
    assert [round(top) for top in tops[0]] == [0, 1]
    limits = next(lines for lines in rates.collections if lines.get_label().startswith("limit"))
    assert [segment[0][0] for segment in limits.get_segments()] == pytest.approx([100, 100])
    # MKL is given a buffer, so it is compared with what pwconv writes into one.
    points = [list(line.get_xdata()) for line in ratios.lines]
    assert pytest.approx([2.0, 0.8]) in points
    assert pytest.approx([1.0, 1.6]) in points
    assert "GFLOP/s" in rates.get_xlabel()
    assert [label.get_text() for label in rates.get_yticklabels()] == ["net layer\n1000x1000, 25 to 20"] * 2
    (legend,) = drawn[0].legends
    assert "NCHW, 1 thread" in legend.get_title().get_text()
    assert legend.get_texts()[0].get_text() == "pwconv"


def test_bars_of_several_precisions(drawn):
    seconds = {"pwconv": [0.02], "out": [0.02], "conv2d": [0.03], "bf16": [0.01]}
    plots.draw_bars(
        options_of(["torch", "torch-bf16"], ["highest", "medium"]), [result(medium=[0.005], **seconds)], Path("a.png")
    )
    rates, ratios = drawn[0].axes
    assert [bar.get_label() for bar in rates.containers] == ["pwconv highest", "pwconv medium", "torch", "torch-bf16"]
    # bfloat16 with bfloat16.
    assert [list(line.get_xdata()) for line in ratios.lines[:2]] == [pytest.approx([1.5]), pytest.approx([2.0])]


@pytest.mark.parametrize("count", [4, plots.MOST_NAMES + 10])
def test_roofline_labels_cover_nothing(drawn, count):
    layers = [
        Result(
            Workload("net", f"l{number}", 1, 50, 50, 30 + 7 * (number % 5), 40 + number),
            Limit(0.01, "FMA"),
            {("pwconv", ""): [1e-4 + 1e-6 * number], ("out=", ""): [1e-4], ("torch", "conv2d"): [2e-4]},
        )
        for number in range(count)
    ]
    plots.draw_roofline(options_of(["torch"]), MACHINE._replace(peak=400.0), layers, Path("a.png"))
    (axes,) = drawn[0].axes
    texts = [text for text in axes.texts if text.get_text()]
    names = [text.get_text() for text in texts]
    if count > plots.MOST_NAMES:
        assert {str(number) for number in range(1, count + 1)} <= set(names)
        assert f"{count}  net l{count - 1}" in "".join(names)
    else:
        assert {str(layer.workload) for layer in layers} <= set(names)
    boxes = [text.get_window_extent() for text in texts]
    crossing = [
        (names[i], names[j])
        for i in range(len(boxes))
        for j in range(i)
        if plots._overlap(boxes[i].padded(-1).extents, boxes[j].padded(-1).extents)
    ]
    assert crossing == []
    marks = [
        axes.transData.transform(xy) for line in axes.lines if line.get_label()[0] != "_" for xy in line.get_xydata()
    ]
    assert len(marks) == 2 * count
    assert not any(box.contains(*mark) for box in boxes for mark in marks)


def test_each_contender_has_a_style_of_its_own():
    assert set(plots.STYLES) == {*PRECISIONS, *PEERS}
    assert len(set(plots.STYLES.values())) == len(plots.STYLES)


# The command ----------------------------------------------------------------------------------------------------------


def run_bench(*words, **variables):
    command = [sys.executable, "-m", "pwconv", "bench", "--threads", "1", "--rounds", "1", *map(str, words)]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PWCONV_", "OPENBLAS_"))}
    return subprocess.run(command, env=ours | variables, capture_output=True, text=True, check=False)


def test_text_fits_a_narrow_terminal():
    done = run_bench("--layers", "1x4x4x16x16", "--peers", "numpy", COLUMNS="50")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 50
    assert {"layer", "shape 1x4x4x16x16", "geometric mean"} <= {*lines}  # each above its figures


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    path = tmp_path / "race.json"
    words = ("--layers", "2x5x6x3x4/2,1x4x4x16x16", "--peers", "numpy", "--layout", "NHWC", "--json", path)
    done = run_bench(*words, OPENBLAS_CORETYPE="Haswell")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # progress is shown on terminals only
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    assert lines[0] == "OPENBLAS_CORETYPE=Haswell is ignored: it would slow a peer."
    assert "1 thread, NHWC" in " ".join(lines)
    table = [line for line in lines if line.startswith(("layer ", "shape ", "geometric "))]
    assert [len(line.split()) for line in table] == [7, 8, 8, 8]

    saved = json.loads(path.read_text())
    assert saved["options"] == {
        "layout": "NHWC", "threads": 1, "isa": runtime.engine.isa_supported()[-1], "precisions": ["highest"],
        "float32": ["highest"], "rounds": 1,
    }  # fmt: skip
    assert saved["pwconv"]["threads"] == 1
    assert saved["peers"] == {"numpy": np.__version__}
    assert saved["machine"]["peak_gflops"] > 0
    assert saved["machine"]["levels"][-1]["capacity"] is None
    first = saved["layers"][0]
    assert [first[name] for name in Workload._fields[2:]] == list(STRIDED[2:])
    assert set(first["seconds"]) == {"pwconv", "out=", "numpy matmul"}
    assert first["gflops"]["numpy"] == pytest.approx(STRIDED.flops * 1e-9 / first["seconds"]["numpy matmul"][0])
    assert first["ratios"]["numpy"] == pytest.approx(first["gflops"]["pwconv"] / first["gflops"]["numpy"])
    assert first["shares"]["pwconv"] == pytest.approx(first["gflops"]["pwconv"] / first["limit_gflops"])
    assert set(saved["geometric_means"]) == {"gflops", "shares", "errors", "ratios", "other_ratios", "tuned"}
    assert first["tuned"] is saved["geometric_means"]["tuned"] is None
    assert first["other_ratios"] == saved["geometric_means"]["other_ratios"] == {}
    assert 0 < first["errors"]["pwconv"] < 1e-5


def test_the_command_tunes(tmp_path):
    path = tmp_path / "race.json"
    done = run_bench("--layers", "1x4x4x16x16,2x5x6x3x4/2", "--peers", "numpy", "--tune", "1", "--json", path)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith(("layer ", "shape ", "geometric "))]
    assert table[0].split()[-2:] == ["ratio", "tuned"]
    assert [len(line.split()) for line in table] == [8, 9, 9, 9]
    saved = json.loads(path.read_text())
    gains = [layer["tuned"] for layer in saved["layers"]]
    assert min(gains) >= 1
    assert saved["geometric_means"]["tuned"] == pytest.approx(math.sqrt(gains[0] * gains[1]))
    assert f"pwconv is {saved['geometric_means']['tuned']:.3f} times as fast" in " ".join(done.stdout.split())


def test_the_command_races_several_precisions(tmp_path):
    kernel_sets = runtime.engine.isa_kernel_sets(runtime.engine.isa_supported()[-1])
    if kernel_sets["medium"] == kernel_sets["highest"]:
        pytest.skip("this machine has no kernel set that multiplies bfloat16")
    path = tmp_path / "race.json"
    words = ("--layers", "1x4x4x64x64", "--peers", "numpy", "--precision", "highest,high,medium", "--json", path)
    done = run_bench(*words)
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_text())
    precisions = saved["options"]["precisions"]
    assert (precisions[0], precisions[-1]) == ("highest", "medium")
    assert f"layer {' error '.join(precisions)} error numpy ratio" in " ".join(done.stdout.split())
    (layer,) = saved["layers"]
    assert set(layer["seconds"]) == {"pwconv", "out=", "numpy matmul", *precisions[1:]}
    assert layer["errors"]["pwconv"] < 1e-5 < layer["errors"]["medium"]
    expected = layer["gflops"]["medium"] / layer["gflops"]["numpy"]
    assert layer["other_ratios"]["medium"] == {"numpy": pytest.approx(expected)}
    assert saved["geometric_means"]["other_ratios"]["medium"]["best framework"] == pytest.approx(expected)


def test_the_command_draws_and_replots(tmp_path):
    pytest.importorskip("matplotlib")
    bars, errors, kept = (tmp_path / name for name in ("bars.png", "errors.png", "race.json"))
    words = ("--layers", "1x4x4x16x16,nin cccp8", "--peers", "numpy", "--plot", bars, "--plot-errors", errors)
    done = run_bench(*words, "--json", kept)
    assert done.returncode == 0, done.stderr
    for path in (bars, tmp_path / "bars.roofline.png", errors):
        assert path.read_bytes().startswith(b"\x89PNG")

    # The same pictures from the kept figures.
    before = bars.read_bytes()
    for path in (bars, errors):
        path.unlink()
    replotted = run_bench("--replot", kept, "--plot", bars, "--plot-errors", errors)
    assert (replotted.returncode, replotted.stdout, replotted.stderr) == (0, "", "")
    assert errors.exists()
    assert bars.read_bytes() == before


def test_saved_results_are_restored(tmp_path):
    layers = [result(errors={"pwconv": 1e-7}, pwconv=[0.02, 0.03, 0.01], out=[0.0125], conv2d=[0.04], linear=[0.05])]
    options = options_of(["numpy"])
    kept = json.loads(json.dumps(record(options, MACHINE, layers, geometric_means(layers))))
    restored, machine, results = restore(kept)
    assert results[0].seconds == layers[0].seconds
    assert results[0].limit == (pytest.approx(0.01), "FMA")
    assert results[0].workload == layers[0].workload
    assert (results[0].errors, results[0].gflops) == (layers[0].errors, layers[0].gflops)
    assert machine == MACHINE._replace(isa=options.isa)
    for name in ("layout", "threads", "isa", "precisions", "peers", "cpu", "date"):
        assert getattr(restored, name) == getattr(options, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "is not what --json writes"), ('{"options": {}}', "is not what --json writes")],
)
def test_files_that_cannot_be_replotted(content, message, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "race.json"
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit):
        bench.parse(["--replot", str(path), "--plot", str(tmp_path / "a.png")])
    assert message in capsys.readouterr().err


# The scripts ----------------------------------------------------------------------------------------------------------

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def script(name):
    """Import a script from benchmarks/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


X86 = """
tile_panel_2x1:
.LFB1:
	vmovaps	%ymm0, %ymm1
.L2:
	vfmadd231ps	%ymm0, %ymm1, %ymm2
.L3:
	.p2align 4
	vfmadd231ps	(%rax), %ymm1, %ymm2
	vfmadd132ps	%ymm0, %ymm1, %ymm3
	vmovaps	%ymm3, 16(%rsp)
	cmpq	%rax, %rdx
	jne	.L3
	jmp	.L2
.L4:
	vaddps	%ymm0, %ymm1, %ymm3
	jne	.L4
	ret
	.size	tile_panel_2x1, .-tile_panel_2x1
other:
.L7:
	vfmadd231ps	%ymm0, %ymm1, %ymm2
	jne	.L7
	.size	other, .-other
"""
AARCH64 = """
tile_rowwise_1x1:
.L2:
	fadd	v1.4s, v1.4s, v2.4s
	cbnz	x1, .L2
.L3:
	fmla	v0.4s, v1.4s, v2.s[0]
	cmp	x7, x3
	bgt	.L3
	.size	tile_rowwise_1x1, .-tile_rowwise_1x1
"""


def test_the_inner_loop_of_each_tile_is_found():
    machine_code = script("machine_code")
    x86, arm = machine_code.CORES[0], machine_code.CORES[-1]
    (name, loop), *others = machine_code.inner_loops(X86, x86.fma)
    assert others == []
    assert name == "panel_2x1"
    # The enclosing loop has one FMA more, which is not in the inner loop.
    assert [line.split()[0] for line in loop] == [".L3:", "vfmadd231ps", "vfmadd132ps", "vmovaps", "cmpq", "jne"]
    assert machine_code.occurrences(loop, x86.fma) == 2
    assert sum(bool(machine_code.STACK.search(line)) for line in loop) == 1
    ((name, loop),) = machine_code.inner_loops(AARCH64, arm.fma)
    assert name == "rowwise_1x1"
    assert [line.split()[0] for line in loop] == [".L3:", "fmla", "cmp", "bgt"]


def test_the_tallest_tile_of_each_kind_and_width_is_simulated():
    chosen = script("machine_code").chosen
    tiles = ["panel_1x1", "panel_12x1", "panel_9x1", "rowwise_2x1", "panel_2x4"]
    assert chosen(tiles, None) == ["panel_12x1", "rowwise_2x1", "panel_2x4"]
    assert chosen(tiles, "panel_*x1") == ["panel_1x1", "panel_12x1", "panel_9x1"]


def test_different_results_are_counted_for_the_same_numbers():
    bits = script("bits")
    workload = Workload("a", "b", 1, 5, 4, 300, 9)
    one, four = bits.operands(workload, "NCHW", 1), bits.operands(workload, "NHWC", 4)
    assert four.x.shape == (4, 5, 4, 300)
    np.testing.assert_array_equal(np.moveaxis(four.x[3], -1, 0), one.x[0])
    np.testing.assert_array_equal(four.weight, one.weight)
    found = bits.results(workload, runtime.engine.isa_active())
    assert len(found["pwconv"]) == len(found["numpy"]) == 4
    assert len(set(found["pwconv"])) == 1


def test_flags_of_the_build_are_found():
    settings = script("machine_code").build_settings()
    assert "-ffp-contract=off" in settings["COMMON_FLAGS"]
    assert "-mfma" in settings["INSTRUCTION_SETS"]["x86_64"]["pyx/kernels/avx2.c"]


def test_a_sweep_compares_points_with_their_limits_and_neighbours():
    sweep = script("sweep")
    # One GFLOP each; the limit is 0.01 s.
    times = {15: 0.011, 16: 0.022, 17: 0.0121, 24: 0.03}
    points = {
        n: sweep.Point(Workload("x", str(n), 1, 1000, 1000, 25, 20), Limit(0.01, "FMA"), {"pwconv": t, "out=": 0.01})
        for n, t in times.items()
    }
    assert points[16].excess("pwconv") == pytest.approx(2.2)
    assert points[16].per_macs(0.022) == pytest.approx(44.0)
    assert sweep.step(16, points, "pwconv") == pytest.approx(2.0)
    assert sweep.step(24, points, "pwconv") is None
    assert "2 of 4 points over 1.25 x limit, worst 3.00 at 24; largest step 2.00 at 16" in sweep.verdict(
        "pwconv", points
    )
    assert sweep.verdict("out=", points).startswith("out=: 0 of 4")
    assert sweep.line(16, points).count("*") == 1


def test_sweeps_go_as_far_as_they_should():
    sweeps = script("sweep").SWEEPS
    reach = {name: (min(points), max(points)) for name, points in sweeps.items()}
    assert reach["images"] == (1, 64)
    assert reach["size"] == (7, 512)
    assert reach["ins"] == reach["outs"] == (15, 4097)
    for name in ("ins", "outs"):
        assert {255, 256, 257, 1023, 1024, 1025} <= set(sweeps[name])
