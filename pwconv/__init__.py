"""Pointwise (1x1) convolutions on CPUs: exact, fast, on NumPy arrays."""

__version__ = "0.1.0"

from pwconv import reference
from pwconv.classify import PixelClassifier
from pwconv.costs import Cost, conv_cost
from pwconv.functional import pointwise_conv, verify
from pwconv.layers import PointwiseBranches, PointwiseChain, PointwiseConv
from pwconv.reduce import ChannelReducer, factorize, factorize_kernel
from pwconv.runtime import config, get_num_threads, set_num_threads, show_config
from pwconv.training import pointwise_conv_backward

__all__ = [
    "ChannelReducer",
    "Cost",
    "PixelClassifier",
    "PointwiseBranches",
    "PointwiseChain",
    "PointwiseConv",
    "__version__",
    "config",
    "conv_cost",
    "factorize",
    "factorize_kernel",
    "get_num_threads",
    "pointwise_conv",
    "pointwise_conv_backward",
    "reference",
    "set_num_threads",
    "show_config",
    "verify",
]
