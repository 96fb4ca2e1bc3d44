"""Matches detections to labels: a detection takes one label, and a label keeps one detection."""

from __future__ import annotations

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's ten thresholds."""

# n = detections, m = labels, T = thresholds


def pairwise_iou_numpy(boxes1_xyxy: np.ndarray, boxes2_xyxy: np.ndarray) -> np.ndarray:
    """Returns the IoU of every box of the first set, (n, 4), with every box of the second, (m, 4): (n, m).

    Pairs without any area have IoU 0. The arithmetic is in float64, so that a pair at a threshold falls on the same
    side in every order and batch.
    """
    left1, top1, right1, bottom1 = boxes1_xyxy.T.astype(np.float64)[:, :, None]
    left2, top2, right2, bottom2 = boxes2_xyxy.T.astype(np.float64, order="C")[:, None]
    intersection = np.maximum(np.minimum(right1, right2) - np.maximum(left1, left2), 0)
    intersection *= np.maximum(np.minimum(bottom1, bottom2) - np.maximum(top1, top2), 0)
    union = (right1 - left1) * (bottom1 - top1) + (right2 - left2) * (bottom2 - top2) - intersection
    union[union <= 0] = 1
    return intersection / union


def match_detections(detections: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Returns which detections of one image are correct at which IoU threshold: bool (n, T).

    A detection takes the label of its own class that it overlaps most, if their IoU reaches the threshold; of the
    detections that take one label the most confident is correct, the others are duplicates.
    ``detections``: (n, 6) xyxy, confidence, class, in any order; of equally confident ones the first wins.
    ``labels``: (m, 5) class, xyxy. ``thresholds``: (T,), above 0 and ascending. Source: YOLOv5's validation,
    which differs from COCO's: there, a detection whose best label is taken may fall back to its second best.
    """
    correct = np.zeros((len(detections), len(thresholds)), dtype=bool)
    if not len(detections) or not len(labels):
        return correct
    same_class = labels[:, 0, None] == detections[:, 5]
    rows = same_class.any(axis=0).nonzero()[0]
    iou = pairwise_iou_numpy(labels[:, 1:5], detections[rows, :4]) * same_class[:, rows]
    taken = iou.argmax(axis=0)
    reached = thresholds.searchsorted(iou[taken, np.arange(len(rows))], side="right")  # how many, 0 to T

    order = reached.nonzero()[0]
    # By label, then by falling confidence.
    order = order[np.lexsort((-detections[rows[order], 4], taken[order]))]
    rows, taken, reached = rows[order], taken[order], reached[order]
    # A detection is correct at the thresholds that it reaches and that no more confident one of its label reaches.
    # The running maximum of label * (T + 1) + reached starts anew with every label.
    base = taken * (len(thresholds) + 1)
    running = np.maximum.accumulate(base + reached)
    before = np.zeros_like(running)
    before[1:] = np.maximum(running[:-1] - base[1:], 0)
    index = np.arange(len(thresholds))
    correct[rows] = (before[:, None] <= index) & (index < reached[:, None])
    return correct
