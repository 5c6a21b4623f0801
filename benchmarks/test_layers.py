"""Every layer of the networks, in both layouts, computed from the same arrays by pwconv and each installed peer."""

import pytest

import pwconv
from pwconv.commands.peers import PEERS, Operands, installed, pwconv_ways
from pwconv.commands.race import compete, race
from pwconv.commands.workloads import LAYOUTS, NETWORKS

CASES = [
    pytest.param((workload, layout), column, id=f"{workload} {layout} {column}")
    for workload in NETWORKS
    for layout in LAYOUTS
    for column in ("pwconv", "out=", *installed(layout))
]
ROUNDS = 3


@pytest.fixture(scope="module")
def operands(request):
    """A layer's arrays, shared by all that compute it."""
    return Operands(*request.param)


@pytest.mark.benchmark(min_rounds=5, max_time=0.1, warmup=True, warmup_iterations=1)
@pytest.mark.parametrize(("operands", "column"), CASES, indirect=["operands"])
def test_layer(benchmark, machine, results, operands, column):
    """Time one library alone; for pwconv, also race all libraries and save the result."""
    workload, layout = operands.workload, operands.layout
    benchmark.group = f"{workload} {layout}"
    ways = PEERS[column].ways(operands) if column in PEERS else {column: pwconv_ways(operands)[column]}
    # A race of the library's ways finds the best, and takes longer than the workers of the library before spin.
    seconds = race(ways, rounds=1, threads=pwconv.get_num_threads())
    best = min(ways, key=seconds.__getitem__)
    benchmark.extra_info["way"] = best
    benchmark(ways[best])
    if column == "pwconv":
        result = compete(operands, installed(layout), machine, rounds=ROUNDS)
        results.setdefault(layout, []).append(result)
        benchmark.extra_info |= {
            "gflops": result.gflops,
            "shares of the limit": result.shares,
            "bound by": result.limit.bound_by,
            "errors": result.errors,
            "times as fast as": result.ratios,
            "lost to": result.lost,
        }
