from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.matching import IOU_THRESHOLDS, match_detections, pairwise_iou_numpy


def match(detections, labels):
    return match_detections(
        np.array(detections, np.float32).reshape(-1, 6), np.array(labels, np.float32).reshape(-1, 5), IOU_THRESHOLDS
    )


def test_recorded_images(golden_dir):
    golden = np.load(golden_dir / "average_precision.npz")
    for image in range(30):
        detections, labels = golden[f"detections{image}"], golden[f"labels{image}"]
        correct = match_detections(detections, labels, IOU_THRESHOLDS)
        np.testing.assert_array_equal(correct, golden[f"correct{image}"])


def slow_match(detections, labels, thresholds):
    """The published rule in loops."""
    correct = np.zeros((len(detections), len(thresholds)), bool)
    if not len(labels):
        return correct
    iou = pairwise_iou_numpy(detections[:, :4], labels[:, 1:])
    for t, threshold in enumerate(thresholds):
        kept = {}
        for d in np.argsort(-detections[:, 4], kind="stable"):
            own = [label for label in range(len(labels)) if labels[label, 0] == detections[d, 5]]
            if not own:
                continue
            best = max(own, key=lambda label: (iou[d, label], -label))
            if iou[d, best] >= threshold and best not in kept:
                kept[best] = d
        correct[list(kept.values()), t] = True
    return correct


@pytest.mark.parametrize("seed", range(6))
def test_matching_equals_the_rule_written_as_loops(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (8, 2))
    labels = np.column_stack((rng.integers(0, 2, 8), corners, corners + rng.uniform(20, 60, (8, 2))))
    of = rng.integers(0, 8, 60)
    detections = np.column_stack(
        (labels[of, 1:] + rng.normal(0, 4, (60, 4)), rng.random(60).round(1), rng.integers(0, 3, 60))
    )
    correct = match_detections(detections, labels, IOU_THRESHOLDS)
    assert correct[:, 0].sum() >= 4
    np.testing.assert_array_equal(correct, slow_match(detections, labels, IOU_THRESHOLDS))


def test_of_duplicates_the_most_confident_counts_and_order_does_not_matter():
    label = [1, 10, 10, 30, 30]
    weak, strong = [10, 10, 30, 30, 0.3, 1], [10, 10, 30, 29, 0.9, 1]
    assert match([weak, strong], [label])[:, 0].tolist() == [False, True]
    assert match([strong, weak], [label])[:, 0].tolist() == [True, False]
    # At 0.95 IoU is 0.95 for the strong one: both reach it, and the strong one is kept there too.
    assert match([strong, weak], [label])[:, -1].tolist() == [True, False]


def test_a_weaker_detection_counts_at_thresholds_that_a_stronger_one_misses():
    label = [0, 0, 0, 10, 10]
    loose, tight = [0, 0, 10, 6, 0.9, 0], [0, 0, 10, 10, 0.2, 0]
    correct = match([loose, tight], [label])
    assert correct[0].tolist() == [True] * 3 + [False] * 7  # 0.50, 0.55, 0.60
    assert correct[1].tolist() == [False] * 3 + [True] * 7


def test_a_detection_does_not_fall_back_to_its_second_best_label():
    labels = [[0, 0, 0, 10, 10], [0, 0, 0, 10, 9]]
    detections = [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 9.9, 0.8, 0]]
    assert match(detections, labels)[:, 0].tolist() == [True, False]


def test_another_class_never_matches_and_its_label_stays_free():
    labels = [[0, 0, 0, 10, 10], [1, 0, 0, 10, 10]]
    assert match([[0, 0, 10, 10, 0.9, 2]], labels).any() == False  # noqa: E712
    assert match([[0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.8, 0]], labels).all()


def test_an_overlap_of_exactly_half_reaches_the_first_threshold():
    assert match([[0, 0, 10, 5, 0.9, 0]], [[0, 0, 0, 10, 10]]).tolist() == [[True] + [False] * 9]


@pytest.mark.parametrize(
    ("detections", "labels"),
    [([], []), ([[0, 0, 1, 1, 0.5, 0]], []), ([], [[0, 0, 0, 1, 1]]), ([[5, 5, 5, 5, 0.5, 0]], [[0, 5, 5, 5, 5]])],
    ids=["nothing", "no labels", "no detections", "no area"],
)
def test_nothing_to_match(detections, labels):
    correct = match(detections, labels)
    assert correct.shape == (len(detections), 10)
    assert not correct.any()
