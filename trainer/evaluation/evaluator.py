"""Validates a model: each rank evaluates its batches, then every rank computes the metrics of all batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainer.boxes import xyxy_from_cxcywh_numpy
from trainer.data.collate import Batch
from trainer.evaluation.confusion import ConfusionMatrix
from trainer.evaluation.matching import IOU_THRESHOLDS, match_detections
from trainer.evaluation.metrics import ImageResult, Metrics, RankPart, join_parts, summarize
from trainer.loss import DetectionLoss
from trainer.model.postprocess import non_max_suppression
from trainer.protocol import MAX_DETECTIONS, PREDICT_CONFIDENCE, VAL_CONFIDENCE, VAL_IOU

__all__ = ["EvaluationSettings", "Evaluator", "Metrics"]

_WORST_IMAGES = 16
"""Number of images with the most errors in the result."""
STAGES = ("load", "inference", "nms", "metrics")


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
        timer = _StageTimer(device)
        confusion = ConfusionMatrix(self.num_classes, confidence=settings.report_confidence)
        images: list[ImageResult] = []
        losses: list[np.ndarray] = []
        samples: list[dict[int, np.ndarray]] = []
        total = len(batches) if isinstance(batches, Sized) else 0
        for done, batch in enumerate(timer.loading(batches), start=1):
            with timer.measure("inference"):
                decoded, raw = self._infer(model, batch, device)
                if self.loss is not None:
                    losses.append(_loss_items(self.loss, raw, batch))
            with timer.measure("nms"):
                detections, counts = self._suppress(decoded)
            with timer.measure("metrics"):
                found = self._compare(batch, detections, counts, confusion)
            images += found
            if len(samples) < settings.sample_batches:
                samples.append({image.position: image.detections for image in found})
            if on_batch is not None:
                on_batch(done, total)
        own_part = self._pack(images, losses, samples, confusion, timer.seconds)
        joined = join_parts(gather(own_part))
        return summarize(joined, self.names, sample_batches=settings.sample_batches, worst_images=_WORST_IMAGES)

    def _infer(self, model: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, Sequence[Tensor]]:
        images = batch.images_bchw.to(device, non_blocking=True, memory_format=torch.channels_last)
        parameter = next(model.parameters(), None)
        images = torch.mul(images, 1 / 255).to(torch.float32 if parameter is None else parameter.dtype)
        dtype = self.settings.autocast_dtype
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return model(images)

    def _suppress(self, decoded: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns all images' detections one after another, (N, 6) in pixels of the batch, and the count per image."""
        settings = self.settings
        kept = non_max_suppression(
            decoded,
            confidence_threshold=settings.confidence_threshold,
            iou_threshold=settings.nms_iou_threshold,
            multi_label=True,
            max_detections=settings.max_detections,
        )
        # One copy from the device for the whole batch.
        return torch.cat(kept).float().cpu().numpy(), np.array([len(image) for image in kept])

    def _compare(
        self, batch: Batch, detections: np.ndarray, counts: np.ndarray, confusion: ConfusionMatrix
    ) -> list[ImageResult]:
        """Compares detections (N, 6), ``counts`` per image, with labels, and moves both to pixels of their files."""
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


class _StageTimer:
    """Seconds per stage; work that a GPU still has to do belongs to the stage that started the work."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._device = device

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the block's duration to ``stage``."""
        started_at = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[stage] += time.perf_counter() - started_at

    def loading(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches that hold images and adds the time waited for each to the stage "load"."""
        iterator = iter(batches)
        while True:
            with self.measure("load"):
                batch = next(iterator, None)
            if batch is None:
                return
            if len(batch.positions):
                yield batch


def _loss_items(loss: DetectionLoss, raw: Sequence[Tensor], batch: Batch) -> np.ndarray:
    """Returns box, objectness and class loss of a batch by itself: float64 (3,)."""
    grid_sizes = [(level.shape[2], level.shape[3]) for level in raw]
    matches = loss.match(batch.targets, grid_sizes)
    terms = loss(raw, matches.to(raw[0].device), loss.counts(matches, len(batch.positions)))
    return terms.items.double().cpu().numpy()


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
