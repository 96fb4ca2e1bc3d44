"""Turns values of a foreign file into plain data, as YAML and JSON have."""

from __future__ import annotations

import math
from typing import Any

from trainer.weights.foreign.allowed_globals import PlaceholderObject, Symbol
from trainer.weights.foreign.numpy_values import NumpyArray

_MAX_ITEMS = 200_000
_MAX_DEPTH = 12


def plain_value(value: Any, max_items: int = _MAX_ITEMS) -> Any:
    """Copies numbers, texts, lists and dictionaries with text as keys; other values become None.

    Raises ValueError if the value is nested too deeply or has more than ``max_items`` items.
    """
    return _copy(value, [max_items], 0)


def _copy(value: Any, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH:
        raise ValueError("nested without end")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _copy(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item, budget, depth + 1) for item in value]
    if isinstance(value, PlaceholderObject) and value.path == "argparse.Namespace":
        return _copy(value.state, budget, depth + 1)
    if isinstance(value, NumpyArray):
        return _copy(value.values[0] if len(value.values) == 1 else value.values, budget, depth + 1)
    return value.path if isinstance(value, Symbol) else None
