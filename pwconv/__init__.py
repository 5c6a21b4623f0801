"""Pointwise (1x1) convolutions on CPUs: exact, fast, on NumPy arrays."""

from pwconv import reference
from pwconv.classify import PixelClassifier
from pwconv.costs import Cost, conv_cost
from pwconv.factors import factorize, factorize_kernel
from pwconv.functional import pointwise_conv
from pwconv.layers import PointwiseConv
from pwconv.models import from_sklearn
from pwconv.reduce import ChannelReducer
from pwconv.runtime import config, get_num_threads, set_num_threads, show_config
from pwconv.several import PointwiseBranches, PointwiseChain
from pwconv.training import pointwise_conv_backward
from pwconv.tuning import forget_plans, load_plans, save_plans, tune
from pwconv.verification import verify
from pwconv.version import __version__

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
    "forget_plans",
    "from_sklearn",
    "get_num_threads",
    "load_plans",
    "pointwise_conv",
    "pointwise_conv_backward",
    "reference",
    "save_plans",
    "set_num_threads",
    "show_config",
    "tune",
    "verify",
]
