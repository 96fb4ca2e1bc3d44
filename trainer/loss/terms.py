"""Computes the three terms of the loss, one function each; a term is a sum, weighted by its caller."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainer.boxes import complete_iou

FOCAL_ALPHA = 0.25
"""Weight of the positive class if the focal loss is on; RetinaNet's value."""

# m = matches, C = classes


def box_term(rows: Tensor, boxes_cxcywh: Tensor, anchors_wh: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum of 1 - CIoU, and the CIoU of each match, detached and at least 0.

    ``rows``: (m, 4 or more) raw predictions. Boxes and anchors: (m, 4) and (m, 2) in grid units, centers
    measured from the cell. ``weights``: (m,). Decoding: xy = 2 sigmoid - 0.5, wh = (2 sigmoid)^2 anchor.
    """
    spread = rows[:, :4].sigmoid() * 2
    predicted = torch.cat((spread[:, :2] - 0.5, spread[:, 2:] ** 2 * anchors_wh), dim=1)
    iou = complete_iou(predicted, boxes_cxcywh)
    return ((1 - iou) * weights).sum(), iou.detach().clamp(min=0)


def objectness_term(logits: Tensor, targets: Tensor, *, pos_weight: float, focal_gamma: float) -> Tensor:
    """Returns the sum over all cells of the cross entropy of ``logits`` with soft ``targets``, both of one shape."""
    return _cross_entropy(logits, targets, pos_weight, focal_gamma).sum()


def classification_term(
    logits: Tensor,
    class_index: Tensor,
    weights: Tensor,
    *,
    pos_weight: float,
    focal_gamma: float,
    label_smoothing: float,
) -> Tensor:
    """Returns the weighted sum over matches of the mean cross entropy over classes, which do not exclude each other.

    ``logits``: (m, C). ``class_index`` and ``weights``: (m,). With smoothing s, positives are 1 - s / 2 and
    negatives s / 2.
    """
    targets = torch.full_like(logits, label_smoothing / 2)
    targets.scatter_(1, class_index[:, None], 1 - label_smoothing / 2)
    return (_cross_entropy(logits, targets, pos_weight, focal_gamma).mean(dim=1) * weights).sum()


def focal_modulation(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Returns the factors that the focal loss multiplies a cross entropy by, element for element.

    Lin et al., "Focal Loss for Dense Object Detection" (2017), equations 4 and 5, here for soft targets.
    """
    probability = logits.sigmoid()
    probability_of_target = targets * probability + (1 - targets) * (1 - probability)
    alpha = targets * FOCAL_ALPHA + (1 - targets) * (1 - FOCAL_ALPHA)
    return alpha * (1 - probability_of_target) ** gamma


def _cross_entropy(logits: Tensor, targets: Tensor, pos_weight: float, focal_gamma: float) -> Tensor:
    # Filled on the device: a number that is copied there makes the host wait.
    weight = None if pos_weight == 1 else logits.new_full((), pos_weight)
    loss = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")
    return loss * focal_modulation(logits, targets, focal_gamma) if focal_gamma > 0 else loss
