"""How work is dealt to threads that this machine may not have: tiles are counted, no clock is read."""

import heapq
import math

import numpy as np
import pytest

import pwconv
from pwconv.commands.workloads import LAYOUTS, NETWORKS

# Units that are finer still may read the weights so often that nothing is won.
MOST_IMBALANCE = 0.12
# Operations of a thread that are worth waking it for: about 20 microseconds.
ENOUGH_WORK = 4e6


def units_of(plan):
    """The tiles in each unit of work in the order in which units are dealt: parts of out channels within pixels.

    Tiles of pixels that lie along the vectors are whole ones, however many pixels are in them. A tile of pixels that
    are rows costs as much as it has rows, so those count as parts of a tile.
    """
    starts = np.arange(0, plan.pixels, plan.pixel_block)
    pixels = np.minimum(plan.pixel_block, plan.pixels - starts)
    pixel_tiles = np.ceil(pixels / plan.nr) if plan.pixels_in_b else pixels / plan.mr
    out_tiles = np.diff(np.arange(plan.out_blocks + 1) * plan.out_tiles // plan.out_blocks)
    return np.outer(pixel_tiles, out_tiles).ravel()


def loads(units, threads):
    """The tiles that each thread gets when the one that is free first takes the next unit."""
    busy = [0.0] * threads
    for unit in units:
        heapq.heappush(busy, heapq.heappop(busy) + unit)
    return busy


def test_units_are_dealt_to_who_is_free():
    assert sorted(loads([3, 1, 1, 1, 2], 2)) == [3, 5]
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
    units = units_of(plan)
    # The units that are simulated are those that are reported.
    assert len(units) == plan.tasks
    share = units.sum() / threads
    # Where a thread has few tiles, it cannot be more even than whole ones allow.
    assert max(loads(units, threads)) <= max((1 + MOST_IMBALANCE) * share, math.ceil(share)), plan


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("threads", [2, 4])
def test_threads_share_small_maps_without_short_tiles(isa, threads, precision):
    """Pixels that are rows stay in tiles about as tall as for one thread; out channels are shared out instead."""
    for workload in NETWORKS:
        weight = np.zeros((workload.out_channels, workload.in_channels), np.float32)
        layer = pwconv.PointwiseConv(weight, stride=workload.stride, layout="NHWC", precision=precision)
        alone, plan = (layer.plan(workload.shape("NHWC"), num_threads=number) for number in (1, threads))
        assert plan.pixels_in_b or plan.mr >= 0.75 * alone.mr, (workload, plan)
