"""Makes samples and loads them: the data sets, and the processes that make their samples ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from trainer.boxes import xyxy_from_cxcywh_numpy
from trainer.data.augment.basic import (
    AugmentationSettings,
    Sample,
    fit_letterbox,
    flip_randomly,
    jitter_color,
    letterbox,
    mixup,
)
from trainer.data.augment.canvas import letterboxed
from trainer.data.augment.mosaic import copy_paste, mosaic
from trainer.data.augment.warp import random_warp
from trainer.data.collate import Collate, ImageGeometry, LoadedSample
from trainer.data.images import ImageFiles, ImageSource
from trainer.data.sampler import NUM_PARTNERS, EpochBatches, SampleKey, ValidationBatches, sample_generator
from trainer.data.scan.label_cache import LabeledImages
from trainer.protocol import PREFETCHED_BATCHES, affinity_cores, default_loader_workers
from trainer.runtime.process_guard import loader_init


class TrainingData(Dataset[LoadedSample]):
    """Augmented samples by key. The same key gives the same sample in any process, at any time."""

    def __init__(
        self,
        images: LabeledImages,
        *,
        image_size: int,
        settings: AugmentationSettings,
        seed: int,
        source: ImageSource | None = None,
        mosaic_until_epoch: int | None = None,
    ) -> None:
        """Takes the first epoch without mosaics as ``mosaic_until_epoch``; without a ``source``, files are decoded."""
        self.images = images
        self.image_size = image_size
        self.settings = settings
        self.seed = seed
        self.source = source or ImageFiles(images.paths, images.shapes_hw, image_size, training=True)
        self.mosaic_until_epoch = mosaic_until_epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> LoadedSample:
        generator = sample_generator(self.seed, key.epoch, key.position)
        partners = key.partners or tuple(int(i) for i in generator.integers(len(self.images), size=NUM_PARTNERS))
        sample = self._compose(key, partners, generator)
        sample = jitter_color(sample, self.settings, generator)
        sample = flip_randomly(sample, self.settings, generator)
        return LoadedSample(sample.image, sample.boxes, key.position, key.index)

    def load_sample(self, index: int) -> Sample:
        """Returns an image of the split, its long side at ``image_size``, with its objects in pixels."""
        pixels, _, readable = self.source.load(index)
        boxes, segments = (self.images.boxes[index], self.images.segments[index]) if readable else (None, [])
        return _to_pixels(pixels, boxes, segments)

    def _compose(self, key: SampleKey, partners: tuple[int, ...], generator: np.random.Generator) -> Sample:
        """Makes a mosaic, maybe blended with another, or the image by itself in its canvas."""
        take_mosaic, take_mixup = generator.random(2) < (self.settings.mosaic, self.settings.mixup)
        closed = self.mosaic_until_epoch is not None and key.epoch >= self.mosaic_until_epoch
        rectangular = key.canvas_hw != (0, 0)
        if take_mosaic and not closed and not rectangular:
            sample = self._make_mosaic((key.index, *partners[:3]), generator)
            if take_mixup:
                sample = mixup(sample, self._make_mosaic(partners[3:7], generator), generator)
            return sample
        sample = self.load_sample(key.index)
        canvas_hw = key.canvas_hw if rectangular else (self.image_size, self.image_size)
        return random_warp(letterboxed(sample, canvas_hw), self.settings, generator, canvas_hw)

    def _make_mosaic(self, indices: tuple[int, ...], generator: np.random.Generator) -> Sample:
        canvas = mosaic([self.load_sample(index) for index in indices], self.image_size, generator)
        canvas = copy_paste(canvas, self.settings.copy_paste, generator)
        return random_warp(canvas, self.settings, generator, (self.image_size, self.image_size))


class ValidationData(Dataset[LoadedSample]):
    """Images as they are, in the canvas of their batch."""

    def __init__(self, images: LabeledImages, *, image_size: int, source: ImageSource | None = None) -> None:
        self.images = images
        self.source = source or ImageFiles(images.paths, images.shapes_hw, image_size, training=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> LoadedSample:
        pixels, original_hw, readable = self.source.load(key.index)
        fit = fit_letterbox((pixels.shape[0], pixels.shape[1]), key.canvas_hw, scaleup=False)
        boxes = _to_pixels(pixels, self.images.boxes[key.index] if readable else None, []).boxes
        ratios = fit.resized_hw[0] / pixels.shape[0], fit.resized_hw[1] / pixels.shape[1]
        left, top = fit.left_top
        boxes[:, 1:] *= np.array((ratios[1], ratios[0]) * 2, np.float32)
        boxes[:, 1:] += np.array((left, top) * 2, np.float32)
        geometry = ImageGeometry(
            original_hw,
            (fit.resized_hw[0] / original_hw[0], fit.resized_hw[1] / original_hw[1]),
            (left, top),
        )
        return LoadedSample(letterbox(pixels, fit), boxes, key.position, key.index, geometry)


class RankBatches:
    """A rank's validation batches, for a DataLoader's ``batch_sampler``."""

    def __init__(self, batches: ValidationBatches, rank: int, world_size: int) -> None:
        self._mine = batches.rank_batches(rank, world_size)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self._mine)


def make_training_loader(
    data: TrainingData, batches: EpochBatches, *, num_workers: int, pin_memory: bool = False
) -> DataLoader[Any]:
    """Makes the loader of a rank's training batches, in order; ``num_workers`` is per rank.

    Call ``batches.set_epoch`` before each iteration.
    """
    return _make_loader(data, batches, Collate(data.image_size), num_workers, pin_memory)


def make_validation_loader(
    data: ValidationData,
    batches: ValidationBatches,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Makes the loader of a rank's validation batches, in order."""
    return _make_loader(data, RankBatches(batches, rank, world_size), Collate(0), num_workers, pin_memory)


