"""Computes learning rate, momentum and accumulation from the micro step alone, and holds the two recipes.

A micro step is one forward and backward pass over a global batch; an update of the weights follows one or more.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

NOMINAL_BATCH_SIZE = 64
EMA_DECAY = 0.9999
EMA_TAU_UPDATES = 2000.0
MIN_WARMUP_STEPS = 100
SHORT_RUN_UPDATES = 10_000
LEAST_GAIN_IMAGE_SIZE = 640
LEAST_GAIN_CLASSES = 40
SHARE_EXPONENT = 0.75
"""Of the share of new images in what rates of a refinement fall by; benchmarks/README.md has 0.5 and 1 beside it."""
REFINING_SPAN = 0.08
"""The share of a run that the average spans if the weights already detect the classes of the run."""


@dataclass(frozen=True)
class Recipe:
    """Constants of a run that YOLOv5 fixes and that a short schedule needs to differ."""

    warmup_steps: int
    """Micro steps over which rates, momentum and accumulation reach their values."""
    nominal_batch_size: int
    """Images per update, by accumulation if the batch is smaller."""
    ema_decay: float
    ema_tau_updates: float
    """The average's decay after u updates is ema_decay * (1 - exp(-u / tau)); with a tau of 0 it is ema_decay."""
    closing_epochs: int
    """Number of last epochs, whose images are plain instead of mosaics."""
    decay_each_step: bool
    """True if the learning rate falls at each micro step, False if it falls at each epoch."""
    optimizer: str
    lr_scale: float = 1.0
    """Factor on lr0."""
    warmup_bias_scale: float = 1.0
    """Factor on warmup_bias_lr."""
    statistics_scale: float = 1.0
    """Factor on the momentum with which batch norms' running statistics follow the batches."""
    gain_image_size: int = 0
    """The objectness gain is scaled for images of at least this side."""
    gain_classes: int = 1
    """The class gain is scaled for at least this number of classes."""
    knows_classes: bool = False
    """True if the weights that the run starts from already detect its classes."""
    learned_images: int = 0
    """Number of images that these weights were learned from; 0 if it is unknown."""
    partner_window: int = 0
    """Steps of its lane that a sample's partners come from; 0: from the whole set."""


