from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampler import (
    EpochBatches,
    ValidationBatches,
    batch_canvas,
    epoch_order,
    rank_slice,
    sample_generator,
    step_generator,
)

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, st.integers(0, 1000), st.integers(1, 300), st.integers(1, 70), st.integers(1, 8), st.booleans())
def test_every_sample_once_per_epoch(seed, epoch, num_samples, batch_size, world_size, rect):
    ratios = np.linspace(0.3, 3, num_samples) if rect else None
    one = EpochBatches(seed, num_samples, batch_size, 0, 1, aspect_ratios=ratios, image_size=64)
    ranks = [
        EpochBatches(seed, num_samples, batch_size, rank, world_size, aspect_ratios=ratios, image_size=64)
        for rank in range(world_size)
    ]
    for sampler in (one, *ranks):
        sampler.set_epoch(epoch)
    whole = list(one)
    assert sorted(key.index for batch in whole for key in batch) == list(range(num_samples))
    assert [key.position for batch in whole for key in batch] == list(range(num_samples))
    assert len(whole) == len(one) == one.steps_per_epoch
    assert [len(batch) for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    parts = [list(sampler) for sampler in ranks]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert [key for share in shares for key in share] == batch
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert one.global_batch(epoch, step) == batch


@given(SEEDS, st.integers(1, 200), st.integers(1, 32), st.integers(1, 4), st.data())
def test_resume_is_a_slice(seed, num_samples, batch_size, world_size, data):
    rank = data.draw(st.integers(0, world_size - 1))
    weights = data.draw(st.none() | st.just(np.arange(1, num_samples + 1)))
    sampler = EpochBatches(seed, num_samples, batch_size, rank, world_size)
    start = data.draw(st.integers(0, sampler.steps_per_epoch))
    sampler.set_epoch(3, weights=weights)
    whole = list(sampler)
    sampler.set_epoch(3, start, weights)
    assert len(sampler) == sampler.steps_per_epoch - start
    assert list(sampler) == whole[start:]


@given(SEEDS, st.integers(1, 200), st.integers(1, 32), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.data())
def test_what_was_learned_before_a_stop_and_after_it_is_each_sample_once(
    seed, num_samples, batch_size, ranks_before, ranks_after, rect, data
):
    """Stopped before any step and gone on with any other number of ranks."""
    ratios = np.linspace(3, 0.3, num_samples) if rect else None
    before, after = (
        [
            EpochBatches(seed, num_samples, batch_size, rank, world_size, aspect_ratios=ratios, image_size=64)
            for rank in range(world_size)
        ]
        for world_size in (ranks_before, ranks_after)
    )
    stop = data.draw(st.integers(0, before[0].steps_per_epoch))
    for sampler in after:
        sampler.set_epoch(0, stop)
    steps = [[key for share in shares for key in share] for shares in zip(*before, strict=True)][:stop]
    steps += [[key for share in shares for key in share] for shares in zip(*after, strict=True)]
    keys = [key for step in steps for key in step]
    assert [key.position for key in keys] == list(range(num_samples))
    assert sorted(key.index for key in keys) == list(range(num_samples))
    assert steps == [before[0].global_batch(0, step) for step in range(len(steps))]


@given(st.integers(0, 1000), st.integers(1, 17))
def test_slices_are_disjoint_and_even(count, world_size):
    slices = [rank_slice(count, rank, world_size) for rank in range(world_size)]
    assert [at for part in slices for at in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in slices]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_a_rank_without_images_takes_part():
    sampler = EpochBatches(0, 5, 4, 2, 3)
    assert [len(batch) for batch in sampler] == [1, 0]


def test_an_iterator_keeps_to_its_epoch():
    sampler = EpochBatches(0, 40, 8, 0, 1)
    expected = list(sampler)
    iterator = iter(sampler)
    sampler.set_epoch(1, 2)
    assert list(iterator) == expected
    assert next(iter(sampler))[0].epoch == 1


def test_orders_differ_by_seed_and_epoch_and_stay_as_they_are():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    # A change here changes every run that is resumed with it.
    assert epoch_order(0, 0, 8).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert all(abs(np.corrcoef(np.arange(2000), epoch_order(s, 1, 2000))[0, 1]) < 0.1 for s in range(5))


@settings(max_examples=20)
@given(SEEDS)
def test_samples_share_no_random_numbers(seed):
    draws = [
        sample_generator(seed, epoch, position).bit_generator.random_raw(64)
        for epoch in range(3)
        for position in range(3)
    ]
    draws += [step_generator(seed, 0, 0).bit_generator.random_raw(64), epoch_order(seed, 0, 64).astype(np.uint64)]
    assert len(np.unique(np.concatenate(draws[:-1]))) == 64 * 10
    again = sample_generator(seed, 1, 2).random(5)
    np.testing.assert_array_equal(again, sample_generator(seed, 1, 2).random(5))


def test_weights_decide_how_often_images_and_partners_come():
    weights = np.array([0.0, 1.0, 3.0, 0.0])
    sampler = EpochBatches(1, 4, 2, 0, 1)
    drawn, partners = [], []
    for epoch in range(500):
        sampler.set_epoch(epoch, weights=weights)
        keys = [key for batch in sampler for key in batch]
        drawn += [key.index for key in keys]
        partners += [index for key in keys for index in key.partners]
    for indices in (drawn, partners):
        counts = np.bincount(indices, minlength=4) / len(indices)
        np.testing.assert_allclose(counts, [0, 0.25, 0.75, 0], atol=0.03)
    with pytest.raises(ValueError, match="weights"):
        sampler.set_epoch(0, weights=np.ones(3))


def test_rectangular_batches_hold_like_shapes_in_changing_order(many_shapes):
    ratios = many_shapes.shapes_hw[:, 0] / many_shapes.shapes_hw[:, 1]
    sampler = EpochBatches(0, len(many_shapes), 8, 0, 1, aspect_ratios=ratios, image_size=320)
    firsts = set()
    for epoch in range(6):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        firsts.add(tuple(key.index for key in batches[0]))
        for batch in batches:
            height, width = batch[0].canvas_hw
            assert len({key.canvas_hw for key in batch}) == 1
            assert height % 32 == width % 32 == 0
            for key in batch:
                rows, columns = many_shapes.shapes_hw[key.index] * 320 / many_shapes.shapes_hw[key.index].max()
                assert rows <= height
                assert columns <= width
        spread = np.mean([np.ptp(ratios[[key.index for key in batch]]) for batch in batches])
        assert spread < np.ptp(ratios) / 2
    assert len(firsts) == 6


@pytest.mark.parametrize(
    ("ratios", "margin", "expected"),
    [
        ([0.75], 0.5, (256, 352)),
        ([0.5, 0.75], 0.0, (256, 320)),
        ([1.5, 2], 0.0, (320, 224)),
        ([0.5, 2], 0.5, (352, 352)),
    ],
)
def test_canvas_is_the_published_shape(ratios, margin, expected):
    assert batch_canvas(ratios, 320, 32, margin) == expected


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_validation_batches_are_dealt_whole_and_once(count, batch_size, world_size):
    shapes = np.random.default_rng(count).integers(10, 500, (count, 2))
    batches = ValidationBatches(shapes, batch_size, image_size=320)
    ranks = [batches.rank_batches(rank, world_size) for rank in range(world_size)]
    keys = [key for rank in ranks for batch in rank for key in batch]
    assert sorted(key.index for key in keys) == list(range(count))
    assert all(key.position == key.index for key in keys)
    ratios = (shapes[:, 0] / shapes[:, 1])[[index for batch in batches.batches for index in batch]]
    assert (np.diff(ratios) >= 0).all()
    assert [len(rank) for rank in ranks] == sorted((len(rank) for rank in ranks), reverse=True)
    for rank, part in enumerate(ranks):
        assert [[key.index for key in batch] for batch in part] == batches.batches[rank::world_size]


def test_equal_shapes_stay_in_order_of_names_and_squares_can_be_asked_for():
    shapes = np.array([(480, 640), (640, 480), (480, 640), (480, 640)])
    batches = ValidationBatches(shapes, 2, image_size=320)
    assert batches.batches == [[0, 2], [3, 1]]
    assert batches.canvases == [(256, 352), (352, 352)]
    square = ValidationBatches(shapes, 3, image_size=320, rectangular=False)
    assert (square.batches, square.canvases) == ([[0, 1, 2], [3]], [(320, 320)] * 2)
