"""Turns numpy numbers and arrays, as a pickle describes them, into plain Python numbers; unpickles no numpy class."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from trainer.weights.foreign.pickle_interpreter import PickleError

_CODE = re.compile(r"[fiub][1248]")


class NumpyType:
    """A numpy dtype of plain numbers."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    def set_order(self, order: Any) -> None:
        """Sets the byte order, which a pickle has after the type. Raises PickleError for an unknown order."""
        if order not in ("<", ">", "|", "="):
            raise PickleError("a numpy type with an unknown byte order")
        self.order = order

    def numbers(self, data: Any) -> list[Any]:
        """Returns the numbers in ``data``. Raises PickleError unless ``data`` are bytes."""
        if type(data) is not bytes:
            raise PickleError("numpy numbers that are not bytes")
        return np.frombuffer(data, dtype=np.dtype(self.order + self.code)).tolist()


class NumpyArray:
    """A numpy array as a flat list of numbers; empty until its state is set."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list[Any] = []

    def set_state(self, state: Any) -> int:
        """Takes (version, shape, type, order, bytes) and returns the number of values."""
        _, _, kind, _, data = state
        self.values = _numpy_type(kind).numbers(data)
        return len(self.values)


def new_numpy_type(code: Any, *_: Any) -> NumpyType:
    """Does what ``numpy.dtype(code, ...)`` does for plain numbers. Raises PickleError for every other type."""
    if type(code) is not str or not _CODE.fullmatch(code):
        raise PickleError("a numpy type that is no plain number")
    return NumpyType(code)


def numpy_scalar(kind: Any, data: Any) -> Any:
    """Returns the number of a type in ``data``. Raises PickleError unless it is one number."""
    numbers = _numpy_type(kind).numbers(data)
    if len(numbers) != 1:
        raise PickleError("a numpy scalar that is not one number")
    return numbers[0]


def _numpy_type(kind: Any) -> NumpyType:
    if not isinstance(kind, NumpyType):
        raise PickleError("a numpy value without its type")
    return kind
