"""Every pointwise layer of six published networks on a photograph, against onnxruntime.

The onnx package carries the networks as graphs whose weights are one constant each. A constant would hide errors
in the order of channels, so all weights get seeded random numbers first, scaled to keep activations in range.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
import oracle
import pytest
import skimage
from onnx import helper, numpy_helper

import pwconv

NETWORKS = ("resnet50", "inception_v1", "inception_v2", "densenet121", "squeezenet", "shufflenet")
LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"


class Node(NamedTuple):
    """A Conv node with a 1x1 kernel, its inputs, and its expected result (NCHW)."""

    name: str
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    options: dict[str, int | tuple[int, ...]]
    truth: oracle.Truth


def judged(y: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, options: dict) -> oracle.Truth:
    """onnxruntime's result ``y``, and the largest difference from it that another float32 result may have.

    In any order of summation, onnxruntime's sum of K products and a bias is off by at most
    (K + 4) u (sum |w| |x| + |bias|); pwconv's sum is off by at most the bound of its own order.
    """
    channels = weight.shape[1]
    reach = oracle.pointwise(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias), **options).value
    return oracle.Truth(y.astype(np.float64), (oracle.chain_bound(channels) + channels + 4) * oracle.UNIT * reach)


def load(network: str) -> onnx.ModelProto:
    return onnx.load(LIGHT / f"light_{network}.onnx")


def attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def pointwise_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The Conv nodes with a 1x1 kernel."""
    convolutions = (node for node in model.graph.node if node.op_type == "Conv")
    return [node for node in convolutions if set(attributes(node)["kernel_shape"]) == {1}]


def randomise(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Replace every weight by seeded random numbers that fit its purpose; returns them by name."""
    rng = np.random.default_rng(2014)
    graph = model.graph
    constants = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    extents = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {name: (node, place) for node in graph.node for place, name in enumerate(node.input)}
    trained = [
        tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in readers
    ]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in trained}
    shapes |= {node.output[0]: tuple(extents[node.input[0]]) for node in constants}
    weights = {}
    for name in sorted(shapes):
        reader, place = readers[name]
        while reader.op_type == "Unsqueeze":
            reader, place = readers[reader.output[0]]
        match reader.op_type, place:
            case "Conv" | "Gemm", 1:
                values = rng.standard_normal(shapes[name]) * math.sqrt(2 / math.prod(shapes[name][1:]))
            case ("BatchNormalization", 1 | 4) | ("Mul", _):
                values = rng.uniform(0.7, 1.3, shapes[name])
            case _:
                values = rng.standard_normal(shapes[name]) / 10
        weights[name] = values.astype(np.float32)
    for node in constants:
        graph.node.remove(node)
    for tensor in trained:
        graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    model.ir_version = 8  # the first versions wanted every initializer among the inputs, too
    return weights


def photograph() -> np.ndarray:
    """The astronaut, 224 x 224 pixels, standardised as these networks expect."""
    pixels = skimage.data.astronaut()[32:480:2, 32:480:2].astype(np.float32)
    return np.ascontiguousarray(((pixels - 118) / 58).transpose(2, 0, 1))[np.newaxis]


@pytest.fixture(scope="module", params=NETWORKS)
def nodes(request) -> list[Node]:
    """All pointwise nodes of one network with their inputs and results."""
    model = load(request.param)
    weights = randomise(model)
    convolutions = pointwise_nodes(model)
    exposed = sorted({name for node in convolutions for name in (node.input[0], node.output[0])})
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in exposed)

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no node is fused away
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    data = next(value.name for value in session.get_inputs() if value.name.endswith("data_0"))
    values = dict(zip(exposed, session.run(exposed, {data: photograph()}), strict=True))

    def node_of(node):
        settings = attributes(node)
        call = {"groups": settings.get("group", 1), "stride": tuple(settings["strides"])}
        x, weight = values[node.input[0]], weights[node.input[1]]
        bias = weights[node.input[2]] if len(node.input) > 2 else None
        return Node(node.name, x, weight, bias, call, judged(values[node.output[0]], x, weight, bias, call))

    return [node_of(node) for node in convolutions]


def test_there_are_more_than_200_pointwise_nodes():
    counts = {network: len(pointwise_nodes(load(network))) for network in NETWORKS}
    assert sum(counts.values()) > 200
    grouped = [node for node in pointwise_nodes(load("shufflenet")) if attributes(node).get("group", 1) == 4]
    assert len(grouped) > 20


def test_channels_first(nodes):
    for node in nodes:
        result = pwconv.PointwiseConv(node.weight, node.bias, **node.options)(node.x)
        assert node.truth.accepts(result), f"{node.name}: {node.truth.explain(result)}"


def test_channels_last(nodes):
    for node in nodes:
        x = np.ascontiguousarray(node.x.transpose(0, 2, 3, 1))
        last = pwconv.pointwise_conv(x, node.weight, node.bias, layout="NHWC", **node.options)
        result = last.transpose(0, 3, 1, 2)
        assert node.truth.accepts(result), f"{node.name}: {node.truth.explain(result)}"


@pytest.mark.parametrize("axis", [0, 1], ids=["outputs", "inputs"])
def test_reversed_channels_fail_at_every_node(nodes, axis):
    """The bounds above reject the result of every node if the channels of its kernel are reversed."""
    for node in nodes:
        layer = pwconv.PointwiseConv(np.flip(node.weight, axis), node.bias, **node.options)
        assert not node.truth.accepts(layer(node.x)), node.name
