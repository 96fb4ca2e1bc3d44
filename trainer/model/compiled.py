"""Calls torch.compile's code for batches of one fixed shape, and the plain model for every other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FixedShapeCompiled(nn.Module):
    """A model whose training pass is compiled for one shape of batch.

    Everything else runs as it is: another shape (the last batch of an epoch, --multi-scale, --rect, an empty batch)
    would compile anew, which takes longer than it saves, and evaluation looks at the model itself.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int, int], backend: str = "inductor") -> None:
        """Takes the model and its ``shape`` (B, 3, height, width); nothing is compiled before the first such batch."""
        super().__init__()
        self.module = model
        self.shape = torch.Size(shape)
        self._compiled = torch.compile(model.forward, backend=backend, dynamic=False)

    def forward(self, images_bchw: Tensor) -> Sequence[Tensor]:
        """Returns the model's raw predictions, one tensor a level."""
        is_fixed = self.training and images_bchw.shape == self.shape
        output: Sequence[Tensor] = (self._compiled if is_fixed else self.module)(images_bchw)
        return output
