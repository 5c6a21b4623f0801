"""Every function and method of the package in NumPy. This module defines what the compiled engine computes.

Functions compute in float32, or in float64 (`dtype=numpy.float64`) as a reference for errors. NumPy chooses the order
of summation, so the last bits differ from those of the engine. Denormal numbers are kept; for the engine they are zero.
"""

import math
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pwconv import arguments, links
from pwconv.activations import activate
from pwconv.arguments import ActivationLike, Float32Array, Spec, StrideLike

_SUMMED_ELEMENTS = 1 << 18  # elements of a map that sums over pixels widen to float64 at a time


def pointwise_conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: StrideLike = 1,
    groups: int = 1,
    layout: str = "NCHW",
    out_layout: str | None = None,
    weight_layout: str = "OI",
    input_scale: Any = None,
    input_shift: Any = None,
    input_activation: ActivationLike = None,
    output_scale: Any = None,
    residual: Any = None,
    activation: ActivationLike = None,
    out: Any = None,
    out_dtype: Any = None,
    precision: str = "highest",
    num_threads: int | None = None,
    backend: str = "numpy",
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Compute `pwconv.pointwise_conv` in `dtype`, which is also the dtype of the result unless `out` is given.

    `precision`, `num_threads` and `backend` are checked, but have no effect.
    """
    spec = arguments.parse_spec(
        stride=stride,
        groups=groups,
        layout=layout,
        out_layout=out_layout,
        weight_layout=weight_layout,
        input_activation=input_activation,
        activation=activation,
        precision=precision,
        backend=backend,
        out_dtype=out_dtype,
    )
    matrix = arguments.weight_matrix(weight, spec)
    bias1d = arguments.bias_vector(bias, len(matrix))
    call = arguments.check_call(
        spec, matrix.shape, x, input_scale, input_shift, output_scale, residual, out, num_threads, weight, bias
    )
    return _compute(spec, matrix, bias1d, call, out, dtype)


def call_layer(
    layer: Any,
    x: Any,
    *,
    input_scale: Any = None,
    input_shift: Any = None,
    output_scale: Any = None,
    residual: Any = None,
    out: Any = None,
    num_threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Compute `layer(x, ...)` for a `pwconv.PointwiseConv`, in `dtype`."""
    call = arguments.check_call(
        layer.spec, layer.matrix.shape, x, input_scale, input_shift, output_scale, residual, out, num_threads
    )
    return _compute_layer(layer, call, out, dtype)


def call_chain(
    chain: Any,
    x: Any,
    *,
    residual: Any = None,
    keep: Any = (),
    out: Any = None,
    num_threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any] | tuple[NDArray[Any], ...]:
    """Compute `chain(x, ...)` for a `pwconv.PointwiseChain`, one layer after the other, in `dtype`."""
    calls, kept = arguments.check_chain(chain.layers, x, residual, keep, out, num_threads)
    maps: list[NDArray[Any]] = []
    for layer, call in zip(chain.layers, calls, strict=True):
        maps.append(_compute_layer(layer, call._replace(x=maps[-1] if maps else call.x), out, dtype))
    return (*(maps[i] for i in kept), maps[-1]) if kept else maps[-1]


def call_branches(
    branches: Any, x: Any, *, out: Any = None, num_threads: int | None = None, dtype: DTypeLike = np.float32
) -> NDArray[Any] | tuple[NDArray[Any], ...]:
    """Compute `branches(x, ...)` for `pwconv.PointwiseBranches`, one layer after the other, in `dtype`."""
    calls = arguments.check_branches(branches.layers, x, out, num_threads)
    receivers = out if isinstance(out, list | tuple) else [None] * len(calls)
    results = tuple(
        _compute_layer(layer, call, receiver, dtype)
        for layer, call, receiver in zip(branches.layers, calls, receivers, strict=True)
    )
    return np.concatenate(results, axis=calls[0].out_layout.index("C")) if isinstance(out, str) else results


