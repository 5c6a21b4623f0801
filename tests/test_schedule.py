"""How evenly tasks are dealt to threads, also to more than this machine has. Tiles are counted; no time is measured."""

import heapq
import math

import numpy as np
import pytest

import pwconv
from pwconv.commands.workloads import LAYOUTS, NETWORKS

# Smaller tasks would be more even, but would read the weights more often.
MOST_IMBALANCE = 0.12
# Floating-point operations per thread, about 20 microseconds of work, below which waking a thread does not pay.
ENOUGH_WORK = 4e6


def tasks_of(plan):
    """The tiles in each task, in the order in which tasks are dealt: blocks of pixels outside, of out channels inside.

    Where pixels are the operand B, a partly filled tile costs as much as a full one and counts as one. Where pixels
    are the operand A, the cost of a tile is proportional to its rows, so a partly filled tile counts as a fraction.
    """
    starts = np.arange(0, plan.pixels, plan.pixel_block)
    pixels = np.minimum(plan.pixel_block, plan.pixels - starts)
    pixel_tiles = np.ceil(pixels / plan.nr) if plan.pixels_in_b else pixels / plan.mr
    out_tiles = np.diff(np.arange(plan.out_blocks + 1) * plan.out_tiles // plan.out_blocks)
    return np.outer(pixel_tiles, out_tiles).ravel()


def loads(tasks, threads):
    """The tiles that each thread gets: its own run of adjacent tasks, then what others have left."""
    runs = [list(tasks[len(tasks) * i // threads : len(tasks) * (i + 1) // threads]) for i in range(threads)]
    busy = [(0.0, thread) for thread in range(threads)]
    while any(runs):
        done, thread = heapq.heappop(busy)
        others = (runs[(thread + i) % threads] for i in range(threads))
        heapq.heappush(busy, (done + next(run for run in others if run).pop(0), thread))
    return [done for done, _ in busy]


def test_simulated_threads_help_each_other():
    assert sorted(loads([3, 1, 1, 1, 2], 2)) == [4, 4]
    assert sorted(loads([1, 1, 5, 1], 2)) == [3, 5]
    assert sorted(loads([1], 3)) == [0, 0, 1]


@pytest.mark.parametrize(
    ("workload", "threads"),
    [(workload, threads) for threads in (8, 32, 64) for workload in NETWORKS if workload.flops > ENOUGH_WORK * threads],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_thread_gets_much_more_than_its_share(isa, workload, layout, threads):
    weight = np.zeros((workload.out_channels, workload.in_channels), np.float32)
    layer = pwconv.PointwiseConv(weight, stride=workload.stride, layout=layout, activation="relu")
    plan = layer.plan(workload.shape(layout), num_threads=threads)
    tasks = tasks_of(plan)
    # The simulation has as many tasks as the plan reports.
    assert len(tasks) == plan.tasks
    share = tasks.sum() / threads
    # A thread takes whole tiles, so a share of few tiles may be rounded up.
    assert max(loads(tasks, threads)) <= max((1 + MOST_IMBALANCE) * share, math.ceil(share)), plan


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("threads", [2, 4])
def test_threads_share_small_maps_without_short_tiles(isa, threads, precision):
    """Where pixels are the operand A, tiles stay about as large as for one thread: threads divide out channels."""
    for workload in NETWORKS:
        weight = np.zeros((workload.out_channels, workload.in_channels), np.float32)
        layer = pwconv.PointwiseConv(weight, stride=workload.stride, layout="NHWC", precision=precision)
        alone, plan = (layer.plan(workload.shape("NHWC"), num_threads=number) for number in (1, threads))
        assert plan.pixels_in_b or plan.mr * plan.nr >= 0.75 * alone.mr * alone.nr, (workload, plan)
