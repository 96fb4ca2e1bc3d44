"""Suppression of a whole batch keeps what suppression image by image keeps, to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trainer.model import batched_suppression, postprocess
from trainer.model.batched_suppression import candidate_mask, suppress_batch
from trainer.model.postprocess import non_max_suppression


def crowd(images, count, classes, *, seed=1, span=300.0, largest=80.0):
    """Boxes on one another with scores on a coarse grid, so that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(images, count, 2, generator=generator) * span
    sizes = torch.rand(images, count, 2, generator=generator) * largest + 20
    scores = (torch.rand(images, count, 1 + classes, generator=generator) * 64).round() / 64
    return torch.cat((centers, sizes, scores), dim=2)


def both(predictions, confidence, iou, limit):
    mask, counts = candidate_mask(predictions, confidence)
    batch = suppress_batch(predictions, mask, counts, counts.tolist(), iou_threshold=iou, max_detections=limit)
    one_by_one = non_max_suppression(
        predictions, confidence_threshold=confidence, iou_threshold=iou, multi_label=True, max_detections=limit
    )
    return batch, one_by_one


def assert_equal(batch, one_by_one):
    assert batch.counts.tolist() == [len(image) for image in one_by_one]
    for rows, expected in zip(batch.rows, one_by_one, strict=True):
        assert torch.equal(rows[: len(expected)], expected)


@pytest.mark.parametrize(
    ("predictions", "confidence", "limit"),
    [
        (crowd(4, 3000, 3), 0.2, 300),
        (crowd(2, 200, 80, largest=60.0), 0.1, 100),
        (crowd(2, 900, 5, span=4000.0), 0.3, 300),
        (crowd(2, 50, 1), 0.3, 300),
    ],
    ids=["many", "classes", "sparse", "few"],
)
@pytest.mark.parametrize("iou", [0.3, 0.6, 0.9])
def test_keeps_what_single_images_keep(predictions, confidence, limit, iou):
    batch, one_by_one = both(predictions, confidence, iou, limit)
    assert batch.settled.all()
    assert_equal(batch, one_by_one)


def test_takes_the_best_of_too_many_candidates(monkeypatch):
    for module in (batched_suppression, postprocess):
        monkeypatch.setattr(module, "MAX_CANDIDATES", 900)
    predictions = crowd(2, 700, 4, span=30_000.0)
    batch, one_by_one = both(predictions, 0.05, 0.6, 1_000)
    assert len(one_by_one[0]) == 900 < candidate_mask(predictions, 0.05)[1].min()
    assert_equal(batch, one_by_one)


def test_an_image_without_candidates_keeps_nothing():
    predictions = crowd(3, 200, 2)
    predictions[1, :, 4] = 0
    batch, one_by_one = both(predictions, 0.2, 0.6, 300)
    assert batch.counts[1] == 0
    assert_equal(batch, one_by_one)
    predictions[:, :, 4] = 0
    assert both(predictions, 0.2, 0.6, 300)[0].counts.tolist() == [0, 0, 0]


def chain(length):
    """Each box suppresses the next one alone, so every second one is kept."""
    boxes = torch.zeros(1, length, 6)
    boxes[0, :, 0] = torch.arange(length) * 5.0
    boxes[0, :, 2:4] = 20.0
    boxes[0, :, 4] = torch.linspace(0.9, 0.5, length)
    boxes[0, :, 5] = 1.0
    return boxes


def test_a_chain_that_is_too_long_is_said_to_be_unsettled():
    batch, one_by_one = both(chain(15), 0.1, 0.55, 300)
    assert batch.settled.all()
    assert len(one_by_one[0]) == 8
    assert_equal(batch, one_by_one)
    predictions = torch.cat((chain(40), chain(40)))
    predictions[1, :, 0] *= 100  # apart
    assert both(predictions, 0.1, 0.55, 300)[0].settled.tolist() == [False, True]


def test_smaller_blocks_keep_the_same(monkeypatch):
    monkeypatch.setattr(batched_suppression, "_BLOCK_PAIRS", 4 * 100**2)
    assert_equal(*both(crowd(4, 1000, 3), 0.2, 0.6, 300))


def test_keeps_what_is_recorded(golden_dir):
    recorded = np.load(golden_dir / "nms.npz")
    settings = json.loads(str(recorded["val/args"]))
    predictions = torch.from_numpy(recorded["val/pred"])
    batch, _ = both(predictions, settings["conf_thres"], settings["iou_thres"], settings.get("max_det", 300))
    for index, count in enumerate(batch.counts.tolist()):
        expected = recorded[f"val/kept{index}"]
        np.testing.assert_allclose(batch.rows[index, :count], expected, rtol=0, atol=5e-5 * np.abs(expected).max())
