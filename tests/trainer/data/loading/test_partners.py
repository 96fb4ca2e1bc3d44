"""Lanes: partners of a position from its own slot of the last steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.loading.partners import (
    KEPT_SET_BYTES,
    LEAST_WINDOW_STEPS,
    MOST_WINDOW_STEPS,
    WINDOW_BYTES,
    draw_from_lane,
    lane_candidates,
    partner_window,
)
from trainer.data.sampler import NUM_PARTNERS, EpochBatches


@given(
    num_samples=st.integers(1, 400), batch=st.integers(1, 64), window=st.integers(1, 16), seed=st.integers(0, 2**63 - 1)
)
def test_partners_lie_in_the_lane_and_within_the_window(num_samples, batch, window, seed):
    position = seed % num_samples
    step, slot = divmod(position, batch)
    candidates = lane_candidates(position, num_samples, batch, window)
    assert (candidates % batch == slot).all()
    assert (candidates < num_samples).all()
    steps = candidates // batch
    oldest, newest = (step - window + 1, step) if step >= window else (0, window - 1)
    assert (steps >= oldest).all()
    assert (steps <= newest).all()
    assert len(np.unique(candidates)) == len(candidates)
    others = [at for at in range(oldest, newest + 1) if at != step and at * batch + slot < num_samples]
    assert candidates.tolist() == ([at * batch + slot for at in others] or [position])


def test_partners_are_all_different_while_there_are_enough():
    words = np.random.default_rng(0).integers(0, 2**63, (500, 16), dtype=np.uint64)
    candidates = np.arange(100, 115)
    drawn = np.stack([draw_from_lane(row, candidates, NUM_PARTNERS) for row in words])
    assert all(len(set(row)) == NUM_PARTNERS for row in drawn.tolist())
    counts = np.bincount(drawn.ravel() - 100, minlength=15)
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()
    few = draw_from_lane(words[0], np.array([3, 9]), NUM_PARTNERS)
    assert sorted(few[:2].tolist()) == [3, 9]
    assert draw_from_lane(words[0], np.array([4]), NUM_PARTNERS).tolist() == [4] * NUM_PARTNERS


def test_no_two_samples_of_a_batch_share_an_image():
    sampler = EpochBatches(3, 500, 16, 0, 1, window=8)
    for step in range(sampler.steps_per_epoch):
        shown = [{key.index, *key.partners} for key in sampler.global_batch(1, step)]
        assert sum(map(len, shown)) == len(set().union(*shown))


def test_the_window_is_a_function_of_data_and_batch():
    assert partner_window(KEPT_SET_BYTES, 16, 640) == 0
    assert partner_window(KEPT_SET_BYTES + 1, 16, 640) == MOST_WINDOW_STEPS
    assert partner_window(KEPT_SET_BYTES + 1, 100_000, 640) == LEAST_WINDOW_STEPS
    window = partner_window(1 << 40, 200, 640)
    assert LEAST_WINDOW_STEPS < window < MOST_WINDOW_STEPS
    assert (window + 1) * 200 * 3 * 640**2 <= WINDOW_BYTES < (window + 2) * 200 * 3 * 640**2


@pytest.mark.parametrize(("ranks", "processes"), [(1, 1), (1, 4), (2, 2), (3, 1)])
def test_work_split_by_slots_needs_each_image_once(ranks, processes):
    num_samples, batch, window = 600, 12, 8
    needed: list[int] = []
    for rank in range(ranks):
        sampler = EpochBatches(0, num_samples, batch, rank, ranks, window=window)
        for process in range(processes):
            mine: set[int] = set()
            for keys in sampler.batches(0, 0, None, slice(process, None, processes)):
                mine.update(index for key in keys for index in (key.index, *key.partners))
            needed += mine
    assert sorted(needed) == list(range(num_samples))
