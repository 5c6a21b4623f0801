"""Every public argument is parsed and checked here, once, for both backends.

The compiled engine takes calls in the simplest form without this package. The engine turns to it when a layer is made,
and for every other call: a function below then returns the arguments in their simplest form, or raises the error that
the user reads.
"""

from pwconv.arguments.activations import (
    CLIP,
    GELU,
    GELU_TANH,
    HARDSIGMOID,
    HARDSWISH,
    LEAKY_RELU,
    NO_ACTIVATION,
    SIGMOID,
    SILU,
    TANH,
    Activation,
    ActivationLike,
)
from pwconv.arguments.arrays import Float32Array, as_array, float32_array, foreign_array, foreign_numbers
from pwconv.arguments.call import Call, array_of_shape, check_call, check_shape, table
from pwconv.arguments.classifiers import (
    Labelling,
    check_predict,
    check_probabilities,
    check_top_k,
    check_values,
    class_names,
)
from pwconv.arguments.dtypes import RESULT_DTYPES, empty_result, numpy_dtype, rounded
from pwconv.arguments.gradients import GRADIENTS, Backward, check_backward, check_layer_backward, parse_need
from pwconv.arguments.layouts import NAMED_LAYOUTS, without
from pwconv.arguments.pixels import check_pixels, component_count, components_kept, hides_elements
from pwconv.arguments.several import check_branches, check_chain, parse_layers
from pwconv.arguments.spec import PRECISIONS, Spec, StrideLike, parse_spec, resolve_rank
from pwconv.arguments.weights import as_kernel, bias_vector, norm_vector, weight_matrix

__all__ = [
    "CLIP",
    "GELU",
    "GELU_TANH",
    "GRADIENTS",
    "HARDSIGMOID",
    "HARDSWISH",
    "LEAKY_RELU",
    "NAMED_LAYOUTS",
    "NO_ACTIVATION",
    "PRECISIONS",
    "RESULT_DTYPES",
    "SIGMOID",
    "SILU",
    "TANH",
    "Activation",
    "ActivationLike",
    "Backward",
    "Call",
    "Float32Array",
    "Labelling",
    "Spec",
    "StrideLike",
    "array_of_shape",
    "as_array",
    "as_kernel",
    "bias_vector",
    "check_backward",
    "check_branches",
    "check_call",
    "check_chain",
    "check_layer_backward",
    "check_pixels",
    "check_predict",
    "check_probabilities",
    "check_shape",
    "check_top_k",
    "check_values",
    "class_names",
    "component_count",
    "components_kept",
    "empty_result",
    "float32_array",
    "foreign_array",
    "foreign_numbers",
    "hides_elements",
    "norm_vector",
    "numpy_dtype",
    "parse_layers",
    "parse_need",
    "parse_spec",
    "resolve_rank",
    "rounded",
    "table",
    "weight_matrix",
    "without",
]
