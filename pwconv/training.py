"""Gradients for training: those of the input and the weights are pointwise convolutions of other operands."""

import string
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pwconv import arguments, reference, runtime
from pwconv.activations import derivative
from pwconv.arguments import ActivationLike, Backward, Float32Array, Spec, StrideLike
from pwconv.functional import pointwise_conv

_PACKED_ELEMENTS = 1 << 20  # elements of the transposed weights that are packed at a time
_FLOAT32 = np.dtype(np.float32)
_PIXEL_LETTERS = string.ascii_uppercase.replace("C", "").replace("N", "")


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
    backend: str = "auto",
) -> tuple[Float32Array | list[Float32Array] | None, Float32Array | None, Float32Array | None]:
    """Compute the gradients of `y = pwconv.pointwise_conv(x, weight, bias, ...)` from the gradient of `y`.

    With p a pixel of image n that the stride selects, and i and o an input and an output channel of the same group::

        grad_x[n, i, p] = sum_o weight[o, i] * grad_y[n, o, p]        and 0 at pixels that the stride skips
        grad_weight[o, i] = sum_n,p grad_y[n, o, p] * x[n, i, p]
        grad_bias[o] = sum_n,p grad_y[n, o, p]

    Activations, scales and residuals are not included: `grad_y` is the gradient of the sum before them.

    Parameters
    ----------
    grad_y : float32, shape of the result of the forward call, any strides.
    x, weight, stride, groups, layout, weight_layout, num_threads, backend : as in the forward call.
    need : "x", "weight", "bias", or a tuple of these names; other gradients are not computed.

    Returns
    -------
    grad_x, grad_weight, grad_bias : new float32 arrays with the shapes of `x`, `weight` and (C_out,), C-contiguous;
        None for names that are not in `need`. For a list `x`, grad_x is a list. Elements of `x` that share memory
        (`numpy.broadcast_to`) have a gradient each; the gradient of the array that was broadcast is their sum.

    Raises
    ------
    TypeError for wrong types and dtypes; ValueError for wrong shapes, layouts and names; MemoryError.

    Notes
    -----
    Sums over pixels are computed in blocks of at most 1,024 pixels, in the order of the layout's letters. Within a
    block the rule of `pwconv.pointwise_conv` holds, with pixels in place of channels; blocks are added in float64. The
    blocks depend on the shapes alone, so results have the same bits for any number of threads, layout, strides of the
    arrays, and instruction set with FMA. grad_bias is such a sum of products with ones. A `grad_y` that does not fit
    the caches is read once for all three.

    The formulas are those of a linear layer (Rumelhart, Hinton and Williams, "Learning representations by
    back-propagating errors", 1986).

    Examples
    --------
    >>> x, weight, grad_y = (np.ones(shape, np.float32) for shape in ((2, 64, 9, 9), (16, 64), (2, 16, 9, 9)))
    >>> [grad.shape for grad in pwconv.pointwise_conv_backward(grad_y, x, weight)]
    [(2, 64, 9, 9), (16, 64), (16,)]
    """
    # No tuple of strides, which would be the same key as one of other numbers: True == 1 == 1.0, yet only 1 is valid.
    wanted = tuple(need) if type(need) is list else need
    key = (stride, groups, layout, weight_layout, wanted, num_threads, backend)
    if _are_plain(grad_y, x, weight) and type(stride) is int and _is_hashable(key):
        product = _product_of_shapes(grad_y.shape, x.shape, weight.shape, *key)
        if product is not None:
            return _gradients_of_product(product, grad_y, x, arguments.weight_matrix(weight, product.spec))
    options: dict[str, Any] = {
        "stride": stride,
        "groups": groups,
        "layout": layout,
        "weight_layout": weight_layout,
        "need": need,
        "num_threads": num_threads,
        "backend": backend,
    }
    task = arguments.check_backward(grad_y, x, weight, **options)
    if task.spec.backend == "numpy":
        return reference.pointwise_conv_backward(grad_y, x, weight, **options)
    product = _product_of(task, np.shape(weight))
    if product is not None:
        return _gradients_of_product(product, task.grad_y, task.parts[0], task.matrix)
    grad_weight, grad_bias = _sums_over_pixels(task, np.shape(weight))
    if "x" not in task.need:
        return None, grad_weight, grad_bias
    grads = _grads_x(task)
    return (grads if isinstance(task.call.x, list) else grads[0]), grad_weight, grad_bias


