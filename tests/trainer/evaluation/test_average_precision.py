from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainer.evaluation.average_precision import RECALL_POINTS, average_precision


def _positives(result):
    """Detections at the result's confidence that found a label, and that did not, per class."""
    right = (result.recall * result.label_counts).round()
    return right, (right / (result.precision + 1e-16) - right).round()


def test_recorded_figures(golden_dir):
    golden = np.load(golden_dir / "average_precision.npz")
    images = range(30)
    detections = np.concatenate([golden[f"detections{i}"] for i in images])
    labels = np.concatenate([golden[f"labels{i}"] for i in images])
    correct = np.concatenate([golden[f"correct{i}"] for i in images])
    result = average_precision(correct, detections[:, 4], detections[:, 5], labels[:, 0], 5)
    for name in ("precision", "recall", "f1", "ap", "classes"):
        np.testing.assert_allclose(getattr(result, name), golden[name], rtol=0, atol=1e-12, err_msg=name)
    right, wrong = _positives(result)
    assert np.array_equal(right, golden["true_positives"])
    assert np.array_equal(wrong, golden["false_positives"])
    assert result.map50 == pytest.approx(float(golden["map50"]), abs=1e-12)
    assert result.map5095 == pytest.approx(float(golden["map5095"]), abs=1e-12)


def interpolated_ap(correct, num_labels):
    """The definition: sentinels, envelope, linear interpolation, trapezoid; one class, one threshold."""
    found = correct.cumsum()
    recall = np.concatenate(([0.0], found / num_labels, [1.0]))
    precision = np.concatenate(([1.0], found / np.arange(1, len(found) + 1), [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    values = np.interp(RECALL_POINTS, recall, envelope)
    return ((values[1:] + values[:-1]) / 2 * np.diff(RECALL_POINTS)).sum(), values


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_equals_its_definition(seed):
    """Few and many labels, recalls that fall on the sampled points, all found, none found, ends of either kind."""
    rng = np.random.default_rng(seed)
    num_labels = int(rng.choice([1, 2, 5, 10, 50, 100, 333]))
    num_found = num_labels if rng.random() < 0.3 else int(rng.integers(0, num_labels + 1))
    num_detections = num_found + int(rng.choice([0, 1, 20, 500]))
    if num_detections == 0:
        num_detections = 1
    correct = np.zeros((num_detections, 3), bool)
    for t, count in enumerate((num_found, num_found // 2, 0)):
        correct[rng.permutation(num_detections)[:count], t] = True
    confidence = np.sort(rng.random(num_detections))[::-1]
    result = average_precision(correct, confidence, np.full(num_detections, 2), np.full(num_labels, 2), 4)
    for t in range(3):
        expected, values = interpolated_ap(correct[:, t], num_labels)
        assert result.ap[0, t] == pytest.approx(expected, abs=1e-12)
        if t == 0:
            np.testing.assert_allclose(result.precision_at_recall[0], values, rtol=0, atol=1e-12)


def test_a_perfect_detector():
    """The envelope falls to 0 at recall 1, so a perfect class has 0.995, as in YOLOv5."""
    result = average_precision(
        np.ones((4, 10), bool), np.full(4, 0.9), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 2
    )
    assert result.map50 == pytest.approx(0.995)
    assert result.precision.tolist() == [1, 1]
    assert result.recall.tolist() == [1, 1]
    right, wrong = _positives(result)
    assert right.tolist() == [2, 2]
    assert wrong.tolist() == [0, 0]


def test_classes_without_labels_are_left_out_and_those_without_detections_are_zero():
    correct = np.zeros((3, 10), bool)
    correct[0] = True
    # Class 0 is detected but never labeled, class 1 both, class 3 labeled only; class 2 neither.
    result = average_precision(correct, np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1]), np.array([3, 1, 3]), 4)
    assert result.classes.tolist() == [1, 3]
    assert result.label_counts.tolist() == [1, 2]
    assert result.ap[0, 0] > 0.9
    assert result.ap[1].tolist() == [0] * 10
    assert result.precision[1] == result.recall[1] == result.f1[1] == 0


@pytest.mark.parametrize("num_labels", [0, 5], ids=["no labels", "labels"])
@pytest.mark.parametrize("num_detections", [0, 7], ids=["no detections", "wrong detections"])
def test_nothing_found_gives_zeros_and_no_nan(num_labels, num_detections):
    result = average_precision(
        np.zeros((num_detections, 10), bool),
        np.linspace(0.9, 0.1, num_detections),
        np.zeros(num_detections),
        np.zeros(num_labels),
        3,
    )
    assert result.map50 == result.map5095 == 0.0
    assert result.ap.shape == (min(num_labels, 1), 10)
    for field in dataclasses.fields(result):
        assert np.isfinite(getattr(result, field.name)).all()


def test_equal_confidences_keep_the_order_they_came_in():
    first_right, last_right = np.array([[True], [False], [False]]), np.array([[False], [False], [True]])
    tied = np.full(3, 0.5)
    ranked = np.array([0.5, 0.4, 0.3])
    for correct in (first_right, last_right):
        actual = average_precision(correct, tied, np.zeros(3), np.zeros(1), 1)
        expected = average_precision(correct, ranked, np.zeros(3), np.zeros(1), 1)
        np.testing.assert_array_equal(actual.ap, expected.ap)


def test_classes_do_not_mix_whatever_the_order_of_images():
    rng = np.random.default_rng(0)
    correct = rng.random((500, 10)) < 0.2
    confidence = rng.permutation(500) / 500
    detected = rng.integers(0, 6, 500)
    labels = rng.integers(0, 5, 300)
    whole = average_precision(correct, confidence, detected, labels, 6)
    shuffled = rng.permutation(500)
    again = average_precision(correct[shuffled], confidence[shuffled], detected[shuffled], labels, 6)
    np.testing.assert_array_equal(whole.ap, again.ap)
    for row, class_index in enumerate(whole.classes):
        mine = detected == class_index
        count = (labels == class_index).sum()
        alone = average_precision(correct[mine], confidence[mine], np.zeros(mine.sum()), np.zeros(count), 1)
        np.testing.assert_array_equal(alone.ap[0], whole.ap[row])
        np.testing.assert_array_equal(alone.recall_curve[0], whole.recall_curve[row])