def call_masked(
    layers: Any,
    x: Any,
    *,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Compute layers one after the other, in `dtype`, and give `fill` to pixels that do not count."""
    call = arguments.check_values(layers, x, mask, fill, out, num_threads)
    values = _logits(layers, call, dtype)
    if call.fill is not None:
        values = np.where(_counted(call, values), values, values.dtype.type(call.fill))
    return _stored(values, layers[-1].spec.out_dtype, call.out, out)


def decision_function(
    classifier: Any,
    x: Any,
    *,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Compute `classifier.decision_function(x)` for a `pwconv.PixelClassifier`, in `dtype`."""
    return call_masked(classifier.layers, x, mask=mask, fill=fill, out=out, num_threads=num_threads, dtype=dtype)


def predict(
    classifier: Any,
    x: Any,
    *,
    size: Any = None,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Compute `classifier.predict(x)` from logits in `dtype`."""
    call, receiver, _, names = arguments.check_predict(
        classifier.all_layers, classifier.link, classifier.classes, x, size, mask, fill, out, num_threads
    )
    axis = call.out_layout.index("C")
    logits = _logits(classifier.all_layers, call, dtype)
    if call.fill is not None:
        logits = np.where(_counted(call, logits), logits, logits.dtype.type(np.nan))
    if classifier.link == "multilabel":
        labels = (logits > 0).astype(np.int32)
        hidden = np.isnan(logits)
    else:
        for i, length in enumerate(call.out_shape):
            if call.out_layout[i] not in "NC" and size is not None:
                logits = _resized(logits, i, length)
        labels = np.argmax(logits, axis=axis).astype(np.int32)
        hidden = np.isnan(logits).any(axis=axis)
    if call.fill is not None:
        labels[hidden] = call.fill
    if receiver is None:
        return labels if names is None else names[labels]
    receiver[...] = labels
    return out


def top_k(
    classifier: Any,
    x: Any,
    k: int,
    *,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute `classifier.top_k(x, k)` from logits in `dtype`."""
    call, label_receiver, logit_receiver, names = arguments.check_top_k(
        classifier.all_layers, classifier.classes, x, k, mask, fill, out, num_threads
    )
    axis = call.out_layout.index("C")
    every = _logits(classifier.all_layers, call, dtype)
    # lexsort takes the last key as the primary one: NaN first, then the largest logits. Equal logits stay in order.
    order = np.lexsort((-every, ~np.isnan(every)), axis=axis)
    labels = order.take(range(call.out_shape[axis]), axis).astype(np.int32)
    logits = np.take_along_axis(every, labels, axis)
    if call.fill is not None:
        counted = _counted(call, every)
        labels, logits = (
            np.where(counted, labels, np.int32(call.fill)),
            np.where(counted, logits, logits.dtype.type(np.nan)),
        )
    if label_receiver is None or logit_receiver is None:
        return (labels if names is None else names[labels]), logits
    label_receiver[...], logit_receiver[...] = labels, logits
    return out[0], out[1]


def predict_proba(
    classifier: Any,
    x: Any,
    *,
    mask: Any = None,
    fill: Any = None,
    out: Any = None,
    num_threads: int | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Compute `classifier.predict_proba(x)` in `dtype`."""
    call = arguments.check_probabilities(classifier.all_layers, classifier.link, x, mask, fill, out, num_threads)
    axis = call.out_layout.index("C")
    logits = _logits(classifier.all_layers, call, dtype)
    probabilities = links.probabilities(classifier.link, logits, axis, binary=classifier.head is not classifier.layer)
    if call.fill is not None:
        probabilities = np.where(_counted(call, logits), probabilities, probabilities.dtype.type(call.fill))
    if call.out is None:
        return probabilities
    call.out[...] = probabilities
    return out


def _counted(call: arguments.Call, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pixels count, in the layout of the result, with one channel: none with a NaN among its values."""
    counted = ~np.isnan(values).any(axis=call.out_layout.index("C"), keepdims=True)
    if call.mask is None:
        return counted
    steps = dict(zip((letter for letter in call.layout if letter not in "NC"), call.stride, strict=True))
    mask = call.mask[tuple(slice(None, None, steps.get(letter)) for letter in call.layout)]
    return counted & mask.transpose([call.layout.index(letter) for letter in call.out_layout])


def _resized(map_: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    """Resize one axis linearly, with half-pixel centres; beyond the outermost centres the values are constant."""
    old = map_.shape[axis]
    # (i + 1/2) old / length - 1/2, in units of 1 / (2 length): integers tell which values have no weight.
    first, part = np.divmod(np.maximum((2 * np.arange(length) + 1) * old - length, 0), 2 * length)
    # Without a weight, the second value is the first: NaN times 0 would be NaN.
    second = np.where(part > 0, np.minimum(first + 1, old - 1), first)
    weight = (part / (2 * length)).astype(map_.dtype).reshape([-1 if i == axis else 1 for i in range(map_.ndim)])
    below, above = map_.take(first, axis), map_.take(second, axis)
    return below + weight * (above - below)


def pointwise_conv_backward(
    grad_y: Any,
    x: Any,
    weight: Any,
    *,
    stride: StrideLike = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OI",
    need: Any = ("x", "weight", "bias"),
    num_threads: int | None = None,
    backend: str = "numpy",
    dtype: DTypeLike = np.float32,
) -> tuple[Any, NDArray[Any] | None, NDArray[Any] | None]:
    """Compute `pwconv.pointwise_conv_backward` in `dtype`.

    `num_threads` and `backend` are checked, but have no effect.
    """
    task = arguments.check_backward(
        grad_y,
        x,
        weight,
        stride=stride,
        groups=groups,
        layout=layout,
        weight_layout=weight_layout,
        need=need,
        num_threads=num_threads,
        backend=backend,
    )
    grad_x, matrix, grad_bias = _gradients(task, dtype)
    kernel = np.ascontiguousarray(arguments.as_kernel(matrix, weight_layout, np.shape(weight)))
    return (
        (grad_x if isinstance(task.call.x, list) else grad_x[0]) if "x" in task.need else None,
        kernel if "weight" in task.need else None,
        grad_bias if "bias" in task.need else None,
    )


@np.errstate(all="ignore")
def _gradients(task: arguments.Backward, dtype: DTypeLike) -> tuple[list[NDArray[Any]], NDArray[Any], NDArray[Any]]:
    """Compute the gradients of all maps, of the weight matrix and of the bias, on maps with axes (N, C, spatial)."""
    layout, groups = task.call.layout, task.spec.groups
    axes = "NC" + "".join(letter for letter in layout if letter not in "NC")
    maps = [_ordered(part, layout, axes) for part in task.parts]
    steps = (slice(None), slice(None), *(slice(None, None, step) for step in task.call.stride))
    x = np.concatenate([map_[steps].astype(dtype) for map_ in maps], axis=1)
    grad_y = _ordered(task.grad_y, layout, axes).astype(dtype)

    def per_group(map_: NDArray[Any]) -> NDArray[Any]:
        batch, channels, *pixels = map_.shape
        return map_.reshape(batch, groups, channels // groups, math.prod(pixels))

    out_channels, channels = task.matrix.shape
    weights = task.matrix.astype(dtype).reshape(groups, out_channels // groups, channels)
    whole = np.zeros((len(x), groups * channels, *maps[0].shape[2:]), dtype)
    whole[steps] = (weights.swapaxes(1, 2) @ per_group(grad_y)).reshape(x.shape)
    matrix = (per_group(grad_y) @ per_group(x).swapaxes(2, 3)).sum(axis=0).reshape(out_channels, channels)
    bias = grad_y.sum(axis=(0, *range(2, grad_y.ndim)))

    parts = np.split(whole, np.cumsum([map_.shape[1] for map_ in maps])[:-1], axis=1)
    if "N" not in layout:
        parts, axes = [part[0] for part in parts], axes[1:]
    order = [axes.index(letter) for letter in layout]
    return [np.ascontiguousarray(part.transpose(order)) for part in parts], matrix, bias


class Components(NamedTuple):
    """The principal components of pixels; fields are the attributes of `pwconv.ChannelReducer`."""

    components: NDArray[np.float64]
    mean: NDArray[np.float64]
    explained_variance: NDArray[np.float64]
    explained_variance_ratio: NDArray[np.float64]


def principal_components(
    x: Any, n_components: int | float | None = None, *, layout: str = "NCHW", mask: Any = None
) -> Components:
    """Compute the attributes of `pwconv.ChannelReducer(n_components, layout=layout).fit(x, mask=mask)` in float64."""
    parts, counted, _ = arguments.check_pixels(layout, x, mask)
    pixels = np.concatenate([part.astype(np.float64) for part in parts])
    samples = pixels.reshape(len(pixels), -1) if counted is None else pixels[:, counted]
    count = arguments.component_count(n_components, *samples.shape)
    mean = samples.mean(axis=1)
    _, values, rows = np.linalg.svd((samples.T - mean), full_matrices=False)
    variances = values**2 / (samples.shape[1] - 1)
    ratios = variances / (variances.sum() or 1)  # 0 for a flat image
    kept = arguments.components_kept(count, ratios)
    signs = np.sign([row[np.argmax(np.abs(row))] for row in rows])
    components = (signs[:, np.newaxis] * rows)[:kept]
    return Components(components, mean, variances[:kept], ratios[:kept])


@np.errstate(all="ignore")
def sums_of_products(
    parts: list[NDArray[Any]],
    counted: NDArray[np.bool_] | None,
    shift: Float32Array,
    products: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> None:
    """Store sums over the pixels that count: of the channels less `shift`, and of the products of their pairs.

    The channels are those of all parts, on their first axis. Pixels are computed in float64, some at a time.
    """
    at_once = max(1, _SUMMED_ELEMENTS // len(shift))
    places = range(math.prod(parts[0].shape[1:])) if counted is None else np.flatnonzero(counted)
    for start in range(0, len(places), at_once):
        where: tuple[Any, ...] = np.unravel_index(np.asarray(places[start : start + at_once]), parts[0].shape[1:])
        pixels = np.concatenate([part[:, *where].astype(np.float64) for part in parts]) - shift[:, np.newaxis]
        products += pixels @ pixels.T
        sums += pixels.sum(axis=1)


class Plan(NamedTuple):
    """The matrix products by which NumPy computes a layer on an input of one shape."""

    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    products: int
    matrix_shape: tuple[int, int]
    pixels: int

    def __repr__(self) -> str:
        rows, columns = self.matrix_shape
        return (
            f"{self.shape} -> {self.out_shape} with NumPy: "
            f"{self.products} products of a {rows} x {columns} by a {columns} x {self.pixels} matrix"
        )


def plan_layer(layer: Any, shape: tuple[int, ...], num_threads: int | None = None) -> Plan:
    """Describe how `call_layer` computes a layer on an input of this shape; `num_threads` has no effect."""
    spec, matrix = layer.spec, layer.matrix
    call = arguments.check_shape(spec, matrix.shape, shape, num_threads)
    sizes = dict(zip(call.out_layout, call.out_shape, strict=True))
    pixels = math.prod(size for letter, size in sizes.items() if letter not in "NC")
    block = (len(matrix) // spec.groups, matrix.shape[1])
    return Plan(np.shape(call.x), call.out_shape, sizes.get("N", 1) * spec.groups, block, pixels)


class Layer:
    """The base class of `pwconv.PointwiseConv` where the compiled engine is missing."""

    __slots__ = ("bias1d", "matrix", "scales", "spec")

    matrix: Float32Array
    bias1d: Float32Array | None
    spec: Spec

    scales: tuple[Float32Array | None, ...]

    def __new__(
        cls,
        matrix: Float32Array,
        bias: Float32Array | None,
        spec: Spec,
        scales: tuple[Float32Array | None, ...] = (None, None, None),
    ) -> Self:
        layer = super().__new__(cls)
        # PointwiseConv forbids assignment.
        object.__setattr__(layer, "matrix", _read_only_copy(matrix))
        object.__setattr__(layer, "bias1d", None if bias is None else _read_only_copy(bias))
        object.__setattr__(layer, "spec", spec)
        copies = tuple(None if scale is None else _read_only_copy(scale) for scale in scales)
        object.__setattr__(layer, "scales", copies)
        return layer

    __call__ = call_layer
    plan = plan_layer


def _read_only_copy(array: Float32Array) -> Float32Array:
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy


def _logits(layers: Any, call: arguments.Call, dtype: DTypeLike) -> NDArray[Any]:
    """Compute layers one after the other into a new array; the last rounds to no other dtype."""
    calls, _ = arguments.check_chain(layers, call.x)
    logits: Any = call.x
    for layer, each in zip(layers, calls, strict=True):
        spec = layer.spec._replace(out_dtype="float32") if layer is layers[-1] else layer.spec
        logits = _compute_layer(layer, each._replace(x=logits), None, dtype, spec)
    return logits


def _compute_layer(
    layer: Any, call: arguments.Call, out: Any, dtype: DTypeLike, spec: Spec | None = None
) -> NDArray[Any]:
    """Compute a call of a layer, whose own scales and shifts stand in for those that the call does not give."""
    names = ("input_scale", "input_shift", "output_scale")
    own = {name: scale for name, scale in zip(names, layer.scales, strict=True) if getattr(call, name) is None}
    return _compute(spec or layer.spec, layer.matrix, layer.bias1d, call._replace(**own), out, dtype)


@np.errstate(all="ignore")
def _compute(
    spec: Spec, matrix: Float32Array, bias: Float32Array | None, call: arguments.Call, out: Any, dtype: DTypeLike
) -> NDArray[Any]:
    """Compute a checked call, on maps with axes (N, C, spatial axes in the order of `layout`)."""
    axes = "NC" + "".join(letter for letter in call.layout if letter not in "NC")

    def per_channel(values: Float32Array) -> Float32Array:
        return np.atleast_2d(values)[(..., *[np.newaxis] * len(call.stride))]

    steps = (slice(None), slice(None), *(slice(None, None, step) for step in call.stride))
    maps = call.x if isinstance(call.x, list) else [call.x]
    x = np.concatenate([_ordered(part, call.layout, axes)[steps].astype(dtype) for part in maps], axis=1)
    if call.input_scale is not None:
        x = per_channel(call.input_scale) * x
    if call.input_shift is not None:
        x = x + per_channel(call.input_shift)
    x = activate(spec.input_activation, x)

    batch, _, *pixels = x.shape
    out_channels, channels = matrix.shape
    weights = matrix.astype(dtype).reshape(spec.groups, out_channels // spec.groups, channels)
    x = x.reshape(batch, spec.groups, channels, math.prod(pixels))
    y = (weights @ x).reshape(batch, out_channels, *pixels)

    if bias is not None:
        y = y + per_channel(bias)
    if call.output_scale is not None:
        y = per_channel(call.output_scale) * y
    if call.residual is not None:
        y = y + _ordered(call.residual, call.out_layout, axes).astype(dtype)
    y = activate(spec.activation, y)

    if "N" not in call.layout:
        y, axes = y[0], axes[1:]
    y = y.transpose([axes.index(letter) for letter in call.out_layout])
    return _stored(y, spec.out_dtype, call.out, out)


def _stored(y: NDArray[Any], out_dtype: str, receiver: NDArray[Any] | None, out: Any) -> NDArray[Any]:
    """Round a result to its dtype; return it, or `out` after writing it to `receiver`, a view of `out`."""
    if receiver is None:
        if out_dtype != "float32":
            y = arguments.rounded(y, arguments.numpy_dtype(out_dtype))
        return np.ascontiguousarray(y)
    receiver[...] = arguments.rounded(y, receiver.dtype)
    return out


def _ordered(array: NDArray[Any], layout: str, axes: str) -> NDArray[Any]:
    """View a map with its axes in the order `axes`; a missing batch axis is added."""
    if "N" not in layout:
        array, layout = array[np.newaxis], f"N{layout}"
    return array.transpose([layout.index(letter) for letter in axes])
