"""Scenes bigger than memory: Dask and xarray take layers, chains and classifiers as they are, chunk by chunk.

A chunk's pixels know nothing of other chunks, so results are those of the whole scene in one piece, bit for bit.
"""

from __future__ import annotations

import os
import pickle
import re
import resource
import threading
from pathlib import Path
from unittest.mock import patch

import dask
import dask.array as da
import numpy as np
import oracle
import process
import pytest
import xarray
import zarr
from dask.diagnostics import ProgressBar
from distributed import Client, LocalCluster

import pwconv

CHUNK = (64, 80)
PLACES = ["memory", "memmap", "zarr"]


def classifier(bands, layout="CHW"):
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((7, bands), np.float32), rng.standard_normal(7, np.float32)
    return pwconv.PixelClassifier(weight, bias, layout=layout)


def make_scene(bands, height, width):
    return np.random.default_rng(2).integers(0, 4096, (bands, height, width), np.uint16)


def chunked(scene, place, folder):
    """A scene as a Dask array whose chunks are read from memory or from disk."""
    chunks = (len(scene), *CHUNK)
    if place == "zarr":
        zarr.create_array(folder / "scene.zarr", data=scene, chunks=chunks, compressors=None)
        return da.from_zarr(folder / "scene.zarr")
    if place == "memmap":
        np.save(folder / "scene.npy", scene)
        scene = np.load(folder / "scene.npy", mmap_mode="r")
    return da.from_array(scene, chunks=chunks)


@pytest.mark.parametrize("place", PLACES)
def test_dask_takes_layers_chains_and_classifiers(place, tmp_path):
    scene = make_scene(30, 200, 300)
    rng = np.random.default_rng(3)
    wide, narrow = (rng.standard_normal(shape, np.float32) for shape in ((40, 30), (5, 40)))
    layer = pwconv.PointwiseConv(wide, layout="CHW", activation="relu")
    chain = pwconv.PointwiseChain([layer, pwconv.PointwiseConv(narrow, layout="CHW")])
    ground = classifier(30)
    chunks = chunked(scene, place, tmp_path)
    assert chunks.npartitions == 16
    with dask.config.set(scheduler="threads", num_workers=4):
        for call, channels in ((layer, 40), (chain, 5), (ground.decision_function, 7), (ground.predict_proba, 7)):
            result = chunks.map_blocks(call, dtype=np.float32, chunks=((channels,), *chunks.chunks[1:]))
            assert oracle.same_bits(result.compute(), call(scene))
        labels = chunks.map_blocks(ground.predict, dtype=np.int32, drop_axis=0).compute()
        assert labels.dtype == np.int32
        assert np.array_equal(labels, ground.predict(scene))


def test_xarray(tmp_path):
    """xarray moves a function's core axis to the end, so the layer is channels last for a scene of any layout."""
    scene = make_scene(12, 150, 170)
    cube = xarray.DataArray(chunked(scene, "zarr", tmp_path), dims=("band", "y", "x"), coords={"y": np.arange(150.0)})
    ground = classifier(12, "HWC")
    labels = xarray.apply_ufunc(
        ground.predict, cube, input_core_dims=[["band"]], dask="parallelized", output_dtypes=[np.int32]
    )
    assert labels.dims == ("y", "x")
    assert np.array_equal(labels["y"], cube["y"])
    assert np.array_equal(labels.compute(), classifier(12).predict(scene))
    shares = xarray.apply_ufunc(
        ground.predict_proba,
        cube,
        input_core_dims=[["band"]],
        output_core_dims=[["class"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"class": 7}},
    )
    assert oracle.same_bits(shares.transpose("class", "y", "x").compute().values, classifier(12).predict_proba(scene))


def test_a_pickle_for_a_worker_holds_the_weights_once():
    """The pickle has no packed weights, and equal operations have the same name in Dask's graphs."""
    rng = np.random.default_rng(4)
    weights = [rng.standard_normal((300, 300), np.float32) for _ in range(2)]
    layers = [pwconv.PointwiseConv(weight) for weight in weights]
    for call, sent in ((layers[0], 1), (pwconv.PointwiseChain(layers), 2), (pwconv.PixelClassifier(weights[0]), 1)):
        method = getattr(call, "predict", call)
        method(np.ones((2, 300, 9, 9), np.float32))
        assert len(pickle.dumps(method)) < sent * weights[0].nbytes + 4000
        assert dask.base.tokenize(method) == dask.base.tokenize(pickle.loads(pickle.dumps(method)))


# A scene of 192 MiB with a memory limit of 96 MiB ---------------------------------------------------------------------

BANDS, HEIGHT, WIDTH = 48, 2048, 1024
LIMIT = 96 << 20


def forbid_more_than(limit):
    """Limit this process to `limit` bytes of data beyond those that it has now (Linux)."""
    status = Path("/proc/self/status").read_text()
    now = int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + limit, now + limit))


def refuses(path):
    """Is the whole scene too large for the memory limit?"""
    try:
        zarr.open_array(path)[...]
    except MemoryError:
        return True
    return False


def labels_of(path):
    return da.from_zarr(path).map_blocks(classifier(BANDS).predict, dtype=np.int32, drop_axis=0)


def classify_within_the_limit(path, result):
    """Classify a scene under the memory limit with Dask's threads; runs in a process of its own."""
    threading.stack_size(1 << 20)  # the stacks of threads count as well
    labels_of(path)[:256, :256].compute()
    forbid_more_than(LIMIT)
    assert refuses(path)
    with ProgressBar(), dask.config.set(scheduler="threads", num_workers=2):
        np.save(result, labels_of(path).compute())


@pytest.fixture(scope="module")
def big_scene(tmp_path_factory):
    """A path to a scene on disk, and the labels of the whole scene computed in one call."""
    path = tmp_path_factory.mktemp("scene") / "scene.zarr"
    scene = make_scene(BANDS, HEIGHT, WIDTH)
    assert scene.nbytes > LIMIT
    zarr.create_array(path, data=scene, chunks=(BANDS, 128, 128), compressors=None)
    return path, classifier(BANDS).predict(scene)


@pytest.mark.measures
@process.needs_linux
def test_a_scene_bigger_than_memory_on_threads(big_scene, tmp_path):
    path, expected = big_scene
    bar = process.run(classify_within_the_limit, str(path), str(tmp_path / "labels.npy"))
    assert "100% Completed" in bar
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected)


@pytest.mark.measures
@pytest.mark.thread_unsafe(reason="a cluster changes the settings of Dask and of the whole process")
@process.needs_linux
def test_a_scene_bigger_than_memory_on_a_cluster(big_scene, tmp_path):
    path, expected = big_scene
    with (
        patch.dict(os.environ),  # restores the variables that the cluster sets for its workers
        dask.config.set({"temporary-directory": str(tmp_path)}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(forbid_more_than, LIMIT)
        assert set(client.run(refuses, str(path)).values()) == {True}
        labels = labels_of(str(path)).persist()
        assert np.array_equal(labels.compute(), expected)
        assert len({worker for workers in client.who_has(labels).values() for worker in workers}) == 2
