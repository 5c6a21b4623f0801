"""Hostile arguments for every public function, which may raise only TypeError, ValueError and MemoryError.

`python tests/fuzz.py --seconds 60` looks for a crash, a hang or another exception, from a new seed each time, and says
how to repeat the case. Errors that the caller's objects raise (`Theirs`) pass through. A wrong pointer cannot be
detected, so no object here claims memory that it does not have.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import ctypes
import decimal
import functools
import itertools
import math
import os
import pickle
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import process
from numpy.lib.stride_tricks import as_strided

import pwconv

PATIENCE = 20  # seconds for one case; it needs less than a millisecond
BATCH = 500  # cases in one process
MEMORY = 4 << 30  # the limit on bytes of addresses; cases need very few or far more


class Theirs(Exception):  # noqa: N818  # not an error of the library
    """The error that hostile objects raise."""


EXPECTED = (TypeError, ValueError, MemoryError, Theirs)

# Real arrays and buffers ----------------------------------------------------------------------------------------------

FORMATS = (
    *("f4", "f4", "f4", "f4", "f2", "u1", "i1", "u2", "i2", ">f4", ">f2", ">u2", "f8", ">f8", "f16", "i4", "u4", "i8"),
    *("u8", "c8", "c16", "?", "S4", "U2", "V4", "M8[s]", "m8[ms]", "O", "f4,f4", "(2,)f4"),
)
SIZES = (0, 1, 1, 1, 2, 2, 3, 4, 5, 16, 17, 33)
GIANTS = (2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**60, 2**61 - 16)


def values(rng: random.Random, shape: tuple[int, ...], kind: str = "f4") -> np.ndarray:
    """An array of any dtype: random bytes, so NaN, infinities and denormals too (Python objects: None)."""
    dtype = np.dtype(kind)
    count = int(np.prod(shape)) * dtype.itemsize
    if dtype.hasobject:
        return np.empty(shape, dtype)
    return np.frombuffer(bytearray(rng.randbytes(count)), np.uint8)[:count].view(dtype.base).reshape(
        shape + dtype.shape
    ) if count else np.empty(shape, dtype)  # fmt: skip


def strange_view(rng: random.Random, shape: tuple[int, ...]) -> np.ndarray:
    """float32 with strides of any sign and size, also 0 and multiples of no element, inside memory of its own."""
    strides = [rng.choice((0, 1, -1, 4, -4, 7, 4, 8, -12, 64, 400)) for _ in shape]
    low = sum(min(0, (length - 1) * stride) for length, stride in zip(shape, strides, strict=True) if length)
    high = sum(max(0, (length - 1) * stride) for length, stride in zip(shape, strides, strict=True) if length) + 4
    if 0 in shape:
        low, high = 0, 4
    for axis, length in enumerate(shape):
        if length == 1 or 0 in shape:  # a stride that no address depends on
            strides[axis] = rng.choice((strides[axis], 2**62, -(2**62), 2**63 - 1, -(2**63)))
    memory = np.zeros(high - low + 8, np.uint8)
    start = memory[-low + rng.randrange(4) :][:4].view(np.float32)
    return as_strided(start, shape, strides)


def giant(rng: random.Random, shape: tuple[int, ...]) -> np.ndarray:
    """float32 with an enormous axis or two in four bytes of memory."""
    sizes, axis = list(shape) or [1], rng.randrange(len(shape) or 1)
    sizes[axis] = rng.choice(GIANTS)
    if rng.random() < 0.3:
        sizes[rng.randrange(len(sizes))] = rng.choice((0, *GIANTS))
    if math.prod(length or 1 for length in sizes) >= 2**61:  # more bytes than NumPy allows
        sizes = [1] * len(sizes)
        sizes[axis] = rng.choice(GIANTS)
    return np.broadcast_to(np.float32(1), sizes)


def other_shape(rng: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape near the right one."""
    shape = list(shape)
    for _ in range(rng.randint(1, 2)):
        match rng.randrange(4):
            case 0 if shape:
                shape[rng.randrange(len(shape))] = rng.choice(SIZES)
            case 1 if shape:
                del shape[rng.randrange(len(shape))]
            case 2:
                shape.insert(rng.randint(0, len(shape)), rng.choice((0, 1, 1, 2)))
            case _:
                rng.shuffle(shape)
    return tuple(shape)


