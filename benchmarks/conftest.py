"""Fixtures and hooks for pytest-benchmark: facts saved with each run, and a summary of the ratios to peers.

    pytest benchmarks/                                       all layers, both layouts; -k resnet50 or -k NHWC for some
    pytest benchmarks/ --benchmark-autosave                  saved as JSON in .benchmarks/, under the commit's name
    pytest benchmarks/ --benchmark-compare                   compared with the last saved run
    pytest benchmarks/ --benchmark-compare-fail=median:5%    and fail where a median has grown by more than that

PWCONV_NUM_THREADS sets the number of threads. NumPy's BLAS reads its settings when it is loaded, and pwconv loads it.
So the settings are made first, and pwconv is imported inside of functions.
"""

import os

import pytest

RESULTS = pytest.StashKey()


def pytest_configure(config):
    """Remove OpenBLAS settings, such as a core type, that would slow NumPy, and set its number of threads."""
    for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
        del os.environ[name]
    if "PWCONV_NUM_THREADS" in os.environ:
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["PWCONV_NUM_THREADS"]
    config.stash[RESULTS] = {}


@pytest.fixture(scope="session")
def machine():
    """The machine's measured limits, for the number of threads that pwconv uses."""
    import pwconv
    from pwconv import runtime
    from pwconv.commands.limits import measure

    return measure(runtime.engine.isa_active(), pwconv.get_num_threads())


@pytest.fixture
def results(request):
    """The results of the races so far, by layout."""
    return request.config.stash[RESULTS]


def pytest_benchmark_update_machine_info(config, machine_info):
    """Save the versions and settings that a comparison between commits or machines needs."""
    import threadpoolctl

    import pwconv
    from pwconv.commands.peers import PEERS, installed
    from pwconv.commands.workloads import LAYOUTS

    machine_info["pwconv"] = pwconv.config()
    machine_info["peers"] = {name: PEERS[name].version for layout in LAYOUTS for name in installed(layout)}
    machine_info["blas"] = threadpoolctl.threadpool_info()


def pytest_terminal_summary(terminalreporter, config):
    """Print the conclusion that `python -m pwconv bench` prints below its table."""
    from pwconv.commands.report import conclusion, geometric_means

    for layout, results in config.stash[RESULTS].items():
        terminalreporter.section(f"races in {layout}")
        for line in conclusion(results, geometric_means(results)):
            terminalreporter.write_line(line)