def layer_backward(
    layer: Any, grad_y: Any, x: Any, need: Any, num_threads: int | None
) -> tuple[Any, Float32Array | None, Float32Array | None]:
    """Compute `layer.backward` for a `pwconv.PointwiseConv`."""
    task = arguments.check_layer_backward(layer, grad_y, x, need, num_threads)
    if layer.out_dtype != "float32":
        raise ValueError(
            f"backward needs a layer with out_dtype 'float32', got {layer.out_dtype!r}: no rounding has slopes"
        )
    before, after = layer.spec.input_activation, layer.spec.activation
    running: dict[str, Any] = {"num_threads": num_threads, "backend": layer.spec.backend}
    options = running | {
        "stride": layer.stride,
        "groups": layer.groups,
        "layout": task.call.layout,
        "weight_layout": layer.weight_layout,
    }

    def apply(activation: ActivationLike, v: NDArray[Any]) -> NDArray[Any]:
        if activation is None:
            return v
        # A convolution of one channel with weight 1 applies the engine's own activation, on all threads.
        flat = pointwise_conv(
            v.reshape(1, -1), np.ones((1, 1), np.float32), layout="CL", activation=activation, **running
        )
        return flat.reshape(v.shape)

    scaled = _scaled(layer, task)
    inputs = [apply(layer.input_activation, part) for part in scaled]
    operand = inputs if isinstance(task.call.x, list) else inputs[0]
    gradient = task.grad_y
    if layer.activation is not None and task.need:
        sums = pointwise_conv(
            operand, layer.weight, layer.bias, output_scale=layer.output_scale, precision=layer.precision, **options
        )
        gradient = gradient * derivative(after, sums, apply)
    if layer.output_scale is not None:
        gradient = gradient * _along_channels(layer.output_scale, task)
    grad_x: Any
    grad_x, grad_weight, grad_bias = pointwise_conv_backward(
        gradient, operand, layer.weight, need=task.need - ({"bias"} if layer.bias is None else set()), **options
    )
    if "x" in task.need:
        grads = grad_x if isinstance(grad_x, list) else [grad_x]
        if layer.input_activation is not None:
            for grad, part in zip(grads, scaled, strict=True):
                grad *= derivative(before, part.astype(np.float32, copy=False), apply)
        if layer.input_scale is not None:
            for grad, scale in zip(grads, _split(layer.input_scale, task), strict=True):
                grad *= scale
    return grad_x, grad_weight, grad_bias


def _scaled(layer: Any, task: Backward) -> list[NDArray[Any]]:
    """Return the maps of `x` as they are before the layer's input activation."""
    parts = task.parts
    if layer.input_scale is not None:
        parts = [part * scale for part, scale in zip(parts, _split(layer.input_scale, task), strict=True)]
    if layer.input_shift is not None:
        parts = [part + shift for part, shift in zip(parts, _split(layer.input_shift, task), strict=True)]
    return parts


def _split(values: Float32Array, task: Backward) -> list[Float32Array]:
    """Divide one value per in channel among the maps of `x`."""
    axis = task.call.layout.index("C")
    ends = np.cumsum([part.shape[axis] for part in task.parts])[:-1]
    return np.split(_along_channels(values, task), ends, axis)


def _along_channels(values: Float32Array, task: Backward) -> Float32Array:
    """View one value per channel as a map of one pixel."""
    return values.reshape([-1 if letter == "C" else 1 for letter in task.call.layout])


def chain_backward(
    chain: Any, grad_y: Any, x: Any, need: Any, num_threads: int | None
) -> tuple[Any, list[tuple[Float32Array | None, Float32Array | None]]]:
    """Compute `chain.backward` for a `pwconv.PointwiseChain`."""
    needed, layers = arguments.parse_need(need), chain.layers
    maps = [x]
    for layer in layers[:-1]:
        maps.append(layer(maps[-1], num_threads=num_threads))
    grad, parameters = grad_y, []
    for i in reversed(range(len(layers))):
        wanted = needed | {"x"} if i else needed
        grad, *own = layers[i].backward(grad, maps.pop(), need=wanted, num_threads=num_threads)
        parameters.append(tuple(own))
    return grad, parameters[::-1]


# The three sums -------------------------------------------------------------------------------------------------------


class _Product(NamedTuple):
    """A call in which the gradient of `x` is one product of `grad_y` with the weights, of whole arrays."""

    spec: Spec
    layout: str
    channels_first: tuple[int, ...]  # the order of axes that begins with the channels
    need: frozenset[str]
    weight_shape: tuple[int, ...]
    num_threads: int | None


def _product_of(task: Backward, weight_shape: tuple[int, ...]) -> _Product | None:
    """Return the call as one product, of weights that are few enough to be packed at once; None if it is not."""
    simple = task.spec.groups == 1 and _takes_all_pixels(task) and not isinstance(task.call.x, list)
    if not simple or task.matrix.size > _PACKED_ELEMENTS or not task.grad_y.size:
        return None
    order = _channels_first_axes(task.call.layout)
    return _Product(task.spec, task.call.layout, order, task.need, weight_shape, task.call.num_threads)


def _are_plain(*arrays: Any) -> bool:
    """Are these float32 arrays, of no other type, about which only their shapes need checking?"""
    return all(type(array) is np.ndarray and array.dtype is _FLOAT32 for array in arrays)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=512, typed=True)
def _product_of_shapes(
    grad_y: tuple[int, ...],
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: int,
    groups: int,
    layout: str,
    weight_layout: str,
    need: Any,
    num_threads: int | None,
    backend: str,
) -> _Product | None:
    """Check a call by the shapes of its arrays; return it as one product, or None if it is not one for the engine."""
    task = arguments.check_backward(
        *map(arguments.array_of_shape, (grad_y, x, weight)),
        stride=stride,
        groups=groups,
        layout=layout,
        weight_layout=weight_layout,
        need=need,
        num_threads=num_threads,
        backend=backend,
    )
    return None if task.spec.backend == "numpy" else _product_of(task, weight)


