"""Validates the averaged weights over all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.data.collate import Batch
from trainer.data.loading.batch_loader import BatchLoader
from trainer.evaluation.evaluator import Evaluator, Metrics
from trainer.evaluation.metrics import RankPart
from trainer.model.graph import DetectionModel, fuse_batch_norm
from trainer.optim.ema import ModelEma
from trainer.runtime.distributed import Collectives


class ValidationStopped(Exception):
    """Raised on every rank if any rank was asked to stop during a validation."""


class _AskedToStop(Exception):
    pass


class Validator:
    """An evaluator with its batches and collectives; every rank calls ``validate`` and gets the same numbers."""

    def __init__(
        self, evaluator: Evaluator, batches: BatchLoader, collectives: Collectives, device: torch.device
    ) -> None:
        self._evaluator = evaluator
        self._batches = batches
        self._collectives = collectives
        self._device = device

    def validate(self, ema: ModelEma, on_batch: Callable[[int, int], bool] | None = None) -> Metrics:
        """Broadcasts the batch-norm statistics of rank 0, then returns the metrics of the average with them."""
        self._collectives.broadcast_tensors(ema.buffers())
        assert isinstance(ema.model, DetectionModel)
        return self.validate_model(ema.model, on_batch)

    def validate_model(self, model: DetectionModel, on_batch: Callable[[int, int], bool] | None = None) -> Metrics:
        """Returns the metrics of a model that is equal on every rank.

        ``on_batch`` is called with the numbers of batches done and in all. If ``on_batch`` returns False on any rank,
        that rank skips its other batches and every rank raises ``ValidationStopped``.
        """
        fused = fuse_batch_norm(model).to(memory_format=torch.channels_last).eval()

        def count(done: int, total: int) -> None:
            if on_batch is not None and not on_batch(done, total):
                raise _AskedToStop

        try:
            return self._evaluator.evaluate(
                fused, self._batches, device=self._device, gather=self._gather, on_batch=count
            )
        except _AskedToStop:
            self._gather(None)  # the others wait for this rank's part
            raise AssertionError("unreachable") from None

    def _gather(self, part: RankPart | None) -> list[RankPart]:
        parts = self._collectives.gather(part)
        whole = [found for found in parts if found is not None]
        if len(whole) < len(parts):
            raise ValidationStopped
        return whole

    def first_batch(self) -> Batch:
        """Makes this rank's first batch in this process."""
        return self._batches.first_batch()
