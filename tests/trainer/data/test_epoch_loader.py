from __future__ import annotations

import numpy as np
import pytest

from trainer.data.augment.basic import AugmentationSettings
from trainer.data.epoch_loader import EpochLoader, class_counts, image_weights
from trainer.data.loader import TrainingData, make_training_loader
from trainer.data.sampler import EpochBatches


@pytest.fixture
def make_epoch_loader(bccd):
    def make(*, rect: bool = False, by_weight: bool = False) -> EpochLoader:
        data = TrainingData(bccd, image_size=64, settings=AugmentationSettings(mosaic=1.0), seed=3)
        ratios = bccd.shapes_hw[:, 0] / bccd.shapes_hw[:, 1] if rect else None
        sampler = EpochBatches(3, len(bccd), 16, 0, 1, aspect_ratios=ratios, image_size=64)
        loader = make_training_loader(data, sampler, num_workers=0)
        return EpochLoader(bccd, sampler, loader, num_classes=3, draws_by_weight=by_weight)

    return make


@pytest.mark.parametrize("options", [{}, {"rect": True}, {"by_weight": True}])
def test_names_and_preview_are_those_of_the_batches(make_epoch_loader, bccd, options):
    epoch_loader, class_map = make_epoch_loader(**options), (0.9, 0.5, 0.1)
    batch = next(iter(epoch_loader.epoch(1, 2, class_map)))
    names = epoch_loader.image_names(epoch_loader.steps_per_epoch + 2, class_map)
    assert names == [bccd.paths[index].name for index in batch.indices.tolist()]
    first, preview = next(iter(epoch_loader.epoch(0, 0, ()))), epoch_loader.preview(4)
    np.testing.assert_array_equal(preview.images_bchw, first.images_bchw[:4])
    assert epoch_loader.global_batch_size == 16


def test_rare_and_badly_found_classes_weigh_most(bccd):
    counts = class_counts(bccd.boxes, 3)
    assert counts.sum(axis=0).tolist() == [606, 45, 54]
    even = image_weights(counts, np.array(()))
    poor_platelets = image_weights(counts, np.array((0.9, 0.9, 0.1)))
    assert (even > 0).all()
    with_platelets = counts[:, 2] > 0
    assert even[with_platelets].mean() > even[~with_platelets].mean()
    share = poor_platelets[with_platelets].sum() / poor_platelets.sum()
    assert share > even[with_platelets].sum() / even.sum()


def test_the_images_of_an_epochs_steps_add_up(make_epoch_loader, bccd):
    epoch_loader = make_epoch_loader()
    steps = [epoch_loader.images_in(step) for step in range(epoch_loader.steps_per_epoch)]
    assert sum(steps) == len(bccd)
    assert set(steps[:-1]) == {epoch_loader.global_batch_size}
