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
    out_dtype: Any = None,
    precision: str = "highest",
    num_threads: int | None = None,
    backend: str = "auto",
) -> Float32Array:
    """Compute a pointwise (1x1) convolution: one matrix product over the channels of every pixel.

    With i an input channel, o an output channel and p a pixel of image n::

        y[n, o, p] = activation(output_scale[n, o] * (sum_i weight[o, i] * u[n, i, p] + bias[o]) + residual[n, o, p])
        u[n, i, p] = input_activation(input_scale[n, i] * x[n, i, p] + input_shift[n, i])

    Arrays are float32 NumPy arrays with any strides, or objects that NumPy can view as such without a copy. `x` may
    also hold uint8, int8, uint16, int16, float16 or bfloat16 (ml_dtypes); these are converted to float32 exactly. No
    argument but `out` is written to.

    Parameters
    ----------
    x : float32 or a narrower dtype, one axis per letter of `layout`; or a list of maps that may differ in channel count
        and dtype only. The result for a list is that of its concatenation along C, which is never built.
    weight : float32, shape (C_out, C_in // groups), with any trailing axes of length 1 (PyTorch, ONNX).
    bias : float32, shape (C_out,).
    stride : int, or one per spatial axis in the order of `layout`. Every stride-th pixel is computed, from the first.
    groups : int that divides both channel counts. Each group of output channels reads its own group of input channels.
    layout : "NCHW", "NHWC", "CHW", "HWC", "NCL", "NLC", "NCDHW", "NDHWC", "NC" or similar: one letter per axis, with C
        once, N at most once and first; all other letters are spatial axes. "channels_first" is N C ...,
        "channels_last" is N ... C, for any number of axes.
    out_layout : a permutation of these letters, for the result; None means `layout`.
    weight_layout : "OI", or "IO" for a weight of shape (C_in // groups, C_out) with leading axes of length 1 (Keras).
    input_scale, input_shift : float32, shape (C_in,) or (N, C_in).
    input_activation, activation : None, "relu", "relu6", "leaky_relu" (slope 0.01), "sigmoid", "tanh", "silu", "gelu"
        (the erf form), "gelu_tanh", "hardsigmoid", "hardswish", ("leaky_relu", slope) or ("clip", lo, hi).
    output_scale : float32, shape (C_out,) or (N, C_out).
    residual : float32 or a narrower dtype, shape of the result; may be `out` itself.
    out : shape of the result, of any dtype that `out_dtype` may name. It receives the result and is returned, and
        shares no memory with an argument that is read, except where it is `residual`.
    out_dtype : "float32" (None), "uint8", "int8", "uint16", "int16", "float16" or "bfloat16", as a name or a dtype.
        Integers are the float32 result rounded to the nearest (ties to even) within their range, with NaN as 0;
        float16 and bfloat16 are rounded as `numpy.ndarray.astype` does.
    precision : "highest" computes in float32. "high" permits that each number is split into two bfloat16, "medium" that
        it is rounded to one, where that is faster on this machine (`PointwiseConv.plan` says what is used). Sums are
        float32. With K = C_in // groups, the error of a sum is below (2^-15 + 4 K 2^-24) for "high", and below
        (2^-7 + 2^-16 + 2 K 2^-24) for "medium", times sum |weight| |x|, plus 2^-126 sum(|weight| + |x| + 6).
        Pixels and rows of weights are computed as with "highest" if they hold an infinity, a value that bfloat16 rounds
        to infinity or, with "high", a normal number below 2^-108. tests/oracle.py derives the bounds.
    num_threads : int; None means the setting of `pwconv.set_num_threads` or the environment.
    backend : "native", "numpy" or "auto".

    Returns
    -------
    array of `out_dtype` with the axes of `out_layout`, C-contiguous, spatial sizes ceil(size / stride); or `out`.

    Raises
    ------
    TypeError for wrong types and dtypes; ValueError for wrong shapes, layouts, names and overlaps; MemoryError.

    Notes
    -----
    The input channels of a group are summed in blocks of 256. Within a block the sum starts at +0 and is one chain of
    fused multiply-adds in channel order; the block sums are added in ascending order. So results have the same bits
    for any number of threads, layout, batch size, view, and instruction set with FMA.

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
        out_dtype,
        precision,
        num_threads,
        backend,
    )


def _compute_with_numpy(x: Any, weight: Any, bias: Any, *options: Any) -> NDArray[Any]:
    """Call the reference with the engine's signature, in which all arguments are positional."""
    return reference.pointwise_conv(x, weight, bias, **dict(zip(_OPTIONS, options, strict=True)))


_OPTIONS = tuple(inspect.signature(pointwise_conv).parameters)[3:]

# Chosen once, so that a call does not look up the engine. For backend="numpy" the engine calls the reference itself.
_compute = _compute_with_numpy if runtime.engine is None else runtime.engine.pointwise_conv
