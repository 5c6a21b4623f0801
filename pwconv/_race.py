"""The race: layers of published networks, computed by pwconv and its peers from the same arrays, in rotating order."""

import ctypes
import importlib.metadata
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pwconv import reference, runtime
from pwconv._limits import Limit, Machine
from pwconv.arguments import PRECISIONS, Float32Array
from pwconv.layers import PointwiseConv

# Workloads ------------------------------------------------------------------------------------------------------------


class Workload(NamedTuple):
    """A pointwise layer and the size of its input."""

    network: str
    name: str
    images: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.network} {self.name}"

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return math.ceil(self.height / self.stride), math.ceil(self.width / self.stride)

    @property
    def pixels(self) -> int:
        """Pixels of the result, of all images."""
        return self.images * math.prod(self.out_size)

    @property
    def flops(self) -> int:
        """Floating-point operations of the sums."""
        return 2 * self.pixels * self.in_channels * self.out_channels

    def shape(self, layout: str, out: bool = False) -> tuple[int, ...]:
        """Return the shape of the input, or of the result."""
        height, width = self.out_size if out else (self.height, self.width)
        channels = self.out_channels if out else self.in_channels
        sizes = {"N": self.images, "C": channels, "H": height, "W": width}
        return tuple(sizes[letter] for letter in layout)

    def bytes_read(self, layout: str) -> int:
        """Return the bytes of weights, bias and input that come from memory: whole cache lines of pixels in NCHW."""
        height, width = self.out_size
        columns = self.width if layout[-1] == "W" else width
        floats = self.images * height * columns * self.in_channels + (self.in_channels + 1) * self.out_channels
        return 4 * floats

    @property
    def bytes_written(self) -> int:
        """Bytes of the result."""
        return 4 * self.pixels * self.out_channels


NETWORKS = (
    Workload("resnet50", "c2.reduce", 1, 56, 56, 256, 64),
    Workload("resnet50", "c2.expand", 1, 56, 56, 64, 256),
    Workload("resnet50", "c3.reduce", 1, 28, 28, 512, 128),
    Workload("resnet50", "c3.expand", 1, 28, 28, 128, 512),
    Workload("resnet50", "c4.reduce", 1, 14, 14, 1024, 256),
    Workload("resnet50", "c4.expand", 1, 14, 14, 256, 1024),
    Workload("resnet50", "c5.reduce", 1, 7, 7, 2048, 512),
    Workload("resnet50", "c5.expand", 1, 7, 7, 512, 2048),
    Workload("resnet50", "c3.shortcut", 1, 56, 56, 256, 512, 2),
    Workload("resnet50", "c4.shortcut", 1, 28, 28, 512, 1024, 2),
    Workload("resnet50", "c5.shortcut", 1, 14, 14, 1024, 2048, 2),
    Workload("inception1", "3a.1x1", 1, 28, 28, 192, 64),
    Workload("inception1", "3a.5x5reduce", 1, 28, 28, 192, 16),
    Workload("inception1", "4a.1x1", 1, 14, 14, 480, 192),
    Workload("inception1", "5a.1x1", 1, 7, 7, 832, 256),
    Workload("nin", "cccp2", 1, 54, 54, 96, 96),
    Workload("nin", "cccp4", 1, 26, 26, 256, 256),
    Workload("nin", "cccp8", 1, 6, 6, 1024, 1000),
    Workload("densenet121", "b1.l6", 1, 56, 56, 224, 128),
    Workload("densenet121", "t1", 1, 56, 56, 256, 128),
    Workload("densenet121", "b3.l24", 1, 14, 14, 992, 128),
    Workload("mobilenet1", "pw1", 1, 112, 112, 32, 64),
    Workload("mobilenet1", "pw4", 1, 28, 28, 128, 256),
    Workload("mobilenet1", "pw8", 1, 14, 14, 512, 512),
    Workload("mobilenet1", "pw13", 1, 7, 7, 1024, 1024),
    Workload("mobilenet2", "b1.expand", 1, 112, 112, 16, 96),
    Workload("mobilenet2", "b1.project", 1, 56, 56, 96, 24),
    Workload("mobilenet2", "b6.project", 1, 14, 14, 384, 64),
    Workload("mobilenet2", "b16.expand", 1, 7, 7, 160, 960),
    Workload("convnext_t", "s1.up", 1, 56, 56, 96, 384),
    Workload("convnext_t", "s4.down", 1, 7, 7, 3072, 768),
    Workload("fcn", "fc7", 1, 16, 16, 4096, 4096),
    Workload("fcn", "score", 1, 16, 16, 4096, 21),
    Workload("unet", "final", 1, 388, 388, 64, 2),
    Workload("segformer", "score150", 1, 128, 128, 256, 150),
    Workload("ssd_style", "head38", 1, 38, 38, 512, 100),  # classes and boxes as one 1x1 head; the paper uses 3x3
    Workload("fpn", "lat2", 1, 200, 272, 256, 256),
    Workload("vgg", "reduce10", 1, 56, 56, 128, 10),
    Workload("resnet50", "c2.reduce.b16", 16, 56, 56, 256, 64),
    Workload("resnet50", "c4.expand.b16", 16, 14, 14, 256, 1024),
    Workload("resnet50", "c5.reduce.b16", 16, 7, 7, 2048, 512),
    Workload("mobilenet2", "b6.project.b16", 16, 14, 14, 384, 64),
)

