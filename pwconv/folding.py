"""Convolutions, batch norms and activations in turn, folded into as few layers as possible."""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pwconv.arguments import ActivationLike

Vector = NDArray[np.float64]


class Convolution(NamedTuple):
    """A pointwise convolution: the matrix (C_out, C_in // groups) and bias in float64, and other arguments."""

    place: str
    matrix: NDArray[np.float64]
    bias: Vector
    layout: str
    groups: int
    stride: int | tuple[int, ...]


class Norm(NamedTuple):
    """`scale * (x - centre) + shift` for each channel."""

    place: str
    scale: Vector
    centre: Vector
    shift: Vector
    axes: int | None  # spatial axes of the maps that the norm takes; None: any
    axis: int | None = None  # the axis of the channels; None: as torch counts

    def after(self, first: Self) -> Self:
        """Return this norm of another norm."""
        return first._replace(
            scale=self.scale * first.scale, shift=self.scale * (first.shift - self.centre) + self.shift
        )


class Activation(NamedTuple):
    """An activation function, as `pwconv.pointwise_conv` takes it."""

    place: str
    activation: ActivationLike


Step = Convolution | Norm | Activation


class Folder:
    """Makes layers of steps, in float64, which are rounded once.

    A norm behind a convolution is folded into it. Another norm becomes a part of the layer that follows: its centre
    stays subtracted first (`input_shift`), and an activation between both is that layer's `input_activation`. What no
    layer takes becomes a layer of its own, with a group for each channel.
    """

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self._channels: int | None = None
        self._last: Convolution | None = None  # has no activation yet, so it takes norms
        self._front: dict[str, Any] = {}  # arguments of the last convolution that norms do not change
        self._norm: Norm | None = None  # these wait for the next convolution
        self._activation: Activation | None = None

    def add(self, step: Step) -> None:
        """Extend the layers by a step."""
        if isinstance(step, Convolution):
            self._expect(step, step.matrix.shape[1] * step.groups)
            self._put(step)
        elif isinstance(step, Norm):
            self._expect(step, len(step.centre))
            if self._last is not None:
                self._last = _normed(self._last, step)
            elif self._norm is not None and self._activation is None:
                self._norm = step.after(self._norm)
            else:
                self.flush()
                self._norm = step
                self._channels = len(step.centre)
        elif self._last is not None:
            self._close(step.activation)
        else:
            if self._activation is not None:
                self.flush()
            self._activation = step

    def flush(self) -> None:
        """Close the last layer, and make a layer of the norm and activation that wait."""
        activation = self._activation
        if self._norm is not None or activation is not None:
            place = (self._norm or activation).place  # type: ignore[union-attr]  # one of them is there
            if self._channels is None:
                raise ValueError(f"{place} must follow what tells the number of channels, got an activation alone")
            count, self._activation = self._channels, None
            self._put(Convolution(place, np.ones((count, 1)), np.zeros(count), "", count, 1))
            self._close(None if activation is None else activation.activation)
        elif self._last is not None:
            self._close(None)

    def _expect(self, step: Convolution | Norm, channels: int) -> None:
        if self._channels not in (None, channels):
            raise ValueError(f"{step.place} must take the {self._channels} channels before it, got {channels}")

    def _put(self, step: Convolution) -> None:
        """Begin a layer with what waits in front of a convolution."""
        if self._last is not None:
            self._close(None)
        if self.layers and step.stride != 1:
            raise ValueError(f"{step.place} must have no stride, which only the first layer has, got {step.stride}")
        norm, activation = self._norm, self._activation
        self._norm = self._activation = None
        self._channels = len(step.matrix)
        self._front = {} if activation is None else {"input_activation": activation.activation}
        if norm is not None and activation is not None:
            scale = norm.scale.astype(np.float32)
            self._front |= {"input_scale": scale, "input_shift": (norm.shift - scale * norm.centre).astype(np.float32)}
        elif norm is not None:
            centre = norm.centre.astype(np.float32)
            rest = norm.shift + norm.scale * (centre - norm.centre)  # of what float32 cannot hold of the centre too
            weights = step.matrix.reshape(step.groups, -1, step.matrix.shape[1])
            bias = step.bias + (weights @ rest.reshape(step.groups, -1, 1)).reshape(-1)
            weights = weights * norm.scale.reshape(step.groups, 1, -1)
            step = step._replace(matrix=weights.reshape(step.matrix.shape), bias=bias)
            if centre.any():
                self._front["input_shift"] = -centre
        self._last = step

    def _close(self, activation: ActivationLike) -> None:
        """End the last layer by an activation."""
        step = self._last
        assert step is not None
        self.layers.append(
            {
                "weight": step.matrix.astype(np.float32),
                "bias": step.bias.astype(np.float32) if step.bias.any() else None,
                "groups": step.groups,
                "stride": step.stride,
                "activation": activation,
                **self._front,
            }
        )
        self._last = None


def _normed(step: Convolution, norm: Norm) -> Convolution:
    """Return a convolution with a norm behind it."""
    bias = norm.scale * (step.bias - norm.centre) + norm.shift
    return step._replace(matrix=norm.scale[:, np.newaxis] * step.matrix, bias=bias)
