"""Whole models on every pixel of a scene, beside scikit-learn on the same arrays.

Each model runs in a process of its own, which fits it to 4,000 pixels. scikit-learn gets the pixels as a user must
give them: reshaped to samples, which copies a channels-first scene. Times are medians of seven calls (scikit-learn:
one); memory is the peak of the first call beyond the scene and the result.

python benchmarks/models.py [13 | 200 ...]
"""

import multiprocessing
import statistics
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import pwconv

SIDE = 1000
DTYPES = {13: np.uint16, 200: np.float32}  # of the scene, by its bands
MODELS = {
    "StandardScaler, LogisticRegression": lambda bands: make_pipeline(StandardScaler(), LogisticRegression()),
    "StandardScaler, PCA of 20, LinearSVC": lambda bands: make_pipeline(
        StandardScaler(), PCA(min(20, bands)), LinearSVC()
    ),
    "StandardScaler, MLP 64-32": lambda bands: make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=20)),
    "Ridge of 3 targets": lambda bands: Ridge(),
}
FITTED = 4000
ROUNDS = 7
SETTLING = 0.15  # seconds of untimed calls, in which the idle threads of other libraries stop spinning


def main() -> int:
    """Race all models on the scenes that are named by their bands, or on both."""
    print(f"{pwconv.config()['cpu']}, threads: {pwconv.get_num_threads()}, scenes of {SIDE} x {SIDE} pixels")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for bands in map(int, sys.argv[1:] or DTYPES):
            print(f"\n{bands} bands, {np.dtype(DTYPES[bands])}\n{'':<44}pwconv{'':<14}scikit-learn")
            for layout in ("HWC", "CHW"):
                for name in MODELS:
                    ours, theirs = (processes.submit(measure, name, bands, layout, on).result() for on in (True, False))
                    print(
                        f"{name:<36}{layout:<5}{ours[0] * 1e3:>7.1f} ms{ours[1] / 1e6:>6.0f} MB"
                        f"{theirs[0] * 1e3:>9.0f} ms{theirs[1] / 1e6:>6.0f} MB{theirs[0] / ours[0]:>7.1f} x"
                    )
    return 0


def scene_of(bands: int, layout: str) -> np.ndarray:
    """Return a scene whose bands depend on ten hidden ones and have means far from 0."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((10, bands), np.float32)
    scene = rng.standard_normal((SIDE, SIDE, 10), np.float32) @ mixing
    scene += 0.1 * rng.standard_normal(scene.shape, np.float32)
    scene = (300 * scene + 8000).clip(0, 65535).astype(DTYPES[bands])
    return np.ascontiguousarray(np.moveaxis(scene, -1, layout.index("C")))


def measure(name: str, bands: int, layout: str, by_pwconv: bool) -> tuple[float, int]:
    """Return seconds of a call, and the bytes by which the process grew during the first, without the result."""
    warnings.simplefilter("ignore")  # of fits that have not converged
    scene = scene_of(bands, layout)
    model = MODELS[name](bands)
    samples = np.moveaxis(scene, layout.index("C"), -1).reshape(-1, bands)[:: SIDE * SIDE // FITTED].astype(np.float64)
    hidden = (samples - samples.mean(axis=0)) @ np.random.default_rng(1).standard_normal((bands, 10))
    regression = isinstance(model, Ridge)
    model.fit(samples, hidden[:, :3] if regression else hidden.argmax(axis=1))
    converted = pwconv.from_sklearn(model, layout=layout)

    def run() -> np.ndarray:
        if by_pwconv:
            return converted(scene) if regression else converted.predict(scene)
        result = model.predict(np.moveaxis(scene, layout.index("C"), -1).reshape(-1, bands))
        return result.reshape(SIDE, SIDE, -1)

    # What is imported or kept for any call is no part of this one.
    small = np.zeros((bands, 8, 8) if layout == "CHW" else (8, 8, bands), scene.dtype)
    converted(small) if regression else converted.predict(small)
    model.predict(samples[:9])
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = run()
    extra = resident("VmHWM") - before - result.nbytes
    settled = time.perf_counter() + SETTLING
    while time.perf_counter() < settled:
        run()
    times = []
    for _ in range(ROUNDS if by_pwconv else 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), extra


def resident(field: str) -> int:
    """Return the bytes of this process that are in memory: now (VmRSS), or at the most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.exit(main())
