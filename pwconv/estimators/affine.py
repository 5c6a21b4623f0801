"""Affine functions of channels in float64, multiplied out, and the layers that compute them in float32."""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments import ActivationLike

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


class Affine(NamedTuple):
    """The function `matrix @ (x - centre) + bias`.

    A sum of products of large numbers that nearly cancel loses its digits in float32, while a difference of two close
    numbers is exact there. So `centre` keeps what is subtracted from a channel first, and is never multiplied out.
    """

    matrix: Matrix
    centre: Vector
    located: NDArray[np.bool_]  # channels of x whose centre is set
    bias: Vector

    @classmethod
    def identity(cls, channels: int) -> Self:
        """Return the function that changes nothing."""
        return cls(np.eye(channels), np.zeros(channels), np.zeros(channels, bool), np.zeros(channels))

    def multiplied(self, matrix: Matrix) -> Self:
        """Return `matrix @ self(x)`."""
        return self._replace(matrix=matrix @ self.matrix, bias=matrix @ self.bias)

    def scaled(self, factors: Vector) -> Self:
        """Return `factors * self(x)`."""
        return self._replace(matrix=factors[:, np.newaxis] * self.matrix, bias=factors * self.bias)

    def added(self, numbers: Vector) -> Self:
        """Return `self(x) + numbers`."""
        return self._replace(bias=self.bias + numbers)

    def selected(self, channels: NDArray[np.intp]) -> Self:
        """Return some channels of `self(x)`."""
        return self._replace(matrix=self.matrix[channels], bias=self.bias[channels])

    def subtracted(self, numbers: Vector) -> Self:
        """Return `self(x) - numbers`, where `numbers` are subtracted from channels of x that have no centre yet."""
        return self._moved(self._offset_at(numbers)).added(-numbers)

    def located_at(self, values: Vector) -> Self:
        """Return the same function; `values` of `self(x)`, near which data lies, become centres that are not set."""
        return self._moved(self._offset_at(values))

    def _offset_at(self, values: Vector) -> Vector:
        """Return by how much centres that are not set move so that the bias is `values`, or as close as may be."""
        offset = np.zeros(len(self.centre))
        free = ~self.located & self.matrix.any(axis=0)
        columns, wanted = self.matrix[:, free], values - self.bias
        if not free.any() or not wanted.any():
            return offset
        rows, places = np.nonzero(columns)
        if len(rows) == len(np.unique(rows)):
            # Each row has one channel. Of several rows of one channel, the first decides.
            places, first = np.unique(places, return_index=True)
            rows = rows[first]
            moved = np.zeros(columns.shape[1])
            moved[places] = wanted[rows] / columns[rows, places]
        else:
            length = np.linalg.norm(columns, axis=1)
            length[length == 0] = 1
            moved = np.linalg.lstsq(columns / length[:, np.newaxis], wanted / length)[0]
        offset[free] = moved
        return offset

    def _moved(self, offset: Vector) -> Self:
        """Return the same function with other centres."""
        located = self.located | (offset != 0)
        return self._replace(centre=self.centre + offset, located=located, bias=self.bias + self.matrix @ offset)

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Return the results of several functions of the same x, joined along C."""
        centre, located = parts[0].centre, parts[0].located
        for part in parts[1:]:
            centre = np.where(located, centre, part.centre)
            located = located | part.located
        parts = [part._moved(centre - part.centre) for part in parts]
        matrix = np.concatenate([part.matrix for part in parts])
        return cls(matrix, centre, located, np.concatenate([part.bias for part in parts]))

    def layer(self, activation: ActivationLike = None, *, dense: bool = False) -> dict[str, Any]:
        """Return the arguments that make a `pwconv.PointwiseConv` of the function, followed by an activation.

        A diagonal matrix becomes one group for each channel, unless the layer is to be `dense`.
        """
        with np.errstate(all="ignore"):
            centre = self.centre.astype(np.float32)
            # The bias takes what float32 cannot hold of the centre.
            bias = (self.bias + self.matrix @ (centre - self.centre)).astype(np.float32)
            weight, groups = self.matrix.astype(np.float32), 1
        if not (np.isfinite(bias).all() and np.isfinite(weight).all()):
            raise ValueError("model must have numbers within float32's range")
        if not dense and len(weight) == len(centre) and not (weight - np.diag(np.diag(weight))).any():
            weight, groups = np.diag(weight)[:, np.newaxis], len(weight)
        arguments: dict[str, Any] = {"weight": weight, "groups": groups, "activation": activation}
        if bias.any():
            arguments["bias"] = bias
        if centre.any():
            arguments["input_shift"] = -centre
        return arguments
