"""Constructor arguments of a layer; the function form takes the same ones in each call."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from pwconv import runtime
from pwconv.arguments.activations import Activation, ActivationLike, parse_activation
from pwconv.arguments.dtypes import parse_out_dtype
from pwconv.arguments.layouts import NAMED_LAYOUTS, layout_letters, named_layout, parse_layout, spatial_letters
from pwconv.scalars import as_str, choice, positive_int

StrideLike: TypeAlias = int | Sequence[int]

WEIGHT_LAYOUTS = ("OI", "IO")
PRECISIONS = ("highest", "high", "medium")  # the index of each is its code in the kernels
BACKENDS = ("auto", "native", "numpy")


class Spec(NamedTuple):
    """Parsed constructor arguments. A Spec holds no array and is hashable."""

    stride: int | tuple[int, ...]
    groups: int
    layout: str
    out_layout: str | None
    weight_layout: str
    input_activation: Activation
    activation: Activation
    precision: str
    backend: str
    out_dtype: str


def parse_spec(
    *,
    stride: StrideLike,
    groups: int,
    layout: str,
    out_layout: str | None,
    weight_layout: str,
    input_activation: ActivationLike,
    activation: ActivationLike,
    precision: str,
    backend: str,
    out_dtype: Any = None,
) -> Spec:
    """Parse the constructor arguments of `pwconv.PointwiseConv` and check all that can be checked without an array."""
    spec = Spec(
        stride=_parse_stride(stride),
        groups=positive_int(groups, "groups"),
        layout=parse_layout(layout),
        out_layout=None if out_layout is None else as_str(out_layout, "out_layout"),
        weight_layout=choice(weight_layout, "weight_layout", WEIGHT_LAYOUTS),
        input_activation=parse_activation(input_activation, "input_activation"),
        activation=parse_activation(activation, "activation"),
        precision=choice(precision, "precision", PRECISIONS),
        backend=runtime.resolve_backend(choice(backend, "backend", BACKENDS)),
        out_dtype=parse_out_dtype(out_dtype),
    )
    if spec.layout not in NAMED_LAYOUTS:
        resolve_rank(spec, len(spec.layout))
    return spec


def _parse_stride(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(positive_int(step, f"stride[{axis}]") for axis, step in enumerate(value))
    return positive_int(value, "stride")


def resolve_rank(spec: Spec, ndim: int) -> tuple[str, str, tuple[int, ...]]:
    """Return the letters of `x`, the letters of the result and one stride per spatial axis, for `ndim` axes."""
    layout, out_layout, stride = layout_letters(spec.layout, ndim), spec.out_layout, spec.stride
    spatial = spatial_letters(layout)

    if out_layout is None:
        out_layout = layout
    elif out_layout in NAMED_LAYOUTS:
        out_layout = named_layout(out_layout, "N" if "N" in layout else "", spatial)
    elif sorted(out_layout) != sorted(layout):
        raise ValueError(
            f"out_layout must be a permutation of the letters of layout {layout!r}, 'channels_first' or "
            f"'channels_last', got {out_layout!r}"
        )

    if isinstance(stride, int):
        stride = (stride,) * len(spatial)
    elif len(stride) != len(spatial):
        raise ValueError(
            f"stride must be an int or hold one per spatial axis of layout {layout!r} ({len(spatial)}), got {stride}"
        )
    return layout, out_layout, stride
