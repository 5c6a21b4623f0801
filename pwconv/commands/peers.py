"""The contenders of a race: pwconv and its peers (other libraries), each called on the same arrays."""

import ctypes
import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pwconv import runtime
from pwconv.arguments import Float32Array
from pwconv.commands.workloads import LAYOUTS, Workload
from pwconv.layers import PointwiseConv

Call = Callable[[], Any]


class Operands:
    """The arrays of a workload: the input, the weights (C_out, C_in), the bias or None, and a buffer for results.

    `precisions` are the precisions of pwconv that race. Ratios and limits refer to the first one.
    """

    def __init__(self, workload: Workload, layout: str, precisions: Sequence[str] = ("highest",)) -> None:
        self.workload, self.layout, self.precisions = workload, layout, tuple(precisions)
        random = np.random.default_rng(1)
        self.x, self.weight, bias = (
            random.random(shape, np.float32) - np.float32(0.5)
            for shape in (
                workload.shape(layout),
                (workload.out_channels, workload.in_channels),
                (workload.out_channels,),
            )
        )
        self.bias: Float32Array | None = None if workload.plain else bias
        if workload.dtype != "float32":
            self.x = np.rint(250 * (self.x + np.float32(0.5))).astype(workload.dtype)
        if workload.out_dtype != "float32":  # means, which keep the range
            self.weight = np.abs(self.weight) / np.abs(self.weight).sum(axis=1, keepdims=True)
        self.out = np.empty(workload.shape(layout, out=True), workload.out_dtype)

    @property
    def activation(self) -> str | None:
        """The activation of the layer."""
        return None if self.workload.plain else "relu"

    def sampled(self) -> Float32Array:
        """Return the view of every stride-th pixel of the input."""
        step = slice(None, None, self.workload.stride)
        return self.x[:, :, step, step] if self.layout == "NCHW" else self.x[:, step, step, :]


class Peer(NamedTuple):
    """Another library. `ways` returns a call for each way in which the library can compute the operands."""

    heading: str
    packages: tuple[str, ...]
    layouts: tuple[str, ...]
    ways: Callable[[Operands], dict[str, Call]]
    follows_isa: bool = True  # an environment variable limits its instruction set
    bare: bool = False  # it computes neither bias nor ReLU, and writes into a given buffer
    narrow: bool = False  # it takes maps of other types than float32, by itself or after a cast
    pictures: bool = False  # it races on pictures only
    coarse: bool = False  # it may multiply bfloat16, so it is compared with precision "medium" only

    def obstacle(self, layout: str, limited: bool, pictures: bool = False) -> str | None:
        """Return why the peer cannot race in this layout.

        `limited`: with a limit to the instruction set; `pictures`: there are some among the workloads.
        """
        missing = [package for package in self.packages if not _is_installed(package)]
        if layout not in self.layouts:
            return f"races in {' or '.join(self.layouts)} only"
        if self.pictures and not pictures:
            return "races on pictures only"
        if missing:
            return f"is not installed (pip install {' '.join(missing)})"
        if limited and not self.follows_isa:
            return "cannot be limited to an instruction set"
        return None

    @property
    def version(self) -> str:
        """The version of the first package."""
        return importlib.metadata.version(self.packages[0])


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def pwconv_ways(o: Operands) -> dict[str, Call]:
    """Return the calls of pwconv: the first precision with a new result and with out=, the others by their names."""
    first, *others = (
        PointwiseConv(
            o.weight,
            o.bias,
            stride=o.workload.stride,
            layout=o.layout,
            activation=o.activation,
            out_dtype=o.workload.out_dtype,
            precision=name,
        )
        for name in o.precisions
    )
    ways: dict[str, Call] = {"pwconv": partial(first, o.x), "out=": partial(first, o.x, out=o.out)}
    return ways | {layer.precision: partial(layer, o.x) for layer in others}


