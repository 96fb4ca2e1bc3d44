"""The detection loss: box, objectness and class terms, weighted, and normalized by global counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.loss.assign import LevelMatches, match_targets
from trainer.loss.terms import box_term, classification_term, objectness_term

# B = images, A = anchors of a level, C = classes, m = matches of one level, M = matches of all levels

_BALANCE_OF_THREE = (4.0, 1.0, 0.4)
_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
"""Weight of each level's objectness, finest level first: fine levels have many cells and few objects."""


@dataclass(frozen=True, kw_only=True)
class LossGains:
    """The weights and constants of the loss, final: nothing rescales them afterwards."""

    box: float
    obj: float
    cls: float
    obj_pos_weight: float = 1.0
    cls_pos_weight: float = 1.0
    focal_gamma: float = 0.0
    """0 turns the focal modulation off."""
    label_smoothing: float = 0.0
    anchor_threshold: float = 4.0
    """A target and an anchor match when no side's ratio, either way, reaches this."""


@dataclass(frozen=True)
class LossTerms:
    """A rank's share of the loss; the shares of all ranks add up to the value of one rank with every image."""

    total: Tensor
    """Scalar to call ``backward`` on: (box + obj + cls) times the global number of images."""
    items: Tensor
    """(3,), detached: box, obj and cls after gains."""


def scaled_gains(
    *,
    box: float,
    obj: float,
    cls: float,
    num_classes: int,
    image_size: int,
    num_levels: int,
    obj_pos_weight: float = 1.0,
    cls_pos_weight: float = 1.0,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
    anchor_threshold: float = 4.0,
) -> LossGains:
    """Fit gains that were tuned for COCO (80 classes, 640 pixels, 3 levels) to another model.

    box 3 / levels; cls classes / 80 3 / levels; obj (image_size / 640)^2 3 / levels, as YOLOv5 scales them.
    """
    per_level = 3 / num_levels
    return LossGains(
        box=box * per_level,
        obj=obj * (image_size / 640) ** 2 * per_level,
        cls=cls * num_classes / 80 * per_level,
        obj_pos_weight=obj_pos_weight,
        cls_pos_weight=cls_pos_weight,
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
        anchor_threshold=anchor_threshold,
    )


class DetectionLoss:
    """The loss of raw predictions, in three steps so that ranks can add up their counts before the forward.

    ``match`` assigns targets, ``counts`` says what a rank contributes, and calling it with the global counts
    gives this rank's share. Nothing on that path waits for the device when targets are matched on the CPU.
    """

    def __init__(
        self, anchors: Tensor, num_classes: int, gains: LossGains, balance: Sequence[float] | None = None
    ) -> None:
        """``anchors``: (levels, A, 2) in grid units. ``balance``: objectness weight per level, finest first."""
        default = _BALANCE_OF_THREE if len(anchors) == 3 else _BALANCE[: len(anchors)]
        self.anchors = anchors.detach().cpu().clone()
        self.num_classes = num_classes
        self.gains = gains
        self.balance = tuple(balance) if balance is not None else default
        if len(self.balance) != len(anchors):
            raise ValueError(f"balance has {len(self.balance)} weights for {len(anchors)} levels")

    def match(
        self,
        targets: Tensor,
        grid_sizes: Sequence[tuple[int, int]],
        device: torch.device | str | None = None,
    ) -> list[LevelMatches]:
        """Assign ``targets`` (T, 6), best still on the CPU, and put the result on ``device``."""
        return match_targets(targets, self.anchors, grid_sizes, self.gains.anchor_threshold, device=device)

    def counts(self, matches: Sequence[LevelMatches], num_images: int) -> Tensor:
        """Matches per level, then images: float64 (levels + 1,) on the CPU, where all of it is known.

        Their sum over ranks, or over the micro batches of a step, is what calling the loss needs.
        """
        return torch.tensor([*map(len, matches), num_images], dtype=torch.float64)

    def __call__(self, predictions: Sequence[Tensor], matches: Sequence[LevelMatches], counts: Tensor) -> LossTerms:
        """This rank's share of the loss.

        ``predictions``: raw (B, A, rows, columns, 5 + C) per level; half precision is computed in float32.
        ``counts``: as from ``counts``, summed over everything that one optimizer step sees.
        """
        taken = [_TakeMatches.apply(level, found) for level, found in zip(predictions, matches, strict=True)]
        rows = torch.cat([matched for matched, _ in taken])
        # A level that nobody has matches on divides an empty sum; 1 keeps that sum 0.
        divisors = counts.to(rows.device, non_blocking=True).clamp(min=1)
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
        """The mean over the cells of all images, per level, weighted by ``balance`` and summed."""
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
        """The class term after its gain; with one class there is nothing to tell apart."""
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
    """The matched rows (m, 5 + C) and all objectness logits (B, A, rows, columns) of one level, in float32.

    Autograd's own indexing would fill one zero tensor of the predictions' size per part and add them, and
    would sum colliding rows in an order that changes from run to run. This fills one, in the predictions'
    layout, and sums collisions in a fixed order (on CUDA when deterministic algorithms are asked for).
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
