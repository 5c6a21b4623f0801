"""Benchmarks by pytest-benchmark: what is saved with them, and the ratios, which it does not know of.

    pytest benchmarks/                                       all layers, both layouts; -k resnet50 or -k NHWC for some
    pytest benchmarks/ --benchmark-autosave                  kept as JSON in .benchmarks/, under the commit's name
    pytest benchmarks/ --benchmark-compare                   beside what was saved last
    pytest benchmarks/ --benchmark-compare-fail=median:5%    and fail where a median has grown by more than that

PWCONV_NUM_THREADS says with how many threads. NumPy's BLAS reads its settings when it is loaded, and pwconv loads it:
so they are made first, and pwconv is imported where it is used.
"""

import os

import pytest

RESULTS = pytest.StashKey()


def pytest_configure(config):
    """Let no core type that was chosen for safety slow NumPy."""
    for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
        del os.environ[name]
    if "PWCONV_NUM_THREADS" in os.environ:
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["PWCONV_NUM_THREADS"]
    config.stash[RESULTS] = {}


@pytest.fixture(scope="session")
def machine():
    """What this machine allows, with as many threads as pwconv uses."""
    import pwconv
    from pwconv import runtime
    from pwconv.commands.limits import measure

    return measure(runtime.engine.isa_active(), pwconv.get_num_threads())


@pytest.fixture
def results(request):
    """The races so far, by layout."""
    return request.config.stash[RESULTS]


def pytest_benchmark_update_machine_info(config, machine_info):
    """Save all that a comparison between commits or machines needs to know."""
    import threadpoolctl

    import pwconv
    from pwconv.commands.peers import PEERS, installed
    from pwconv.commands.workloads import LAYOUTS

    machine_info["pwconv"] = pwconv.config()
    machine_info["peers"] = {name: PEERS[name].version for layout in LAYOUTS for name in installed(layout)}
    machine_info["blas"] = threadpoolctl.threadpool_info()


def pytest_terminal_summary(terminalreporter, config):
    """Print what the command prints below its table."""
    from pwconv.commands.report import conclusion, geometric_means

    for layout, results in config.stash[RESULTS].items():
        terminalreporter.section(f"races in {layout}")
        for line in conclusion(results, geometric_means(results)):
            terminalreporter.write_line(line)