def _numpy_ways(o: Operands) -> dict[str, Call]:
    """Call NumPy: one product per image (NCHW) or one for all pixels (NHWC); bias and ReLU in place.

    Other maps than float32 are cast first; integers of the result are rounded, clipped and cast.
    """
    first, ins = o.layout == "NCHW", o.workload.in_channels
    x, shape = o.sampled(), (o.workload.images, ins, -1) if first else (-1, ins)
    # Without a stride, the reshaped view is made once. With a stride, each call has to copy the selected pixels.
    ready = x.reshape(shape) if o.workload.stride == 1 else None
    weight = o.weight if first else np.ascontiguousarray(o.weight.T)
    bias = o.bias[:, np.newaxis] if first and o.bias is not None else o.bias
    dtype = np.dtype(o.workload.out_dtype)

    def call() -> NDArray[Any]:
        flat = (x.reshape(shape) if ready is None else ready).astype(np.float32, copy=False)
        y = np.matmul(weight, flat) if first else np.matmul(flat, weight)
        if bias is not None:
            np.add(y, bias, out=y)
            np.maximum(y, 0, out=y)
        if dtype != np.float32:
            np.rint(y, out=y)
            np.clip(y, np.iinfo(dtype).min, np.iinfo(dtype).max, out=y)
        return y.astype(dtype, copy=False)

    return {"matmul": call}


