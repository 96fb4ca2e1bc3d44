"""Computes the detection loss: box, objectness and class terms, weighted, and normalized by global counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainer.loss.assign import LevelMatches, Matches, match_targets, to_device
from trainer.loss.terms import box_term, classification_term, objectness_term

# B = images, A = anchors of a level, C = classes, m = matches of one level, M = matches of all levels

_BALANCE_OF_THREE = (4.0, 1.0, 0.4)
_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
"""Weight of each level's objectness, finest level first: fine levels have many cells and few objects."""


@dataclass(frozen=True, kw_only=True)
class LossGains:
    """The weights and constants of the loss. ``DetectionLoss`` uses them as they are, without scaling."""

    box: float
    obj: float
    cls: float
    obj_pos_weight: float = 1.0
    cls_pos_weight: float = 1.0
    focal_gamma: float = 0.0
    """Exponent of the focal modulation; 0 turns the modulation off."""
    label_smoothing: float = 0.0
    anchor_threshold: float = 4.0
    """A target and an anchor match if the ratio of their widths and of their heights, either way, is below this."""


@dataclass(frozen=True)
class LossTerms:
    """A rank's share of the loss; the shares of all ranks add up to the value of one rank with every image."""

    total: Tensor
    """Scalar to call ``backward`` on: (box + obj + cls) times the global number of images."""
    items: Tensor
    """(3,), detached: box, obj and cls after gains."""


def scaled_gains(gains: LossGains, *, num_classes: int, image_size: int, num_levels: int) -> LossGains:
    """Scales box, obj and cls of ``gains`` tuned for COCO (80 classes, 640 pixels, 3 levels) to another model.

    Factors: box 3 / levels; cls classes / 80 * 3 / levels; obj (image_size / 640)^2 * 3 / levels, as in YOLOv5.
    """
    per_level = 3 / num_levels
    return replace(
        gains,
        box=gains.box * per_level,
        obj=gains.obj * (image_size / 640) ** 2 * per_level,
        cls=gains.cls * num_classes / 80 * per_level,
    )


