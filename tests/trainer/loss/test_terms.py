from __future__ import annotations

import math

import pytest
import torch

from trainer.loss.terms import box_term, classification_term, focal_modulation, objectness_term


def test_a_perfect_box_costs_nothing_and_a_weight_scales_a_match():
    rows = torch.zeros(2, 6)  # decodes to the cell's middle, in the anchor's shape
    anchors = torch.tensor([[2.0, 3.0], [1.0, 1.0]])
    boxes = torch.tensor([[0.5, 0.5, 2.0, 3.0], [0.5, 0.5, 1.0, 4.0]])
    loss, iou = box_term(rows, boxes, anchors, torch.tensor([1.0, 0.5]))
    assert iou[0] == pytest.approx(1.0, abs=1e-6)
    aspect = 4 / math.pi**2 * (math.atan(1 / 4) - math.atan(1)) ** 2
    second = 0.25 - aspect * aspect / (aspect - 0.25 + 1)
    assert iou[1] == pytest.approx(second, rel=1e-5)
    assert loss == pytest.approx(0.5 * (1 - second), rel=1e-5)


def test_the_objectness_target_is_never_negative():
    far = torch.tensor([[50.0, 50.0, 1.0, 1.0]])
    loss, iou = box_term(torch.zeros(1, 6), far, torch.ones(1, 2), torch.ones(1))
    assert loss > 1
    assert iou == 0


def test_smoothing_moves_positives_and_negatives_by_half():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    arguments = {"pos_weight": 1.0, "focal_gamma": 0.0, "label_smoothing": 0.1}
    loss = classification_term(logits, torch.tensor([1]), torch.tensor([2.0]), **arguments)
    soft = torch.tensor([[0.05, 0.95, 0.05]])
    p = logits.sigmoid()
    expected = -(soft * p.log() + (1 - soft) * (1 - p).log()).mean() * 2
    assert loss == pytest.approx(expected.item(), rel=1e-6)


def test_positive_weight_counts_positives_more():
    logits = torch.tensor([0.3, -0.7])
    target = torch.tensor([1.0, 0.0])
    loss = objectness_term(logits, target, pos_weight=3.0, focal_gamma=0.0)
    p = logits.sigmoid()
    assert loss == pytest.approx((-3 * p[0].log() - (1 - p[1]).log()).item(), rel=1e-6)


def test_focal_modulation_is_the_papers_on_hard_targets():
    logits = torch.tensor([1.2, 1.2])
    p = logits.sigmoid()[0].item()
    factors = focal_modulation(logits, torch.tensor([1.0, 0.0]), gamma=2.0)
    assert factors.tolist() == pytest.approx([0.25 * (1 - p) ** 2, 0.75 * p**2], rel=1e-6)
    plain = objectness_term(logits, torch.tensor([1.0, 0.0]), pos_weight=1.0, focal_gamma=0.0)
    modulated = objectness_term(logits, torch.tensor([1.0, 0.0]), pos_weight=1.0, focal_gamma=2.0)
    assert modulated < plain
