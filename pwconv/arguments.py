"""Every public argument is parsed, checked and explained here, once, for both backends.

The compiled engine takes plain good calls by itself. It comes here when a layer is made, and when a call is not in
the simplest form: the functions below then either return that form or raise what the user reads.
"""

import math
import numbers
import operator
import string
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.exceptions import TooHardError
from numpy.typing import NDArray

from pwconv import runtime

Float32Array: TypeAlias = NDArray[np.float32]
ActivationLike: TypeAlias = str | tuple[str | float, ...] | None
StrideLike: TypeAlias = int | Sequence[int]

MAX_AXES = 16
NAMED_LAYOUTS = ("channels_first", "channels_last")
WEIGHT_LAYOUTS = ("OI", "IO")
PRECISIONS = ("highest", "high", "medium")  # in the order of isa.h
BACKENDS = ("auto", "native", "numpy")
GRADIENTS = ("x", "weight", "bias")


class Activation(NamedTuple):
    """An activation function as the kernels know it: a code and up to two parameters."""

    code: int
    low: float = 0.0
    high: float = 0.0


class Spec(NamedTuple):
    """What a constructor was told, parsed. It holds no array and is hashable."""

    stride: int | tuple[int, ...]
    groups: int
    layout: str
    out_layout: str | None
    weight_layout: str
    input_activation: Activation
    activation: Activation
    precision: str
    backend: str


class Shapes(NamedTuple):
    """What a layer makes of maps of given shapes: layouts in letters, a stride per spatial axis, the result's shape."""

    layout: str
    out_layout: str
    stride: tuple[int, ...]
    out_shape: tuple[int, ...]


class Call(NamedTuple):
    """A checked call: arrays of the right shapes, float32 but for `x`, and nothing left to the rank of `x`.

    In a chain only the first layer has an `x`; for the others it is None, since nothing is known but its shape.
    """

    x: NDArray[Any] | list[NDArray[Any]]
    layout: str
    out_layout: str
    stride: tuple[int, ...]
    out_shape: tuple[int, ...]
    input_scale: Float32Array | None = None
    input_shift: Float32Array | None = None
    output_scale: Float32Array | None = None
    residual: Float32Array | None = None
    out: Float32Array | None = None
    num_threads: int | None = None


class Backward(NamedTuple):
    """A checked call for gradients: the forward call, the gradient of its result, and those that are needed.

    Whatever the layout of the result is, that of `grad_y` is that of `x`.
    """

    spec: Spec
    matrix: Float32Array
    call: Call
    grad_y: Float32Array
    need: frozenset[str]

    @property
    def parts(self) -> list[NDArray[Any]]:
        """The maps that `x` consists of."""
        return self.call.x if isinstance(self.call.x, list) else [self.call.x]


# Constructor arguments ------------------------------------------------------------------------------------------------

NO_ACTIVATION = Activation(0)
CLIP, LEAKY_RELU, SIGMOID, TANH, SILU, GELU, GELU_TANH, HARDSIGMOID, HARDSWISH = range(1, 10)
ACTIVATIONS = {
    "relu": Activation(CLIP, 0.0, math.inf),
    "relu6": Activation(CLIP, 0.0, 6.0),
    "leaky_relu": Activation(LEAKY_RELU, 0.01),
    "sigmoid": Activation(SIGMOID),
    "tanh": Activation(TANH),
    "silu": Activation(SILU),
    "gelu": Activation(GELU),
    "gelu_tanh": Activation(GELU_TANH),
    "hardsigmoid": Activation(HARDSIGMOID),
    "hardswish": Activation(HARDSWISH),
}
_ACTIVATION_FORMS = f"None, {', '.join(map(repr, ACTIVATIONS))}, ('leaky_relu', slope) or ('clip', lo, hi)"


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
) -> Spec:
    """Parse the constructor arguments of `pwconv.PointwiseConv`; everything that needs no array is checked."""
    spec = Spec(
        stride=_parse_stride(stride),
        groups=positive_int(groups, "groups"),
        layout=_parse_layout(layout),
        out_layout=None if out_layout is None else _string(out_layout, "out_layout"),
        weight_layout=_choice(weight_layout, "weight_layout", WEIGHT_LAYOUTS),
        input_activation=parse_activation(input_activation, "input_activation"),
        activation=parse_activation(activation, "activation"),
        precision=_choice(precision, "precision", PRECISIONS),
        backend=runtime.resolve_backend(_choice(backend, "backend", BACKENDS)),
    )
    if spec.layout not in NAMED_LAYOUTS:
        resolve_rank(spec, len(spec.layout))
    return spec


