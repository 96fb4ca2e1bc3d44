"""Yields an epoch's batches for one rank, from any step on: joins sampler, loader and the weights of the draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trainer.data.collate import Batch
from trainer.data.loading.batch_loader import BatchLoader
from trainer.data.sampler import EpochBatches
from trainer.data.scan.label_cache import LabeledImages


class EpochLoader:
    """Batches of a training split in their order. ``draws_by_weight`` is --image-weights."""

    def __init__(
        self,
        images: LabeledImages,
        sampler: EpochBatches,
        loader: BatchLoader,
        *,
        num_classes: int,
        draws_by_weight: bool,
    ) -> None:
        self._images = images
        self._sampler = sampler
        self._loader = loader
        self._class_counts = class_counts(images.boxes, num_classes) if draws_by_weight else None

    @property
    def global_batch_size(self) -> int:
        """Returns the number of images in a full step over all ranks."""
        return self._sampler.global_batch_size

    def images_in(self, step: int) -> int:
        """Returns the number of images in an epoch's global batch; the last may be smaller."""
        size = self._sampler.global_batch_size
        return min(size, self._sampler.num_samples - step * size)

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of global batches in an epoch; the last may be smaller."""
        return self._sampler.steps_per_epoch

    def epoch(self, epoch: int, start_step: int, class_map: Sequence[float]) -> Iterator[Batch]:
        """Returns this rank's batches of ``epoch`` from ``start_step`` on.

        ``class_map`` is mAP per class, empty at first.
        """
        return self._loader.epoch(epoch, start_step, self._weights(class_map))

    def begin(self, epoch: int, start_step: int = 0) -> None:
        """Has the loader processes begin an epoch whose batches are taken later, unless its draw is not known yet."""
        if self._class_counts is None:
            self._loader.begin(epoch, start_step)

    def preview(self, count: int) -> Batch:
        """Returns the run's first samples, made in this process; training makes them again."""
        keys = self._sampler.global_batch(0, 0, self._weights(()))[:count]
        return self._loader.collate([self._loader.data[key] for key in keys])

    def image_names(self, micro_step: int, class_map: Sequence[float]) -> list[str]:
        """Returns the names of the files in a global batch, counted from the start of the run."""
        epoch, step = divmod(micro_step, self.steps_per_epoch)
        keys = self._sampler.global_batch(epoch, step, self._weights(class_map))
        return [self._images.paths[key.index].name for key in keys]

    def _weights(self, class_map: Sequence[float]) -> np.ndarray | None:
        if self._class_counts is None:
            return None
        return image_weights(self._class_counts, np.array(class_map))


def class_counts(boxes: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Counts the labels of each class in each image: (images, classes)."""
    return np.stack([np.bincount(rows[:, 0].astype(np.int64), minlength=num_classes) for rows in boxes])


def image_weights(counts: np.ndarray, class_map: np.ndarray) -> np.ndarray:
    """Returns how often to draw each image, (images,).

    The weight is the sum over the image's labels of 1 / frequency x (1 - mAP)^2 of the class: rare and badly found
    classes weigh most, as with YOLOv5's --image-weights; an image without labels keeps a little.
    """
    totals = counts.sum(0)
    weights = np.where(totals > 0, 1 / np.maximum(totals, 1), 0)
    if len(class_map) == len(weights):
        weights = weights * (1 - class_map) ** 2
    per_image = counts @ weights
    return per_image + max(per_image.max(initial=0.0), 1.0) * 1e-6
