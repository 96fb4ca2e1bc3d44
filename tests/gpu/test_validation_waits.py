"""Validation on a real card: what a CPU finds, and under torch's own watch for operations that make the host wait."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.evaluation import test_predictions as pretended
from trainer.evaluation.predictions import Predictor, StageTimer
from trainer.evaluation.settings import EvaluationSettings
from trainer.model.batched_suppression import candidate_mask, suppress_batch
from trainer.model.postprocess import non_max_suppression

pytestmark = pytest.mark.gpu


def test_no_batch_makes_the_host_wait_but_for_its_numbers():
    model = pretended.built().to(pretended.CARD)
    timer = StageTimer(pretended.CARD)
    predictor = Predictor(model, EvaluationSettings(), device=pretended.CARD, loss=None, timer=timer)
    pinned = [pretended.batch().pin_memory() for _ in range(4)]
    list(predictor.predict(pinned))  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")  # it leaves waits for events out
    try:
        found = list(predictor.predict(pinned))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(found) == 4
    assert timer.seconds()["inference"] > 0


def test_a_batch_keeps_what_a_cpu_keeps():
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(8, 2000, 4, generator=generator) * torch.tensor([300, 300, 80, 80]) + 20
    predictions = torch.cat((boxes, torch.rand(8, 2000, 4, generator=generator)), dim=2)
    mask, counts = candidate_mask(predictions.to(pretended.CARD), 0.1)
    batch = suppress_batch(
        predictions.to(pretended.CARD), mask, counts, counts.tolist(), iou_threshold=0.6, max_detections=300
    )
    expected = non_max_suppression(predictions, confidence_threshold=0.1, iou_threshold=0.6, multi_label=True)
    assert batch.counts.tolist() == [len(image) for image in expected]
    for rows, image in zip(batch.rows.cpu(), expected, strict=True):
        assert torch.allclose(rows[: len(image)], image, rtol=1e-5)