def parse_activation(value: ActivationLike, name: str) -> Activation:
    """Parse an activation: None, a name, or a tuple of a name and its parameters."""
    if value is None:
        return NO_ACTIVATION
    function, *parameters = value if isinstance(value, tuple) and value else (value,)
    if not isinstance(function, str):
        raise TypeError(f"{name} must be {_ACTIVATION_FORMS}, got {_kind(value)}")
    if function in ACTIVATIONS and not parameters:
        return ACTIVATIONS[function]
    if function == "leaky_relu" and len(parameters) == 1:
        slope = real(parameters[0], f"the slope of {name}")
        if not abs(slope) <= float(np.finfo(np.float32).max):
            raise ValueError(f"the slope of {name} must be finite in float32, got {slope}")
        return Activation(LEAKY_RELU, slope)
    if function == "clip" and len(parameters) == 2:
        low, high = (real(bound, f"a bound of {name}") for bound in parameters)
        if not low <= high:
            raise ValueError(f"{name} ('clip', lo, hi) needs lo <= hi, got lo={low}, hi={high}")
        return Activation(CLIP, low, high)
    extent = f" with {len(parameters)} parameters" if parameters else ""
    raise ValueError(f"{name} must be {_ACTIVATION_FORMS}, got {function!r}{extent}")


def positive_int(value: Any, name: str) -> int:
    """Return an integer from 1 to `runtime.LARGEST_INT`."""
    return integer(value, name, 1, runtime.LARGEST_INT)


def integer(value: Any, name: str, low: int, high: int) -> int:
    """Return an integer from `low` to `high`; a bool is not a number here."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {_kind(value)}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_kind(value)}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {number}")
    return number


def _parse_stride(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(positive_int(step, f"stride[{axis}]") for axis, step in enumerate(value))
    return positive_int(value, "stride")


def _parse_layout(value: Any) -> str:
    layout = _string(value, "layout")
    letters_are_good = (
        set(layout) <= set(string.ascii_uppercase)
        and len(set(layout)) == len(layout) <= MAX_AXES
        and "C" in layout
        and layout.find("N") <= 0
    )
    if layout not in NAMED_LAYOUTS and not letters_are_good:
        raise ValueError(
            f"layout must name every axis of x (at most {MAX_AXES}) by a capital letter of its own (C once, N at most "
            f"once and first, the others spatial) or be 'channels_first' or 'channels_last', got {layout!r}"
        )
    return layout


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {_kind(value)}")
    return str(value)


def _choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    choice = _string(value, name)
    if choice not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {choice!r}")
    return choice


def real(value: Any, name: str) -> float:
    """Return a real number as a float."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got an integer beyond it") from None


def _kind(value: Any) -> str:
    return type(value).__name__


# Weights and bias -----------------------------------------------------------------------------------------------------


def weight_matrix(weight: Any, spec: Spec) -> Float32Array:
    """View a kernel as its matrix of shape (C_out, C_in // groups), with whatever strides it has."""
    array = float32_array(weight, "weight")
    parts = {
        "OI": ("(C_out, C_in // groups, 1, ...)", array.shape[:2], array.shape[2:]),
        "IO": ("(..., 1, C_in // groups, C_out)", array.shape[-2:], array.shape[:-2]),
    }
    expected, matrix_shape, ones = parts[spec.weight_layout]
    if array.ndim < 2 or any(length != 1 for length in ones):
        fits = [name for name, (*_, others) in parts.items() if array.ndim > 2 and all(size == 1 for size in others)]
        raise ValueError(
            f"weight must have shape {expected} for weight_layout={spec.weight_layout!r}, with any number of axes of "
            f"length 1, got shape {array.shape}" + "".join(f": it fits weight_layout={name!r}" for name in fits)
        )
    matrix = array.reshape(matrix_shape)
    if spec.weight_layout == "IO":
        matrix = matrix.T
    if len(matrix) % spec.groups:
        raise ValueError(
            f"groups must divide the output channels of weight, got groups={spec.groups}, C_out={len(matrix)}"
        )
    return matrix