# Shapes that people have and networks do not.
SHAPES = (
    Workload("shapes", "rgb.1080p", 1, 1080, 1920, 3, 3),
    Workload("shapes", "bands200", 1, 512, 512, 200, 16),
    Workload("shapes", "vector", 1, 1, 1, 2048, 1000),
    Workload("shapes", "one.out", 1, 256, 256, 64, 1),
    Workload("shapes", "one.in", 1, 256, 256, 1, 64),
    Workload("shapes", "narrow", 1, 1000, 15, 128, 128),
    Workload("shapes", "b32", 32, 14, 14, 256, 256),
    Workload("shapes", "b32.vectors", 32, 1, 1, 2048, 1000),
)

_OWN_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)x(\d+)(?:/(\d+))?")


def select(patterns: Iterable[str]) -> tuple[Workload, ...]:
    """Return the workloads that any of the patterns names.

    A pattern is part of "network layer" (with * and ?), or a shape of one's own: NxHxWxC_INxC_OUT, with /STRIDE behind
    it where the stride is not 1. Raises ValueError for a pattern that names nothing.
    """
    chosen: dict[Workload, None] = {}
    for pattern in patterns:
        if own := _OWN_SHAPE.fullmatch(pattern):
            numbers = [int(number) for number in own.groups(default="1")]
            found = [Workload("shape", pattern, *numbers)] if min(numbers) > 0 else []
        else:
            found = [workload for workload in NETWORKS + SHAPES if fnmatchcase(str(workload), f"*{pattern}*")]
        if not found:
            networks = ", ".join(dict.fromkeys(workload.network for workload in NETWORKS))
            raise ValueError(f"no layer is called {pattern!r}; the networks are {networks}")
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


# Contenders -----------------------------------------------------------------------------------------------------------

Call = Callable[[], Any]


class Operands:
    """A workload's arrays: the input, the weights (C_out, C_in), the bias, and a buffer for results.

    `precisions` are those of pwconv that race on them, the one that the race is about first.
    """

    def __init__(self, workload: Workload, layout: str, precisions: Sequence[str] = ("highest",)) -> None:
        self.workload, self.layout, self.precisions = workload, layout, tuple(precisions)
        random = np.random.default_rng(1)
        self.x, self.weight, self.bias = (
            random.random(shape, np.float32) - np.float32(0.5)
            for shape in (
                workload.shape(layout),
                (workload.out_channels, workload.in_channels),
                (workload.out_channels,),
            )
        )
        self.out = np.empty(workload.shape(layout, out=True), np.float32)

    def sampled(self) -> Float32Array:
        """Return the view of every stride-th pixel of the input."""
        step = slice(None, None, self.workload.stride)
        return self.x[:, :, step, step] if self.layout == "NCHW" else self.x[:, step, step, :]


class Peer(NamedTuple):
    """Another library, and how it computes Operands: a call for each way that it has."""

    heading: str
    packages: tuple[str, ...]
    layouts: tuple[str, ...]
    ways: Callable[[Operands], dict[str, Call]]
    follows_isa: bool = True  # its instruction set can be limited from outside
    bare: bool = False  # no bias and no ReLU, and a buffer for the result is given
    coarse: bool = False  # may multiply bfloat16: no peer of float32, but of "medium"

    def obstacle(self, layout: str, limited: bool) -> str | None:
        """Return why it cannot race in this layout, with the instruction set limited or not."""
        missing = [package for package in self.packages if not _is_installed(package)]
        if layout not in self.layouts:
            return f"races in {' or '.join(self.layouts)} only"
        if missing:
            return f"is not installed (pip install {' '.join(missing)})"
        if limited and not self.follows_isa:
            return "cannot be limited to an instruction set"
        return None

    @property
    def version(self) -> str:
        """The version of the first of its packages."""
        return importlib.metadata.version(self.packages[0])


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def pwconv_ways(o: Operands) -> dict[str, Call]:
    """The first precision's layer, which makes its result or writes into a buffer, and the others', by their names."""
    first, *others = (
        PointwiseConv(o.weight, o.bias, stride=o.workload.stride, layout=o.layout, activation="relu", precision=name)
        for name in o.precisions
    )
    ways: dict[str, Call] = {"pwconv": partial(first, o.x), "out=": partial(first, o.x, out=o.out)}
    return ways | {layer.precision: partial(layer, o.x) for layer in others}


