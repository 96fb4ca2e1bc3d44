"""How detections are made and counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.protocol import MAX_DETECTIONS, PREDICT_CONFIDENCE, VAL_CONFIDENCE, VAL_IOU


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSettings:
    """How detections are made and counted; the defaults are YOLOv5's."""

    confidence_threshold: float = VAL_CONFIDENCE
    nms_iou_threshold: float = VAL_IOU
    max_detections: int = MAX_DETECTIONS
    report_confidence: float = PREDICT_CONFIDENCE
    """Detections above this count in the confusion matrix and as errors of an image."""
    sample_batches: int = 3
    """Number of first batches that keep their detections for pictures."""
    keep_detections: bool = False
    """The result has the detections of all images."""
    autocast_dtype: torch.dtype | None = None
    """Type of automatic mixed precision, None for none."""
