"""Suppresses non-maximal boxes: decoded predictions to at most ``max_detections`` boxes per image.

There is no time limit: the same predictions give the same boxes however busy the machine is.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from trainer.boxes import xyxy_from_cxcywh
from trainer.protocol import MAX_DETECTIONS

MAX_CANDIDATES = 30_000
"""Largest number of candidates per image that take part, the best by score."""

_FIRST_PREFIX = 1_024
_PREFIX_GROWTH = 4

Nms = Callable[[Tensor, Tensor, float], Tensor]
"""Takes boxes (n, 4) as xyxy, scores (n,) and an IoU; returns the indices of the boxes kept, best score first."""


def non_max_suppression(
    predictions: Tensor,
    *,
    confidence_threshold: float,
    iou_threshold: float,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_detections: int = MAX_DETECTIONS,
) -> list[Tensor]:
    """Suppresses greedily per image, best score first, equal scores in the order of the predictions.

    ``predictions`` (B, N, 5 + classes) are cx, cy, w, h in pixels, objectness and class scores. A score is objectness
    times class score; objectness and score must lie strictly above ``confidence_threshold``. With ``multi_label`` a
    prediction counts for every such class, otherwise for its best class. ``classes``: the classes to keep, None for
    all. A box is removed if its IoU with a better box of its class (of any class if ``agnostic``) is above
    ``iou_threshold``.

    Returns per image (k, 6): x1, y1, x2, y2, score, class, by falling score.
    """
    results = []
    for image_predictions in predictions.detach():
        rows, scores, labels = _candidates(image_predictions, confidence_threshold, classes, multi_label)
        results.append(_suppress(image_predictions, rows, scores, labels, iou_threshold, agnostic, max_detections))
    return results


@cache
def nms_operator() -> Nms:
    """Returns torchvision's compiled suppression. Raises ImportError without torchvision.

    Its library is loaded alone where that is possible: the package imports its models and torch's compiler too, 2 s.
    """
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        for library in sorted(path for suffix in ("so", "pyd") for path in Path(folder).glob(f"_C*.{suffix}")):
            with contextlib.suppress(OSError):  # made for another torch: the package says so itself
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    if hasattr(torch.ops.torchvision, "nms"):
        operator: Nms = torch.ops.torchvision.nms
        return operator
    from torchvision.ops import nms

    whole: Nms = nms
    return whole


def _candidates(
    predictions: Tensor, threshold: float, classes: Sequence[int] | None, multi_label: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns row in ``predictions`` (N, 5 + classes), score and class of every candidate, by row, then by class."""
    rows = (predictions[:, 4] > threshold).nonzero().flatten()
    confident = predictions[rows, 4:].float()
    scores = confident[:, 1:] * confident[:, :1]
    every_class = torch.arange(scores.shape[1], device=scores.device)
    wanted = every_class >= 0 if classes is None else torch.isin(every_class, every_class.new_tensor(list(classes)))
    if multi_label:
        position, labels = ((scores > threshold) & wanted).nonzero(as_tuple=True)
        return rows[position], scores[position, labels], labels
    best, labels = scores.max(dim=1)
    keep = (best > threshold) & wanted[labels]
    return rows[keep], best[keep], labels[keep]


def _suppress(
    predictions: Tensor,
    rows: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    agnostic: bool,
    max_detections: int,
) -> Tensor:
    """Returns the best ``max_detections`` kept boxes of one image's candidates, (k, 6).

    A candidate is suppressed only by a better one. So the boxes kept among the best 1,024 candidates are the first
    kept of all, and the other candidates are examined only if these boxes are too few.
    """
    nms = nms_operator()
    limit = min(len(rows), MAX_CANDIDATES)
    prefix = max(_FIRST_PREFIX, 2 * max_detections)
    while True:
        order = _best_first(scores, min(prefix, limit))
        boxes = xyxy_from_cxcywh(predictions[rows[order], :4].float())
        apart = boxes if agnostic else _kept_apart(boxes, labels[order])
        kept = nms(apart, scores[order].to(apart.dtype), iou_threshold)[:max_detections]
        if len(kept) == max_detections or prefix >= limit:
            break
        prefix *= _PREFIX_GROWTH
    chosen = order[kept]
    return torch.cat((boxes[kept], scores[chosen, None], labels[chosen, None].float()), dim=1)


def _best_first(scores: Tensor, count: int) -> Tensor:
    """Returns indices of the ``count`` highest scores, falling, equal scores in their order (unlike ``topk``)."""
    if count == len(scores):
        return scores.argsort(descending=True, stable=True)
    lowest = scores.topk(count, sorted=False).values.min()
    chosen = (scores >= lowest).nonzero().flatten()
    return chosen[scores[chosen].argsort(descending=True, stable=True)][:count]


def _kept_apart(boxes_xyxy: Tensor, labels: Tensor) -> Tensor:
    """Moves the boxes so that boxes of different classes cannot overlap; float64 keeps their shapes exact."""
    if len(boxes_xyxy) == 0:
        return boxes_xyxy
    boxes = boxes_xyxy.double() if boxes_xyxy.device.type != "mps" else boxes_xyxy
    return boxes + (labels * (boxes.max() - boxes.min() + 1)).unsqueeze(1)