def as_kernel(matrix: NDArray[Any], weight_layout: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a matrix (C_out, C_in // groups) in the shape in which a weight was given."""
    return (matrix if weight_layout == "OI" else matrix.T).reshape(shape)


def bias_vector(bias: Any, out_channels: int) -> Float32Array | None:
    """Return the bias as a contiguous vector of shape (C_out,)."""
    if bias is None:
        return None
    array = float32_array(bias, "bias")
    if array.shape != (out_channels,):
        raise ValueError(f"bias must have shape (C_out,) = ({out_channels},), got {array.shape}")
    return np.ascontiguousarray(array)


def norm_vector(value: Any, name: str, out_channels: int) -> NDArray[np.float64]:
    """Return a vector of a batch norm behind a layer in float64."""
    vector = foreign_numbers(value, name).astype(np.float64)
    if vector.shape != (out_channels,):
        raise ValueError(f"{name} must have shape (C_out,) = ({out_channels},), got {vector.shape}")
    return vector


# Calls ----------------------------------------------------------------------------------------------------------------


def check_call(
    spec: Spec,
    weight_shape: tuple[int, int],
    x: Any,
    input_scale: Any = None,
    input_shift: Any = None,
    output_scale: Any = None,
    residual: Any = None,
    out: Any = None,
    num_threads: Any = None,
    weight: Any = None,
    bias: Any = None,
) -> Call:
    """Check a call of a layer whose matrix has `weight_shape`.

    `weight` and `bias` are the caller's own arrays where the call reads them in place (the function form); `out` may
    not share memory with them.

    Raises TypeError for types and dtypes, ValueError for shapes, layouts and overlaps, MemoryError for a result that
    no address space can hold. Each names the argument, what was expected, and what came.
    """
    maps = _maps(x)
    shapes = resolve_shapes(spec, weight_shape, maps.shapes)
    out_channels, in_channels = weight_shape[0], weight_shape[1] * spec.groups
    batch = shapes.out_shape[shapes.out_layout.index("N")] if "N" in shapes.out_layout else 1
    call = Call(
        maps.source,
        *shapes,
        input_scale=_per_channel(input_scale, "input_scale", batch, in_channels),
        input_shift=_per_channel(input_shift, "input_shift", batch, in_channels),
        output_scale=_per_channel(output_scale, "output_scale", batch, out_channels),
        residual=_shaped(residual, "residual", shapes),
        out=_shaped(out, "out", shapes),
        num_threads=_threads(num_threads),
    )
    readable = maps.named | {
        "weight": weight,
        "bias": bias,
        "input_scale": input_scale,
        "input_shift": input_shift,
        "output_scale": output_scale,
        "residual": call.residual,
    }
    check_result(call.out, out, "out", shapes.out_shape, readable, in_place="residual")
    return call


def check_shape(spec: Spec, weight_shape: tuple[int, int], shape: Any, num_threads: Any = None) -> Call:
    """Check a call by the shape of `x` alone; the returned call holds an array of that shape without memory."""
    return check_call(spec, weight_shape, array_of_shape(shape), num_threads=num_threads)


def array_of_shape(shape: Any) -> Float32Array:
    """Return an array of this shape that takes no memory."""
    if not isinstance(shape, list | tuple):
        raise TypeError(f"shape must be a tuple of integers, got {_kind(shape)}")
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must not be negative, got {sizes}")
    return np.broadcast_to(np.float32(0), sizes)


@lru_cache(maxsize=1024)
def resolve_shapes(spec: Spec, weight_shape: tuple[int, int], shapes: tuple[tuple[int, ...], ...]) -> Shapes:
    """Return what a layer makes of an `x` of this shape, or of a list `x` of several."""
    layout, out_layout, stride = resolve_rank(spec, len(shapes[0]))
    axis = _channel_axis(layout, shapes)
    in_channels = weight_shape[1] * spec.groups
    if sum(shape[axis] for shape in shapes) != in_channels:
        raise ValueError(
            f"x must have {in_channels} channels on axis {axis} of layout {layout!r}, as weight and "
            f"groups={spec.groups} say, got shape{'s' * (len(shapes) > 1)} {', '.join(map(str, shapes))}"
            + _where_channels_are(in_channels, layout, shapes)
        )
    sizes = dict(zip(layout, shapes[0], strict=True)) | {"C": weight_shape[0]}
    for letter, step in zip(_spatial(layout), stride, strict=True):
        sizes[letter] = -(-sizes[letter] // step)
    return Shapes(layout, out_layout, stride, tuple(sizes[letter] for letter in out_layout))


def _where_channels_are(in_channels: int, layout: str, shapes: tuple[tuple[int, ...], ...]) -> str:
    """Return what to do about an `x` whose channels are on another axis, or spread over the whole map."""
    for name in NAMED_LAYOUTS:
        likely = _named_layout(name, "N" if "N" in layout else "", _spatial(layout))
        if sum(shape[likely.index("C")] for shape in shapes) == in_channels:
            return f": it fits layout {likely!r}"
    pixels = tuple(size for letter, size in zip(layout, shapes[0], strict=True) if letter not in "NC")
    if math.prod(pixels) > 1 and shapes[0][layout.index("C")] * math.prod(pixels) == in_channels:
        return f": weights of a layer behind the whole map are a {' x '.join(map(str, pixels))} kernel"
    return ""


def _channel_axis(layout: str, shapes: tuple[tuple[int, ...], ...]) -> int:
    """Return the axis along which maps may differ, and do so alone."""
    axis = layout.index("C")
    for i, shape in enumerate(shapes):
        if len(shape) != len(layout) or without(axis, shape) != without(axis, shapes[0]):
            raise ValueError(
                f"x[{i}] must have the shape {shapes[0]} of x[0], but for axis {axis} of layout {layout!r}, got {shape}"
            )
    return axis


def resolve_rank(spec: Spec, ndim: int) -> tuple[str, str, tuple[int, ...]]:
    """Return layout letters, result letters and one stride per spatial axis for an `x` with `ndim` axes."""
    layout, out_layout, stride = _letters(spec.layout, ndim), spec.out_layout, spec.stride
    spatial = _spatial(layout)

    if out_layout is None:
        out_layout = layout
    elif out_layout in NAMED_LAYOUTS:
        out_layout = _named_layout(out_layout, "N" if "N" in layout else "", spatial)
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


# A named layout takes the last letters, so that four axes are N, C, H, W in some order. (Three are N, C, L.)
_SPATIAL_LETTERS = "PQRSTUVXYZADHW"


def _letters(layout: str, ndim: int) -> str:
    """Return the letters of a layout for an `x` with `ndim` axes."""
    if layout in NAMED_LAYOUTS:
        if not 2 <= ndim <= MAX_AXES:
            raise ValueError(f"x must have 2 (batch, channels) to {MAX_AXES} axes for layout {layout!r}, got {ndim}")
        return _named_layout(layout, "N", "L" if ndim == 3 else _SPATIAL_LETTERS[MAX_AXES - ndim :])
    if ndim != len(layout):
        lacks_batch = layout[0] == "N" and ndim == len(layout) - 1
        raise ValueError(
            f"x must have {len(layout)} axes for layout {layout!r}, got {ndim}"
            + f": a map without a batch axis has layout {layout[1:]!r}" * lacks_batch
        )
    return layout


def _named_layout(name: str, batch: str, spatial: str) -> str:
    return f"{batch}C{spatial}" if name == "channels_first" else f"{batch}{spatial}C"


def without(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without one of its axes."""
    return shape[:axis] + shape[axis + 1 :]


def _spatial(layout: str) -> str:
    return "".join(letter for letter in layout if letter not in "NC")


def _per_channel(value: Any, name: str, batch: int, channels: int) -> Float32Array | None:
    if value is None:
        return None
    array = float32_array(value, name)
    if array.shape not in ((channels,), (batch, channels)):
        raise ValueError(f"{name} must have shape ({channels},) or ({batch}, {channels}), got {array.shape}")
    return np.ascontiguousarray(array)


def _shaped(value: Any, name: str, shapes: Shapes | Call) -> Float32Array | None:
    return None if value is None else _of_shape(value, name, shapes)


def _of_shape(value: Any, name: str, shapes: Shapes | Call) -> Float32Array:
    array = float32_array(value, name)
    if array.shape != shapes.out_shape:
        raise ValueError(f"{name} must have shape {shapes.out_shape} (layout {shapes.out_layout!r}), got {array.shape}")
    return array


def _threads(num_threads: Any) -> int | None:
    return None if num_threads is None else positive_int(num_threads, "num_threads")


def check_result(
    array: NDArray[Any] | None,
    given: Any,
    name: str,
    shape: tuple[int, ...],
    readable: Mapping[str, Any],
    in_place: str | None = None,
) -> None:
    """Check that a result of this shape can be made, or written to `array`, which was `given` for it.

    `array` must reach each of its elements once and none that is `readable`; only what is named `in_place` may be
    `array` itself.
    """
    if array is None:
        _check_size(shape)
        return
    # An object's __array__ may hand out a copy each time: what is written there would be lost.
    if not isinstance(given, np.ndarray) and array.size and not np.may_share_memory(array, as_array(given, name)):
        raise TypeError(f"{name} must be an array whose memory NumPy can share, got {_kind(given)}")
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    if _overlaps_itself(array):
        raise ValueError(
            f"{name} must reach every element once, got shape {array.shape} with strides {array.strides} in bytes"
        )
    for other_name, other in readable.items():
        if other is None or (other_name == in_place and _same_elements(array, other)):
            continue
        if _share_memory(array, as_array(other, other_name)):
            raise ValueError(f"{name} must not share memory with {other_name}")


def _check_size(shape: tuple[int, ...]) -> None:
    # As NumPy counts: no axis may be beyond addresses, even if another one is empty.
    if math.prod(size or 1 for size in shape) > sys.maxsize // np.dtype(np.float32).itemsize:
        raise MemoryError(f"a result of shape {shape} does not fit into memory")


# Several layers in one pass -------------------------------------------------------------------------------------------


def parse_layers(layers: Any, kind: type, branched: bool) -> tuple[Any, ...]:
    """Check that layers fit together: each of a chain takes what the one before gives, all branches take the same."""
    if not isinstance(layers, list | tuple):
        raise TypeError(f"layers must be a list of layers, got {_kind(layers)}")
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, kind):
            raise TypeError(f"layers[{i}] must be a {kind.__name__}, got {_kind(layer)}")
    # Named layouts alone fit at every rank or at none.
    ndim = next(filter(None, (_known_rank(layer.spec) for layer in layers)), 4)
    wanted: tuple[int, str, tuple[int, ...]] | None = None
    for i, layer in enumerate(layers):
        try:
            layout, out_layout, stride = resolve_rank(layer.spec, ndim)
        except ValueError as error:
            raise ValueError(f"layers[{i}] must fit the others: {error}") from None
        given = (layer.in_channels, layout, stride)
        if wanted not in (None, given):
            raise ValueError(
                f"layers[{i}] must have in_channels, layout and stride {wanted} to "
                f"{'share the input of layers[0]' if branched else f'take the result of layers[{i - 1}]'}, got {given}"
            )
        wanted = given if branched else (layer.out_channels, out_layout, (1,) * len(stride))
    return tuple(layers)


def _known_rank(spec: Spec) -> int | None:
    """Return the number of axes that a layer's maps have; None if it takes maps of any rank."""
    for layout in (spec.layout, spec.out_layout):
        if layout is not None and layout not in NAMED_LAYOUTS:
            return len(layout)
    return None if isinstance(spec.stride, int) else 2 + len(spec.stride)


def check_chain(
    layers: tuple[Any, ...],
    x: Any,
    residual: Any = None,
    keep: Any = (),
    out: Any = None,
    num_threads: Any = None,
) -> tuple[tuple[Call, ...], tuple[int, ...]]:
    """Check a call of a chain; returns a call for each layer, of which only the first has an `x`, and what to keep."""
    count = len(layers)
    if not isinstance(residual, Mapping | None):
        raise TypeError(f"residual must be a dict from numbers of layers to arrays, got {_kind(residual)}")
    if not isinstance(keep, list | tuple):
        raise TypeError(f"keep must be a tuple of numbers of layers, got {_kind(keep)}")
    residuals = {integer(i, "a key of residual", 0, count - 1): array for i, array in (residual or {}).items()}
    kept = tuple(integer(i, "a layer of keep", 0, count - 1) for i in keep)
    threads = _threads(num_threads)
    maps = _maps(x)
    readable: dict[str, Any] = dict(maps.named)
    source: Any = maps.source
    shapes = maps.shapes
    calls: list[Call] = []
    for i, layer in enumerate(layers):
        made = resolve_shapes(layer.spec, layer.matrix.shape, shapes)
        name = f"residual[{i}]"
        added = readable[name] = _shaped(residuals.get(i), name, made)
        receiver = _shaped(out, "out", made) if i == count - 1 else None
        calls.append(Call(source, *made, residual=added, out=receiver, num_threads=threads))
        source, shapes = None, (made.out_shape,)
        if i in kept:
            _check_size(made.out_shape)
    check_result(calls[-1].out, out, "out", calls[-1].out_shape, readable, in_place=f"residual[{count - 1}]")
    return tuple(calls), kept


def check_branches(layers: tuple[Any, ...], x: Any, out: Any = None, num_threads: Any = None) -> tuple[Call, ...]:
    """Check a call of branches; returns a call for each."""
    if isinstance(out, list | tuple):
        if len(out) != len(layers):
            raise ValueError(f"out must hold an array for each of {len(layers)} branches, got {len(out)}")
        receivers: Sequence[Any] = out
    else:
        if not isinstance(out, str | None):
            raise TypeError(f"out must be None, a tuple of arrays or 'concat', got {_kind(out)}")
        if out not in (None, "concat"):
            raise ValueError(f"out must be None, a tuple of arrays or 'concat', got {out!r}")
        receivers = (None,) * len(layers)
    threads = _threads(num_threads)
    maps = _maps(x)
    readable: dict[str, Any] = dict(maps.named)
    calls: list[Call] = []
    for i, layer in enumerate(layers):
        made = resolve_shapes(layer.spec, layer.matrix.shape, maps.shapes)
        if isinstance(out, str) and calls and made.out_layout != calls[0].out_layout:
            raise ValueError(
                f"out='concat' needs branches of one out_layout, got {calls[0].out_layout!r} and {made.out_layout!r}"
            )
        name = f"out[{i}]"
        receiver = _shaped(receivers[i], name, made)
        check_result(receiver, receivers[i], name, made.out_shape, readable)
        readable[name] = receiver
        calls.append(Call(maps.source, *made, out=receiver, num_threads=threads))
    return tuple(calls)


# Gradients ------------------------------------------------------------------------------------------------------------


def check_backward(
    grad_y: Any,
    x: Any,
    weight: Any,
    *,
    stride: StrideLike,
    groups: int,
    layout: str,
    weight_layout: str,
    need: Any,
    num_threads: Any,
    backend: str,
) -> Backward:
    """Check a call of `pwconv.pointwise_conv_backward`."""
    needed = parse_need(need)
    spec = parse_spec(
        stride=stride,
        groups=groups,
        layout=layout,
        out_layout=None,
        weight_layout=weight_layout,
        input_activation=None,
        activation=None,
        precision="highest",
        backend=backend,
    )
    return _check_gradient(spec, weight_matrix(weight, spec), grad_y, x, needed, num_threads)


def check_layer_backward(layer: Any, grad_y: Any, x: Any, need: Any, num_threads: Any) -> Backward:
    """Check a call of `pwconv.PointwiseConv.backward`."""
    return _check_gradient(layer.spec, layer.matrix, grad_y, x, parse_need(need), num_threads)


def _check_gradient(
    spec: Spec, matrix: Float32Array, grad_y: Any, x: Any, need: frozenset[str], num_threads: Any
) -> Backward:
    call = check_call(spec, matrix.shape, x, num_threads=num_threads)
    gradient = _of_shape(grad_y, "grad_y", call).transpose([call.out_layout.index(letter) for letter in call.layout])
    backward = Backward(spec, matrix, call, gradient, need)
    # Numbers that are narrower than their gradients may fit where these do not.
    for part in backward.parts if "x" in need else ():
        _check_size(part.shape)
    return backward


def parse_need(need: Any) -> frozenset[str]:
    """Parse the names of the gradients that are needed."""
    names = (need,) if isinstance(need, str) else need
    if not isinstance(names, list | tuple | set | frozenset):
        raise TypeError(f"need must be a name or a tuple of names, got {_kind(need)}")
    return frozenset(_choice(name, "need" if name is need else "a name in need", GRADIENTS) for name in names)


# Classifiers ----------------------------------------------------------------------------------------------------------


def class_names(classes: Any, count: int) -> NDArray[Any] | None:
    """Return a read-only array of the names of classes."""
    if not count:
        raise ValueError("weight must have a row for each class, got none")
    if classes is None:
        return None
    names = np.array(classes)
    if names.shape != (count,):
        raise ValueError(f"classes must hold a name for each of {count} classes, got shape {names.shape}")
    names.setflags(write=False)
    return names


def check_predict(
    head: Any, x: Any, size: Any = None, out: Any = None, num_threads: Any = None
) -> tuple[Call, NDArray[Any] | None]:
    """Check that labels can be found: returns the call for (resized) logits, and what receives the labels."""
    call = check_call(head.spec, head.matrix.shape, x, num_threads=num_threads)
    if size is not None:
        call = call._replace(out_shape=_resized(call, size))
    shape = without(call.out_layout.index("C"), call.out_shape)
    return call, _labels(out, "out", shape, len(head.matrix), _maps(x).named)


def check_top_k(
    head: Any, x: Any, k: Any, out: Any = None, num_threads: Any = None
) -> tuple[Call, NDArray[Any] | None, Float32Array | None]:
    """Check that k labels can be found: returns a call for k channels, and what receives labels and logits."""
    places = integer(k, "k", 1, len(head.matrix))
    call = check_call(head.spec, head.matrix.shape, x, num_threads=num_threads)
    axis = call.out_layout.index("C")
    call = call._replace(out_shape=(*call.out_shape[:axis], places, *call.out_shape[axis + 1 :]))
    if out is None:
        return call, None, None
    if not isinstance(out, list | tuple) or len(out) != 2:
        raise TypeError(f"out must be None or a pair of arrays, for labels and logits, got {_kind(out)}")
    readable = _maps(x).named
    logits = _shaped(as_array(out[1], "out[1]"), "out[1]", call)
    check_result(logits, out[1], "out[1]", call.out_shape, readable)
    labels = _labels(out[0], "out[0]", call.out_shape, len(head.matrix), readable | {"out[1]": logits})
    return call, labels, logits


def check_probabilities(head: Any, link: str | None, x: Any, out: Any = None, num_threads: Any = None) -> Call:
    """Check that there are probabilities, and the call for them."""
    if link is None:
        raise AttributeError("this classifier has no predict_proba: it was made with link=None")
    return check_call(head.spec, head.matrix.shape, x, out=out, num_threads=num_threads)


def _resized(call: Call, size: Any) -> tuple[int, ...]:
    spatial = _spatial(call.out_layout)
    if len(spatial) != 2:
        raise ValueError(f"size needs a layout with two spatial axes, got {call.layout!r}")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise TypeError(f"size must be a pair of integers, got {size!r}")
    sizes = dict(zip(call.out_layout, call.out_shape, strict=True))
    if not all(sizes[letter] for letter in spatial):
        raise ValueError(f"x must have pixels, or nothing can be resized, got shape {np.shape(call.x)}")
    sizes |= {letter: positive_int(size[i], f"size[{i}]") for i, letter in enumerate(_spatial(call.layout))}
    return tuple(sizes.values())


def _labels(
    out: Any, name: str, shape: tuple[int, ...], classes: int, readable: Mapping[str, Any]
) -> NDArray[Any] | None:
    """View what receives labels as an array of integers."""
    if out is None:
        _check_size(shape)
        return None
    array = as_array(out, name)
    if array.dtype.kind not in "iu" or not array.dtype.isnative or np.iinfo(array.dtype).max < classes - 1:
        raise TypeError(f"{name} must have integers that hold labels up to {classes - 1}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    check_result(array, out, name, shape, readable)
    return array


# Pixels as samples ----------------------------------------------------------------------------------------------------


def check_pixels(
    layout: Any, x: Any, mask: Any = None, num_threads: Any = None
) -> tuple[list[NDArray[Any]], NDArray[np.bool_] | None, int | None]:
    """Check maps whose pixels are samples: returns them with channels first, and which pixels count (None: all)."""
    parsed = _parse_layout(layout)
    maps = _maps(x)
    axis = _channel_axis(_letters(parsed, len(maps.shapes[0])), maps.shapes)
    pixels = without(axis, maps.shapes[0])
    counted = None if mask is None else as_array(mask, "mask")
    if counted is not None:
        if counted.dtype != bool:
            raise TypeError(f"mask must be bool, got {counted.dtype}")
        try:
            counted = np.broadcast_to(counted, pixels)
        except ValueError:
            raise ValueError(f"mask must have shape {pixels}, or broadcast to it, got {counted.shape}") from None
    return [np.moveaxis(array, axis, 0) for array in maps.named.values()], counted, _threads(num_threads)


# Arrays and their memory ----------------------------------------------------------------------------------------------


_NUMBERS = tuple(map(np.dtype, ("float32", "uint8", "int8", "uint16", "int16", "float16")))


class Maps(NamedTuple):
    """The arrays that `x` is: by the names that messages give them, in the form of `x`, and their shapes."""

    named: dict[str, NDArray[Any]]
    source: NDArray[Any] | list[NDArray[Any]]
    shapes: tuple[tuple[int, ...], ...]


def _maps(x: Any) -> Maps:
    """View `x`, or each map of the list that it is, as an array."""
    values = {f"x[{i}]": value for i, value in enumerate(x)} if isinstance(x, list | tuple) else {"x": x}
    if not values:
        raise ValueError(f"x must be an array or a list of at least one, got an empty {_kind(x)}")
    named = {name: as_array(value, name) for name, value in values.items()}
    for name, array in named.items():
        # The name stands for a dtype of ml_dtypes, which may be missing.
        if array.dtype not in _NUMBERS and array.dtype.name != "bfloat16":
            raise TypeError(
                f"{name} must be {', '.join(map(str, _NUMBERS))} or bfloat16, got {array.dtype}: "
                f"convert it with {name}.astype(numpy.float32)"
            )
    arrays = list(named.values())
    return Maps(named, arrays if "x" not in named else arrays[0], tuple(array.shape for array in arrays))


def foreign_array(value: Any, name: str) -> Float32Array:
    """Return the weights of another library as float32: rounded, off their autograd graph and on the CPU."""
    return foreign_numbers(value, name).astype(np.float32)


def foreign_numbers(value: Any, name: str) -> NDArray[Any]:
    """Return numbers of another library as an array of integers or floats."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()  # which holds all floats of torch, and NumPy has it
    try:
        array = np.asarray(value)
    except OverflowError as error:  # integers that no machine holds
        raise ValueError(f"{name} must hold real numbers, got {_kind(value)} ({error})") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    return array


def float32_array(value: Any, name: str) -> Float32Array:
    """View `value` as a float32 array; nothing is copied or converted."""
    array = as_array(value, name)
    if array.dtype != np.float32:
        advice = "" if name.startswith("out") else f": convert it with {name}.astype(numpy.float32)"
        raise TypeError(f"{name} must be float32, got {array.dtype}{advice}")
    return array


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Return `value` as a base-class array over the same memory."""
    # type() and not isinstance(): an object may pretend to be an array by its __class__.
    if not issubclass(type(value), np.ndarray):
        if isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a float32 array, got {_kind(value)}")
        if getattr(value, "requires_grad", False):
            raise TypeError(f"{name} must be a float32 array, got one that records gradients: use {name}.detach()")
        if not any(hasattr(value, attribute) for attribute in ("__array__", "__array_interface__", "__array_struct__")):
            return _array_from_export(value, name)
    try:
        return np.asarray(value)
    except OverflowError as error:  # an array interface with numbers that no machine holds
        raise ValueError(f"{name} must be a float32 array, got {_kind(value)} ({error})") from error
    except (RuntimeError, TypeError) as error:  # a dtype that NumPy does not have, another device
        raise TypeError(f"{name} must be a float32 array, got {_kind(value)} ({error})") from error


def _array_from_export(value: Any, name: str) -> NDArray[Any]:
    try:
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        return np.asarray(memoryview(value))
    except (AttributeError, BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name} must be a float32 array, got {_kind(value)} ({error})") from error


def _same_elements(a: Float32Array, b: Float32Array) -> bool:
    """Whether two arrays of one shape hold the same elements in the same places."""
    strides = ((s, t) for length, s, t in zip(a.shape, a.strides, b.strides, strict=True) if length > 1)
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0] and all(s == t for s, t in strides)


def _share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays have a byte in common; what would take too long to find out counts as yes."""
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # any bound is fine
    except TooHardError:
        return True


def _overlaps_itself(array: Float32Array) -> bool:
    """Whether two indices reach a common byte."""
    if array.size < 2:
        return False
    axes = sorted(
        (abs(stride), length) for stride, length in zip(array.strides, array.shape, strict=True) if length > 1
    )
    reach, nested = array.itemsize, True
    for stride, length in axes:
        nested &= stride >= reach
        reach += (length - 1) * stride
    if nested:  # each axis steps over all that the faster ones reach: slices and transposes of ordinary arrays
        return False
    if array.nbytes > reach:
        return True
    offsets = np.zeros(1, np.intp)
    for stride, length in axes:
        offsets = np.add.outer(np.arange(length, dtype=np.intp) * stride, offsets).ravel()
    return bool((np.diff(np.sort(offsets)) < array.itemsize).any())
