"""Validation of the averaged weights over all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from trainer.data.collate import Batch
from trainer.evaluation.evaluator import Evaluator, Metrics
from trainer.evaluation.metrics import RankPart
from trainer.model.graph import DetectionModel, fuse_batch_norm
from trainer.optim.ema import ModelEma
from trainer.runtime.distributed import Collectives


class ValidationStopped(Exception):
    """A rank was asked to stop in the midst of a validation; every rank raises this then."""


class _AskedToStop(Exception):
    pass


class Validator:
    """An evaluator with its batches and peers; every rank calls ``validate`` and gets the same numbers."""

    def __init__(
        self, evaluator: Evaluator, batches: DataLoader[Batch], collectives: Collectives, device: torch.device
    ) -> None:
        self._evaluator = evaluator
        self._batches = batches
        self._collectives = collectives
        self._device = device

    def validate(self, ema: ModelEma, on_batch: Callable[[int, int], bool] | None = None) -> Metrics:
        """Metrics of the average as it is on rank 0, whose batch-norm statistics are the ones that count."""
        self._collectives.broadcast_tensors(ema.buffers())
        assert isinstance(ema.model, DetectionModel)
        return self.validate_model(ema.model, on_batch)

    def validate_model(self, model: DetectionModel, on_batch: Callable[[int, int], bool] | None = None) -> Metrics:
        """Metrics of a model that is equal on every rank.

        ``on_batch`` hears how many of how many batches are done; when it returns False on any rank, this rank leaves
        the rest out and ``ValidationStopped`` is raised on all.
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
        """This rank's first batch, made here and now."""
        keys = next(iter(self._batches.batch_sampler))  # type: ignore[arg-type]
        assert self._batches.collate_fn is not None
        return self._batches.collate_fn([self._batches.dataset[key] for key in keys])
