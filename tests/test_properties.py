"""Random layers with any options and views, against the definition in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pwconv

# Sizes around multiples of MR (1 to 14), of NR (4 to 96), and of the K blocks of 256.
EDGES = (
    *range(1, 18),
    31,
    32,
    33,
    47,
    48,
    49,
    50,
    63,
    64,
    65,
    95,
    96,
    97,
    127,
    128,
    129,
    255,
    256,
    257,
    258,
    511,
    513,
    769,
)
WORK = (2**16, 2**19, 2**22)  # multiply-adds of one example at most; the last is enough for several threads
MEMORY = 2**24  # bytes from the first to the last element of one view at most


@dataclasses.dataclass
class Layer:
    """One call of ``pointwise_conv``: the values and placements of its arrays, and its options."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    options: dict[str, Any]
    out: oracle.Placement
    num_threads: int

    def run(self, **more) -> np.ndarray:
        return pwconv.pointwise_conv(
            self.x, self.weight, self.bias, num_threads=self.num_threads, **self.options, **more
        )

    def truth(self) -> oracle.Truth:
        return oracle.pointwise(self.x, self.weight, self.bias, **self.options)

    def inputs(self) -> list[np.ndarray]:
        arrays = [self.x, self.weight, self.bias, *self.options.values()]
        return [array for array in arrays if isinstance(array, np.ndarray)]


@st.composite
def some_placement(draw, shape: tuple[int, ...], *, broadcast: bool = False) -> oracle.Placement:
    """Contiguous, or any view: axis order, steps, margins, packed records, any offset, and stride 0 where allowed."""
    axes = len(shape)

    def per_axis(values):
        return tuple(draw(st.lists(values, min_size=axes, max_size=axes)))

    anything = oracle.place(
        shape,
        order=tuple(draw(st.permutations(range(axes)))),
        steps=per_axis(st.sampled_from((1, 1, 2, -1, -2, 3))),
        margins=per_axis(st.sampled_from((0, 0, 1, 2))),
        broadcast=per_axis(st.sampled_from((False, False, False, True))) if broadcast else None,
        item=draw(st.sampled_from((4, 4, 4, 8, 5, 7))),
        offset=draw(st.sampled_from((0, 0, 4, 32, 1, 3))),
    )
    return oracle.place(shape) if draw(st.booleans()) or anything.nbytes > MEMORY else anything


@st.composite
def some_layer(draw) -> Layer:
    """A layer of bounded work in which any one of channels and pixels may be large."""
    budget = draw(st.sampled_from(WORK))

    def size():
        nonlocal budget
        chosen = draw(st.sampled_from([edge for edge in EDGES if edge <= budget]))
        budget //= chosen
        return chosen

    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 4)))
    budget //= groups
    sizes = {name: size() for name in draw(st.permutations(("in", "out", "pixels")))}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    spatial = draw(st.sampled_from(("", "L", "HW", "HW", "DHW")))
    layout = draw(st.sampled_from(oracle.layouts(spatial, batch=draw(st.booleans()))))
    out_layout = draw(st.one_of(st.none(), st.permutations(layout).map("".join)))
    extents = {"C": sizes["in"] * groups, "N": draw(st.integers(1, 3))}
    for letter in spatial[1:]:
        extents[letter] = draw(st.integers(1, min(5, sizes["pixels"])))
    if spatial:
        extents[spatial[0]] = max(1, sizes["pixels"] // math.prod(extents[letter] for letter in spatial[1:]))
    steps = {letter: draw(st.sampled_from((1, 1, 1, 2, 3))) for letter in spatial}
    left_over = {letter: draw(st.integers(0, step - 1)) for letter, step in steps.items()}
    outs = {**extents, "C": sizes["out"] * groups}
    ins = extents | {letter: (extents[letter] - 1) * steps[letter] + 1 + left_over[letter] for letter in spatial}

    def numbers(shape, *, spread=0):
        """Normally distributed numbers, multiplied by powers of two up to 2^``spread`` and down to its inverse."""
        values = rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape)
        return values.astype(np.float32)

    def laid_out(shape, *, broadcast=False):
        values = numbers(shape, spread=spread)
        placement = draw(some_placement(shape, broadcast=broadcast))
        # an axis of stride 0 repeats its first element
        firsts = (slice(0, 1) if stride == 0 else slice(None) for stride in placement.strides)
        return placement.hold(values[tuple(firsts)])

    def per_channel(letter_extents):
        """(C,) or (N, C)."""
        shapes = [(letter_extents["C"],)]
        if "N" in layout:
            shapes.append((letter_extents["N"], letter_extents["C"]))
        return laid_out(draw(st.sampled_from(shapes)))

    spread = draw(st.sampled_from((0, 0, 8)))
    x = laid_out(tuple(ins[letter] for letter in layout), broadcast=True)
    out_shape = tuple(outs[letter] for letter in out_layout or layout)

    weight_layout = draw(st.sampled_from(("OI", "OI", "IO")))
    kernel = (outs["C"], sizes["in"])
    ones = (1,) * draw(st.integers(0, 3))
    weight = laid_out(kernel + ones if weight_layout == "OI" else ones + kernel[::-1])

    options: dict[str, Any] = {"groups": groups, "layout": layout, "out_layout": out_layout}
    options["weight_layout"] = weight_layout
    options["stride"] = tuple(steps[letter] for letter in layout if letter in spatial)
    if len(set(options["stride"])) == 1 and draw(st.booleans()):
        options["stride"] = options["stride"][0]
    if draw(st.booleans()):
        options["activation"] = draw(st.sampled_from(oracle.ACTIVATIONS))
    if draw(st.integers(0, 3)) == 0:
        options["input_activation"] = draw(st.sampled_from(oracle.ACTIVATIONS))
    for name, letter_extents in (("input_scale", ins), ("input_shift", ins), ("output_scale", outs)):
        if draw(st.integers(0, 3)) == 0:
            options[name] = per_channel(letter_extents)
    if draw(st.integers(0, 2)) == 0:
        options["residual"] = laid_out(out_shape, broadcast=True)
    bias = laid_out((outs["C"],)) if draw(st.booleans()) else None
    return Layer(x, weight, bias, options, draw(some_placement(out_shape)), draw(st.integers(1, 3)))