def make_recipe(
    name: Literal["auto", "yolov5"],
    *,
    epochs: int,
    batches_per_epoch: int,
    global_batch_size: int,
    warmup_epochs: float,
    learned_images: int | None = None,
    chosen: Collection[str] = (),
) -> Recipe:
    """Returns the constants of a run: those of YOLOv5 for ``yolov5``, scaled with the number of steps for ``auto``.

    ``learned_images`` is None if the weights that the run starts from do not detect its classes yet, else the number of
    images that these were learned from, or 0 if it is unknown; such weights ``auto`` refines rather than teaching the
    classes anew. ``chosen`` names the hyperparameters whose values the user chose: their rates are not lowered.
    """
    published = Recipe(
        warmup_steps=max(round(warmup_epochs * batches_per_epoch), MIN_WARMUP_STEPS) if warmup_epochs > 0 else -1,
        nominal_batch_size=NOMINAL_BATCH_SIZE,
        ema_decay=EMA_DECAY,
        ema_tau_updates=EMA_TAU_UPDATES,
        closing_epochs=0,
        decay_each_step=False,
        optimizer="SGD",
        knows_classes=learned_images is not None,
        learned_images=learned_images or 0,
    )
    if name == "yolov5":
        return published
    micro_steps = epochs * batches_per_epoch
    if published.knows_classes:
        share = min(1.0, batches_per_epoch * global_batch_size / learned_images) if learned_images else 1.0
        return _refining(published, micro_steps, global_batch_size, share, chosen)
    # An update every 16 images if the schedule is short, every 64 if it has many updates.
    nominal = min(NOMINAL_BATCH_SIZE, max(16, micro_steps * global_batch_size // 4000))
    updates = max(1, micro_steps // max(1, round(nominal / global_batch_size)))
    is_short = updates < SHORT_RUN_UPDATES
    return Recipe(
        warmup_steps=min(published.warmup_steps, max(1, micro_steps // 10)),
        nominal_batch_size=nominal,
        # The average spans about a twentieth of the run, and at most YOLOv5's 10,000 updates.
        ema_decay=min(EMA_DECAY, 1 - 1 / max(updates / 20, 2)),
        ema_tau_updates=min(EMA_TAU_UPDATES, updates / 20),
        closing_epochs=min(15, epochs // 6),
        decay_each_step=True,
        # If updates are few, AdamW learns more from each, at a rate for its unit-sized steps; and the gains must not
        # shrink toward 0 with small images and few classes. benchmarks/README.md has the comparison.
        optimizer="AdamW" if is_short else "SGD",
        lr_scale=0.15 if is_short else 1.0,
        warmup_bias_scale=0.0 if is_short else 1.0,
        gain_image_size=LEAST_GAIN_IMAGE_SIZE if is_short else 0,
        gain_classes=LEAST_GAIN_CLASSES if is_short else 1,
    )


def _refining(
    published: Recipe, micro_steps: int, global_batch_size: int, share: float, chosen: Collection[str]
) -> Recipe:
    """The recipe for weights that know the classes, which large steps would make forget them.

    ``share`` is the number of the run's images over that of the images which taught them: a few images say little that
    many others have not said, so the rate falls with it, and so does that of the batch norms' statistics: these alone,
    with weights that never changed, took COCO's from 0.236 to 0.213 on 59 of its images. AdamW's steps are of unit size
    from the first one on. SGD's shrink with the gradient, which is small here, and in a short run YOLOv5's warm-up,
    which has 100 steps or more, ends before the rate is high.
    """
    updates = updates_in(micro_steps, published.warmup_steps, NOMINAL_BATCH_SIZE / global_batch_size)
    slowed = share**SHARE_EXPONENT
    return replace(
        published,
        lr_scale=1.0 if "lr0" in chosen else slowed,
        statistics_scale=slowed,
        # A tenth of the published first rate of biases is the rate of everything else.
        warmup_bias_scale=1.0 if "warmup_bias_lr" in chosen else 0.1 * slowed,
        # The average starts as the weights that were loaded, so there is no youth in which it must follow fast.
        ema_decay=min(EMA_DECAY, 1 - 1 / max(updates * REFINING_SPAN, 2)),
        ema_tau_updates=0.0,
        decay_each_step=True,
    )


def updates_in(micro_steps: int, warmup_steps: int, accumulation: float) -> float:
    """About how many updates are made in so many micro steps, as accumulation grows from 1 through the warm-up."""
    accumulation = max(accumulation, 1.0)
    warming = min(micro_steps, max(warmup_steps, 0))
    growth = (accumulation - 1) * warming / max(warmup_steps, 1)
    in_warmup = warming * math.log1p(growth) / growth if growth else warming
    return in_warmup + (micro_steps - warming) / accumulation


@dataclass(frozen=True)
class Schedule:
    """Rates at each micro step."""

    epochs: int
    batches_per_epoch: int
    lr0: float
    lrf: float
    momentum: float
    warmup_momentum: float
    warmup_bias_lr: float
    warmup_steps: int
    accumulation: float
    """Micro steps per update after the warm-up, before rounding."""
    cosine: bool
    decay_each_step: bool

    def decay(self, micro_step: int) -> float:
        """Returns the factor on lr0: from 1 down to lrf over the epochs, linearly or along half a cosine."""
        passed = micro_step / self.batches_per_epoch if self.decay_each_step else micro_step // self.batches_per_epoch
        fraction = min(passed / self.epochs, 1.0)
        if self.cosine:
            return (1 + math.cos(math.pi * fraction)) / 2 * (1 - self.lrf) + self.lrf
        return (1 - fraction) * (1 - self.lrf) + self.lrf

    def learning_rate(self, micro_step: int) -> float:
        """Returns the rate of weights: rising from 0 through the warm-up, then decaying."""
        return self._warm(micro_step, 0.0, self.lr0 * self.decay(micro_step))

    def bias_learning_rate(self, micro_step: int) -> float:
        """Returns the rate of biases: from ``warmup_bias_lr`` through the warm-up, then that of weights."""
        return self._warm(micro_step, self.warmup_bias_lr, self.lr0 * self.decay(micro_step))

    def momentum_at(self, micro_step: int) -> float:
        """Returns the momentum, or Adam's first beta."""
        return self._warm(micro_step, self.warmup_momentum, self.momentum)

    def accumulation_at(self, micro_step: int) -> int:
        """Returns the micro steps per update, growing from 1 through the warm-up."""
        return max(1, round(self._warm(micro_step, 1.0, self.accumulation)))

    def _warm(self, micro_step: int, start: float, end: float) -> float:
        if micro_step > self.warmup_steps:
            return end
        return start + (end - start) * micro_step / max(self.warmup_steps, 1)


def multi_scale_size(image_size: int, stride: int, fraction: float) -> int:
    """Returns an image side from half to one and a half of ``image_size``, for ``fraction`` in [0, 1).

    The side is a multiple of ``stride``, and at least two strides, because batch norm cannot learn from a single cell.
    """
    low, high = image_size * 0.5, image_size * 1.5 + stride
    return max(int(low + fraction * (high - low)) // stride, 2) * stride


def fitness(map50: float, map5095: float) -> float:
    """Returns the value that is highest in the best epoch: 0.1 mAP50 + 0.9 mAP50-95, as in YOLOv5."""
    return 0.1 * map50 + 0.9 * map5095