class DetectionLoss:
    """The loss of raw predictions, in three steps so that ranks can sum their counts before the forward pass.

    ``match`` assigns targets, ``counts`` returns this rank's counts, and calling the loss with the global counts
    returns this rank's share. None of the steps waits for the device if targets are matched on the CPU.
    """

    def __init__(
        self, anchors: Tensor, num_classes: int, gains: LossGains, balance: Sequence[float] | None = None
    ) -> None:
        """Takes ``anchors``, (levels, A, 2) in grid units, and ``balance``, objectness weights, finest level first.

        Raises ValueError if ``balance`` has another number of levels than ``anchors``.
        """
        default = _BALANCE_OF_THREE if len(anchors) == 3 else _BALANCE[: len(anchors)]
        self.anchors = anchors.detach().cpu().clone()
        self.num_classes = num_classes
        self.gains = gains
        self.balance = tuple(balance) if balance is not None else default
        if len(self.balance) != len(anchors):
            raise ValueError(f"balance has {len(self.balance)} weights for {len(anchors)} levels")
        self._compiled_terms: Callable[..., LossTerms] | None = None

    def compile(self, backend: str = "inductor") -> None:
        """Makes calls that train use torch.compile's code; nothing is compiled before the first of them."""
        self._compiled_terms = torch.compile(self._terms, backend=backend, dynamic=True)

    def match(self, targets: Tensor, grid_sizes: Sequence[tuple[int, int]]) -> Matches:
        """Assigns ``targets`` (T, 6), preferably still on the CPU; the result lies where they do."""
        return match_targets(targets, self.anchors, grid_sizes, self.gains.anchor_threshold)

    def counts(self, matches: Matches, num_images: int) -> Tensor:
        """Returns the matches per level, then the images: float64 (levels + 1,) on the CPU, no device needed.

        Calling the loss takes the sum of these counts over ranks and over the micro batches of a step.
        """
        return torch.tensor([*matches.counts, num_images], dtype=torch.float64)

    def __call__(self, predictions: Sequence[Tensor], matches: Matches, counts: Tensor) -> LossTerms:
        """Returns this rank's share of the loss.

        ``predictions``: raw (B, A, rows, columns, 5 + C) per level; half precision is computed in float32.
        ``matches``: on the device of the predictions. ``counts``: as from ``counts``, summed over everything that one
        optimizer step sees.
        """
        # Code for any number of matches is no code for 0 or 1, which torch treats as constants: it would compile anew.
        is_usual = torch.is_grad_enabled() and min(map(len, matches)) > 1
        terms = self._compiled_terms if self._compiled_terms is not None and is_usual else self._terms
        # A level without matches on any rank has an empty sum; dividing the sum by 1 keeps it 0.
        divisors = to_device(counts, predictions[0].device).clamp(min=1)
        return terms(predictions, list(matches), divisors)

    def _terms(self, predictions: Sequence[Tensor], matches: Sequence[LevelMatches], divisors: Tensor) -> LossTerms:
        taken = [_TakeMatches.apply(level, found) for level, found in zip(predictions, matches, strict=True)]
        rows = torch.cat([matched for matched, _ in taken])
        weights = torch.cat([(1 / divisors[i]).expand(len(found)) for i, found in enumerate(matches)]).to(rows)
        boxes = torch.cat([found.boxes_cxcywh for found in matches]).to(rows)
        anchors = torch.cat([found.anchors_wh for found in matches]).to(rows)
        box, iou = box_term(rows, boxes, anchors, weights)

        logits = [objectness for _, objectness in taken]
        objectness = self._objectness(logits, iou, matches, divisors[-1])

        terms = [box * self.gains.box, objectness * self.gains.obj, self._classes(rows, matches, weights)]
        total = (terms[0] + terms[1] + terms[2]) * divisors[-1].to(rows)
        return LossTerms(total, torch.stack([term.detach() for term in terms]))

    def _objectness(
        self, logits: Sequence[Tensor], iou: Tensor, matches: Sequence[LevelMatches], num_images: Tensor
    ) -> Tensor:
        """Returns the mean over the cells of all images, per level, weighted by ``balance`` and summed."""
        loss = iou.new_zeros(())
        parts = zip(logits, iou.split([len(found) for found in matches]), matches, self.balance, strict=True)
        for level, level_iou, found, balance in parts:
            targets = torch.zeros_like(level)
            # Rows that share a cell all write the last one's value: the order of the writes cannot matter.
            targets[found.image, found.anchor, found.grid_y, found.grid_x] = level_iou[found.last_row]
            summed = objectness_term(
                level, targets, pos_weight=self.gains.obj_pos_weight, focal_gamma=self.gains.focal_gamma
            )
            loss = loss + summed * (balance / math.prod(level.shape[1:]))
        return loss / num_images.to(loss)

    def _classes(self, rows: Tensor, matches: Sequence[LevelMatches], weights: Tensor) -> Tensor:
        """Returns the class term after its gain; 0 if there is only one class, so no other to distinguish."""
        if self.num_classes == 1:
            return rows.new_zeros(())
        return self.gains.cls * classification_term(
            rows[:, 5:],
            torch.cat([found.class_index for found in matches]),
            weights,
            pos_weight=self.gains.cls_pos_weight,
            focal_gamma=self.gains.focal_gamma,
            label_smoothing=self.gains.label_smoothing,
        )


class _TakeMatches(torch.autograd.Function):
    """Takes the matched rows (m, 5 + C) and all objectness logits (B, A, rows, columns) of one level, in float32.

    Autograd's own indexing would fill one zero tensor of the predictions' size per part and add these tensors, and
    would sum colliding rows in an order that changes from run to run. This function fills one tensor, in the layout
    of the predictions, and sums collisions in a fixed order (on CUDA if deterministic algorithms are asked for).
    """

    @staticmethod
    def forward(ctx: Any, predictions: Tensor, matches: LevelMatches) -> tuple[Tensor, Tensor]:
        cells = (matches.image, matches.anchor, matches.grid_y, matches.grid_x)
        ctx.save_for_backward(predictions, matches.last_row, *cells)
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        return predictions[cells].to(dtype), predictions[..., 4].to(dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_objectness: Tensor) -> tuple[Tensor, None]:
        predictions, last_row, *cells = ctx.saved_tensors
        gradient = torch.zeros_like(predictions)
        summed = torch.zeros_like(grad_rows).index_add_(0, last_row, grad_rows)
        gradient[tuple(cells)] = summed[last_row].to(gradient.dtype)
        gradient[..., 4] = grad_objectness  # no term reads objectness from a matched row
        return gradient, None
