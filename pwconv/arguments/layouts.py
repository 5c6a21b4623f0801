"""Layouts: strings that name each axis of a map by a letter.

C is the channel axis, N the batch axis (optional and first), every other letter a spatial axis. The named layouts
"channels_first" and "channels_last" fit any number of axes; they get their letters once the rank of `x` is known.
"""

import string
from typing import Any

from pwconv.scalars import as_str

MAX_AXES = 16
NAMED_LAYOUTS = ("channels_first", "channels_last")
# A named layout takes the last letters, so that four axes are N, C, H, W in some order. (Three are N, C, L.)
_SPATIAL_LETTERS = "PQRSTUVXYZADHW"


def parse_layout(value: Any) -> str:
    """Check a layout: one of the named layouts, or letters."""
    layout = as_str(value, "layout")
    letters_are_valid = (
        set(layout) <= set(string.ascii_uppercase)
        and len(set(layout)) == len(layout) <= MAX_AXES
        and "C" in layout
        and layout.find("N") <= 0
    )
    if layout not in NAMED_LAYOUTS and not letters_are_valid:
        raise ValueError(
            f"layout must name every axis of x (at most {MAX_AXES}) by a capital letter of its own (C once, N at most "
            f"once and first, the others spatial) or be 'channels_first' or 'channels_last', got {layout!r}"
        )
    return layout


def layout_letters(layout: str, ndim: int) -> str:
    """Return the letters of a layout for an `x` with `ndim` axes."""
    if layout in NAMED_LAYOUTS:
        if not 2 <= ndim <= MAX_AXES:
            raise ValueError(f"x must have 2 (batch, channels) to {MAX_AXES} axes for layout {layout!r}, got {ndim}")
        return named_layout(layout, "N", "L" if ndim == 3 else _SPATIAL_LETTERS[MAX_AXES - ndim :])
    if ndim != len(layout):
        lacks_batch = layout[0] == "N" and ndim == len(layout) - 1
        raise ValueError(
            f"x must have {len(layout)} axes for layout {layout!r}, got {ndim}"
            + f": a map without a batch axis has layout {layout[1:]!r}" * lacks_batch
        )
    return layout


def named_layout(name: str, batch: str, spatial: str) -> str:
    """Return the letters of a named layout with this batch letter ("N" or "") and these spatial letters."""
    return f"{batch}C{spatial}" if name == "channels_first" else f"{batch}{spatial}C"


def spatial_letters(layout: str) -> str:
    """Return the letters of a layout that are neither N nor C."""
    return "".join(letter for letter in layout if letter not in "NC")


def channel_axis(layout: str, shapes: tuple[tuple[int, ...], ...]) -> int:
    """Return the channel axis of maps that are joined along it; all other axes must agree."""
    axis = layout.index("C")
    for i, shape in enumerate(shapes):
        if len(shape) != len(layout) or without(axis, shape) != without(axis, shapes[0]):
            raise ValueError(
                f"x[{i}] must have the shape {shapes[0]} of x[0], but for axis {axis} of layout {layout!r}, got {shape}"
            )
    return axis


def without(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without one of its axes."""
    return shape[:axis] + shape[axis + 1 :]