def _torch_ways(o: Operands, dtype: str = "float32") -> dict[str, Call]:
    """Call torch: a convolution (channels_last for NHWC), and in NHWC also a linear layer."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(runtime.get_num_threads())
    # Set once here, since entering inference mode in each call would add a microsecond to it.
    torch.set_grad_enabled(False)
    conv, linear = functional.conv2d, functional.linear
    relu: Any = torch.relu_ if o.activation else lambda y: y
    x, weight = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in (o.x, o.weight))
    bias = None if o.bias is None else torch.from_numpy(o.bias).to(getattr(torch, dtype))
    kernel, stride = weight[:, :, None, None], o.workload.stride
    if o.layout == "NCHW":
        return {"conv2d": lambda: relu(conv(x, kernel, bias, stride))}
    last, sampled = x.permute(0, 3, 1, 2), x[:, ::stride, ::stride]
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return {
        "conv2d": lambda: relu(conv(last, kernel, bias, stride)).permute(0, 2, 3, 1),
        "linear": lambda: relu(linear(sampled, weight, bias)),
    }


def _torch_bf16_ways(o: Operands) -> dict[str, Call]:
    """Call torch on tensors of bfloat16, and on float32 while it is permitted to multiply float32 as bfloat16.

    The conversion to bfloat16 is not part of the calls. The permission is a setting of the process: each call sets and
    resets it, which takes about a microsecond. oneDNN may ignore the permission (on x86 without AMX it does); the
    errors then show it. torch before 2.9 has no such setting.
    """
    from torch import backends

    mkldnn: Any = backends.mkldnn  # torch sets attributes that type checkers do not see
    ways = {f"{way} of bfloat16": call for way, call in _torch_ways(o, "bfloat16").items()}
    if not hasattr(mkldnn, "conv"):
        return ways
    # torch computes small convolutions as matrix products, so both settings matter.
    conv, matmul = mkldnn.conv, mkldnn.matmul
    before = conv.fp32_precision, matmul.fp32_precision

    def permitted(call: Call) -> Any:
        conv.fp32_precision = matmul.fp32_precision = "bf16"
        try:
            return call()
        finally:
            conv.fp32_precision, matmul.fp32_precision = before

    return ways | {f"{way} permitted": partial(permitted, call) for way, call in _torch_ways(o).items()}


def _onnxruntime_ways(o: Operands) -> dict[str, Call]:
    """Call onnxruntime: a session of Conv and Relu, which it fuses."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    stride = [o.workload.stride] * 2
    operands = {"weight": o.weight[:, :, np.newaxis, np.newaxis]} | ({} if o.bias is None else {"bias": o.bias})
    nodes = [helper.make_node("Conv", ["x", *operands], ["sum"], kernel_shape=[1, 1], strides=stride)]
    if o.activation:
        nodes.append(helper.make_node("Relu", ["sum"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "pointwise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, o.x.shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in operands.items()],
    )
    # Every onnxruntime reads this old version of the format.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": o.x}
    return {"session": lambda: session.run(None, feed)[0]}


def _mkl_ways(o: Operands) -> dict[str, Call]:
    """Call MKL: the product with weights that are packed before (cblas_sgemm_compute), into a given buffer."""
    mkl = _load_mkl()
    mkl.cblas_sgemm_pack_get_size.restype = ctypes.c_size_t
    row_major, as_is, transposed, packed, b_matrix = 101, 111, 112, 151, 162
    pixels, ins, outs = o.workload.pixels, o.workload.in_channels, o.workload.out_channels
    sizes = (pixels, outs, ins)
    memory = np.empty(mkl.cblas_sgemm_pack_get_size(b_matrix, *sizes) + 64, np.uint8)
    panels = memory[-memory.ctypes.data % 64 :]
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    mkl.cblas_sgemm_pack(row_major, b_matrix, transposed, *sizes, one, _pointer(o.weight), ins, _pointer(panels))
    # MKL needs pixels at equal distances, so the pixels of a layer with a stride are copied in each call.
    source = o.sampled()
    x = source if o.workload.stride == 1 else np.empty(source.shape, np.float32)
    operands = (_pointer(x), ins, _pointer(panels), outs, zero, _pointer(o.out), outs)
    compute = partial(mkl.cblas_sgemm_compute, row_major, as_is, packed, *sizes, *operands)

    def call() -> Float32Array:
        if x is not source:
            np.copyto(x, source)
        compute()
        return o.out

    return {"packed": call}


def _opencv_ways(o: Operands) -> dict[str, Call]:
    """Call OpenCV's transform: up to four out channels, and the type of the result is that of the picture."""
    import cv2

    w = o.workload
    if not w.plain or w.images > 1 or w.stride > 1 or w.out_channels > 4 or w.in_channels > 64:
        return {}
    cv2.setNumThreads(runtime.get_num_threads())
    casts = w.out_dtype != w.dtype
    x, y = o.x[0], np.empty((*w.out_size, w.out_channels), w.out_dtype)

    def call() -> NDArray[Any]:
        cv2.transform(x.astype(np.float32) if casts else x, o.weight, y)
        return y

    return {"transform": call}


def _load_mkl() -> ctypes.CDLL:
    files = importlib.metadata.files("mkl") or []
    library = ctypes.CDLL(str(next(file.locate() for file in files if "mkl_rt" in file.name)))
    library.MKL_Set_Num_Threads(runtime.get_num_threads())
    return library


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Return the address of an array, in an object that keeps the array alive."""
    return array.ctypes.data_as(ctypes.c_void_p)


PEERS = {
    "numpy": Peer("numpy", ("numpy",), LAYOUTS, _numpy_ways, narrow=True),
    "torch": Peer("torch", ("torch",), LAYOUTS, _torch_ways),
    "torch-bf16": Peer("t-bf16", ("torch",), LAYOUTS, _torch_bf16_ways, coarse=True),
    "onnxruntime": Peer("onnxrt", ("onnxruntime", "onnx"), ("NCHW",), _onnxruntime_ways, follows_isa=False),
    "mkl": Peer("mkl", ("mkl",), ("NHWC",), _mkl_ways, bare=True),
    "opencv": Peer(
        "opencv",
        ("opencv-python-headless",),
        ("NHWC",),
        _opencv_ways,
        follows_isa=False,
        bare=True,
        narrow=True,
        pictures=True,
    ),
}


def installed(layout: str) -> list[str]:
    """Return the names of the float32 peers that can race in this layout without a limit to the instruction set."""
    return [name for name, peer in PEERS.items() if not (peer.coarse or peer.obstacle(layout, limited=False))]
