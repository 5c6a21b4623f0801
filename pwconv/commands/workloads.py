"""Workloads: the pointwise layers of published networks, and other shapes that applications have."""

import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

LAYOUTS = ("NCHW", "NHWC")


class Workload(NamedTuple):
    """A pointwise layer of a network, or a product for each pixel of a picture, and the size of its input."""

    network: str
    name: str
    images: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    stride: int = 1
    dtype: str = "float32"  # of the input
    out_dtype: str = "float32"  # of the result
    plain: bool = False  # the product alone, without bias and ReLU

    def __str__(self) -> str:
        return f"{self.network} {self.name}"

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return math.ceil(self.height / self.stride), math.ceil(self.width / self.stride)

    @property
    def pixels(self) -> int:
        """Number of pixels of the result, in all images together."""
        return self.images * math.prod(self.out_size)

    @property
    def flops(self) -> int:
        """Floating-point operations of the sums: two per multiply-add."""
        return 2 * self.pixels * self.in_channels * self.out_channels

    def shape(self, layout: str, out: bool = False) -> tuple[int, ...]:
        """Return the shape of the input; with `out`, the shape of the result."""
        height, width = self.out_size if out else (self.height, self.width)
        channels = self.out_channels if out else self.in_channels
        sizes = {"N": self.images, "C": channels, "H": height, "W": width}
        return tuple(sizes[letter] for letter in layout)

    def bytes_read(self, layout: str) -> int:
        """Return the bytes of weights, bias and input that are read.

        A stride skips rows. It skips pixels of a row in NHWC only: in NCHW, pixels of a cache line are read together.
        """
        height, width = self.out_size
        columns = self.width if layout[-1] == "W" else width
        numbers = self.images * height * columns * self.in_channels
        return np.dtype(self.dtype).itemsize * numbers + 4 * (self.in_channels + 1) * self.out_channels

    @property
    def bytes_written(self) -> int:
        """Bytes of the result."""
        return np.dtype(self.out_dtype).itemsize * self.pixels * self.out_channels


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

# Shapes of applications that are not layers of a network.
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


def _picture(
    side: tuple[int, int], ins: int, outs: int, dtype: str = "float32", out_dtype: str = "float32"
) -> Workload:
    dtypes = "" if dtype == "float32" else f".{dtype}" if out_dtype == "float32" else f".{dtype}.{out_dtype}"
    return Workload("pictures", f"{ins}to{outs}{dtypes}", 1, *side, ins, outs, 1, dtype, out_dtype, plain=True)


# Photographs and rasters: few channels, whose pixels move more bytes than they compute.
_HD, _TILE = (1080, 1920), (512, 512)
_OF_HD = ((3, 1), (3, 3), (4, 3), (4, 4), (1, 3), (8, 8), (13, 1), (13, 8), (16, 16))
_OF_TILES = ((32, 3), (64, 1), (64, 2), (64, 10), (200, 1), (200, 3), (200, 16))
PICTURES = (
    *(_picture(_HD, *channels) for channels in _OF_HD),
    *(_picture(_TILE, *channels) for channels in _OF_TILES),
    *(_picture(_HD, *channels, "uint8", "uint8") for channels in ((3, 1), (3, 3), (4, 4))),
    *(
        _picture(_HD, *channels, dtype)
        for channels in ((3, 1), (3, 3), (13, 8))
        for dtype in ("uint8", "uint16", "int16", "float16")
    ),
    *(_picture(_TILE, 200, 8, dtype) for dtype in ("uint16", "int16")),
)

_OWN_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)x(\d+)(?:/(\d+))?")


def select(patterns: Iterable[str]) -> tuple[Workload, ...]:
    """Return the workloads that match any of the patterns.

    A pattern is a part of "network layer", in which * and ? are wildcards; or a shape NxHxWxC_INxC_OUT, followed by
    /STRIDE if the stride is not 1. Raises ValueError for a pattern without a match.
    """
    chosen: dict[Workload, None] = {}
    for pattern in patterns:
        if own := _OWN_SHAPE.fullmatch(pattern):
            numbers = [int(number) for number in own.groups(default="1")]
            images, height, width, ins, outs, stride = numbers
            found = [Workload("shape", pattern, images, height, width, ins, outs, stride)] if min(numbers) > 0 else []
        else:
            found = [
                workload for workload in NETWORKS + SHAPES + PICTURES if fnmatchcase(str(workload), f"*{pattern}*")
            ]
        if not found:
            networks = ", ".join(dict.fromkeys(workload.network for workload in NETWORKS))
            raise ValueError(f"no layer is called {pattern!r}; the networks are {networks}")
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)
