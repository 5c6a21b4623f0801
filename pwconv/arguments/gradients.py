"""The arguments of calls for gradients."""

from functools import lru_cache
from typing import Any, NamedTuple

from numpy.typing import NDArray

from pwconv.arguments.arrays import Float32Array
from pwconv.arguments.call import Call, check_call, like_result
from pwconv.arguments.memory import check_size
from pwconv.arguments.spec import Spec, StrideLike, parse_spec
from pwconv.arguments.weights import weight_matrix
from pwconv.scalars import choice, type_name

GRADIENTS = ("x", "weight", "bias")


class Backward(NamedTuple):
    """A checked call for gradients: the forward call, the gradient of its result, and the names in `need`.

    `grad_y` is transposed to the layout of `x`, whatever the layout of the result.
    """

    spec: Spec
    matrix: Float32Array
    call: Call
    grad_y: Float32Array
    need: frozenset[str]

    @property
    def parts(self) -> list[NDArray[Any]]:
        """The maps that `x` consists of."""
        return self.call.x if isinstance(self.call.x, list) else [self.call.x]


def check_backward(
    grad_y: Any,
    x: Any,
    weight: Any,
    *,
    stride: StrideLike,
    groups: int,
    layout: str,
    weight_layout: str,
    need: Any,
    num_threads: Any,
    backend: str,
) -> Backward:
    """Check a call of `pwconv.pointwise_conv_backward`."""
    options = (stride, groups, layout, weight_layout, need, backend)
    # Only exact types are keys: True == 1 == 1.0, yet only 1 is a valid stride.
    names = (*need, layout, weight_layout, backend) if type(need) is tuple else options[2:]
    if type(stride) is int and type(groups) is int and all(type(name) is str for name in names):
        spec, needed = _parse_once(*options)
    else:
        spec, needed = _parse(*options)
    return _check_gradient(spec, weight_matrix(weight, spec), grad_y, x, needed, num_threads)


def _parse(
    stride: StrideLike, groups: int, layout: str, weight_layout: str, need: Any, backend: str
) -> tuple[Spec, frozenset[str]]:
    needed = parse_need(need)
    spec = parse_spec(
        stride=stride,
        groups=groups,
        layout=layout,
        out_layout=None,
        weight_layout=weight_layout,
        input_activation=None,
        activation=None,
        precision="highest",
        backend=backend,
    )
    return spec, needed


_parse_once = lru_cache(maxsize=512)(_parse)


def check_layer_backward(layer: Any, grad_y: Any, x: Any, need: Any, num_threads: Any) -> Backward:
    """Check a call of `pwconv.PointwiseConv.backward`."""
    return _check_gradient(layer.spec, layer.matrix, grad_y, x, parse_need(need), num_threads)


def _check_gradient(
    spec: Spec, matrix: Float32Array, grad_y: Any, x: Any, need: frozenset[str], num_threads: Any
) -> Backward:
    call = check_call(spec, matrix.shape, x, num_threads=num_threads)
    gradient = like_result(grad_y, "grad_y", call).transpose([call.out_layout.index(letter) for letter in call.layout])
    backward = Backward(spec, matrix, call, gradient, need)
    # A map of a narrow dtype may fit into memory where its float32 gradient does not.
    for part in backward.parts if "x" in need else ():
        check_size(part.shape)
    return backward


def parse_need(need: Any) -> frozenset[str]:
    """Parse the names of the gradients that are needed."""
    names = (need,) if isinstance(need, str) else need
    if not isinstance(names, list | tuple | set | frozenset):
        raise TypeError(f"need must be a name or a tuple of names, got {type_name(need)}")
    return frozenset(choice(name, "need" if name is need else "a name in need", GRADIENTS) for name in names)
