"""Anchors: recall by the assignment's rule, and fits that are better, repeatable and never fail."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from trainer.model.anchors import anchors_per_level, best_possible_recall, fit_anchors
from trainer.model.graph import build_model, load_definition

COCO_ANCHORS = np.array([10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326.0]).reshape(-1, 2)


def test_recall_counts_boxes_strictly_within_the_factor():
    anchors = np.array([[10.0, 10.0]])
    sizes = np.array([[39.9, 10], [40, 10], [2.6, 10], [2.5, 10], [10, 500]])
    assert best_possible_recall(anchors, sizes, 4.0) == 2 / 5
    assert best_possible_recall(anchors, np.zeros((0, 2)), 4.0) == 1.0


def test_recall_of_many_boxes_equals_the_mean_over_parts():
    sizes = np.random.default_rng(0).uniform(1, 640, (250_000, 2))
    parts = [best_possible_recall(COCO_ANCHORS, part, 4.0) for part in np.split(sizes, 10)]
    assert best_possible_recall(COCO_ANCHORS, sizes, 4.0) == pytest.approx(np.mean(parts))


@pytest.fixture(scope="module")
def flat_boxes() -> np.ndarray:
    """Text-like boxes, far wider than high, which COCO's anchors miss."""
    generator = np.random.default_rng(7)
    widths = np.exp(generator.normal(4.5, 0.7, 1500))
    return np.stack((widths, widths / generator.uniform(8, 16, 1500)), axis=1)


def test_a_fit_covers_what_the_defaults_miss(flat_boxes):
    assert best_possible_recall(COCO_ANCHORS, flat_boxes, 4.0) < 0.75
    fitted = fit_anchors(flat_boxes, 9, 640, 4.0, seed=0)
    assert fitted.shape == (9, 2)
    usable = flat_boxes[(flat_boxes >= 2).all(axis=1)]
    assert best_possible_recall(fitted, usable, 4.0) > 0.99
    assert (np.diff(fitted.prod(axis=1)) >= 0).all()


def test_a_seed_decides_the_fit(flat_boxes):
    first = fit_anchors(flat_boxes, 6, 640, 4.0, seed=1)
    np.random.seed(99)  # global state must not matter
    assert np.array_equal(first, fit_anchors(flat_boxes, 6, 640, 4.0, seed=1))
    assert not np.array_equal(first, fit_anchors(flat_boxes, 6, 640, 4.0, seed=2))


@pytest.mark.parametrize(
    "sizes",
    [
        np.zeros((0, 2)),
        np.full((5, 2), 30.0),
        np.array([[0.5, 0.5]]),
        np.array([[np.nan, 4], [3, 9]]),
        np.full((20, 2), 9000),
    ],
    ids=["none", "equal", "tiny", "nan", "huge"],
)
def test_a_fit_never_fails(sizes):
    fitted = fit_anchors(sizes, 9, 320, 4.0, seed=0)
    assert fitted.shape == (9, 2)
    assert np.isfinite(fitted).all()
    assert fitted.min() >= 2 - 1e-9
    assert fitted.max() <= 320 + 1e-9


def test_fit_improves_on_real_labels(many_shapes_yaml):
    rows = [
        line.split()
        for file in sorted(many_shapes_yaml.parent.rglob("*.txt"))
        for line in file.read_text().splitlines()
    ]
    sizes = np.array([[float(row[3]), float(row[4])] for row in rows if len(row) == 5]) * 320
    assert len(sizes) > 300
    fitted = fit_anchors(sizes, 9, 320, 4.0, seed=0)
    assert best_possible_recall(fitted, sizes, 4.0) > max(0.98, best_possible_recall(COCO_ANCHORS, sizes, 4.0))


def test_anchors_cross_between_array_and_definition():
    definition = load_definition("yolov5n")
    pixels = COCO_ANCHORS.reshape(3, -1, 2)
    assert anchors_per_level(pixels.reshape(-1, 2), 3) == [[float(v) for v in row] for row in definition["anchors"]]
    model = build_model(definition)
    model.set_anchors(anchors_per_level(pixels.reshape(-1, 2) * 2, 3))
    assert np.allclose(model.detect.anchors[2].numpy() * 32, pixels[2] * 2)
    assert np.array_equal(np.reshape(model.definition["anchors"], pixels.shape), pixels * 2)


def test_anchors_and_definitions_leave_torch_unloaded():
    code = "import sys, trainer.model.anchors, trainer.model.definition as d; d.load_definition('yolov5s'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
