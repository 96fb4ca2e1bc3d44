"""Keeps a foreign model definition from asking for more than the weights beside it fill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.model.definition import parse_rows

_MAX_LAYERS = 1_000
_MAX_ACTIVATION_TEXT = 200
_MAX_ANCHORS = 100
_MAX_ENLARGEMENT = 4
_SPARE_ELEMENTS = 4 * 2**20
"""Elements that building may allocate beyond the weights, for the image of zeros that checks the layers."""


class _TooLargeError(RuntimeError):
    """A definition that needs more memory than its weights justify."""


class ElementLimit(TorchFunctionMode):
    """Stops the building of a model from a foreign definition that needs far more memory than its weights.

    Raises _TooLargeError.
    """

    def __init__(self, num_elements: int) -> None:
        super().__init__()
        self._largest = self._left = num_elements * 5 // 4 + _SPARE_ELEMENTS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.ones):
            sides = args[0] if args and isinstance(args[0], (tuple, list)) else args
            self._left -= math.prod(sides)
            if self._left < 0:
                raise _TooLargeError("it is larger than its weights")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() > self._largest:
            raise _TooLargeError("one of its layers enlarges the image without end")
        return result


def check_extent(definition: Mapping[str, Any], num_tensors: int) -> None:
    """Raises ValueError for a definition whose building would take too long or exhaust the stack."""
    # Parsing an endless expression can exhaust the interpreter's stack.
    if len(str(definition.get("activation", ""))) > _MAX_ACTIVATION_TEXT:
        raise ValueError("an activation that is no short text")
    anchors = definition.get("anchors", 0)
    if isinstance(anchors, int) and anchors > _MAX_ANCHORS:
        raise ValueError(f"{anchors} anchors a level")
    rows = parse_rows(definition)
    # Each repeat of a block has tensors, so a definition has no more repeats than the file has tensors.
    if len(rows) > _MAX_LAYERS or sum(row.repeats - 1 for row in rows) > num_tensors:
        raise ValueError("it has more layers than tensors")
    for row in rows:
        numbers = [value for value in row.arguments if isinstance(value, (int, float))]
        if row.name in ("Upsample", "ZeroPad2d", "ZeroPad") and max(numbers, default=0) > _MAX_ENLARGEMENT:
            raise ValueError(f"layer {row.index} enlarges the image {max(numbers)} times")
