"""Suppresses non-maximal boxes of a whole batch on a GPU without making the host wait.

The same boxes as ``postprocess.non_max_suppression`` with ``multi_label``, computed with shapes that the host knows: it
needs the number of candidates of each image, and nothing else, from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.boxes import xyxy_from_cxcywh
from trainer.model.postprocess import MAX_CANDIDATES

_BLOCK_PAIRS = 32 * 1024**2
"""Pairs of boxes that are compared at once, over all images: 270 MB a temporary tensor of float64."""
_LARGEST_BLOCK = 1024
_ROUNDS = 16
"""Rounds of one block: as many as a chain of boxes, each suppressing the next, may have links."""

# B = images, N = predictions, C = classes, P = candidates of an image in one block, K = boxes kept of an image


class BatchDetections(NamedTuple):
    """The boxes kept of each image, on the device."""

    rows: Tensor
    """float32 (B, K, 6): x1, y1, x2, y2, score, class, by falling score; rows past ``counts`` mean nothing."""
    counts: Tensor
    """int64 (B,): number of boxes of each image."""
    settled: Tensor
    """bool (B,): False where a longer chain of overlapping boxes than ``_ROUNDS`` may have left one out."""


def candidate_mask(predictions: Tensor, confidence_threshold: float) -> tuple[Tensor, Tensor]:
    """Returns which class of which prediction is a candidate, bool (B, N, C), and the number per image, int64 (B,).

    ``predictions``: (B, N, 5 + C), as ``non_max_suppression`` takes them.
    """
    objectness = predictions[:, :, 4:5].float()
    mask = (objectness * predictions[:, :, 5:].float() > confidence_threshold) & (objectness > confidence_threshold)
    return mask, mask.flatten(1).sum(dim=1)


def suppress_batch(
    predictions: Tensor,
    mask: Tensor,
    counts: Tensor,
    host_counts: Sequence[int],
    *,
    iou_threshold: float,
    max_detections: int,
) -> BatchDetections:
    """Suppresses greedily per image, best score first; see ``non_max_suppression``.

    ``mask`` and ``counts`` are those of ``candidate_mask``; ``host_counts`` has the same numbers on the host.
    """
    kept = _Kept(predictions, max_detections)
    total, largest = sum(host_counts), min(max(host_counts, default=0), MAX_CANDIDATES)
    if not total:
        return kept.detections()
    rows = _sorted_candidates(predictions, mask, total)
    starts = counts.cumsum(0) - counts
    size = _LARGEST_BLOCK
    while len(predictions) * size**2 > _BLOCK_PAIRS and size > 64:
        size //= 2
    for first in range(0, largest, size):
        rank = torch.arange(first, min(first + size, largest), device=predictions.device)
        block = rows[(starts[:, None] + rank).clamp(max=total - 1)]
        kept.add(block, rank < counts[:, None], iou_threshold)
    return kept.detections()


def _sorted_candidates(predictions: Tensor, mask: Tensor, total: int) -> Tensor:
    """Returns all candidates, (total, 6) as in ``BatchDetections``, by image, then score, then their order."""
    num_rows, num_classes = mask.shape[1:]
    # The place of the k-th candidate is the first at which k were counted: unlike nonzero, without a wait.
    counted = mask.flatten().cumsum(0, dtype=torch.int32)
    ordinal = torch.arange(1, total + 1, dtype=torch.int32, device=mask.device)
    place = torch.searchsorted(counted, ordinal)
    image, row = place // (num_rows * num_classes), place // num_classes % num_rows
    label = place % num_classes
    score = predictions[image, row, 4].float() * predictions[image, row, 5 + label].float()
    order = score.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    boxes = xyxy_from_cxcywh(predictions[image[order], row[order], :4].float())
    return torch.cat((boxes, score[order, None], label[order, None].float()), dim=1)


class _Kept:
    """The boxes kept so far: a later candidate is compared with these, and with the better ones of its block."""

    def __init__(self, predictions: Tensor, max_detections: int) -> None:
        images = len(predictions)
        # One place more: whatever is not kept is written there.
        self._rows = predictions.new_zeros((images, max_detections + 1, 6), dtype=torch.float32)
        self._counts = predictions.new_zeros(images, dtype=torch.int64)
        self._settled = predictions.new_ones(images, dtype=torch.bool)
        self._limit = max_detections

    def add(self, block: Tensor, is_candidate: Tensor, iou_threshold: float) -> None:
        """Adds what is kept of the next candidates, ``block`` (B, P, 6), where ``is_candidate`` (B, P)."""
        earlier = self._rows[:, : self._limit]
        is_kept = torch.arange(self._limit, device=block.device) < self._counts[:, None]
        beaten = (_suppresses(earlier, block, iou_threshold) & is_kept[:, :, None]).any(dim=1)
        free = is_candidate & ~beaten
        keep, settled = _greedy(_suppresses(block, block, iou_threshold).triu_(1), free)
        self._settled &= settled
        rank = self._counts[:, None] + keep.cumsum(dim=1) - 1
        place = torch.where(keep & (rank < self._limit), rank, self._limit)
        self._rows.scatter_(1, place[:, :, None].expand(-1, -1, 6), block)
        self._counts = (self._counts + keep.sum(dim=1)).clamp(max=self._limit)

    def detections(self) -> BatchDetections:
        """Returns the boxes kept."""
        return BatchDetections(self._rows[:, : self._limit], self._counts, self._settled)


def _suppresses(better: Tensor, worse: Tensor, iou_threshold: float) -> Tensor:
    """Returns which of the better boxes (B, M, 6) suppress which of the worse (B, P, 6): bool (B, M, P).

    In float64, as ``non_max_suppression`` computes it.
    """
    left1, top1, right1, bottom1 = better[:, :, :4].double().unsqueeze(2).unbind(3)
    left2, top2, right2, bottom2 = worse[:, :, :4].double().unsqueeze(1).unbind(3)
    overlap = torch.minimum(right1, right2).sub_(torch.maximum(left1, left2)).clamp_(min=0)
    overlap *= torch.minimum(bottom1, bottom2).sub_(torch.maximum(top1, top2)).clamp_(min=0)
    area1, area2 = (right1 - left1) * (bottom1 - top1), (right2 - left2) * (bottom2 - top2)
    overlap /= area1 + area2 - overlap
    return (overlap > iou_threshold) & (better[:, :, None, 5] == worse[:, None, :, 5])


def _greedy(suppresses: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which candidates greedy suppression keeps, bool (B, P), and in which images that is certain, bool (B,).

    ``suppresses`` (B, P, P): whether one would suppress a later one. A candidate is kept unless one that is kept
    suppresses it; there is one such choice, and a round that changes nothing has found it.
    """
    # Products of matrices need no temporary tensor of their size, unlike any().
    pairs = suppresses.to(torch.float16 if suppresses.is_cuda else torch.float32)
    keep = before = free
    for _ in range(_ROUNDS):
        before = keep
        keep = free & (torch.bmm(keep[:, None].to(pairs.dtype), pairs)[:, 0] == 0)
    return keep, (keep == before).all(dim=1)
