"""A model's detections batch by batch.

A GPU is never without work: it infers a batch while the host is told how many candidates the batch before had, and what
was kept of the one before that. The host waits once a batch, for both.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.collate import Batch
from trainer.data.device_copy import on_device
from trainer.evaluation.settings import EvaluationSettings
from trainer.loss import DetectionLoss
from trainer.model.batched_suppression import BatchDetections, candidate_mask, suppress_batch
from trainer.model.postprocess import non_max_suppression

_STAGES = ("load", "inference", "nms", "metrics")


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a model finds in a batch; ``batch`` may have lost its images."""

    batch: Batch
    detections: np.ndarray
    """float32 (n, 6), all images' one after another: xyxy in pixels of the batch, score, class."""
    counts: np.ndarray
    """int64 (B,): number of detections per image."""
    loss_items: np.ndarray | None
    """float64 (3,): box, objectness and class loss of the batch by itself."""


class Predictor:
    """Runs a model, in evaluation mode, on batches."""

    def __init__(
        self,
        model: nn.Module,
        settings: EvaluationSettings,
        *,
        device: torch.device,
        loss: DetectionLoss | None,
        timer: StageTimer,
    ) -> None:
        self._model = model
        self._settings = settings
        self._device = device
        self._loss = loss
        self._timer = timer
        parameter = next(model.parameters(), None)
        self._dtype = torch.float32 if parameter is None else parameter.dtype

    def predict(self, batches: Iterable[Batch]) -> Iterator[Predicted]:
        """Yields what is found in each batch that holds images, in their order."""
        loaded = self._timer.loading(on_device(iter(batches), self._device))
        return self._ahead(loaded) if self._device.type == "cuda" else map(self._at_once, loaded)

    def _at_once(self, batch: Batch) -> Predicted:
        with self._timer.measure("inference"):
            decoded, loss_items = self._infer(batch)
        with self._timer.measure("nms"):
            kept = self._suppress(decoded)
            counts = np.array([len(image) for image in kept])
            return Predicted(batch, torch.cat(kept).float().numpy(), counts, _numbers(loss_items))

    def _ahead(self, batches: Iterable[Batch]) -> Iterator[Predicted]:
        """Infers a batch, then suppresses the one before, then yields the one before that."""
        inferred: deque[_Inferred] = deque()
        suppressed: deque[_Suppressed] = deque()
        for batch in batches:
            with self._timer.measure("inference"):
                inferred.append(self._begin(batch))
            if len(inferred) > 1:
                yield from self._advance(inferred, suppressed)
        while inferred:
            yield from self._advance(inferred, suppressed)
        while suppressed:
            yield self._finish(suppressed.popleft())

    def _advance(self, inferred: deque[_Inferred], suppressed: deque[_Suppressed]) -> Iterator[Predicted]:
        """Suppresses the oldest inferred batch; yields the one suppressed before it, which has arrived as well."""
        oldest = inferred.popleft()
        # What was kept of the batch before comes last, so the number of candidates is there too.
        (suppressed[0].arriving if suppressed else oldest.num_candidates).wait()
        with self._timer.measure("nms"):
            following = self._suppress_ahead(oldest)
        if suppressed:
            yield self._finish(suppressed.popleft())
        suppressed.append(following)

    def _begin(self, batch: Batch) -> _Inferred:
        decoded, loss_items = self._infer(batch)
        mask, counts = candidate_mask(decoded, self._settings.confidence_threshold)
        return _Inferred(batch, decoded, loss_items, mask, counts, _Arriving(counts))

    def _suppress_ahead(self, inferred: _Inferred) -> _Suppressed:
        settings = self._settings
        kept = suppress_batch(
            inferred.decoded,
            inferred.mask,
            inferred.counts,
            inferred.num_candidates.values[0].tolist(),
            iou_threshold=settings.nms_iou_threshold,
            max_detections=settings.max_detections,
        )
        items = () if inferred.loss_items is None else (inferred.loss_items,)
        return _Suppressed(inferred.batch, inferred.decoded, _Arriving(*kept, *items))

    def _finish(self, suppressed: _Suppressed) -> Predicted:
        arrived = suppressed.arriving
        arrived.wait()
        rows, counts, settled = BatchDetections(*arrived.values[:3])
        kept = [image[:count] for image, count in zip(rows, counts.tolist(), strict=True)]
        for at in np.flatnonzero(~settled.numpy()):  # hardly ever: a long chain of boxes
            kept[at] = self._suppress(suppressed.decoded[at : at + 1])[0].float().cpu()
        loss_items = arrived.values[3] if len(arrived.values) > 3 else None
        number_kept = np.array([len(image) for image in kept])
        return Predicted(suppressed.batch, torch.cat(kept).numpy(), number_kept, _numbers(loss_items))

    def _infer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Returns decoded predictions, and the losses if they are measured."""
        images = batch.images_bchw.to(self._device, non_blocking=True, memory_format=torch.channels_last)
        images = torch.mul(images, 1 / 255).to(self._dtype)
        dtype = self._settings.autocast_dtype
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            decoded, raw = self._model(images)
        return decoded, None if self._loss is None else _loss_items(self._loss, raw, batch)

    def _suppress(self, decoded: Tensor) -> list[Tensor]:
        return non_max_suppression(
            decoded,
            confidence_threshold=self._settings.confidence_threshold,
            iou_threshold=self._settings.nms_iou_threshold,
            multi_label=True,
            max_detections=self._settings.max_detections,
        )


@dataclass(frozen=True, eq=False)
class _Inferred:
    batch: Batch
    decoded: Tensor
    loss_items: Tensor | None
    mask: Tensor
    counts: Tensor
    num_candidates: _Arriving


@dataclass(frozen=True, eq=False)
class _Suppressed:
    batch: Batch
    decoded: Tensor
    arriving: _Arriving


class _Arriving:
    """Copies of a GPU's tensors that are on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self.values = [torch.empty(one.shape, dtype=one.dtype, pin_memory=one.is_cuda) for one in tensors]
        for value, tensor in zip(self.values, tensors, strict=True):
            value.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> None:
        """Waits until ``values`` are there."""
        if not self._event.query():  # type: ignore[no-untyped-call]
            self._event.synchronize()


