"""Counts which classes are detected as which, and as background."""

from __future__ import annotations

import numpy as np

from trainer.evaluation.matching import pairwise_iou_numpy
from trainer.protocol import PREDICT_CONFIDENCE, PREDICT_IOU


class ConfusionMatrix:
    """Counts of (detected class, labeled class), the last row and column being background.

    A label and a detection above ``confidence`` are matched, whatever their classes, if their IoU is above ``iou``,
    the label is the one that the detection overlaps most, and of such detections this one overlaps the label most.
    An unmatched label (missed) counts in the last row, an unmatched detection (a false positive) in the last column.
    Thresholds as in YOLOv5.
    """

    def __init__(self, num_classes: int, *, confidence: float = PREDICT_CONFIDENCE, iou: float = PREDICT_IOU) -> None:
        self.num_classes = num_classes
        self.confidence = confidence
        self.iou = iou
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
        """Rows are detected classes, columns labeled ones."""

    def add(self, detections: np.ndarray, labels: np.ndarray) -> None:
        """Counts one image. ``detections``: (n, 6) xyxy, confidence, class. ``labels``: (m, 5) class, xyxy."""
        detections = detections[detections[:, 4] > self.confidence]
        detected = detections[:, 5].astype(np.int64)
        labeled = labels[:, 0].astype(np.int64)
        missed = np.ones(len(labels), dtype=bool)
        unmatched = np.ones(len(detections), dtype=bool)
        if len(labels) and len(detections):
            iou = pairwise_iou_numpy(labels[:, 1:5], detections[:, :4])
            taken, overlap = iou.argmax(axis=0), iou.max(axis=0)
            rows = np.flatnonzero(overlap > self.iou)
            rows = rows[np.argsort(-overlap[rows], kind="stable")]
            label, first = np.unique(taken[rows], return_index=True)
            rows = rows[first]
            np.add.at(self.matrix, (detected[rows], labeled[label]), 1)
            missed[label] = False
            unmatched[rows] = False
        np.add.at(self.matrix[-1], labeled[missed], 1)
        np.add.at(self.matrix[:, -1], detected[unmatched], 1)
