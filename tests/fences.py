"""Calls whose arrays lie between protected pages: any access outside of an array ends the process.

Inputs lie on read-only pages, and the bytes between the elements of `out` are compared afterwards. So any read
outside of all arrays, and any write except to the elements of `out`, is found.
`python tests/fences.py --seconds 60` tries random problems from a new seed each time.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import itertools
import mmap
import random
import sys
import time
from typing import Any

import ml_dtypes
import numpy as np
import oracle

import pwconv
from pwconv import _engine as engine

PAGE = mmap.PAGESIZE
NOTHING, READ, READ_WRITE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
UNTOUCHED = 0xA5

libc = ctypes.CDLL(None, use_errno=True)


class Field:
    """Pages of memory with a protected page, the fence, on both sides."""

    def __init__(self, nbytes: int):
        self.nbytes = -(-max(nbytes, 1) // PAGE) * PAGE
        self._mapping = mmap.mmap(-1, self.nbytes + 2 * PAGE)
        self._bytes = np.frombuffer(self._mapping, np.uint8)
        self.inside = self._bytes[PAGE:-PAGE]
        self._protect(self._bytes[:PAGE], NOTHING)
        self._protect(self._bytes[-PAGE:], NOTHING)

    @staticmethod
    def _protect(pages: np.ndarray, access: int) -> None:
        if libc.mprotect(ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(pages.nbytes), access):
            raise OSError(ctypes.get_errno(), "mprotect")

    def close_for_writing(self) -> None:
        self._protect(self.inside, READ)


def place(rng: random.Random, values: np.ndarray, views: bool = True) -> tuple[np.ndarray, Field]:
    """A copy of `values` with random strides whose first or last byte lies at a fence, and its field."""
    item = values.itemsize
    strides = [item] * values.ndim
    order = list(range(values.ndim))
    steps = [1] * values.ndim
    if views and rng.random() < 0.6:
        item += rng.choice((0, 0, item, 3))
        rng.shuffle(order)
        steps = [rng.choice((1, 1, 1, 2, -1, -2)) for _ in order]
    unit = item
    for axis in reversed(order):
        strides[axis] = unit * steps[axis]
        unit *= max(values.shape[axis], 1) * abs(steps[axis])
    reaches = [(length - 1) * stride for length, stride in zip(values.shape, strides, strict=True) if length]
    low, high = sum(min(reach, 0) for reach in reaches), sum(max(reach, 0) for reach in reaches) + values.itemsize
    field = Field(high - low)
    field.inside[:] = UNTOUCHED
    start = -low if rng.random() < 0.5 else field.nbytes - high
    view = np.ndarray(values.shape, values.dtype, buffer=field.inside, offset=start, strides=strides)
    view[...] = values
    return view, field


NARROW = (np.uint8, np.int8, np.uint16, np.int16, np.float16, ml_dtypes.bfloat16)
SWAPPED = (">f4", ">f2", ">u2", ">i2")
LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC", "NCL", "NLC", "NC", "NCDHW", "NDHWC")
CHANNELS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 48, 63, 100, 255, 256, 257, 300, 513, 600)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 13, 15, 16, 17, 31, 33, 50)
MOST = 6_000_000  # multiply-adds of one problem at most, enough for more than one thread


class Problem:
    """A random layer and the arguments of one call."""

    def __init__(self, seed: int):
        rng = random.Random(seed)
        self.rng = rng
        self.numbers = np.random.default_rng(seed)
        while True:
            layout = rng.choice(LAYOUTS)
            groups = rng.choice((1, 1, 1, 2, 3))
            depth, outs = rng.choice(CHANNELS), rng.choice(CHANNELS)
            sizes = {letter: rng.choice(SIZES) for letter in layout}
            sizes["N"] = rng.choice((1, 1, 2, 3))
            pixels = np.prod([sizes[letter] for letter in layout if letter != "C"])
            if groups * depth * outs * pixels < MOST:
                break
        sizes["C"] = groups * depth
        self.stride = rng.choice((1, 1, 2, 3))
        rest = [letter for letter in layout if letter != "N"]
        rng.shuffle(rest)
        out_layout = "N" * ("N" in layout) + "".join(rest) if rng.random() < 0.2 else layout
        shape = tuple(sizes[letter] for letter in layout)
        for letter in layout:
            if letter not in "NC":
                sizes[letter] = -(-sizes[letter] // self.stride)
        sizes["C"] = groups * outs
        self.out_shape = tuple(sizes[letter] for letter in out_layout)
        self.options = {
            "layout": layout,
            "out_layout": out_layout,
            "groups": groups,
            "stride": self.stride,
            "activation": rng.choice((None, None, "relu", "silu", "gelu")),
            "input_activation": rng.choice((None, None, None, "relu")),
            "precision": rng.choice(("highest", "highest", "high", "medium")),
            "out_dtype": rng.choice((None,) * 6 + NARROW),
        }
        self.x = self.draw(shape, rng.choice((np.float32,) * 4 + NARROW + SWAPPED))
        self.parts = []
        if sizes["C"] and rng.random() < 0.2 and shape[layout.index("C")] > 1:
            split = rng.randrange(1, shape[layout.index("C")])
            self.parts = np.split(self.x, [split], axis=layout.index("C"))
        self.weight = self.draw((groups * outs, depth))
        if rng.random() < 0.2:  # special values, whose sums are recomputed in float32
            self.weight.flat[-1:] = np.inf
            if self.x.dtype == np.float32:
                self.x.flat[-1:] = -np.inf
        batch = sizes["N"] if "N" in layout else 1
        optional = {
            "bias": (groups * outs,),
            "input_scale": rng.choice(((groups * depth,), (batch, groups * depth))),
            "input_shift": rng.choice(((groups * depth,), (batch, groups * depth))),
            "output_scale": rng.choice(((groups * outs,), (batch, groups * outs))),
            "residual": self.out_shape,
        }
        self.given = {name: self.draw(shape) for name, shape in optional.items() if rng.random() < 0.3}
        if "residual" in self.given:
            self.given["residual"] = self.draw(self.out_shape, rng.choice((np.float32,) * 2 + NARROW + SWAPPED))

    def draw(self, shape: tuple[int, ...], kind: Any = np.float32) -> np.ndarray:
        if np.issubdtype(kind, np.integer):
            return self.numbers.integers(0, 100, shape).astype(kind)
        return self.numbers.standard_normal(shape, np.float32).astype(kind)

    def __repr__(self) -> str:
        form = [part.shape for part in self.parts] or self.x.shape
        return f"x {form} {self.x.dtype}, weight {self.weight.shape}, {self.options}, {sorted(self.given)}"

    def fenced(self) -> tuple[list[np.ndarray] | np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Copies of all inputs between fences, on pages that are read-only from now on."""
        fields = []

        def inside(values: np.ndarray, views: bool = True) -> np.ndarray:
            view, field = place(self.rng, values, views)
            fields.append(field)
            return view

        x = [inside(part) for part in self.parts] or inside(self.x)
        weight = inside(self.weight)
        # Tables with strides would be copied before the engine sees them.
        given = {name: inside(values, views=name == "residual") for name, values in self.given.items()}
        for field in fields:
            field.close_for_writing()
        return x, weight, given

    def check(self, threads: int) -> None:
        """Function and layer give the same bits between fences as elsewhere, and write only the elements of `out`."""
        expected = pwconv.pointwise_conv(self.parts or self.x, self.weight, num_threads=1, **self.given, **self.options)
        x, weight, given = self.fenced()
        bias = given.pop("bias", None)
        layer = pwconv.PointwiseConv(weight, bias, **self.options)
        for compute in (lambda **out: pwconv.pointwise_conv(x, weight, bias, **self.options, **given, **out),
                        lambda **out: layer(x, **given, **out)):  # fmt: skip
            out, field = place(self.rng, np.empty(self.out_shape, expected.dtype))
            out[...] = 0 if expected.dtype.kind in "iu" else np.nan
            compute(out=out, num_threads=threads)
            self.compare(out, field, expected)

    @staticmethod
    def compare(out: np.ndarray, field: Field, expected: np.ndarray) -> None:
        """The result has the expected bits, and nothing was written between its elements."""
        assert oracle.same_bits(out, expected)
        out[...] = np.full(out.itemsize, UNTOUCHED, np.uint8).view(out.dtype)
        assert (field.inside == UNTOUCHED).all(), "something was written between the elements of out"

    def check_several(self, threads: int) -> None:
        """The same for branches, and for a chain with a residual in the middle and a kept result."""
        options = self.options | {"out_layout": self.options["layout"]}
        bias = self.given.get("bias")
        layer = pwconv.PointwiseConv(self.weight, bias, **options)
        other = pwconv.PointwiseConv(self.weight[::-1], bias, **options)
        weight = self.draw((self.rng.choice(CHANNELS[:12]), layer.out_channels))
        after = pwconv.PointwiseConv(weight, layout=options["layout"], activation="relu")
        middle = layer(self.parts or self.x, num_threads=1)
        added = self.draw(middle.shape)
        x, *_ = self.fenced()
        residual, field = place(self.rng, added)
        field.close_for_writing()

        chain = pwconv.PointwiseChain([layer, after])
        before = layer(self.parts or self.x, residual=added, num_threads=1)
        expected = after(before, num_threads=1)
        out, _ = place(self.rng, np.zeros_like(expected))
        kept, _ = chain(x, residual={0: residual}, keep=(0,), out=out, num_threads=threads)
        assert oracle.same_bits(kept, before)
        assert oracle.same_bits(out, expected)
        out[...] = 0
        chain(x, residual={0: residual}, out=out, num_threads=threads)
        assert oracle.same_bits(out, expected)

        outs = tuple(place(self.rng, np.zeros_like(middle))[0] for _ in range(2))
        pwconv.PointwiseBranches([layer, other])(x, out=outs, num_threads=threads)
        assert oracle.same_bits(outs[0], middle)
        assert oracle.same_bits(outs[1], other(self.parts or self.x, num_threads=1))

    def check_classes(self, threads: int) -> None:
        """The same for labels, probabilities and resized labels with a mask between fences and a fill."""
        if self.options["groups"] > 1:
            return
        layout = self.options["layout"]
        classifier = pwconv.PixelClassifier(
            self.weight, self.given.get("bias"), layout=layout, precision=self.options["precision"]
        )
        pixels = tuple(size for size, letter in zip(self.x.shape, layout, strict=True) if letter != "C")
        counts = self.numbers.random(pixels) < self.rng.choice((0.0, 0.1, 0.9, 1.0))
        mask, field = place(self.rng, counts)
        field.close_for_writing()
        x, *_ = self.fenced()
        calls = [("predict", np.uint8 if len(self.weight) < 256 else np.int32), ("predict_proba", np.float32)]
        resized = {"size": (7, 5)} if layout in ("NCHW", "NHWC", "CHW", "HWC") else {}
        for name, dtype in calls:
            method, fill = getattr(classifier, name), 255 if dtype == np.uint8 else -1
            for options in ({}, resized) if name == "predict" else ({},):
                expected = method(self.parts or self.x, mask=counts, fill=fill, num_threads=1, **options).astype(dtype)
                out, field = place(self.rng, np.zeros_like(expected))
                method(x, mask=mask, fill=fill, out=out, num_threads=threads, **options)
                self.compare(out, field, expected)

    def check_sums(self, threads: int) -> None:
        """The same for sums over pixels: gradients, and moments with a mask between fences."""
        layout, groups = self.options["layout"], self.options["groups"]
        options = {"layout": layout, "groups": groups, "stride": self.stride}
        axes = [self.options["out_layout"].index(letter) for letter in layout]
        gradient = self.draw(tuple(self.out_shape[axis] for axis in axes))
        fenced, field = place(self.rng, gradient)
        field.close_for_writing()
        x, weight, _ = self.fenced()
        need = self.rng.choice((("weight",), ("bias",), ("x", "weight", "bias")))
        given = self.parts or self.x
        expected = pwconv.pointwise_conv_backward(gradient, given, self.weight, need=need, num_threads=1, **options)
        grads = pwconv.pointwise_conv_backward(fenced, x, weight, need=need, num_threads=threads, **options)
        for grad, other in zip(grads, expected, strict=True):
            pairs = zip(grad, other, strict=True) if isinstance(grad, list) else [(grad, other)]
            assert all(a is b is None or oracle.same_bits(a, b) for a, b in pairs)

        pixels = tuple(size for size, letter in zip(self.x.shape, layout, strict=True) if letter != "C")
        counts = self.numbers.random(pixels) < self.rng.choice((0.1, 0.9, 1.0))
        if np.count_nonzero(counts) < 2 or not np.isfinite(self.x.astype(np.float32)).all():
            return
        mask, field = place(self.rng, counts)
        field.close_for_writing()
        fits = [
            pwconv.ChannelReducer(layout=layout).fit(map_, mask=where, num_threads=count)
            for map_, where, count in ((given, counts, 1), (x, mask, threads))
        ]
        assert all(np.array_equal(getattr(fits[0], name), getattr(fits[1], name)) for name in ("mean_", "components_"))


