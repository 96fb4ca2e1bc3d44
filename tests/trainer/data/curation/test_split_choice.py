"""Shares of classes and images, groups that stay together, and the same split for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.curation.split_choice import choose_splits, class_counts, largest_shift
from trainer.data.scan.label_cache import LabeledImages

SHARES = (0.7, 0.2, 0.1)


def made(images, classes, seed):
    generator = np.random.default_rng(seed)
    often = 1 / np.arange(1, classes + 1) ** 1.2
    return generator.poisson(7 * often / often.sum() * np.exp(generator.normal(size=(images, classes))))


def test_boxes_are_counted_by_class():
    boxes = [np.array([[1, 0.5, 0.5, 0.1, 0.1], [1, 0.2, 0.2, 0.1, 0.1], [0, 0.5, 0.5, 0.1, 0.1]], np.float32)]
    boxes.append(np.zeros((0, 5), np.float32))
    images = LabeledImages.of(["a", "b"], np.ones((2, 2), np.int32), boxes, [[], []], "")
    assert class_counts(images, 3).tolist() == [[1, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("images", "classes", "groups"), [(364, 3, 364), (2000, 80, 2000), (5000, 80, 200), (50, 3, 50)]
)
def test_shares_of_classes_stay_within_two_points(images, classes, groups):
    counts = made(images, classes, 1)
    group = np.arange(images) if groups == images else np.random.default_rng(2).integers(0, groups, images)
    group = np.unique(group, return_inverse=True)[1]
    chosen = choose_splits(counts, group, SHARES, 0)
    assert largest_shift(counts, chosen) < 0.02
    assert np.abs(np.bincount(chosen) / images - SHARES).max() < 0.02


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), images=st.integers(2, 120), groups=st.integers(1, 60))
def test_groups_stay_together_and_a_seed_decides(seed, images, groups):
    counts = made(images, 4, seed)
    group = np.unique(np.random.default_rng(seed).integers(0, groups, images), return_inverse=True)[1]
    chosen = choose_splits(counts, group, SHARES, seed)
    assert chosen.shape == (images,)
    assert set(chosen.tolist()) <= {0, 1, 2}
    assert all(len(set(chosen[group == each].tolist())) == 1 for each in range(group.max() + 1))
    assert chosen.tolist() == choose_splits(counts, group, SHARES, seed).tolist()


def test_another_seed_is_another_split():
    counts = made(200, 3, 1)
    first, second = (choose_splits(counts, np.arange(200), SHARES, seed) for seed in (0, 1))
    assert first.tolist() != second.tolist()


def test_a_set_without_a_label_is_split_by_images():
    chosen = choose_splits(np.zeros((100, 2)), np.arange(100), SHARES, 0)
    assert np.bincount(chosen).tolist() == [70, 20, 10]
    assert largest_shift(np.zeros((100, 2)), chosen) == 0
