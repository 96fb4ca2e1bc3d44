"""Chooses the images of each split, so that what belongs together stays together and classes keep shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.data.scan.label_cache import LabeledImages

_ROUNDS = 20
_TINY = 1e-12
_FEW = 0.002
"""Of all groups: a round that moves no more is the last."""
_RARE = 0.02
_MOST_SWAPPED = 1000
"""Groups up to which all pairs are tried; more even out by themselves."""


def class_counts(images: LabeledImages, num_classes: int) -> np.ndarray:
    """Returns the boxes of each class in each image, float64 (images, classes)."""
    counts = np.zeros((len(images), num_classes))
    image = np.repeat(np.arange(len(images)), images.boxes.counts)
    np.add.at(counts, (image, images.boxes.rows[:, 0].astype(np.int64)), 1)
    return counts


def choose_splits(counts: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Returns the split of each image (images,), an index into ``shares``, which add up to 1.

    Images of one group come into one split. ``counts`` (images, classes) are what is shared out evenly, and so are the
    images themselves. Groups are placed from the largest on where most is lacking; then single groups are moved as long
    as that helps. The same seed gives the same splits.
    """
    number = int(groups.max(initial=-1)) + 1
    sizes = np.bincount(groups, minlength=number).astype(np.float64)
    of_group = np.zeros((number, counts.shape[1]))
    np.add.at(of_group, groups, counts)
    values = np.column_stack([of_group, sizes])
    weights = _weights(values, np.asarray(shares))
    wanted = np.outer(shares, values.sum(axis=0))
    order = np.random.default_rng(seed).permutation(number)
    order = order[np.argsort(-(values**2 @ weights[0]), kind="stable")]
    chosen = np.full(number, -1)
    have = np.zeros_like(wanted)
    for group in order:
        chosen[group] = _best(have, wanted, values[group], weights)
        have[chosen[group]] += values[group]
    for _ in range(_ROUNDS):
        if _improve(chosen, have, wanted, values, weights, order) <= number * _FEW:
            break
    for _ in range(_ROUNDS if number <= _MOST_SWAPPED else 0):
        if not _swap(chosen, have, wanted, values, weights, order):
            break
    of_images: np.ndarray = chosen[groups]
    return of_images


def _weights(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns what a box of each class, and an image, that lacks or is too many counts in each split, squared."""
    totals = np.maximum(values.sum(axis=0), 1)
    boxes = max(float(totals[:-1].sum()), 1.0)
    # First of all shares among all boxes; that a rare class is in every split counts as well.
    of_class = 1 / boxes**2 + _RARE / totals[:-1] ** 2
    weights: np.ndarray = np.concatenate([of_class, [1 / totals[-1] ** 2]]) / shares[:, None] ** 2
    return weights


def largest_shift(counts: np.ndarray, chosen: np.ndarray) -> float:
    """Returns by how much the share of a class among a split's boxes differs from that among all, at most; 0 to 1."""
    whole = counts.sum(axis=0) / max(counts.sum(), 1)
    shifts = [0.0]
    for split in np.unique(chosen):
        boxes = counts[chosen == split].sum(axis=0)
        if boxes.sum():
            shifts.append(float(np.abs(boxes / boxes.sum() - whole).max()))
    return max(shifts)


def _best(have: np.ndarray, wanted: np.ndarray, value: np.ndarray, weights: np.ndarray) -> int:
    """Returns the split that helps most if it gets ``value``: of (have + value - wanted)^2 what is new to it."""
    return int(np.argmin((weights * value * (2 * (have - wanted) + value)).sum(axis=1)))


def _improve(
    chosen: np.ndarray,
    have: np.ndarray,
    wanted: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    order: np.ndarray,
) -> int:
    """Moves each group to where it helps most; returns how many were moved."""
    moved = 0
    for group in order:
        value, was = values[group], chosen[group]
        have[was] -= value
        best = _best(have, wanted, value, weights)
        have[best] += value
        moved += best != was
        chosen[group] = best
    return moved


def _swap(
    chosen: np.ndarray,
    have: np.ndarray,
    wanted: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    order: np.ndarray,
) -> int:
    """Lets each group change places with the one with which that helps most; returns how many did."""
    swapped = 0
    for group in order:
        was = chosen[group]
        gained, lacks = values - values[group], have - wanted
        costs = (weights[was] * gained * (2 * lacks[was] + gained)).sum(axis=1)
        costs += (weights[chosen] * gained * (gained - 2 * lacks[chosen])).sum(axis=1)
        costs[chosen == was] = 0
        other = int(np.argmin(costs))
        if costs[other] < -_TINY:
            place = chosen[other]
            have[was] += gained[other]
            have[place] -= gained[other]
            chosen[group], chosen[other] = place, was
            swapped += 1
    return swapped
