"""Holds the exponential moving average of a model's weights and buffers."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn


class ModelEma:
    """A copy of the model in eval mode whose floating entries are averages of the trained ones.

    The decay after u updates is ``decay * (1 - exp(-u / tau))``: small at first, so that early weights soon leave the
    average. With a tau of 0 it is ``decay`` from the start, for a model whose first weights are worth keeping.
    """

    def __init__(self, model: nn.Module, decay: float, tau_updates: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.tau_updates = tau_updates
        self.updates = 0
        # Lists are made once: walking the modules costs more than the arithmetic.
        self._floats, self._others = _pairs(self.model, model)

    def decay_at(self, updates: int) -> float:
        """Returns the share of the old average that the given update keeps."""
        if self.tau_updates == 0:
            return self.decay
        return self.decay * (1 - math.exp(-updates / self.tau_updates))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average toward the model's current weights; entries that are not floating are copied."""
        self.updates += 1
        weight = 1 - self.decay_at(self.updates)
        averages, values = self._floats
        torch._foreach_lerp_(averages, values, weight)
        others, counted = self._others
        if others:
            torch._foreach_copy_(others, counted)  # one launch for the counters of all batch norms

    def buffers(self) -> list[Tensor]:
        """Returns the average's buffers, which differ between ranks until those of rank 0 are broadcast."""
        return list(self.model.buffers())

    def state_dict(self) -> dict[str, Any]:
        """Returns weights, buffers and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores in place what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])


def _pairs(average: nn.Module, model: nn.Module) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], ...]]:
    source = model.state_dict(keep_vars=True)
    floats: tuple[list[Tensor], list[Tensor]] = ([], [])
    others: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, tensor in average.state_dict().items():
        target = floats if tensor.dtype.is_floating_point else others
        target[0].append(tensor)
        target[1].append(source[name].detach())
    return floats, others
