"""The pointwise convolution as a function."""

import inspect
from typing import Any

from numpy.typing import NDArray

from pwconv import reference, runtime
from pwconv.arguments import ActivationLike, Float32Array, StrideLike


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
    precision: str = "highest",
    num_threads: int | None = None,
    backend: str = "auto",
) -> Float32Array:
    """Compute a pointwise (1x1) convolution: one matrix product over the channels of every pixel.

    With i an input channel, o an output channel and p a pixel of image n::

        y[n, o, p] = activation(output_scale[n, o] * (sum_i weight[o, i] * u[n, i, p] + bias[o]) + residual[n, o, p])
        u[n, i, p] = input_activation(input_scale[n, i] * x[n, i, p] + input_shift[n, i])

    Arrays are float32 NumPy arrays with any strides, or objects that NumPy views as such without a copy; `x` may hold
    uint8, int8, uint16, int16, float16 or bfloat16 (ml_dtypes) as well, which are widened exactly on the way. Nothing
    is written to except `out`.

    Parameters
    ----------
    x : float32 or a narrower number, one axis per letter of `layout`; or a list of maps that agree in all but their
        channels and dtypes: the result is that of their concatenation along C, which is never built.
    weight : float32, shape (C_out, C_in // groups), with any trailing axes of length 1 (PyTorch, ONNX).
    bias : float32, shape (C_out,).
    stride : int, or one per spatial axis in the order of `layout`. Every stride-th pixel is computed, from the first.
    groups : int that divides both channel counts; each group of outputs sees its own group of inputs.
    layout : "NCHW", "NHWC", "CHW", "HWC", "NCL", "NLC", "NCDHW", "NDHWC", "NC" or the like: a letter per axis, C once,
        N at most once and first, the others spatial. "channels_first" is N C ..., "channels_last" is N ... C.
    out_layout : a permutation of those letters for the result; `layout` if None.
    weight_layout : "OI", or "IO" for a weight of shape (C_in // groups, C_out) with leading axes of length 1 (Keras).
    input_scale, input_shift : float32, shape (C_in,) or (N, C_in).
    input_activation, activation : None, "relu", "relu6", "leaky_relu" (slope 0.01), "sigmoid", "tanh", "silu", "gelu"
        (the erf form), "gelu_tanh", "hardsigmoid", "hardswish", ("leaky_relu", slope) or ("clip", lo, hi).
    output_scale : float32, shape (C_out,) or (N, C_out).
    residual : float32, shape of the result; may be `out` itself.
    out : float32, shape of the result, receives it and is returned. Its memory is not that of another argument.
    precision : "highest" is float32. "high" permits two bfloat16 for each number, "medium" one, where that is faster on
        this machine (`PointwiseConv.plan` says what is used): with K = C_in // groups, errors of a sum stay below
        (2^-15 + 4 K 2^-24) and (2^-7 + 2^-16 + 2 K 2^-24) times sum |weight| |x|, and 2^-126 sum(|weight| + |x| + 6).
        Pixels and rows of weights with infinities or numbers for which there are no such pieces are computed as with
        "highest". tests/oracle.py derives the bounds.
    num_threads : int; None leaves it to `pwconv.set_num_threads` and the environment.
    backend : "native", "numpy" or "auto".

    Returns
    -------
    float32 array in the order of `out_layout`, C-contiguous, its spatial sizes ceil(size / stride); or `out`.

    Raises
    ------
    TypeError for wrong types and dtypes; ValueError for wrong shapes, layouts, names and overlaps; MemoryError.

    Notes
    -----
    The sum runs over blocks of 256 input channels (counted inside a group). Each block is one chain of fused
    multiply-adds from +0 in channel order, and the block sums are added in ascending order. So results are the same
    bit for bit, whatever the threads, layout, batch, view or instruction set with FMA.

    The 1x1 convolution is from Lin, Chen and Yan, "Network In Network" (2013). gelu is v Phi(v), gelu_tanh its
    approximation by tanh (Hendrycks and Gimpel, 2016); hardsigmoid is clip(v / 6 + 1/2, 0, 1) and hardswish v times
    that (Howard et al., "Searching for MobileNetV3", 2019).

    Examples
    --------
    >>> x, weight = np.ones((2, 64, 56, 56), np.float32), np.ones((16, 64), np.float32)
    >>> pwconv.pointwise_conv(x, weight, stride=2, activation="relu").shape
    (2, 16, 28, 28)
    """
    return _compute(
        x,
        weight,
        bias,
        stride,
        groups,
        layout,
        out_layout,
        weight_layout,
        input_scale,
        input_shift,
        input_activation,
        output_scale,
        residual,
        activation,
        out,
        precision,
        num_threads,
        backend,
    )


def _by_numpy(x: Any, weight: Any, bias: Any, *options: Any) -> NDArray[Any]:
    """Take the arguments as the engine does, all by position."""
    return reference.pointwise_conv(x, weight, bias, **dict(zip(_OPTIONS, options, strict=True)))


_OPTIONS = tuple(inspect.signature(pointwise_conv).parameters)[3:]

# Chosen once, so that a call costs no look-up. (For backend="numpy" the engine itself turns to the reference.)
_compute = _by_numpy if runtime.engine is None else runtime.engine.pointwise_conv