def _gradients_of_product(
    product: _Product, grad_y: Float32Array, x: NDArray[Any], matrix: Float32Array
) -> tuple[Float32Array | None, Float32Array | None, Float32Array | None]:
    """Compute all gradients of a call; where `grad_y` comes from memory, the engine may do so in one pass over it."""
    need, first = product.need, product.channels_first
    grad_x = np.empty(x.shape, np.float32) if "x" in need else None
    kernel = np.empty(product.weight_shape, np.float32) if "weight" in need else None
    bias = np.empty(len(matrix), np.float32) if "bias" in need else None
    computed = False
    if kernel is not None or bias is not None:
        computed = runtime.engine.sums_of_products(
            [grad_y.transpose(first)],
            [x.transpose(first)],
            None if kernel is None else arguments.weight_matrix(kernel, product.spec),
            bias,
            1,
            None,
            None,
            product.num_threads,
            *((None, None) if grad_x is None else (matrix.T, grad_x.transpose(first))),
        )
    if grad_x is not None and not computed:
        pointwise_conv(
            grad_y, matrix, weight_layout="IO", layout=product.layout, out=grad_x, num_threads=product.num_threads
        )
    return grad_x, kernel, bias


def _grads_x(task: Backward) -> list[Float32Array]:
    """Compute the gradients of `x`: convolutions with transposed weights, written to every stride-th pixel."""
    spec, call = task.spec, task.call
    outs, ins = len(task.matrix) // spec.groups, task.matrix.shape[1]
    gradient = _channels_first(task.grad_y, task)
    transposed = task.matrix.reshape(spec.groups, outs, ins).swapaxes(1, 2)
    make = np.empty if _takes_all_pixels(task) else np.zeros
    grads, first = [], 0
    for part in task.parts:
        grad = make(part.shape, np.float32)
        sampled = _sampled(grad, task)
        end = first + len(sampled)
        for channels in _runs(first, end, ins, max(1, _PACKED_ELEMENTS // max(1, outs))):
            group, count = channels.start // ins, max(1, len(channels) // ins)
            rows = slice(channels.start % ins, channels.start % ins + len(channels) // count)
            pointwise_conv(
                gradient[group * outs : (group + count) * outs],
                transposed[group : group + count, rows].reshape(len(channels), outs),
                groups=count,
                layout=_letters(gradient),
                out=sampled[channels.start - first : channels.stop - first],
                num_threads=call.num_threads,
            )
        grads.append(grad)
        first = end
    return grads


def _runs(first: int, end: int, width: int, most: int) -> Iterator[range]:
    """Cut channels, in groups of `width`, into runs of at most `most`. A run holds whole groups, or part of one."""
    while first < end:
        count = min(end - first, most)
        if first % width or count < width:
            count = min(count, width - first % width)
        else:
            count -= count % width
        yield range(first, first + count)
        first += count


def _sums_over_pixels(task: Backward, shape: tuple[int, ...]) -> tuple[Float32Array | None, Float32Array | None]:
    """Compute the gradients of the weights and the bias: sums over pixels of products, and of `grad_y` itself."""
    make = np.empty if task.grad_y.size else np.zeros
    kernel = make(shape, np.float32) if "weight" in task.need else None
    matrix = None if kernel is None else arguments.weight_matrix(kernel, task.spec)
    bias = make(len(task.matrix), np.float32) if "bias" in task.need else None
    if task.grad_y.size and (kernel is not None or bias is not None):
        rows, columns = [_channels_first(task.grad_y, task)], [_sampled(part, task) for part in task.parts]
        runtime.engine.sums_of_products(
            rows, columns, matrix, bias, task.spec.groups, None, None, task.call.num_threads
        )
    return kernel, bias


# Maps as matrices of channels and pixels ------------------------------------------------------------------------------


def _channels_first(map_: NDArray[Any], task: Backward) -> NDArray[Any]:
    """View a map with its channels on the first axis, and pixels (images too) on the others."""
    return map_.transpose(_channels_first_axes(task.call.layout))


def _channels_first_axes(layout: str) -> tuple[int, ...]:
    """Return the order of a map's axes that begins with the channels."""
    axis = layout.index("C")
    return axis, *range(axis), *range(axis + 1, len(layout))


def _letters(map_: NDArray[Any]) -> str:
    """Return a layout with channels first, and the batch axis as one of the spatial axes."""
    return "C" + _PIXEL_LETTERS[: map_.ndim - 1]


def _takes_all_pixels(task: Backward) -> bool:
    """Does the stride select every pixel?"""
    return set(task.call.stride) <= {1}


def _sampled(map_: NDArray[Any], task: Backward) -> NDArray[Any]:
    """View the pixels of `x` that the stride selects, with channels first."""
    channels_first = _channels_first(map_, task)
    if _takes_all_pixels(task):
        return channels_first
    steps: tuple[Any, ...] = (..., *(slice(None, None, step) for step in task.call.stride))
    return channels_first[steps]
