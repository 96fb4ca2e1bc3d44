from __future__ import annotations

import numpy as np

from trainer.evaluation.confusion import ConfusionMatrix


def count(detections, labels, num_classes=2):
    confusion = ConfusionMatrix(num_classes)
    confusion.add(np.array(detections, np.float32).reshape(-1, 6), np.array(labels, np.float32).reshape(-1, 5))
    return confusion.matrix.tolist()


def test_right_wrong_missed_and_imagined():
    labels = [[0, 0, 0, 10, 10], [1, 20, 0, 30, 10], [1, 50, 50, 60, 60]]
    detections = [
        [0, 0, 10, 9, 0.9, 0],  # right
        [20, 0, 30, 10, 0.8, 0],  # a 1 taken for a 0
        [80, 80, 90, 90, 0.7, 1],  # nothing there
        [50, 50, 60, 60, 0.2, 1],  # too faint to count, so the third label is missed
    ]
    assert count(detections, labels) == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_of_two_detections_the_closer_takes_the_label_however_confident():
    labels = [[0, 0, 0, 10, 10]]
    detections = [[0, 0, 10, 7, 0.9, 1], [0, 0, 10, 10, 0.4, 0]]
    assert count(detections, labels) == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_an_overlap_must_exceed_the_threshold():
    assert count([[0, 0, 10, 4.4, 0.9, 0]], [[0, 0, 0, 10, 10]]) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert count([[0, 0, 10, 4.6, 0.9, 0]], [[0, 0, 0, 10, 10]]) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_images_without_labels_or_detections():
    assert count([], []) == [[0, 0, 0]] * 3
    assert count([], [[1, 0, 0, 5, 5]] * 2) == [[0, 0, 0], [0, 0, 0], [0, 2, 0]]
    assert count([[0, 0, 5, 5, 0.9, 1]] * 2, []) == [[0, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_every_label_and_every_confident_detection_counts_once():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 80, (40, 2))
    labels = np.column_stack((rng.integers(0, 3, 40), corners, corners + rng.uniform(5, 40, (40, 2))))
    of = rng.integers(0, 40, 90)
    boxes = labels[of, 1:] + rng.normal(0, 2, (90, 4))
    detections = np.column_stack((boxes, rng.random(90), rng.integers(0, 3, 90)))
    confusion = ConfusionMatrix(3)
    for _ in range(2):
        confusion.add(detections, labels)
    np.testing.assert_array_equal(confusion.matrix[:, :3].sum(axis=0), 2 * np.bincount(labels[:, 0].astype(int)))
    confident = detections[detections[:, 4] > 0.25, 5].astype(int)
    np.testing.assert_array_equal(confusion.matrix[:3].sum(axis=1), 2 * np.bincount(confident))
    assert confusion.matrix[:3, :3].sum() > 20