def _numpy_ways(o: Operands) -> dict[str, Call]:
    """One product per image (NCHW) or for all pixels (NHWC); bias and ReLU in place."""
    first, ins = o.layout == "NCHW", o.workload.in_channels
    x, shape = o.sampled(), (o.workload.images, ins, -1) if first else (-1, ins)
    # A view that is made once; every stride-th pixel has to be gathered in each call.
    ready = x.reshape(shape) if o.workload.stride == 1 else None
    weight, bias = (o.weight, o.bias[:, np.newaxis]) if first else (np.ascontiguousarray(o.weight.T), o.bias)

    def call() -> Float32Array:
        flat = x.reshape(shape) if ready is None else ready
        y = np.matmul(weight, flat) if first else np.matmul(flat, weight)
        np.add(y, bias, out=y)
        np.maximum(y, 0, out=y)
        return y

    return {"matmul": call}


def _torch_ways(o: Operands, dtype: str = "float32") -> dict[str, Call]:
    """A convolution (channels_last for NHWC), or a linear layer where channels lie last."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(runtime.get_num_threads())
    # Inference mode, entered in every call, would cost a small one a microsecond more than this.
    torch.set_grad_enabled(False)
    conv, linear, relu = functional.conv2d, functional.linear, torch.relu_
    x, weight, bias = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in (o.x, o.weight, o.bias))
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
    """The same with tensors of bfloat16, which are not charged for; or while float32 may be multiplied as bfloat16.

    That is a setting of the process, so each call makes it and takes it back, which costs about a microsecond. oneDNN,
    which then computes, decides: on x86 without AMX it multiplies float32 all the same, and the errors tell. Before
    torch 2.9 there is no such setting.
    """
    from torch.backends import mkldnn

    ways = {f"{way} of bfloat16": call for way, call in _torch_ways(o, "bfloat16").items()}
    if not hasattr(mkldnn, "conv"):
        return ways
    # Small convolutions are products of matrices to torch.
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
    """A session of Conv and Relu, which it fuses."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    stride = [o.workload.stride] * 2
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight", "bias"], ["sum"], kernel_shape=[1, 1], strides=stride),
            helper.make_node("Relu", ["sum"], ["y"]),
        ],
        "pointwise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, o.x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(o.weight[:, :, np.newaxis, np.newaxis], "weight"),
            numpy_helper.from_array(o.bias, "bias"),
        ],
    )
    # An old enough format for any onnxruntime.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": o.x}
    return {"session": lambda: session.run(None, feed)[0]}


def _mkl_ways(o: Operands) -> dict[str, Call]:
    """The product with weights packed before (cblas_sgemm_compute), into a given buffer."""
    mkl = _load_mkl()
    mkl.cblas_sgemm_pack_get_size.restype = ctypes.c_size_t
    row_major, as_is, transposed, packed, b_matrix = 101, 111, 112, 151, 162
    pixels, ins, outs = o.workload.pixels, o.workload.in_channels, o.workload.out_channels
    sizes = (pixels, outs, ins)
    memory = np.empty(mkl.cblas_sgemm_pack_get_size(b_matrix, *sizes) + 64, np.uint8)
    panels = memory[-memory.ctypes.data % 64 :]
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    mkl.cblas_sgemm_pack(row_major, b_matrix, transposed, *sizes, one, _pointer(o.weight), ins, _pointer(panels))
    # It wants all pixels evenly apart, so a strided layer's are gathered first.
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


def _load_mkl() -> ctypes.CDLL:
    files = importlib.metadata.files("mkl") or []
    library = ctypes.CDLL(str(next(file.locate() for file in files if "mkl_rt" in file.name)))
    library.MKL_Set_Num_Threads(runtime.get_num_threads())
    return library


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Return an array's address in an object that keeps the array alive."""
    return array.ctypes.data_as(ctypes.c_void_p)


