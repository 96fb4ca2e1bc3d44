"""Makes samples and loads them: the data sets, and the processes that make their samples ahead of time."""

from __future__ import annotations

import cv2
import numpy as np

from trainer.boxes import xyxy_from_cxcywh_numpy
from trainer.data.augment.basic import (
    AugmentationSettings,
    Sample,
    fit_letterbox,
    letterbox,
    mixup,
)
from trainer.data.augment.canvas import letterboxed
from trainer.data.augment.finish import draw_finish
from trainer.data.augment.mosaic import copy_paste, mosaic
from trainer.data.augment.warp import random_warp
from trainer.data.collate import ImageGeometry, LoadedSample, Match
from trainer.data.images import ImageFiles, ImageSource
from trainer.data.loading.batch_loader import BatchLoader
from trainer.data.loading.image_store import WindowStore
from trainer.data.sampler import (
    NUM_PARTNERS,
    EpochBatches,
    RankBatches,
    SampleKey,
    ValidationBatches,
    sample_generator,
)
from trainer.data.scan.label_cache import LabeledImages
from trainer.protocol import PREFETCHED_BATCHES, affinity_cores, default_loader_workers


class TrainingData:
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
        finish = draw_finish(self.settings, generator)
        boxes = finish.boxes(sample.boxes, sample.shape_hw)
        return LoadedSample(sample.image, boxes, key.position, key.index, finish=finish)

    def begin_step(self, epoch: int, step: int) -> None:
        """Has to be called before the samples of a step are made, so that what is not needed any more is forgotten."""
        if isinstance(self.source, WindowStore):
            self.source.begin_step(epoch, step)

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


class ValidationData:
    """Images as they are, in the canvas of their batch."""

    def __init__(self, images: LabeledImages, *, image_size: int, source: ImageSource | None = None) -> None:
        self.images = images
        self.source = source or ImageFiles(images.paths, images.shapes_hw, image_size, training=False)

    def __len__(self) -> int:
        return len(self.images)

    def begin_step(self, epoch: int, step: int) -> None:
        """Does nothing: no image is shown twice."""

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


def make_training_loader(
    data: TrainingData,
    sampler: EpochBatches,
    *,
    num_workers: int,
    pin_memory: bool = False,
    prefetch: int = PREFETCHED_BATCHES,
    match: Match | None = None,
) -> BatchLoader:
    """Makes the loader of a rank's training batches, in order; ``num_workers`` is per rank.

    With ``match`` batches carry their matches. Call ``sampler.set_epoch`` before each iteration.
    """
    # Samples are made in parallel; threads inside each would only fight over the same cores.
    cv2.setNumThreads(0)
    return BatchLoader(data, sampler, num_workers=num_workers, pin_memory=pin_memory, prefetch=prefetch, match=match)


def make_validation_loader(
    data: ValidationData,
    batches: ValidationBatches,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int,
    pin_memory: bool = False,
) -> BatchLoader:
    """Makes the loader of a rank's validation batches, in order."""
    cv2.setNumThreads(0)
    sampler = RankBatches(batches, rank, world_size)
    return BatchLoader(data, sampler, num_workers=num_workers, pin_memory=pin_memory, prefetch=PREFETCHED_BATCHES)


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
