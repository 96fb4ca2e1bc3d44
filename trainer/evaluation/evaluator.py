"""Validates a model: each rank evaluates its batches, then every rank computes the metrics of all batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized

import numpy as np
import torch
from torch import nn

from trainer.boxes import xyxy_from_cxcywh_numpy
from trainer.data.collate import Batch
from trainer.evaluation.confusion import ConfusionMatrix
from trainer.evaluation.matching import IOU_THRESHOLDS, match_detections
from trainer.evaluation.metrics import ImageResult, Metrics, RankPart, join_parts, summarize
from trainer.evaluation.predictions import Predicted, Predictor, StageTimer
from trainer.evaluation.settings import EvaluationSettings
from trainer.loss import DetectionLoss

__all__ = ["EvaluationSettings", "Evaluator", "Metrics"]

_WORST_IMAGES = 16
"""Number of images with the most errors in the result."""


class Evaluator:
    """Measures models on batches that are dealt to ranks whole, without duplicates.

    COCO's definitions differ from the ones here, which are YOLOv5's: in how a detection finds its label (see
    ``match_detections``), in a mean over 101 recalls instead of the area under them, and in crowds.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        names: Sequence[str],
        loss: DetectionLoss | None = None,
        settings: EvaluationSettings | None = None,
    ) -> None:
        """Takes ``loss`` if losses are to be measured too. Raises ValueError unless there are ``num_classes`` names."""
        if len(names) != num_classes:
            raise ValueError(f"{len(names)} names for {num_classes} classes")
        self.num_classes = num_classes
        self.names = tuple(names)
        self.loss = loss
        self.settings = settings or EvaluationSettings()

    @torch.no_grad()
    def evaluate(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        *,
        device: torch.device,
        gather: Callable[[RankPart], list[RankPart]] = lambda part: [part],
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Metrics:
        """Computes the metrics over the batches of all ranks; a collective call, also for a rank without batches.

        ``model`` maps images of 0 to 1 to decoded and raw predictions and is put in evaluation mode. ``batches``: this
        rank's, each with its ``geometry``. ``gather`` returns every rank's part, in rank order, on every rank.
        ``on_batch`` is called with the numbers of batches done and in all, the latter 0 if it is unknown.
        """
        model.eval()
        settings = self.settings
        timer = StageTimer(device)
        confusion = ConfusionMatrix(self.num_classes, confidence=settings.report_confidence)
        images: list[ImageResult] = []
        losses: list[np.ndarray] = []
        samples: list[dict[int, np.ndarray]] = []
        total = len(batches) if isinstance(batches, Sized) else 0
        predictor = Predictor(model, settings, device=device, loss=self.loss, timer=timer)
        for done, predicted in enumerate(predictor.predict(batches), start=1):
            if predicted.loss_items is not None:
                losses.append(predicted.loss_items)
            with timer.measure_host("metrics"):
                found = self._compare(predicted, confusion)
            images += found
            if len(samples) < settings.sample_batches:
                samples.append({image.position: image.detections for image in found})
            if on_batch is not None:
                on_batch(done, total)
        own_part = self._pack(images, losses, samples, confusion, timer.seconds())
        joined = join_parts(gather(own_part))
        return summarize(joined, self.names, sample_batches=settings.sample_batches, worst_images=_WORST_IMAGES)

    def _compare(self, predicted: Predicted, confusion: ConfusionMatrix) -> list[ImageResult]:
        """Compares detections with labels, and moves both to pixels of their files."""
        batch, detections, counts = predicted.batch, predicted.detections, predicted.counts
        labels, label_counts = _labels_in_pixels(batch)
        geometry = _geometry_table(batch)
        _move_to_files(detections[:, :4], np.repeat(geometry, counts, axis=0))
        _move_to_files(labels[:, 1:], np.repeat(geometry, label_counts, axis=0))
        by_image = zip(
            batch.positions.tolist(),
            batch.indices.tolist(),
            np.split(detections, counts.cumsum()[:-1]),
            np.split(labels, label_counts.cumsum()[:-1]),
            strict=True,
        )
        results = []
        for position, index, found, true in by_image:
            correct = match_detections(found, true, IOU_THRESHOLDS)
            confusion.add(found, true)
            reported = found[:, 4] > self.settings.report_confidence
            right = int(correct[reported, 0].sum())
            missed, imagined = len(true) - right, int(reported.sum()) - right
            label_class = true[:, 0].astype(np.int64)
            results.append(ImageResult(position, index, found, correct, label_class, missed, imagined))
        return results

    def _pack(
        self,
        images: Sequence[ImageResult],
        losses: Sequence[np.ndarray],
        samples: list[dict[int, np.ndarray]],
        confusion: ConfusionMatrix,
        seconds: dict[str, float],
    ) -> RankPart:
        """Packs one array a kind. The empty first entries give a rank without images arrays of the right shapes."""
        detections = np.concatenate([np.zeros((0, 6), np.float32), *(image.detections for image in images)])
        empty = np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool)
        return RankPart(
            positions=np.array([image.position for image in images], dtype=np.int64),
            indices=np.array([image.index for image in images], dtype=np.int64),
            detection_counts=np.array([len(image.detections) for image in images], dtype=np.int64),
            label_counts=np.array([len(image.label_class) for image in images], dtype=np.int64),
            errors=np.array([(image.missed, image.imagined) for image in images], dtype=np.int64).reshape(-1, 2),
            scores=detections[:, 4:].copy(),
            correct=np.concatenate([empty, *(image.correct for image in images)]),
            label_class=np.concatenate([np.zeros(0, np.int64), *(image.label_class for image in images)]),
            confusion=confusion.matrix,
            losses=np.array(losses, dtype=np.float64).reshape(-1, 3),
            seconds=seconds,
            samples=samples,
            boxes=detections[:, :4].copy() if self.settings.keep_detections else None,
        )


def _labels_in_pixels(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels by image, (M, 5): class, then xyxy in pixels of the batch; and the number of labels per image."""
    targets = batch.targets.cpu().numpy()
    image = targets[:, 0].astype(np.int64)
    targets = targets[image.argsort(kind="stable")]
    height, width = batch.images_bchw.shape[2:]
    boxes = xyxy_from_cxcywh_numpy(targets[:, 2:]) * np.array((width, height, width, height), np.float32)
    return np.concatenate((targets[:, 1:2], boxes), axis=1), np.bincount(image, minlength=len(batch.positions))


def _geometry_table(batch: Batch) -> np.ndarray:
    """Returns per image the padding, the ratio and the file's size, each for x, y, x, y: (B, 3, 4)."""
    rows = [(pad_xy * 2, ratio_hw[::-1] * 2, original_hw[::-1] * 2) for original_hw, ratio_hw, pad_xy in batch.geometry]
    return np.array(rows, dtype=np.float64)


def _move_to_files(boxes_xyxy: np.ndarray, geometry: np.ndarray) -> None:
    """Moves boxes (n, 4) of padded and resized images to pixels of the files, cut at the edges, in place."""
    padding, ratio, size = geometry[:, 0], geometry[:, 1], geometry[:, 2]
    boxes_xyxy[...] = np.clip((boxes_xyxy - padding) / ratio, 0, size)