def exporter(rng: random.Random, data: np.ndarray) -> Any:
    """The same bytes behind something else that exports a buffer."""
    raw = data.tobytes() or b"\0" * 4
    with contextlib.suppress(TypeError, ValueError, BufferError):
        match rng.randrange(9):
            case 0:
                return memoryview(data)
            case 1:
                return memoryview(raw).cast(rng.choice("bBhHiIlLqQfdnN?c"))
            case 2:
                return array.array(rng.choice("bBhHiIlLqQfd"), raw[: len(raw) // 8 * 8])
            case 3:
                kind = rng.choice((ctypes.c_float, ctypes.c_double, ctypes.c_uint8, ctypes.c_int16, ctypes.c_void_p))
                for length in data.shape[::-1]:
                    kind = kind * length
                return kind()
            case 4:
                return type(
                    "Record", (ctypes.Structure,), {"_fields_": [("a", ctypes.c_float), ("b", ctypes.c_int8)]}
                )()
            case 5:
                return bytearray(raw)
            case 6:
                return memoryview(data)[:: rng.choice((-1, 2, -3))]
            case 7:
                released = memoryview(data)
                released.release()
                return released
            case _:
                return np.ma.masked_array(data, rng.random() < 0.5)
    return raw


# Objects that pretend to be arrays ------------------------------------------------------------------------------------


class Strange:
    """An object with the given attributes and special methods."""

    def __new__(cls, **attributes: Any) -> Any:
        return object.__new__(type("Strange", (cls,), attributes))

    def __init__(self, **attributes: Any):
        pass


def returning(value: Any) -> Any:
    return lambda *arguments, **options: value


def raising(error: type[Exception] = Theirs) -> Any:
    def method(*arguments: Any, **options: Any) -> None:
        raise error("by an object of the caller")

    return method


def interface(rng: random.Random, data: np.ndarray) -> Any:
    """An object with a faulty array interface, over the array's own memory or less."""
    fields = dict(data.__array_interface__)
    mistakes = {
        "shape": [None, 5, "23", (-1,), (2.0,), ("a",), (2**70,), [1], (1,) * 70, ()],
        "typestr": [None, 4, "", "f", "<f", "<f3", "<x4", ">f4", "|O8", "<V0", "<f4junk", b"<f4", "<f99999999999"],
        "strides": [5, (1.5,), ("a",), (4,) * 40, "x", {}, (2**70,)],
        "data": [None, 5, (None, False), ("a", True), (), (2**70, False), b"", "text", (0,), object()],
        "descr": [5, [("", "<f8")], [("a", "<f4"), ("b", "<f4")], "x"],
        "mask": [np.ones(3), 5],
        "version": [None, 2, "3"],
    }
    for name in rng.sample(list(mistakes), rng.randint(1, 2)):
        if rng.random() < 0.3:
            fields.pop(name, None)
        else:
            fields[name] = rng.choice(mistakes[name])
    if fields.get("shape") == () or fields.get("typestr") == "|O8":
        fields["data"] = bytes(8)  # the array's own bytes are not pointers to objects
    fields = rng.choice((fields, fields, fields, None, [fields], property(raising())))
    return Strange(__array_interface__=fields, memory=data)


def pretender(rng: random.Random, data: np.ndarray) -> Any:
    """An object that offers an array through some protocol, rightly or wrongly."""
    wrong = rng.choice((None, 5, "array", [1.0], data[..., None], data.astype(np.float64), data.tolist(), object()))
    name = rng.choice(("bfloat16", "float32", 5, None))
    choices = [
        lambda: Strange(__array__=raising(rng.choice((Theirs, TypeError, ValueError)))),
        lambda: Strange(__array__=returning(wrong)),
        lambda: Strange(__array__=returning(data)),
        lambda: Strange(__array__=lambda self: data),
        lambda: Strange(__array__=property(raising())),
        lambda: Strange(__array__=5),
        lambda: Strange(__array_struct__=rng.choice((None, 5, property(raising()), ctypes.py_object(5)))),
        lambda: interface(rng, data),
        lambda: interface(rng, data),
        lambda: Strange(__dlpack__=returning(wrong), __dlpack_device__=returning((1, 0))),
        lambda: Strange(__dlpack__=raising(), __dlpack_device__=returning((1, 0))),
        lambda: Strange(__dlpack__=data.__dlpack__, __dlpack_device__=returning(wrong)),
        lambda: Strange(requires_grad=property(raising())),
        lambda: Strange(requires_grad=True, __array__=returning(data)),
        lambda: Strange(dtype=Strange(name=name), view=returning(wrong)),
        lambda: Strange(dtype=Strange(name=name), view=returning(np.zeros(data.shape, rng.choice(("u1", "f8", "u2"))))),
        lambda: Strange(dtype=Strange(name="bfloat16"), view=raising()),
        lambda: Strange(dtype=property(raising()), shape=data.shape),
        lambda: Strange(__class__=np.ndarray, dtype=np.dtype("f4"), shape=data.shape),
        lambda: Strange(__len__=returning(2**62), __getitem__=returning(data)),
        lambda: Strange(__len__=raising(), __getitem__=raising(), __iter__=raising()),
        lambda: Strange(__getattribute__=raising()),
        lambda: Strange(__getattr__=raising(AttributeError)),
        lambda: type("Subclass", (np.ndarray,), {"__array_finalize__": raising(), "__array_ufunc__": None}),
    ]
    return rng.choice(choices)()


class Text(str):
    """A string whose comparison raises."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise Theirs

    __hash__ = str.__hash__


def junk(rng: random.Random) -> Any:
    """Anything at all."""
    choices = [
        *(None, True, False, 0, 1, -1, 2, 3, 7, 2**30, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.0, 1.5, float("nan")),
        *(float("inf"), 1j, "", "NCHW", "NHWC", "NC", "CN", "nchw", "C", "N", "ABCDEFGHIJKLMNOPQ", "channels_last"),
        *("OI", "IO", "relu", "gelu", "clip", "high", "highest", "auto", "native", "concat", "\0", "画素", "x" * 10**5),
        *(b"", b"relu", (), [], {}, set(), (1,), (1, 2), (1, 1, 1), [2, 1], (0,), (True,), (1.0, 1.0), ("relu",)),
        *(("clip", 0, 1), ("clip", 1, 0), ("clip", "a", None), ("clip", float("nan"), 1), ("leaky_relu", 10**400)),
        *(("leaky_relu", decimal.Decimal(1)), ("leaky_relu", np.float64(0.5)), (("relu",),), {1: 2}, {0: None}),
        *(object(), int, np, print, Ellipsis, NotImplemented, slice(1), range(3), iter([1]), bytearray(8)),
        *(np.int8(1), np.uint64(2**63), np.float32(1), np.bool_(True), np.str_("relu"), np.float32([[1, 2]])),
        *(np.array(None), np.array(1.0), np.zeros(0), np.arange(3), np.array(["relu"]), np.array(2)),
        Strange(__index__=raising()),
        Strange(__index__=returning(rng.choice((1, 2**80, "1")))),
        Strange(__int__=returning(1), __float__=returning(1.0)),
        Strange(__hash__=raising()),
        Strange(__eq__=raising(), __hash__=returning(5)),
        Strange(__bool__=raising()),
        Strange(__str__=raising(), __repr__=raising(), __format__=raising()),
        Text(rng.choice(("NCHW", "relu", "OI", "native"))),
        type("Number", (int,), {"__index__": raising()})(1),
    ]
    value = rng.choice(choices)
    if rng.random() < 0.1:
        return rng.choice((list, tuple))([value] * rng.randint(0, 3))
    return value


def hostile_array(rng: random.Random, shape: tuple[int, ...]) -> Any:
    """Something in the place of a float32 array of this shape."""
    if rng.random() < 0.3:
        shape = other_shape(rng, shape)
    match rng.randrange(8):
        case 0:
            return junk(rng)
        case 1:
            return values(rng, shape, rng.choice(FORMATS))
        case 2 | 3:
            return strange_view(rng, shape)
        case 4:
            return giant(rng, shape)
        case 5:
            return exporter(rng, values(rng, shape))
        case 6:
            return pretender(rng, values(rng, shape))
        case _:
            return [hostile_array(rng, shape) for _ in range(rng.randrange(3))]


# Calls ----------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A call, of whose arguments some may be hostile."""

    function: Any
    arguments: dict[str, Any]


OPTIONS = {
    "stride": (1, 2),
    "out_layout": (None,),
    "weight_layout": ("OI",),
    "input_activation": (None, "relu"),
    "activation": (None, "silu", ("clip", 0, 1)),
    "out_dtype": (None, "uint8", "float16", np.int16),
    "precision": ("highest", "high"),
    "backend": ("native",),
}


class Scene:
    """Valid arguments of every public function for layers of one size."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.layout = rng.choice(("NCHW", "NHWC", "NC", "CHW", "HWC", "NLC", "channels_first", "channels_last"))
        self.groups = rng.choice((1, 1, 2))
        self.ins, self.outs = self.groups * rng.choice((1, 2, 16, 300)), self.groups * rng.choice((1, 2, 3, 17))
        rank = {"channels_first": 4, "channels_last": 4}.get(self.layout, len(self.layout))
        self.channel = rank - 1 if self.layout[-1] in "Ct" else int(self.layout[0] in "Nc")
        self.sizes = [rng.choice((1, 2, 3, 17)) for _ in range(rank)]

    def map(self, channels: int) -> tuple[int, ...]:
        shape = list(self.sizes)
        shape[self.channel] = channels
        return tuple(shape)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all arrays, by the name of their argument."""
        return {
            "x": self.map(self.ins),
            "weight": (self.outs, self.ins // self.groups),
            "bias": (self.outs,),
            "input_scale": (self.ins,),
            "input_shift": (self.ins,),
            "output_scale": (self.outs,),
            "residual": self.map(self.outs),
            "out": self.map(self.outs),
            "mask": tuple(np.delete(self.sizes, self.channel).tolist()),
        }

    def arrays(self, *names: str) -> dict[str, np.ndarray]:
        return {name: values(self.rng, self.shapes[name]) for name in names}

    def mask(self) -> np.ndarray | None:
        """None, or random truths, one a pixel."""
        shape = self.shapes["mask"]
        return self.rng.choice((None, values(self.rng, shape, "u1") > self.rng.randrange(256)))

    def options(self) -> dict[str, Any]:
        return {"groups": self.groups, "layout": self.layout}

    def spoil(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Replaces some arguments by hostile objects."""
        possible = list(arguments)
        for name in self.rng.sample(possible, min(len(possible), self.rng.choice((1, 1, 1, 2, 3)))):
            if name in self.shapes:
                arguments[name] = hostile_array(self.rng, self.shapes[name])
            elif name in OPTIONS and self.rng.random() < 0.3:
                arguments[name] = self.rng.choice(OPTIONS[name])
            else:
                arguments[name] = junk(self.rng)
        return arguments

    def layer(self) -> pwconv.PointwiseConv:
        return pwconv.PointwiseConv(**self.arrays("weight", "bias"), **self.options())

    def rest(self, names: str) -> dict[str, Any]:
        """Some optional arguments with their default, None."""
        return {name: None for name in names.split() if self.rng.random() < 0.5}

    def construction(self) -> dict[str, Any]:
        defaults = {name: choices[0] for name, choices in OPTIONS.items() if self.rng.random() < 0.5}
        scales = self.rest("bias input_scale input_shift output_scale")
        return self.spoil(self.arrays("weight") | scales | self.options() | defaults)

    def call(self) -> dict[str, Any]:
        return self.spoil(self.arrays("x") | self.rest("input_scale input_shift output_scale residual out num_threads"))

    def case(self) -> Case:
        often = (self.function, self.making, self.calling)
        seldom = (self.planning, self.chain, self.branches, self.classifier, self.reducer, self.thinning, self.folding)
        return self.rng.choice((*often, *often, *seldom, self.costs, self.verifying, self.setting, self.tuning))()

    def function(self) -> Case:
        given = self.arrays("x", "weight") | self.options()
        defaults = {name: choices[0] for name, choices in OPTIONS.items() if self.rng.random() < 0.3}
        given |= defaults | self.rest("bias input_scale input_shift output_scale residual out num_threads")
        return Case(pwconv.pointwise_conv, self.spoil(given))

    def making(self) -> Case:
        return Case(pwconv.PointwiseConv, self.construction())

    def calling(self) -> Case:
        return Case(self.layer(), self.call())

    def planning(self) -> Case:
        return Case(self.layer().plan, self.spoil({"shape": self.map(self.ins), "num_threads": 2}))

    def chain(self) -> Case:
        first = self.layer()
        after = pwconv.PointwiseConv(values(self.rng, (5, self.outs)), layout=self.layout)
        if self.rng.random() < 0.3:
            return Case(pwconv.PointwiseChain, {"layers": self.rng.choice(([first, junk(self.rng)], junk(self.rng)))})
        residual = {self.rng.choice((0, 1, -1, 2**70)): hostile_array(self.rng, self.map(self.outs))}
        given = {"x": values(self.rng, self.map(self.ins)), "residual": residual, "keep": (), "num_threads": 2}
        return Case(pwconv.PointwiseChain([first, after]), self.spoil(given | self.rest("out")))

    def branches(self) -> Case:
        layers = [self.layer(), self.layer()]
        if self.rng.random() < 0.3:
            return Case(pwconv.PointwiseBranches, {"layers": [*layers, junk(self.rng)]})
        outs = [hostile_array(self.rng, self.map(self.outs)), values(self.rng, self.map(self.outs))]
        given = self.spoil({"x": values(self.rng, self.map(self.ins)), "num_threads": 2})
        return Case(pwconv.PointwiseBranches(layers), given | {"out": self.rng.choice((outs, tuple(outs), "concat"))})

    def classifier(self) -> Case:
        self.groups = 1
        making = {"layout": self.layout, "classes": None, "link": "softmax"}
        if self.rng.random() < 0.3:
            return Case(pwconv.PixelClassifier, self.spoil(self.arrays("weight", "bias") | making))
        classifier = pwconv.PixelClassifier(**self.arrays("weight", "bias"), layout=self.layout)
        if self.rng.random() < 0.1:
            chain = self.rng.choice((pwconv.PointwiseChain([self.layer()]), self.layer(), junk(self.rng)))
            return Case(
                pwconv.PixelClassifier.from_chain, self.spoil({"chain": chain, "classes": None, "link": "softmax"})
            )
        name, given = self.rng.choice(
            (
                ("predict", {"out": None}),
                ("predict", {"size": (3, 5), "out": None}),
                ("predict_proba", {"out": None}),
                ("top_k", {"k": 2}),
                ("decision_function", {"out": None}),
            )
        )
        if self.rng.random() < 0.5:
            given |= {"mask": self.mask(), "fill": self.rng.choice((None, -1, 255, 0.0))}
        if "size" in given:  # a small result of an enormous map would take too long
            given = self.spoil(given) | {"x": strange_view(self.rng, self.map(self.ins))}
        else:
            given = self.spoil(self.arrays("x") | given)
        return Case(getattr(classifier, name), given)

    def reducer(self) -> Case:
        reducer = pwconv.ChannelReducer(1, layout=self.layout)
        x = strange_view(self.rng, self.map(self.ins))  # an enormous map would take too long
        if self.rng.random() < 0.5:
            reducer.set_params(n_components=junk(self.rng))
            masked = {"mask": hostile_array(self.rng, self.shapes["mask"])} if self.rng.random() < 0.3 else {}
            return Case(self.rng.choice((reducer.fit, reducer.partial_fit, reducer.fit_transform)), {"x": x} | masked)
        # Fitted to finite numbers, since random bytes hold NaN, and to enough pixels.
        reducer.set_params(layout="NC").fit(np.arange(64 * self.ins, dtype=np.float32).reshape(64, self.ins))
        reducer.set_params(layout=self.layout)
        if self.rng.random() < 0.5:
            given = {"x": values(self.rng, x.shape), "out": None, "mask": self.mask(), "fill": None}
            return Case(reducer.transform, self.spoil(given))
        return Case(reducer.inverse_transform, {"z": hostile_array(self.rng, self.map(1))})

    def thinning(self) -> Case:
        if self.rng.random() < 0.5:
            share = self.rng.choice(({"rank": 1}, {"energy": 0.5}))
            return Case(pwconv.factorize, self.spoil({"layer": self.layer()} | share))
        kernel = self.rng.choice((strange_view(self.rng, (2, 3, 3, 3)), junk(self.rng)))
        return Case(pwconv.factorize_kernel, {"weight": kernel, "rank": self.rng.choice((1, junk(self.rng)))})

    def folding(self) -> Case:
        norm = {name: values(self.rng, (self.outs,)) for name in ("gamma", "beta", "mean", "var")}
        norm[self.rng.choice(list(norm))] = hostile_array(self.rng, (self.outs,))
        return Case(self.layer().fold_batchnorm, norm | {"eps": self.rng.choice((1e-5, junk(self.rng)))})

    def costs(self) -> Case:
        if self.rng.random() < 0.5:
            return Case(self.layer().cost, self.spoil({"shape": self.map(self.ins)}))
        sizes = {"in_channels": 3, "out_channels": 4, "kernel": 1, "spatial": 5, "groups": 1}
        return Case(pwconv.conv_cost, self.spoil(sizes))

    def verifying(self) -> Case:
        x = strange_view(self.rng, self.map(self.ins))
        return Case(
            pwconv.verify, {"target": self.layer(), "x": self.rng.choice((x, junk(self.rng)))} | self.rest("out")
        )

    def tuning(self) -> Case:
        seconds = self.rng.choice((1e-3, 1e-3, 1e-3, 0, -1.0, math.nan, True, "1", None, 10**400))
        x = self.rng.choice((strange_view(self.rng, self.map(self.ins)), self.map(self.ins), junk(self.rng)))
        target = self.rng.choice((self.layer(), self.layer(), self.layer().plan, pwconv.pointwise_conv, junk(self.rng)))
        return Case(pwconv.tune, {"target": target, "x": x, "seconds": seconds} | self.rest("residual num_threads"))

    def setting(self) -> Case:
        return Case(pwconv.set_num_threads, {"n": junk(self.rng)})


@functools.cache
def good() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A call whose result is known."""
    x, weight = np.ones((2, 40, 9, 9), np.float32), np.ones((33, 40), np.float32)
    return x, weight, np.full((2, 33, 9, 9), 40, np.float32)


def run_case(seed: int) -> None:
    """Make one hostile call; a valid call must give the right result afterwards."""
    rng = random.Random(seed)
    case = Scene(rng).case()
    signal.alarm(PATIENCE)
    with contextlib.suppress(*EXPECTED):
        case.function(**case.arguments)
    pwconv.set_num_threads(2)
    x, weight, expected = good()
    assert np.array_equal(pwconv.pointwise_conv(x, weight), expected), "a good call is wrong after a hostile one"


def run_cases(seeds: range) -> None:
    for seed in seeds:
        try:
            run_case(seed)
        except Exception:
            print(f"seed {seed}:", file=sys.stderr)
            raise


def restored_from_damage(data: bytes, load: Callable[[bytearray], Any] = pickle.loads) -> Iterator[tuple[Any, Any]]:
    """Flip one bit of a pickle at a time; yield its place, and the object, for each damaged pickle that loads."""
    for position, bit in itertools.product(range(len(data)), (0x01, 0x20, 0x80)):
        damaged = bytearray(data)
        damaged[position] ^= bit
        try:
            restored = load(damaged)
        except Exception:
            continue
        yield (position, bit), restored


def damaged_values(content: Any, junk: tuple[Any, ...]) -> Iterator[Any]:
    """Yield a structure of dicts and lists with one part of it, small or large, replaced by each piece of junk."""
    yield from junk
    if isinstance(content, dict | list):
        for place in content if isinstance(content, dict) else range(len(content)):
            for part in damaged_values(content[place], junk):
                damaged = content.copy()
                damaged[place] = part
                yield damaged


def give_up(unraisable: Any) -> None:
    """Ends the process after an exception that Python could only ignore, such as one in `__del__`."""
    traceback.print_exception(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def survives(seeds: range) -> bool:
    """Whether cases pass in a process of their own, which one of them may crash."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    code = 1
    try:
        warnings.simplefilter("ignore")
        sys.unraisablehook = give_up
        with process.room_for(MEMORY):
            run_cases(seeds)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to look")
    parser.add_argument("--cases", type=int, default=10**9, help="how many cases at most")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9), help="the first case")
    options = parser.parse_args()
    seeds, end = range(options.seed, options.seed + options.cases), time.monotonic() + options.seconds
    for first in seeds[::BATCH]:
        batch = seeds[first - options.seed :][:BATCH]
        if not survives(batch):
            alone = (range(seed, seed + 1) for seed in batch)
            found = next((one for one in alone if not survives(one)), batch)
            print(f"repeat with: python tests/fuzz.py --seed {found.start} --cases {len(found)}")
            return 1
        if time.monotonic() > end or batch.stop == seeds.stop:
            break
    print(f"{batch.stop - options.seed} cases from seed {options.seed}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