def _make_loader(
    data: Dataset[LoadedSample],
    batches: EpochBatches | RankBatches,
    collate: Collate,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    # Samples are made in parallel; threads inside each would only fight over the same cores.
    cv2.setNumThreads(0)
    if num_workers == 0:
        return DataLoader(data, batch_sampler=batches, collate_fn=collate, pin_memory=pin_memory)
    return DataLoader(
        data,
        batch_sampler=batches,
        collate_fn=collate,
        pin_memory=pin_memory,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES,
        persistent_workers=True,
        # Labels and caches are shared with a forked process at no cost. Such a process dies with its parent, so it
        # cannot keep a GPU that it inherited.
        multiprocessing_context="fork",
        worker_init_fn=prepare_loader_process,
    )


def prepare_loader_process(worker_id: int) -> None:
    """Runs in a new loader process before its first sample."""
    loader_init(worker_id)
    # A pool of threads does not survive the fork.
    cv2.setNumThreads(0)


def _to_pixels(pixels: np.ndarray, boxes: np.ndarray | None, segments: list[np.ndarray]) -> Sample:
    """Makes a sample of an image with its normalized objects in pixels; new arrays."""
    if boxes is None:
        return Sample(pixels, np.zeros((0, 5), np.float32))
    height, width = pixels.shape[:2]
    scaled = boxes.copy()
    scaled[:, 1:] = xyxy_from_cxcywh_numpy(boxes[:, 1:]) * np.array((width, height, width, height), np.float32)
    size = np.array((width, height), np.float32)
    return Sample(pixels, scaled, [polygon * size for polygon in segments])


def loader_workers(wanted: int | None, local_world_size: int, device_type: str) -> int:
    """Returns the number of this rank's loader processes: as asked for, else what the launcher's plan would give."""
    if wanted is not None:
        return wanted
    return default_loader_workers(affinity_cores(), local_world_size, on_cpu=device_type == "cpu")
