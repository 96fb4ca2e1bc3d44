"""Chooses the images that a sample is combined with, so that each image of an epoch is decoded once.

A lane is a slot of the global batch: position p = t * B + k lies in lane k. The partners of p come from its own lane,
from the last few steps up to its own. So they are a function of (seed, epoch, position, B, window) alone; ranks and
loader processes that split the work by slots never need each other's images; and no two samples of a batch share one.
"""

from __future__ import annotations

import numpy as np

MOST_WINDOW_STEPS, LEAST_WINDOW_STEPS = 16, 4
WINDOW_BYTES = 2 << 30
"""Most memory that the images of all lanes take on all machines together, unless the least window needs more."""
KEPT_SET_BYTES = 1 << 30
"""A set whose decoded images take no more is kept decoded, and partners come from all of it."""


def partner_window(decoded_bytes: int, global_batch_size: int, image_size: int) -> int:
    """Returns how many steps of its lane a sample's partners come from; 0: from the whole set.

    A function of the data and the batch, never of a machine's memory: it is part of what a sample is.
    """
    if decoded_bytes <= KEPT_SET_BYTES:
        return 0
    step_bytes = 3 * image_size**2 * global_batch_size
    return max(LEAST_WINDOW_STEPS, min(MOST_WINDOW_STEPS, WINDOW_BYTES // step_bytes - 1))


def lane_candidates(position: int, num_samples: int, global_batch_size: int, window: int) -> np.ndarray:
    """Returns int64 (n,): the positions of the lane that a sample's partners come from, itself last if there are none.

    They are those of the last ``window`` steps up to its own, or at the start of an epoch of the first ``window``.
    """
    step, slot = divmod(position, global_batch_size)
    first, last = (step - window + 1, step) if step >= window else (0, window - 1)
    positions = np.arange(first, last + 1, dtype=np.int64) * global_batch_size + slot
    positions = positions[(positions < num_samples) & (positions != position)]
    return positions if len(positions) else np.array([position], np.int64)


def draw_from_lane(words: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Returns ``count`` of the candidates in random order, each once before any comes twice.

    ``words`` are random integers, at least one a candidate.
    """
    shuffled = candidates[np.argsort(words[: len(candidates)], kind="stable")]
    return np.resize(shuffled, count)
