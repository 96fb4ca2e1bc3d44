"""Non-maximum suppression: the recorded results, a plain second implementation, and its edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trainer.boxes import pairwise_iou, xyxy_from_cxcywh
from trainer.model import postprocess
from trainer.model.postprocess import non_max_suppression


@pytest.mark.parametrize("case", ["val", "predict", "agnostic", "classes"])
def test_keeps_what_is_recorded(case, golden_dir):
    recorded = np.load(golden_dir / "nms.npz")
    settings = json.loads(str(recorded[f"{case}/args"]))
    kept = non_max_suppression(
        torch.from_numpy(recorded[f"{case}/pred"]),
        confidence_threshold=settings["conf_thres"],
        iou_threshold=settings["iou_thres"],
        classes=settings.get("classes"),
        agnostic=settings.get("agnostic", False),
        multi_label=settings.get("multi_label", False),
        max_detections=settings.get("max_det", 300),
    )
    for index, detections in enumerate(kept):
        expected = recorded[f"{case}/kept{index}"]
        assert detections.shape == expected.shape
        np.testing.assert_allclose(detections.numpy(), expected, rtol=0, atol=5e-5 * np.abs(expected).max())


def _predictions(images: int, count: int, classes: int, seed: int) -> torch.Tensor:
    """Crowded boxes with scores on a coarse grid, so that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(images, count, 2, generator=generator) * 300
    sizes = torch.rand(images, count, 2, generator=generator) * 80 + 20
    scores = (torch.rand(images, count, 1 + classes, generator=generator) * 64).round() / 64
    return torch.cat((centers, sizes, scores), dim=2)


def _plainly(predictions, confidence, iou, multi_label, agnostic, limit):
    """One candidate at a time in Python; the definition, without any shortcut."""
    candidates = []
    for row, prediction in enumerate(predictions):
        scores = (prediction[4] * prediction[5:]).tolist()
        chosen = range(len(scores)) if multi_label else [int(np.argmax(scores))]
        candidates += [(-scores[c], row, c) for c in chosen if scores[c] > confidence and prediction[4] > confidence]
    boxes = xyxy_from_cxcywh(predictions[:, :4].double())
    overlap = pairwise_iou(boxes, boxes, eps=0)
    kept = []
    for negative, row, label in sorted(candidates):
        rivals = [r for _, r, c in kept if agnostic or c == label]
        if not any(overlap[row, rival] > iou for rival in rivals):
            kept.append((negative, row, label))
    return [(row, label, -negative) for negative, row, label in kept[:limit]]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("limit", [5, 60, 1000])
def test_equals_the_definition_whatever_the_size_of_the_prefix(multi_label, agnostic, limit, monkeypatch):
    monkeypatch.setattr(postprocess, "_FIRST_PREFIX", 16)  # grow several times
    predictions = _predictions(2, 150, 4, seed=3)
    results = non_max_suppression(
        predictions,
        confidence_threshold=0.2,
        iou_threshold=0.4,
        multi_label=multi_label,
        agnostic=agnostic,
        max_detections=limit,
    )
    for image, detections in zip(predictions, results, strict=True):
        expected = _plainly(image, 0.2, 0.4, multi_label, agnostic, limit)
        rows = [row for row, _, _ in expected]
        assert detections[:, 5].tolist() == [label for _, label, _ in expected]
        assert detections[:, 4].tolist() == pytest.approx([score for _, _, score in expected])
        assert torch.equal(detections[:, :4], xyxy_from_cxcywh(image[rows, :4]))


def test_classes_are_kept_apart_exactly_where_numbers_are_large():
    # Pairs at IoU just below and just above 0.5; a shift by class times image size in float32 would blur them.
    rows = []
    for pair in range(50):
        left, shift = 10 + 25.0 * pair, 10 / 3 * (1.0003 if pair % 2 else 0.9997)
        for x, score in ((left, 0.9 - pair / 200), (left + shift, 0.5)):
            scores = torch.zeros(100)
            scores[99] = score
            rows.append(torch.cat((torch.tensor([x, 5.0, 10.0, 10.0, 1.0]), scores)))
    kept = non_max_suppression(torch.stack(rows)[None], confidence_threshold=0.1, iou_threshold=0.5)[0]
    assert len(kept) == 75


@pytest.mark.parametrize("multi_label", [False, True])
def test_thresholds_are_strict(multi_label):
    products = ((0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 0.75))
    rows = torch.tensor([[[40.0 * x, 10, 5, 5, objectness, score] for x, (objectness, score) in enumerate(products)]])
    kept = non_max_suppression(rows, confidence_threshold=0.5, iou_threshold=0.5, multi_label=multi_label)[0]
    assert kept[:, 4].tolist() == [0.75]  # 0.25 is below, and 0.5 is not above


def test_only_the_best_candidates_take_part(monkeypatch):
    monkeypatch.setattr(postprocess, "MAX_CANDIDATES", 40)
    predictions = _predictions(1, 300, 2, seed=5)
    kept = non_max_suppression(predictions, confidence_threshold=0.01, iou_threshold=1.0, max_detections=100)[0]
    assert len(kept) == 40
    best = (predictions[0, :, 4] * predictions[0, :, 5:].amax(dim=1)).sort(descending=True).values[:40]
    assert torch.equal(kept[:, 4], best)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("classes", [None, [], [1, 7]])
def test_nothing_in_nothing_out(multi_label, classes):
    for predictions in (_predictions(1, 30, 3, seed=0) * 0, torch.zeros(2, 0, 8), torch.zeros(0, 10, 8)):
        kept = non_max_suppression(
            predictions, confidence_threshold=0.1, iou_threshold=0.5, classes=classes, multi_label=multi_label
        )
        assert [tuple(detections.shape) for detections in kept] == [(0, 6)] * len(predictions)


def test_multi_label_and_classes_together():
    kept = non_max_suppression(
        _predictions(1, 60, 4, seed=2), confidence_threshold=0.1, iou_threshold=0.9, classes=[2], multi_label=True
    )[0]
    assert len(kept) > 5
    assert set(kept[:, 5].tolist()) == {2.0}


def test_half_precision_predictions_give_float32_results():
    predictions = _predictions(1, 40, 3, seed=4)
    kept = non_max_suppression(predictions.half(), confidence_threshold=0.1, iou_threshold=0.5)[0]
    assert kept.dtype == torch.float32
    assert len(kept) > 0


def test_predictions_stay_as_they_were():
    predictions = _predictions(1, 50, 3, seed=6)
    before = predictions.clone()
    non_max_suppression(predictions, confidence_threshold=0.1, iou_threshold=0.5, multi_label=True)
    assert torch.equal(predictions, before)