LAYOUTS = ("NCHW", "NHWC")
PEERS = {
    "numpy": Peer("numpy", ("numpy",), LAYOUTS, _numpy_ways),
    "torch": Peer("torch", ("torch",), LAYOUTS, _torch_ways),
    "torch-bf16": Peer("t-bf16", ("torch",), LAYOUTS, _torch_bf16_ways, coarse=True),
    "onnxruntime": Peer("onnxrt", ("onnxruntime", "onnx"), ("NCHW",), _onnxruntime_ways, follows_isa=False),
    "mkl": Peer("mkl", ("mkl",), ("NHWC",), _mkl_ways, bare=True),
}


def installed(layout: str) -> list[str]:
    """Return the names of the float32 peers that can race in this layout, if nothing limits their instruction set."""
    return [name for name, peer in PEERS.items() if not (peer.coarse or peer.obstacle(layout, limited=False))]


# What limits the peers' instruction sets as PWCONV_ISA limits ours.
_ISA_LIMITS = {
    "baseline": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}


def race_environment(environ: Mapping[str, str], threads: int, isa: str) -> dict[str, str]:
    """Return `environ` with all that libraries read from it when they are loaded, without what would slow a peer."""
    limits = {name for names in _ISA_LIMITS.values() for name in names}
    kept = {name: value for name, value in environ.items() if name not in limits and not name.startswith("OPENBLAS_")}
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PWCONV_NUM_THREADS")
    limit = {} if isa == runtime.engine.isa_supported()[-1] else _ISA_LIMITS.get(isa, {})
    return kept | limit | dict.fromkeys(counts, str(threads)) | {"PWCONV_ISA": isa}


def elsewhere(command: Sequence[str], threads: int, isa: str) -> int | None:
    """Run this program's command in the environment of a race and return its status; None if this one is it.

    Libraries read their settings when they are loaded, and NumPy is: so the race is for another process.
    """
    environment = race_environment(os.environ, threads, isa)
    if environment == os.environ:
        return None
    for name in sorted(os.environ.keys() - environment.keys()):
        print(f"{name}={os.environ[name]} is ignored: it would slow a peer.")
    sys.stdout.flush()
    return subprocess.call(command, env=environment)


# Racing ---------------------------------------------------------------------------------------------------------------

# Workers of some libraries spin for 100 ms after a call and would be charged to the next contender, while an idle pause
# leaves the machine cold: so a contender's own untimed calls fill that time.
WARM_UP = 0.120
# With one thread nobody spins; caches and the clock still have to settle.
SHORT_WARM_UP = 0.010
BLOCK = 0.020


def race(
    contenders: Mapping[Any, Call], *, rounds: int, threads: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, list[float]]:
    """Return every contender's seconds per call, one figure for each round.

    All take a turn in each round, and each round begins with the next of them. A turn is the contender's own warm-up,
    then a timed block.
    """
    warm_up = WARM_UP if threads > 1 else SHORT_WARM_UP
    seconds: dict[Any, list[float]] = {name: [] for name in contenders}
    order = deque(contenders)
    for _ in range(rounds):
        for name in order:
            seconds[name].append(_turn(contenders[name], warm_up, clock))
        order.rotate(-1)
    return seconds


def _turn(call: Call, warm_up: float, clock: Callable[[], float]) -> float:
    calls, spent, start = 0, 0.0, clock()
    while spent < warm_up:
        call()
        calls += 1
        spent = clock() - start
    calls = max(1, round(BLOCK * calls / spent))
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


# A peer that is faster by more than this has won.
MARGIN = 0.03
# As a share of the largest value, sums of float32 are wrong by less than this, products of bfloat16 by far more.
FLOAT32_ERROR = 1e-5


