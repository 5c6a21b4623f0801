"""The compiled engine, as far as Python sees it."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments import ActivationLike, Spec, StrideLike

class Layer:
    def __new__(
        cls,
        matrix: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        spec: Spec,
        scales: tuple[NDArray[np.float32] | None, ...] = ...,
    ) -> Self: ...
    @property
    def scales(self) -> tuple[NDArray[np.float32] | None, ...]: ...
    @property
    def matrix(self) -> NDArray[np.float32]: ...
    @property
    def bias1d(self) -> NDArray[np.float32] | None: ...
    @property
    def spec(self) -> Spec: ...
    def __call__(
        self,
        x: Any,
        *,
        input_scale: Any = None,
        input_shift: Any = None,
        output_scale: Any = None,
        residual: Any = None,
        out: Any = None,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]: ...
    def plan(self, shape: tuple[int, ...], num_threads: int | None = None) -> object: ...

def pointwise_conv(
    x: Any,
    weight: Any,
    bias: Any,
    stride: StrideLike,
    groups: int,
    layout: str,
    out_layout: str | None,
    weight_layout: str,
    input_scale: Any,
    input_shift: Any,
    input_activation: ActivationLike,
    output_scale: Any,
    residual: Any,
    activation: ActivationLike,
    out: Any,
    out_dtype: Any,
    precision: str,
    num_threads: int | None,
    backend: str,
    /,
) -> NDArray[np.float32]: ...
def run_layers(
    layers: tuple[Any, ...],
    x: Any,
    residuals: tuple[NDArray[Any] | None, ...],
    outs: tuple[NDArray[Any] | None, ...],
    branched: bool,
    mask: NDArray[np.bool_] | None,
    fill: float | None,
    num_threads: int | None,
) -> None: ...
def classify(
    layers: tuple[Any, ...],
    x: Any,
    out: NDArray[Any],
    values: NDArray[np.float32] | None,
    places: int,
    mask: NDArray[np.bool_] | None,
    fill: float | None,
    num_threads: int | None,
) -> None: ...
def indicate(
    layers: tuple[Any, ...],
    x: Any,
    out: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    fill: float | None,
    num_threads: int | None,
) -> None: ...
def probabilities(
    layers: tuple[Any, ...],
    x: Any,
    out: NDArray[np.float32],
    link: str,
    binary: bool,
    mask: NDArray[np.bool_] | None,
    fill: float | None,
    num_threads: int | None,
) -> None: ...
def classify_resized(
    layers: tuple[Any, ...],
    x: Any,
    out: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    fill: int | None,
    num_threads: int | None,
) -> None: ...
def sums_of_products(
    rows: list[NDArray[Any]],
    columns: list[NDArray[Any]] | None,
    out: NDArray[Any] | None,
    ones: NDArray[Any] | None,
    groups: int,
    shift: NDArray[np.float32] | None,
    mask: NDArray[np.bool_] | None,
    num_threads: int | None,
    weight: NDArray[np.float32] | None = None,
    product: NDArray[np.float32] | None = None,
) -> bool: ...
def set_one_pass_bytes(bytes_of_map: float) -> float: ...
def isa_built() -> tuple[str, ...]: ...
def isa_supported() -> tuple[str, ...]: ...
def isa_kernel_sets(name: str) -> dict[str, str]: ...
def isa_active() -> str: ...
def set_isa(name: str) -> None: ...
def set_stores_wait(wait: bool) -> bool: ...
def set_thread_setting(n: int) -> None: ...
def get_threads() -> int: ...
def openmp() -> dict[str, Any]: ...
def compiler() -> str: ...
def caches() -> dict[str, int]: ...
def fma_peak(isa: str, seconds: float) -> float: ...
def bandwidth(isa: str, kind: str, nbytes: int, seconds: float, ready: Callable[[], object]) -> float: ...
def watch_choices(call: Callable[[], Any], /) -> dict[tuple[Any, ...], tuple[int, ...]]: ...
def keep_choice(key: tuple[Any, ...], choice: tuple[int, ...] | None) -> None: ...
def choices_kept() -> dict[tuple[Any, ...], tuple[int, ...]]: ...
def fields_of(key: tuple[Any, ...], choice: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, int]]: ...
def from_fields(problem: Any, choice: Any) -> tuple[tuple[Any, ...], tuple[int, ...]]: ...
def ways_to_compute(key: tuple[Any, ...]) -> list[tuple[int, ...]]: ...
def variations(key: tuple[Any, ...], choice: tuple[int, ...]) -> list[tuple[int, ...]]: ...

MOST_CHOICES: int