@given(layer=some_layer())
def test_agrees_with_the_definition(isa, layer):
    truth = layer.truth()
    result = layer.run()
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.shape == truth.value.shape
    assert truth.accepts(result), truth.explain(result)


@given(layer=some_layer())
def test_writes_out_and_nothing_else(isa, layer):
    before = [array.copy() for array in layer.inputs()]
    buffer = layer.out.buffer(fill=0xA5)
    canaries = np.full(buffer.shape, 0xA5, np.uint8)
    out = layer.out.over(buffer)
    assert layer.run(out=out) is out
    truth = layer.truth()
    assert truth.accepts(out), truth.explain(out)
    # All bytes of the buffer are compared, those between the elements of `out` too.
    layer.out.over(canaries)[...] = out
    np.testing.assert_array_equal(buffer, canaries)
    for array, copy in zip(layer.inputs(), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@given(layer=some_layer())
def test_residual_may_be_out(isa, layer):
    out = layer.out.over(layer.out.buffer())
    rng = np.random.default_rng(out.size)
    residual = rng.standard_normal(out.shape).astype(np.float32)
    out[...] = residual
    layer.options["residual"] = residual
    truth = layer.truth()
    layer.options["residual"] = out
    assert layer.run(out=out) is out
    assert truth.accepts(out), truth.explain(out)


def test_400_random_layers(isa):
    """No element of 400 layers is off by more than 1e-7 x (4 sqrt(K) + 8) of the layer's largest value."""
    rng = np.random.default_rng(400)
    for number in range(400):
        groups = int(rng.choice((1, 1, 1, 2, 3)))
        channels, outs = (int(rng.choice(EDGES)) for _ in range(2))
        height, width = (int(size) for size in rng.integers(1, 11, 2))
        layout = str(rng.choice(oracle.layouts("HW")))
        shape = tuple({"N": 2, "C": channels * groups, "H": height, "W": width}[letter] for letter in layout)
        options = {"groups": groups, "layout": layout, "stride": int(rng.integers(1, 3))}
        x = rng.standard_normal(shape, np.float32)
        weight = rng.standard_normal((outs * groups, channels), np.float32)
        bias = rng.standard_normal(outs * groups, np.float32)
        value = oracle.pointwise(x, weight, bias, **options).value
        error = np.abs(pwconv.pointwise_conv(x, weight, bias, **options) - value).max()
        allowed = 1e-7 * (4 * math.sqrt(channels) + 8) * np.abs(value).max()
        assert error <= allowed, (number, x.shape, weight.shape, options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW", "HWC"])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_own_pixel(isa, layout, special):
    rng = np.random.default_rng(7)
    extents = {"N": 2, "C": 37, "H": 9, "W": 11}
    x = rng.standard_normal([extents[letter] for letter in layout], np.float32)
    weight = rng.standard_normal((21, 37), np.float32)
    finite = pwconv.pointwise_conv(x, weight, layout=layout)
    pixel = tuple({"N": 1, "H": 4, "W": 6}.get(letter, slice(None)) for letter in layout)
    x[tuple({"N": 1, "C": 17, "H": 4, "W": 6}[letter] for letter in layout)] = special
    result = pwconv.pointwise_conv(x, weight, layout=layout)
    np.testing.assert_array_equal(result[pixel], weight[:, 17] * np.float32(special))
    result[pixel] = finite[pixel]
    np.testing.assert_array_equal(result, finite)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_zero_times_infinity_is_nan_and_relu_keeps_it(isa, layout):
    x = np.ones((1, 8, 8, 8), np.float32)
    x[0, 3, 3, 3] = np.inf
    weight = np.zeros((8, 8), np.float32)
    meets_infinity = np.isinf(x).any(axis=layout.index("C"), keepdims=True)
    for activation in oracle.ACTIVATIONS:
        result = pwconv.pointwise_conv(x, weight, layout=layout, activation=activation)
        np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(meets_infinity, result.shape))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("empty", ["N", "H", "W", "NHW"])
def test_nothing_to_compute(isa, layout, empty):
    extents = {"N": 2, "C": 5, "H": 3, "W": 4} | dict.fromkeys(empty, 0)
    x = np.ones([extents[letter] for letter in layout], np.float32)
    weight = np.ones((6, 5), np.float32)
    extents["C"] = 6
    result = pwconv.pointwise_conv(x, weight, np.ones(6, np.float32), layout=layout, activation="relu")
    assert result.shape == tuple(extents[letter] for letter in layout)
    assert result.dtype == np.float32


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_no_channels(isa, layout):
    extents = {"N": 2, "C": 0, "H": 3, "W": 4}
    x = np.ones([extents[letter] for letter in layout], np.float32)
    bias = np.array([-1.0, 2.0, 3.0], np.float32)
    result = pwconv.pointwise_conv(x, np.ones((3, 0), np.float32), bias, layout=layout, activation="relu")
    expected = np.broadcast_to([0.0, 2.0, 3.0], (2, 3, 4, 3))
    np.testing.assert_array_equal(result if layout == "NHWC" else result.transpose(0, 2, 3, 1), expected)

    extents["C"] = 3
    x = np.ones([extents[letter] for letter in layout], np.float32)
    result = pwconv.pointwise_conv(x, np.ones((0, 3), np.float32), layout=layout)
    extents["C"] = 0
    assert result.shape == tuple(extents[letter] for letter in layout)


@pytest.mark.parametrize(
    ("word", "layouts"),
    [("channels_first", ("NC", "NCL", "NCHW", "NCDHW")), ("channels_last", ("NC", "NLC", "NHWC", "NDHWC"))],
)
def test_layouts_by_word(word, layouts):
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 3), np.float32)
    for layout in layouts:
        x = rng.standard_normal([3 if letter == "C" else 2 for letter in layout], np.float32)
        np.testing.assert_array_equal(
            pwconv.pointwise_conv(x, weight, layout=word), pwconv.pointwise_conv(x, weight, layout=layout)
        )


