"""Threads, environment, configuration, and what happens without the compiled engine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import threadpoolctl

import pwconv
from pwconv import runtime

WITHOUT_ENGINE = "import sys; sys.modules['pwconv._engine'] = None  # makes its import fail\n"
PRINT_CONFIG = "import json, pwconv; print(json.dumps(pwconv.config()))"


def python(code, **environment):
    """Run code in a fresh process that sees only the given settings of pwconv and OpenMP."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PWCONV_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env=ours | environment, capture_output=True, text=True, timeout=60, check=False
    )


def configuration(code="", **environment):
    """The configuration of a fresh process after some code."""
    process = python(f"{code}\n{PRINT_CONFIG}", **environment)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def offered(config, threads):
    """The number of threads that this build uses if `threads` are asked for: 1 without OpenMP."""
    return threads if config["openmp"]["enabled"] else 1


# CPUs of the affinity mask and the cgroups ----------------------------------------------------------------------------


def cgroup_tree(root, membership, files):
    """Create fake cgroup file systems under `root`, and the /proc files that say where this process is in them."""
    for name, text in files.items():
        file = root / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "cgroup").write_text(membership)
    return root / "fs", root / "cgroup"


V1 = "12:cpuset:/\n4:cpu,cpuacct:{}\n1:name=systemd:/user\n"
TREES = {
    "v2": ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
    "v2 max": ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    "v2 in a group": ("0::/jobs/a\n", {"jobs/a/cpu.max": "200000 100000\n"}, 2),
    "v2 in an ancestor": ("0::/jobs/a/b\n", {"jobs/cpu.max": "400000 100000\n", "jobs/a/b/cpu.max": "max 100000\n"}, 4),
    "v2 nested, inner tighter": ("0::/a/b\n", {"a/cpu.max": "600000 100000\n", "a/b/cpu.max": "150000 50000\n"}, 3),
    "v2 nested, outer tighter": ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "500000 100000\n"}, 2),
    "v2 of another group": ("0::/a\n", {"b/cpu.max": "100000 100000\n", "a/b/cpu.max": "100000 100000\n"}, 8),
    "v2 rounded down": ("0::/\n", {"cpu.max": "399999 100000\n"}, 3),
    "v2 below one": ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
    "v2 beyond the mask": ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
    "v2 equal to the mask": ("0::/\n", {"cpu.max": "800000 100000\n"}, 8),
    "v2 as the host sees it": ("0::/docker/0123\n", {"cpu.max": "250000 100000\n"}, 2),
    "v2 outside the namespace": ("0::/../other\n", {"cpu.max": "500000 100000\n", "../cpu.max": "100000 100000\n"}, 5),
    "v2 beside v1": ("1:name=systemd:/\n0::/a\n", {"unified/a/cpu.max": "300000 100000\n"}, 3),
    "v2 without files": ("0::/a/b\n", {}, 8),
    "v2 without digits": ("0::/\n", {"cpu.max": "many 100000\n"}, 8),
    "v2 cut off": ("0::/\n", {"cpu.max": "\n"}, 8),
    "v2 without a period": ("0::/\n", {"cpu.max": "100000 0\n"}, 8),
    "v1": (
        V1.format("/"),
        {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "v1 unlimited": (
        V1.format("/"),
        {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "v1 under its short name": (
        V1.format("/a"),
        {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "25000\n"},
        2,
    ),
    "v1 in an ancestor": (
        V1.format("/a/b/c"),
        {
            "cpu/a/cpu.cfs_quota_us": "270000\n",
            "cpu/a/cpu.cfs_period_us": "100000\n",
            "cpu/a/b/cpu.cfs_quota_us": "-1\n",
            "cpu/a/b/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1 without a period": (V1.format("/"), {"cpu/cpu.cfs_quota_us": "100000\n"}, 8),
    "v1 of another controller": (
        "3:cpuset,cpuacct:/\n",
        {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "v1 and v2": (
        V1.format("/") + "0::/\n",
        {
            "cpu/cpu.cfs_quota_us": "500000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "unified/cpu.max": "400000 100000\n",
        },
        4,
    ),
    "nonsense": ("hello\n::\n\n0:\n", {"cpu.max": "max\n"}, 8),
}


@pytest.mark.parametrize(("membership", "files", "threads"), TREES.values(), ids=TREES)
def test_default_threads_within_cgroups(membership, files, threads, tmp_path, monkeypatch):
    """With an affinity mask of 8 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    default = runtime.default_threads(*cgroup_tree(tmp_path, membership, files))
    assert default == (threads, "affinity" if threads == 8 else "cgroup quota")


def test_default_threads_without_cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert runtime.default_threads(tmp_path / "nothing", tmp_path / "nothing") == (3, "affinity")


def test_default_threads_without_an_affinity_mask(tmp_path, monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert runtime.default_threads(tmp_path / "nothing", tmp_path / "nothing") == (6, "affinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runtime.default_threads(tmp_path / "nothing", tmp_path / "nothing") == (1, "affinity")


ON_ONE_CPU = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity mask")


@needs_affinity
def test_default_of_a_process_on_one_cpu():
    config = configuration(ON_ONE_CPU)
    assert config["threads"] == 1
    assert config["threads_from"] in ("affinity", "cgroup quota")


@needs_affinity
def test_an_explicit_number_is_not_bounded():
    """Affinity mask and cgroup quota bound neither the environment's number of threads nor a call's."""
    plan = "pwconv.PointwiseConv(numpy.ones((64, 64), 'f')).plan((1, 64, 99, 99), num_threads=5).threads"
    code = f"{ON_ONE_CPU}; import numpy, pwconv; print(pwconv.get_num_threads(), {plan})"
    process = python(code, PWCONV_NUM_THREADS="3", OMP_NUM_THREADS="64")
    assert process.returncode == 0, process.stderr
    config = pwconv.config()
    assert process.stdout.split() == [str(offered(config, 3)), str(offered(config, 5))]


# Settings -------------------------------------------------------------------------------------------------------------


def test_number_of_threads_from_the_environment():
    config = configuration(PWCONV_NUM_THREADS="3", OMP_NUM_THREADS="64")
    assert config["threads"] == offered(config, 3)
    assert config["threads_from"] == "PWCONV_NUM_THREADS" or not config["openmp"]["enabled"]


def test_set_num_threads_beats_the_environment():
    config = configuration("import pwconv; pwconv.set_num_threads(5)", PWCONV_NUM_THREADS="3", OMP_NUM_THREADS="64")
    assert config["threads"] == offered(config, 5)
    assert config["threads_from"] == "set_num_threads" or not config["openmp"]["enabled"]


def test_never_more_threads_than_openmp_offers():
    config = configuration("import pwconv; pwconv.set_num_threads(5)", OMP_NUM_THREADS="2")
    assert config["threads"] == offered(config, 2)
    assert config["threads_from"] == "OpenMP maximum"


def test_threadpoolctl_limits_the_threads(engine):
    before = pwconv.get_num_threads()
    with threadpoolctl.threadpool_limits(1):
        assert pwconv.get_num_threads() == 1
    assert pwconv.get_num_threads() == before


def test_set_num_threads():
    before = pwconv.get_num_threads()
    try:
        pwconv.set_num_threads(np.int64(1))
        assert pwconv.get_num_threads() == 1
        assert pwconv.config()["threads_from"] == "set_num_threads"
    finally:
        pwconv.set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, r"^n must be from 1 to \d+, got 0$"),
        (-2, ValueError, r"^n must be from 1 to \d+, got -2$"),
        (2**40, ValueError, r"^n must be from 1 to \d+, got 1099511627776$"),
        (1.0, TypeError, "n must be an integer, got float"),
        (True, TypeError, "n must be an integer, got bool"),
        (None, TypeError, "n must be an integer, got NoneType"),
    ],
)
def test_errors_of_set_num_threads(n, error, message):
    before = pwconv.get_num_threads()
    with pytest.raises(error, match=message):
        pwconv.set_num_threads(n)
    assert pwconv.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PWCONV_NUM_THREADS", "0", "PWCONV_NUM_THREADS must be an integer from 1 to 1073741823, got '0'"),
        ("PWCONV_NUM_THREADS", "-1", "PWCONV_NUM_THREADS must be an integer from 1 to 1073741823, got '-1'"),
        ("PWCONV_NUM_THREADS", "two", "PWCONV_NUM_THREADS must be an integer from 1 to 1073741823, got 'two'"),
        ("PWCONV_NUM_THREADS", "9" * 20, "PWCONV_NUM_THREADS must be an integer from 1 to 1073741823, got '9999"),
        ("PWCONV_BACKEND", "gpu", "PWCONV_BACKEND must be 'auto', 'native' or 'numpy', got 'gpu'"),
        ("PWCONV_ISA", "sse9", "PWCONV_ISA must be one of baseline"),
    ],
)
def test_invalid_environment_variables_raise_at_import(engine, name, value, message):
    process = python("import pwconv", **{name: value})
    assert process.returncode == 1
    assert f"ValueError: {message}" in process.stderr.splitlines()[-1]


def test_empty_variables_count_as_unset():
    config = configuration(PWCONV_NUM_THREADS="", PWCONV_BACKEND="", PWCONV_ISA="")
    assert config["backend"] == pwconv.config()["backend"]
    assert config["threads_from"] in ("affinity", "cgroup quota")


def test_each_instruction_set_can_be_asked_for(engine):
    for name in engine.isa_supported():
        assert configuration(PWCONV_ISA=name)["isa"]["active"] == name
    assert configuration()["isa"]["active"] == engine.isa_supported()[-1]


def test_an_instruction_set_of_other_machines_is_refused(engine):
    """An instruction set that is built but not supported by this CPU, and one that is not built."""
    for name in {"baseline", "avx2", "avx512", "neon", "neon_bf16"} - set(engine.isa_supported()):
        process = python("import pwconv", PWCONV_ISA=name)
        assert f"on this machine, got '{name}'" in process.stderr.splitlines()[-1]


# Backends -------------------------------------------------------------------------------------------------------------

CALLS = """
import pickle, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pwconv
    import numpy as np
    rng = np.random.default_rng(1)
    x, weight, bias = (rng.standard_normal(shape).astype("f") for shape in ((2, 6, 4, 5), (8, 3), 8))
    layer = pickle.loads(pickle.dumps(pwconv.PointwiseConv(weight, bias, groups=2, activation="relu")))
    results = [layer(x), pwconv.pointwise_conv(x, weight, bias, groups=2, activation="relu")]
    for i in range(100):
        layer(x)
truth = np.einsum("goi,ngihw->ngohw", weight.reshape(2, 4, 3).astype("d"), x.reshape(2, 2, 3, 4, 5)).reshape(2, 8, 4, 5)
truth = np.maximum(truth + bias.reshape(8, 1, 1), 0)
assert all(result.dtype == np.float32 and np.abs(result - truth).max() < 1e-5 for result in results)
print([str(warning.message) for warning in caught], [warning.category.__name__ for warning in caught])
print(pwconv.config()["backend"], repr(layer.plan(x.shape)))
"""


def test_without_the_engine_numpy_computes_after_one_warning():
    process = python(WITHOUT_ENGINE + CALLS)
    assert process.returncode == 0, process.stderr
    warned, used = process.stdout.splitlines()
    assert warned.startswith("['the compiled engine of pwconv cannot be imported (import of pwconv._engine halted")
    assert warned.endswith("NumPy computes instead, slowly'] ['RuntimeWarning']")
    assert used.startswith("numpy (2, 6, 4, 5) -> (2, 8, 4, 5) with NumPy")


def test_without_the_engine_on_purpose_there_is_no_warning():
    process = python(WITHOUT_ENGINE + CALLS, PWCONV_BACKEND="numpy")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("[] []\nnumpy ")


def test_numpy_can_be_chosen_by_the_environment(engine):
    process = python(
        CALLS + "print(pwconv.config()['isa']['active'], pwconv.PointwiseConv(weight, backend='native').spec.backend)",
        PWCONV_BACKEND="numpy",
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("[] []\nnumpy ")
    assert process.stdout.endswith(f"{engine.isa_supported()[-1]} native\n")


def test_native_is_the_default(engine):
    process = python(CALLS)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("[] []\nnative ")


def test_without_the_engine_native_is_refused():
    code = "import pwconv, numpy\npwconv.PointwiseConv(numpy.ones((2, 3), 'f'), backend='native')"
    process = python(WITHOUT_ENGINE + code)
    assert "ValueError: backend 'native' is not available" in process.stderr.splitlines()[-1]
    process = python(WITHOUT_ENGINE + "import pwconv", PWCONV_BACKEND="native")
    assert "ValueError: backend 'native' is not available" in process.stderr.splitlines()[-1]


def test_without_the_engine_a_layer_is_immutable_and_explains_errors():
    code = """
    import warnings
    warnings.simplefilter("ignore")
    import numpy as np, pwconv
    layer = pwconv.PointwiseConv(np.ones((2, 3), "f"), np.ones(2, "f"))
    for wrong in (
        lambda: setattr(layer, "weight", 1),
        lambda: layer.bias.setflags(write=True),
        lambda: layer(np.ones((1, 4, 2, 2), "f")),
        lambda: layer(np.ones((1, 3, 2, 2), "f"), num_threads=0),
    ):
        try:
            wrong()
        except (AttributeError, ValueError) as error:
            print(error)
    """
    process = python(WITHOUT_ENGINE + textwrap.dedent(code))
    assert process.returncode == 0, process.stderr
    assert [line.split(" ")[0] for line in process.stdout.splitlines()] == ["a", "cannot", "x", "num_threads"]


# Configuration --------------------------------------------------------------------------------------------------------


def test_config(engine):
    config = pwconv.config()
    assert config["version"] == pwconv.__version__
    assert config["backend"] == "native"
    assert config["isa"]["active"] in config["isa"]["supported"]
    assert set(config["isa"]["supported"]) <= set(config["isa"]["built"])
    assert config["threads"] == pwconv.get_num_threads()
    assert config["openmp"]["enabled"] in (True, False)
    assert config["numpy"] == np.__version__
    assert config["python"].endswith(".".join(map(str, sys.version_info[:3])))
    for key in ("compiler", "platform", "cpu"):
        assert isinstance(config[key], str)
        assert config[key]
    assert all(size >= 0 for size in config["caches"].values())
    assert set(config["caches"]) == {"l1d", "l2", "l3"}


def test_config_without_the_engine():
    config = configuration(WITHOUT_ENGINE, PWCONV_BACKEND="numpy", PWCONV_NUM_THREADS="3")
    assert config["backend"] == "numpy"
    assert config["isa"] == {"built": [], "supported": [], "active": None}
    assert config["openmp"]["enabled"] is False
    assert (config["threads"], config["threads_from"]) == (3, "PWCONV_NUM_THREADS")


@pytest.mark.parametrize("before", ["", WITHOUT_ENGINE], ids=["with engine", "without engine"])
def test_show_config_fits_80_columns_and_shows_every_setting(before):
    process = python(f"{before}import pwconv; pwconv.show_config()", PWCONV_BACKEND="numpy")
    lines = process.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    config = configuration(before, PWCONV_BACKEND="numpy")
    labels = [line.partition(":")[0] for line in lines if ":" in line]
    nested = {key: value if isinstance(value, dict) else () for key, value in config.items()}
    assert labels == [
        label
        for key, inner in nested.items()
        for label in (key.replace("_", " "), *(f"  {name.replace('_', ' ')}" for name in inner))
    ]
    assert f"version: {pwconv.__version__}" in lines
    assert f"threads: {config['threads']}" in lines
    assert f"  enabled: {str(config['openmp']['enabled']).lower()}" in lines


def test_show_config_wraps_long_lines(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "config", lambda: {"compiler": "a very long name " * 12, "none of it": ()})
    pwconv.show_config()
    *wrapped, last = capsys.readouterr().out.splitlines()
    assert len(wrapped) > 2
    assert all(len(line) <= 80 for line in wrapped)
    assert " ".join(map(str.strip, wrapped)) == ("compiler: " + "a very long name " * 12).strip()
    assert all(line.startswith("  ") for line in wrapped[1:])
    assert last == "none of it: none"


def test_name_of_the_cpu_without_procfs(monkeypatch):
    """As on macOS and Windows."""

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(runtime, "_read", missing)
    assert pwconv.config()["cpu"] == os.environ.get("PROCESSOR_IDENTIFIER", platform.machine())


def test_config_starts_no_process():
    """`config()` starts no process, with and without /proc/cpuinfo; the interpreter's audit events report processes."""
    code = """
    import sys

    def refuse(event, arguments):
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"):
            raise AssertionError(f"{event}{arguments}")

    import pwconv
    sys.addaudithook(refuse)
    settings = pwconv.config()
    def missing(path):
        raise FileNotFoundError(path)
    pwconv.runtime._read = missing
    assert pwconv.config()["cpu"]
    print(settings["platform"])
    """
    process = python(textwrap.dedent(code))
    assert process.returncode == 0, process.stderr
    name = process.stdout.strip()
    if sys.platform == "linux":
        assert name == platform.platform()
    else:
        assert platform.machine() in name