@dataclass(frozen=True)
class Result:
    """The race of one workload."""

    workload: Workload
    limit: Limit
    seconds: dict[tuple[str, str], list[float]]  # by column ("pwconv", "out=", other precisions, peers) and way
    wrong: tuple[str, ...] = ()  # contenders left out, since they compute something else
    lost: tuple[str, ...] = ()  # peers that won twice in a row
    # By column: the largest of its fastest way, as a share of the largest value.
    errors: dict[str, float] = field(default_factory=dict)
    precision: str = "highest"  # of the columns "pwconv" and "out="

    @property
    def ways(self) -> dict[str, str]:
        """Each column's fastest way, by the median of the rounds."""
        names: dict[str, list[str]] = {}
        for column, way in self.seconds:
            names.setdefault(column, []).append(way)
        return {column: min(ways, key=lambda way: self._median(column, way)) for column, ways in names.items()}

    def _median(self, column: str, way: str) -> float:
        return statistics.median(self.seconds[column, way])

    @property
    def gflops(self) -> dict[str, float]:
        """GFLOP/s by column, from the median of the rounds of its fastest way."""
        return {column: self.workload.flops / self._median(column, way) * 1e-9 for column, way in self.ways.items()}

    @property
    def shares(self) -> dict[str, float]:
        """What pwconv reaches of the limit, with a buffer and without."""
        allowed, rates = self.workload.flops / self.limit.seconds * 1e-9, self.gflops
        return {column: rates[column] / allowed for column in ("pwconv", "out=")}

    @property
    def others(self) -> list[str]:
        """The columns of the other precisions."""
        return [name for name in PRECISIONS if (name, "") in self.seconds]

    def precision_of(self, column: str) -> str:
        """Return the precision of a column of pwconv."""
        return self.precision if column in ("pwconv", "out=") else column

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as fast as each peer pwconv is; it gets a buffer where the peer gets one."""
        return self.ratios_of("pwconv")

    def ratios_of(self, column: str) -> dict[str, float]:
        """Return how many times as fast as each peer a precision is; only the first has a buffer as `bare` peers do."""
        rates, first, medium = self.gflops, column == "pwconv", self.precision_of(column) == "medium"
        return {
            name: rates["out=" if peer.bare else column] / rates[name]
            for name, peer in PEERS.items()
            if name in rates and (first or not peer.bare) and (medium or not peer.coarse)
        }

    def ratio(self, column: str = "pwconv", *, bare: bool = True) -> float | None:
        """Return the ratio to the best float32 peer; `bare`: those that do less than the layer count."""
        ratios = self.ratios_of(column).items()
        counted = (ratio for name, ratio in ratios if not PEERS[name].coarse and (bare or not PEERS[name].bare))
        return min(counted, default=None)

    @property
    def winners(self) -> set[str]:
        """The peers that are clearly faster than pwconv."""
        return {name for name, ratio in self.ratios.items() if ratio < 1 - MARGIN}


def compete(operands: Operands, peers: Iterable[str], machine: Machine, *, rounds: int) -> Result:
    """Race pwconv and its peers; once more if a peer wins, to know whether it was chance."""
    workload = operands.workload
    calls = {(column, ""): call for column, call in pwconv_ways(operands).items()}
    for name in peers:
        calls |= {(name, way): call for way, call in PEERS[name].ways(operands).items()}
    errors = _errors(operands, calls)
    # Wide enough for bfloat16, far too narrow for anything that is not this layer.
    wrong = [contender for contender, error in errors.items() if not error <= 0.01]
    for column, way in wrong:
        if column not in PEERS:
            raise RuntimeError(f"pwconv computes {workload} wrong in {operands.layout}, compared with its NumPy twin")
        del calls[column, way]

    limit = machine.limit(workload.flops, workload.bytes_read(operands.layout), workload.bytes_written)
    precision, results = operands.precisions[0], list[Result]()
    while len(results) < 2 and (not results or results[0].winners):
        seconds = race(calls, rounds=rounds, threads=machine.threads)
        left_out = tuple(" ".join(contender) for contender in wrong)
        results.append(Result(workload, limit, seconds, left_out, precision=precision))
    lost = set.intersection(*(result.winners for result in results))
    by_column = {column: errors[column, way] for column, way in results[0].ways.items()}
    return replace(results[0], lost=tuple(sorted(lost)), errors=by_column)


def _errors(operands: Operands, calls: Mapping[tuple[str, str], Call]) -> dict[tuple[str, str], float]:
    """Return each contender's largest error, as a share of the largest value that NumPy's twin finds in float64."""
    o, errors = operands, {}
    expected = reference.pointwise_conv(
        o.x, o.weight, o.bias, stride=o.workload.stride, layout=o.layout, activation="relu", dtype=np.float64
    )
    largest = float(expected.max(initial=1.0))
    for contender, call in calls.items():
        peer, result = PEERS.get(contender[0]), call()
        if peer and peer.coarse:
            result = result.float()  # NumPy does not know torch's bfloat16
        result = np.asarray(result).reshape(expected.shape)
        if peer and peer.bare:
            result = np.maximum(result + o.bias, 0)
        errors[contender] = float(np.abs(result - expected).max(initial=0.0)) / largest
    return errors
