"""Fits of `pwconv.ChannelReducer` beside scikit-learn's PCA with its default solver, on the same arrays.

    python benchmarks/fit.py [13 | 204 ...]

needs scikit-learn, which gets a view of samples, of channels-first scenes the transposed one. Calls take turns, each
after a wait in which idle threads of the eigensolver stop spinning; medians of the rounds count. The error of a
covariance is its largest difference from float64's, as a share of the largest variance; that of NumPy is the error of
its float32 product of the same centred samples. The last column is the memory that a first fit takes beyond the scene,
in a process of its own: by how much the peak of its resident memory grows.
"""

import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from sklearn.decomposition import PCA

import pwconv

SCENES = {204: (256, 217), 13: (1000, 2000)}  # sizes by bands
DTYPES = ("uint16", "float32")
ROUNDS = 5
SETTLING = 0.12  # seconds in which idle threads stop spinning, while this one keeps the clock up


def main() -> int:
    """Race the scenes that are named by their bands, or both."""
    if sys.argv[1:2] == ["--memory"]:
        print(growth(int(sys.argv[2]), *sys.argv[3:]))
        return 0
    print(f"{pwconv.config()['cpu']}, threads: {pwconv.get_num_threads()}\n")
    print(f"{'bands, pixels':<34}{'pwconv':>10}{'scikit-learn':>14}{'':>8}{'error':>10}{'NumPy':>10}{'memory':>12}")
    for bands in map(int, sys.argv[1:] or SCENES):
        for dtype in DTYPES:
            for layout in ("HWC", "CHW"):
                measure(bands, dtype, layout)
    return 0


def growth(bands: int, dtype: str, layout: str) -> int:
    """Return the bytes by which a fit raises the peak of this process, which has computed eigenvectors before."""
    shape = (*SCENES[bands], bands) if layout == "HWC" else (bands, *SCENES[bands])
    scene = np.empty(shape, dtype)
    scene[:] = np.arange(shape[-1]) % 251  # broadcast, without a temporary array of the scene's size
    warm = scene[:4, :4] if layout == "HWC" else scene[:, :4, :4]
    reducer = pwconv.ChannelReducer(layout=layout).fit(warm)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reducer.fit(scene)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def measure(bands: int, dtype: str, layout: str) -> None:
    """Print times and errors of one scene."""
    random = np.random.default_rng(0)
    pixels = np.prod(SCENES[bands])
    mixing = random.standard_normal((10, bands), np.float32)
    samples = random.standard_normal((pixels, 10), np.float32) @ mixing
    samples += 0.1 * random.standard_normal(samples.shape, np.float32)
    samples = (300 * samples + 8000).clip(0, 65535).astype(dtype)
    scene = samples.reshape(*SCENES[bands], bands)
    if layout == "CHW":
        scene = np.ascontiguousarray(scene.transpose(2, 0, 1))
        samples = scene.reshape(bands, -1).T
    reducer, pca = pwconv.ChannelReducer(layout=layout), PCA()
    calls = {"pwconv": lambda: reducer.fit(scene), "scikit-learn": lambda: pca.fit(samples)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            settled = time.perf_counter() + SETTLING
            while time.perf_counter() < settled:
                pass
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(rounds) for rounds in seconds.values())
    exact = np.cov(samples, rowvar=False, dtype=np.float64)
    centred = (samples - samples.mean(axis=0, dtype=np.float64)).astype(np.float32)
    products = {
        "pwconv": (reducer.components_.T * reducer.explained_variance_) @ reducer.components_,
        "NumPy": centred.T @ centred / np.float32(pixels - 1),
    }
    errors = [float(np.abs(product - exact).max() / exact.max()) for product in products.values()]
    name = f"{bands}, {pixels:,} {dtype} {layout}"
    command = [sys.executable, __file__, "--memory", str(bands), dtype, layout]
    memory = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        f"{name:<34}{ours * 1e3:>7.1f} ms{theirs * 1e3:>11.1f} ms{theirs / ours:>7.2f}x"
        + "".join(f"{error:>10.1e}" for error in errors)
        + f"{memory / 2**20:>9.1f} MB",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
