"""Measures how well anchors cover a data set's boxes, and fits better anchors. Loads no torch.

A box is covered by an anchor if neither side differs from the anchor's by a factor of ``anchor_t`` or more, which is
the rule by which training assigns boxes to anchors.
"""

from __future__ import annotations

import numpy as np

MIN_SIDE_PX = 2.0
"""Boxes narrower or lower than this after scaling are left out of a fit."""

_FIT_SAMPLE = 5_000
_KMEANS_STARTS = 10
_GENERATIONS = 1_000
_MUTATION_RATE = 0.9
_MUTATION_SPREAD = 0.1
_CHUNK = 100_000


def anchors_per_level(anchors_px: np.ndarray, num_levels: int) -> list[list[float]]:
    """Turns anchors (levels * A, 2) by rising area into a definition's rows: per level w, h, w, h... in pixels."""
    rows = np.asarray(anchors_px, dtype=np.float64).reshape(num_levels, -1)
    return [[round(float(side), 2) for side in row] for row in rows]


def best_possible_recall(anchors_px: np.ndarray, sizes_px: np.ndarray, anchor_t: float) -> float:
    """Returns the share of boxes that at least one anchor covers, 0 to 1; 1 if there are no boxes.

    ``anchors_px`` (k, 2) and ``sizes_px`` (n, 2) are widths and heights at the size of training.
    """
    sizes = np.asarray(sizes_px, dtype=np.float64).reshape(-1, 2)
    if len(sizes) == 0:
        return 1.0
    anchors = np.asarray(anchors_px, dtype=np.float64).reshape(-1, 2)
    chunks = (sizes[start : start + _CHUNK] for start in range(0, len(sizes), _CHUNK))
    covered = sum(int((_factors(anchors, chunk) < anchor_t).any(axis=1).sum()) for chunk in chunks)
    return covered / len(sizes)


def fit_anchors(sizes_px: np.ndarray, count: int, image_size: int, anchor_t: float, seed: int) -> np.ndarray:
    """Fits ``count`` anchors (count, 2) to boxes of ``sizes_px`` (n, 2), by rising area; equal for equal seeds.

    Runs k-means over the sizes scaled to unit variance, then keeps random changes that improve the mean closeness of
    the boxes to their best anchor (YOLOv5's criterion; boxes that no anchor covers count 0).
    """
    generator = np.random.default_rng(seed)
    sizes = np.asarray(sizes_px, dtype=np.float64).reshape(-1, 2)
    sizes = np.minimum(sizes[np.isfinite(sizes).all(axis=1) & (sizes >= MIN_SIDE_PX).all(axis=1)], image_size)
    if len(sizes) > _FIT_SAMPLE:
        sizes = sizes[generator.choice(len(sizes), _FIT_SAMPLE, replace=False)]
    if len(np.unique(sizes, axis=0)) < count:
        anchors = _spread(sizes, count, image_size)
    else:
        anchors = _cluster(sizes, count, generator)
    if len(sizes):
        anchors = _evolve(anchors, sizes, image_size, anchor_t, generator)
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def _factors(anchors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns the factor, at least 1, between box and anchor in the side that differs most: (n, k)."""
    ratios = sizes[:, None] / anchors[None]
    return np.maximum(ratios, 1 / np.maximum(ratios, 1e-12)).max(axis=2)


def _closeness(log_anchors: np.ndarray, log_sizes: np.ndarray, anchor_t: float) -> float:
    """Returns the mean over boxes of 1 / the factor to the best anchor, 0 for a factor of ``anchor_t`` or more.

    Anchors and sizes are logarithms: a factor becomes a difference, five times cheaper than ratios.
    """
    width = np.abs(log_anchors[:, 0, None] - log_sizes[None, :, 0])
    height = np.abs(log_anchors[:, 1, None] - log_sizes[None, :, 1])
    best = np.maximum(width, height).min(axis=0)
    return float(np.where(best < np.log(anchor_t), np.exp(-best), 0.0).mean())


def _spread(sizes: np.ndarray, count: int, image_size: int) -> np.ndarray:
    """Returns anchors for too few distinct boxes: squares, by factors of 2, around the geometric mean of the sides.

    Without boxes the squares lie around an eighth of ``image_size``.
    """
    middle = np.exp(np.log(sizes).mean()) if len(sizes) else image_size / 8
    sides = middle * 2.0 ** (np.arange(count) - (count - 1) / 2)
    return np.repeat(np.clip(sides, MIN_SIDE_PX, image_size)[:, None], 2, axis=1)


def _cluster(sizes: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Runs k-means from several seeded starts and returns the centers of least distortion."""
    from scipy.cluster.vq import kmeans  # 0.3 s to import

    scale = np.maximum(sizes.std(axis=0), 1e-6)
    points = sizes / scale
    distinct = np.unique(points, axis=0)
    best, best_distortion = distinct[:count], np.inf
    for _ in range(_KMEANS_STARTS):
        start = distinct[generator.choice(len(distinct), count, replace=False)]
        centers, distortion = kmeans(points, start)
        # A cluster that lost all its points is dropped by scipy.
        if len(centers) == count and distortion < best_distortion:
            best, best_distortion = centers, distortion
    return best * scale


def _evolve(
    anchors: np.ndarray, sizes: np.ndarray, image_size: int, anchor_t: float, generator: np.random.Generator
) -> np.ndarray:
    """Changes anchors at random and keeps each change that brings the boxes closer to their anchors."""
    log_sizes, current = np.log(sizes), np.log(anchors)
    low, high = np.log(MIN_SIDE_PX), np.log(image_size)
    fitness = _closeness(current, log_sizes, anchor_t)
    for _ in range(_GENERATIONS):
        changed = generator.random(current.shape) < _MUTATION_RATE
        steps = generator.random() * _MUTATION_SPREAD * generator.standard_normal(current.shape)
        candidate = np.clip(current + np.where(changed, steps, 0.0), low, high)
        candidate_fitness = _closeness(candidate, log_sizes, anchor_t)
        if candidate_fitness > fitness:
            current, fitness = candidate, candidate_fitness
    return np.exp(current)