class StageTimer:
    """Seconds per stage; work that a GPU still has to do belongs to the stage that asked for it."""

    def __init__(self, device: torch.device) -> None:
        self._seconds = dict.fromkeys(_STAGES, 0.0)
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the block's duration to ``stage``: on a GPU, that of the work which the block asks for."""
        if not self._on_gpu:
            with self.measure_host(stage):
                yield
            return
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        started.record()
        yield
        ended.record()
        self._marks.append((stage, started, ended))

    @contextmanager
    def measure_host(self, stage: str) -> Iterator[None]:
        """Adds the block's duration on the host to ``stage``."""
        started_at = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - started_at

    def loading(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches that hold images and adds the time waited for each to the stage "load"."""
        iterator = iter(batches)
        while True:
            with self.measure_host("load"):
                batch = next(iterator, None)
            if batch is None:
                return
            if len(batch.positions):
                yield batch

    def seconds(self) -> dict[str, float]:
        """Returns the seconds by stage, once the GPU has done everything."""
        if self._marks:
            self._marks[-1][2].synchronize()
        for stage, started, ended in self._marks:
            self._seconds[stage] += started.elapsed_time(ended) / 1000
        self._marks.clear()
        return self._seconds


def _loss_items(loss: DetectionLoss, raw: Sequence[Tensor], batch: Batch) -> Tensor:
    """Returns box, objectness and class loss of a batch by itself: (3,), on the device."""
    grid_sizes = [(level.shape[2], level.shape[3]) for level in raw]
    matches = loss.match(batch.targets, grid_sizes)
    counts = loss.counts(matches, len(batch.positions))
    if raw[0].device.type == "cuda":
        matches = matches.pin_memory()
    return loss(raw, matches.to(raw[0].device), counts).items


def _numbers(loss_items: Tensor | None) -> np.ndarray | None:
    return None if loss_items is None else loss_items.double().cpu().numpy()
