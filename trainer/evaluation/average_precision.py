"""Computes precision, recall, F1 and average precision per class from detections marked as correct or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONFIDENCE_POINTS = np.linspace(0, 1, 1000)
"""Confidences at which the curves are sampled."""
RECALL_POINTS = np.linspace(0, 1, 101)
"""Recalls at which precision is read for the average, the 101 of COCO."""

_SMOOTHING = 0.1
"""Width of the filter that smooths the mean F1 before the search for its maximum, as a share of the grid."""
_EPS = 1e-16

# N = detections, n = detections of one class, T = thresholds, K = classes that have labels, P = points of a grid


@dataclass(frozen=True)
class ApResult:
    """Results of the K classes that have at least one label, by rising class index.

    A class without labels has no recall, so its detections count nowhere. A class with labels and without detections
    has value 0 in every array. Without any label every array is empty.
    """

    classes: np.ndarray
    """(K,) int64 class indices."""
    label_counts: np.ndarray
    """(K,) int64."""
    precision: np.ndarray
    """(K,) at ``confidence``, first threshold."""
    recall: np.ndarray
    """(K,) at ``confidence``, first threshold."""
    f1: np.ndarray
    """(K,) at ``confidence``, first threshold."""
    confidence: float
    """Confidence at which the smoothed mean of the classes' F1 is highest."""
    ap: np.ndarray
    """(K, T)."""
    precision_curve: np.ndarray
    """(K, 1000) over ``CONFIDENCE_POINTS``, first threshold."""
    recall_curve: np.ndarray
    """(K, 1000) over ``CONFIDENCE_POINTS``, first threshold."""
    f1_curve: np.ndarray
    """(K, 1000) over ``CONFIDENCE_POINTS``, first threshold."""
    precision_at_recall: np.ndarray
    """(K, 101) over ``RECALL_POINTS``, first threshold: what ``ap`` averages."""

    @property
    def map50(self) -> float:
        """Mean over classes of the AP at the first threshold; 0 without classes."""
        return float(self.ap[:, 0].mean()) if len(self.ap) else 0.0

    @property
    def map5095(self) -> float:
        """Mean over classes and thresholds of the AP; 0 without classes."""
        return float(self.ap.mean()) if len(self.ap) else 0.0


def average_precision(
    correct: np.ndarray,
    confidence: np.ndarray,
    detected_class: np.ndarray,
    label_class: np.ndarray,
    num_classes: int,
) -> ApResult:
    """Computes curves and average precision of every class that has labels.

    ``correct``: bool (N, T), all images one after another; ``confidence`` and ``detected_class``: (N,);
    ``label_class``: (M,). Equally confident detections keep their order, so the result depends on that order.
    """
    label_counts = np.bincount(label_class.astype(np.int64), minlength=num_classes)
    classes = label_counts.nonzero()[0]
    label_counts = label_counts[classes]

    detected_class = detected_class.astype(np.uint16)  # numpy sorts 16-bit numbers by radix if the sort is stable
    by_class = np.argsort(detected_class, kind="stable")
    bounds = np.bincount(detected_class, minlength=num_classes).cumsum()

    any_correct = np.asarray(correct.any(axis=1))

    ap = np.zeros((len(classes), correct.shape[1]))
    at_recall = np.zeros((len(classes), len(RECALL_POINTS)))
    precision, recall = np.zeros((2, len(classes), len(CONFIDENCE_POINTS)))
    for i, class_index in enumerate(classes):
        rows = by_class[bounds[class_index - 1] if class_index else 0 : bounds[class_index]]
        if not len(rows):
            continue
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
        indices = any_correct[rows].nonzero()[0]
        found = correct[rows[indices]]
        points = _precision_at_recall(found, indices + 1, len(rows), label_counts[i])
        at_recall[i] = points[0]
        ap[i] = _trapezoid(points)
        precision[i], recall[i] = _curves(indices[found[:, 0]], confidence[rows], label_counts[i])

    f1 = 2 * precision * recall / (precision + recall + _EPS)
    best = int(_smooth(f1.mean(axis=0)).argmax()) if len(classes) else 0
    return ApResult(
        classes=classes,
        label_counts=label_counts,
        precision=precision[:, best],
        recall=recall[:, best],
        f1=f1[:, best],
        confidence=float(CONFIDENCE_POINTS[best]),
        ap=ap,
        precision_curve=precision,
        recall_curve=recall,
        f1_curve=f1,
        precision_at_recall=at_recall,
    )


def _precision_at_recall(correct: np.ndarray, ranks: np.ndarray, num_detections: int, num_labels: int) -> np.ndarray:
    """Returns the falling envelope of one class's precision at ``RECALL_POINTS``: (T, P).

    ``correct``: (k, T) of the detections that are correct at any threshold. ``ranks``: (k,) ranks of these detections
    by falling confidence, from 1, among all ``num_detections``.

    Recall rises at true positives only and the envelope is flat between them, so the envelope is computed at true
    positives only: the k-th of them stands for recalls from (k - 1) / labels on. Behind the last true positive the
    precision falls linearly from its final value to 0 at recall 1, as if no further detection were correct.
    """
    num_thresholds = correct.shape[1]
    threshold, row = correct.T.nonzero()
    counts = np.bincount(threshold, minlength=num_thresholds)
    nth = np.arange(len(row)) - (counts.cumsum() - counts)[threshold]
    # The last column stands for recalls that no detection reaches.
    envelope = np.zeros((num_thresholds, counts.max() + 1))
    envelope[threshold, nth] = (nth + 1) / ranks[row]
    envelope = np.maximum.accumulate(envelope[:, ::-1], axis=1)[:, ::-1]

    recalls = np.arange(1, counts.max() + 1) / num_labels
    reached = np.searchsorted(recalls, RECALL_POINTS, side="right")
    points = envelope[:, reached]
    last_recall = (counts / num_labels)[:, None]
    last_precision = (counts / num_detections)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        line = last_precision * (1 - RECALL_POINTS) / (1 - last_recall)
    return np.where(last_recall > RECALL_POINTS, points, np.nan_to_num(line))


def _trapezoid(points: np.ndarray) -> np.ndarray:
    """Returns the area under (T, P) values over ``RECALL_POINTS``: (T,)."""
    return ((points[:, 1:] + points[:, :-1]) / 2 * np.diff(RECALL_POINTS)).sum(axis=1)


def _curves(indices: np.ndarray, confidence: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns precision and recall over ``CONFIDENCE_POINTS`` of one class, whose ``confidence`` (n,) falls.

    ``indices``: those of the true positives. Both curves are linear between detections; above the most confident
    detection recall is 0 and precision 1.
    """
    found = np.zeros(len(confidence))
    found[indices] = 1
    found = found.cumsum()
    rising, points = -confidence, -CONFIDENCE_POINTS
    precision = np.interp(points, rising, found / np.arange(1, len(found) + 1), left=1)
    recall = np.interp(points, rising, found / num_labels, left=0)
    return precision, recall


def _smooth(values: np.ndarray) -> np.ndarray:
    """Filters the values by a box of ``_SMOOTHING`` of their number; beyond the ends the end values are repeated."""
    width = round(len(values) * _SMOOTHING * 2) // 2 + 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
