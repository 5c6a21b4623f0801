"""Checks of single values: integers, real numbers, strings and choices.

Each function returns the value in a plain Python type, or raises TypeError or ValueError with the argument's name.
"""

import numbers
import operator
from typing import Any

import numpy as np

LARGEST_INT = 2**30 - 1  # limit of counts and strides: a C int holds twice this number


def positive_int(value: Any, name: str) -> int:
    """Return an integer from 1 to `LARGEST_INT`."""
    return integer(value, name, 1, LARGEST_INT)


def integer(value: Any, name: str, low: int, high: int) -> int:
    """Return an integer from `low` to `high`; a bool is refused."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {type_name(value)}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type_name(value)}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {number}")
    return number


def real(value: Any, name: str) -> float:
    """Return a real number as a float; a bool is refused."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type_name(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got an integer beyond it") from None


def as_str(value: Any, name: str) -> str:
    """Return a string; an instance of a subclass becomes a plain str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type_name(value)}")
    return str(value)


def choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return a string that is one of `choices`."""
    chosen = as_str(value, name)
    if chosen not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {chosen!r}")
    return chosen


def type_name(value: Any) -> str:
    """Return the name of a value's type, for error messages."""
    return type(value).__name__