@pytest.fixture
def far_apart(tmp_path):
    """12 GiB of zeros, 3 x 2^30 elements, in a sparse file, of which only written pages take space."""
    elements = np.memmap(tmp_path / "zeros", np.float32, "w+", shape=(3 * 2**30,))
    yield elements
    del elements
    (tmp_path / "zeros").unlink()


# Two steps of this many bytes lead beyond 2^31 elements and 2^33 bytes.
FAR = 4 * (2**30 + 12345)


@pytest.mark.parametrize("far", range(4))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_elements_four_gibibytes_apart(isa, far_apart, layout, far):
    """Maps whose elements are 4 GiB apart along one axis, as ``x`` and as ``out``: 2^31 elements without the memory."""
    shape = (3, 3, 3, 3)
    strides = [36 * 4, 12 * 4, 4 * 4, 4]
    strides[far] = FAR
    placement = oracle.Placement(shape, tuple(strides), 0, far_apart.nbytes)
    x = placement.over(far_apart)
    rng = np.random.default_rng(far)
    x[...] = rng.standard_normal(shape, np.float32)
    weight = rng.standard_normal((3, 3), np.float32)
    truth = oracle.pointwise(x, weight, layout=layout)
    result = pwconv.pointwise_conv(x, weight, layout=layout)
    assert truth.accepts(result), truth.explain(result)

    out = oracle.Placement(shape, tuple(strides), 2**20, far_apart.nbytes).over(far_apart)
    assert pwconv.pointwise_conv(np.ascontiguousarray(x), weight, layout=layout, out=out) is out
    assert truth.accepts(out), truth.explain(out)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_stride_over_more_than_2_to_the_31_elements(isa, far_apart, layout):
    """A map of 3 x 2^30 elements, of which a stride leaves four pixels."""
    height, width, step = 2**15 + 2**13, 2**15 + 2**12, 2**15
    shape = {"NCHW": (1, 2, height, width), "NHWC": (1, height, width, 2)}[layout]
    assert math.prod(shape) > 2**31
    x = far_apart[: math.prod(shape)].reshape(shape)
    read = x[{"NCHW": np.s_[:, :, ::step, ::step], "NHWC": np.s_[:, ::step, ::step]}[layout]]
    rng = np.random.default_rng(5)
    read[...] = rng.standard_normal(read.shape, np.float32)
    weight = rng.standard_normal((3, 2), np.float32)
    truth = oracle.pointwise(read, weight, layout=layout)
    result = pwconv.pointwise_conv(x, weight, layout=layout, stride=step)
    assert result.size == 3 * 2 * 2
    assert truth.accepts(result), truth.explain(result)


def test_more_than_2_to_the_31_pixels_without_out_channels(isa):
    """2^32 pixels of a broadcast input, and a result without channels."""
    x = np.broadcast_to(np.float32(1), (1, 3, 2**16, 2**16))
    assert pwconv.pointwise_conv(x, np.zeros((0, 3), np.float32)).shape == (1, 0, 2**16, 2**16)