def compute_between_fences(isa: str, threads: int, seeds: range) -> None:
    """Check problems with these seeds; each is printed first, so the last one printed is the cause of a crash."""
    engine.set_isa(isa)
    for seed in seeds:
        problem = Problem(seed)
        print(f"seed {seed}: {problem}", flush=True)
        problem.check(threads)
        if seed % 4 == 0:
            problem.check_several(threads)
        if seed % 4 == 1:
            problem.check_classes(threads)
        if seed % 4 == 2:
            problem.check_sums(threads)


def step_over(where: str) -> None:
    """Access a byte beyond a fence, or write to a read-only page; this must crash."""
    view, field = place(random.Random(0), np.zeros(PAGE, np.uint8), views=False)
    field.close_for_writing()
    at = {"before": view.ctypes.data - 1, "after": view.ctypes.data + PAGE, "inside": view.ctypes.data}[where]
    sys.stdout.flush()
    ctypes.memset(at, 0, 1) if where == "inside" else ctypes.string_at(at, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to look")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9), help="the first problem")
    options = parser.parse_args()
    faulthandler.enable()
    end = time.monotonic() + options.seconds
    for seed in itertools.count(options.seed):
        for isa in engine.isa_supported():
            compute_between_fences(isa, 1 + seed // 4 % 2, range(seed, seed + 1))
        if time.monotonic() > end:
            print(f"{seed + 1 - options.seed} problems from seed {options.seed}: nothing found")
            return


if __name__ == "__main__":
    main()
