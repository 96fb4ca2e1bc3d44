"""Detections of a GPU: the same as a CPU's, the host waits once a batch. Shown without a card."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from tests.trainer.pretend_card import CARD, pretend_card, without_data
from trainer.data.collate import Batch
from trainer.evaluation import predictions
from trainer.evaluation.predictions import Predictor, StageTimer
from trainer.evaluation.settings import EvaluationSettings
from trainer.loss import DetectionLoss, LossGains
from trainer.model import batched_suppression
from trainer.model.graph import DetectionModel, build_model, fuse_batch_norm, load_definition

CPU = torch.device("cpu")
SIZE, CLASSES, IMAGES = 64, 3, 4


class DoneAtOnce:
    def record(self): ...

    def query(self):
        return True


def evaluate(known, case):
    return known.evaluator_for(case, keep_detections=True).evaluate(case.detector, case.batches, device=CPU)


@pytest.mark.parametrize("rounds", [16, 1], ids=["settled", "unsettled"])
def test_a_gpus_order_of_work_gives_the_same_metrics(monkeypatch, known, rounds):
    """Also where chains of boxes are longer than the rounds: such images are suppressed one by one."""
    case = known.make_case()
    expected = known.fingerprint(evaluate(known, case))
    monkeypatch.setattr(torch.cuda, "Event", DoneAtOnce)
    monkeypatch.setattr(batched_suppression, "_ROUNDS", rounds)
    monkeypatch.setattr(Predictor, "predict", lambda self, batches: self._ahead(iter(batches)))
    one_by_one = []
    alone = predictions.non_max_suppression

    def noted(*given, **options):
        one_by_one.append(given)
        return alone(*given, **options)

    monkeypatch.setattr(predictions, "non_max_suppression", noted)
    assert known.fingerprint(evaluate(known, case)) == expected
    assert bool(one_by_one) == (rounds == 1)


@cache
def built() -> DetectionModel:
    return build_model(load_definition("yolov5n"), num_classes=CLASSES).eval()


def batch() -> Batch:
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.3], [3, 0, 0.4, 0.4, 0.5, 0.5]])
    images = torch.zeros(IMAGES, 3, SIZE, SIZE, dtype=torch.uint8)
    return Batch(images, targets, torch.arange(IMAGES), torch.arange(IMAGES))


def waits_of_a_validation(monkeypatch, num_batches, *, autocast=None, has_loss=True, plant=None) -> list[str]:
    model = fuse_batch_norm(copy.deepcopy(built())).eval()
    anchors = torch.tensor(load_definition("yolov5n")["anchors"]).view(3, 3, 2) / torch.tensor([8, 16, 32]).view(
        3, 1, 1
    )
    loss = DetectionLoss(anchors, CLASSES, LossGains(box=0.05, obj=1.0, cls=0.5)) if has_loss else None
    with pretend_card(monkeypatch) as card, monkeypatch.context() as patch, torch.no_grad():
        model = without_data(model, CARD)
        patch.setattr(predictions, "on_device", lambda batches, device: (one.to(device) for one in batches))
        if plant is not None:
            plant(patch)
        settings = EvaluationSettings(autocast_dtype=autocast)
        predictor = Predictor(model, settings, device=CARD, loss=loss, timer=StageTimer(CARD))
        pinned = [batch().pin_memory() for _ in range(num_batches)]
        card.waits.clear()
        found = list(predictor.predict(pinned))
        assert [one.counts.tolist() for one in found] == [[1] * IMAGES] * num_batches
        return card.waits


@pytest.mark.parametrize("autocast", [None, torch.float16], ids=["off", "fp16"])
@pytest.mark.parametrize("has_loss", [True, False], ids=["loss", "no loss"])
def test_the_host_waits_once_a_batch(monkeypatch, autocast, has_loss):
    assert waits_of_a_validation(monkeypatch, 6, autocast=autocast, has_loss=has_loss) == ["event"] * 7


def item_in_candidates(patch):
    original = predictions.candidate_mask
    patch.setattr(
        predictions, "candidate_mask", lambda decoded, least: (decoded.sum().item(), original(decoded, least))[1]
    )


def mask_in_suppression(patch):
    original = batched_suppression._greedy
    patch.setattr(batched_suppression, "_greedy", lambda pairs, free: (pairs[free], original(pairs, free))[1])


def pageable_copy_of_matches(patch):
    patch.setattr("trainer.loss.assign.Matches.pin_memory", lambda matches: matches)


@pytest.mark.parametrize("plant", [item_in_candidates, mask_in_suppression, pageable_copy_of_matches])
def test_a_planted_wait_is_found(monkeypatch, plant):
    assert len(waits_of_a_validation(monkeypatch, 6, plant=plant)) >= 12
