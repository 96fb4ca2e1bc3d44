"""Learning rate, momentum and accumulation as pure functions of the micro step, and the two recipes.

A micro step is one forward and backward pass over a global batch; an update of the weights follows one or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

NOMINAL_BATCH_SIZE = 64
EMA_DECAY = 0.9999
EMA_TAU_UPDATES = 2000.0
MIN_WARMUP_STEPS = 100
SHORT_RUN_UPDATES = 10_000
LEAST_GAIN_IMAGE_SIZE = 640
LEAST_GAIN_CLASSES = 40


@dataclass(frozen=True)
class Recipe:
    """Constants of a run that YOLOv5 fixes and that a short schedule wants otherwise."""

    warmup_steps: int
    """Micro steps over which rates, momentum and accumulation reach their values."""
    nominal_batch_size: int
    """Images that an update gathers, by accumulation where the batch is smaller."""
    ema_decay: float
    ema_tau_updates: float
    """The average's decay after u updates is ema_decay * (1 - exp(-u / tau))."""
    closing_epochs: int
    """Last epochs, which see plain images instead of mosaics."""
    decay_each_step: bool
    """Whether the learning rate falls at each micro step instead of each epoch."""
    optimizer: str
    lr_scale: float = 1.0
    """Factor on lr0."""
    warmup_bias_scale: float = 1.0
    """Factor on warmup_bias_lr."""
    gain_image_size: int = 0
    """The objectness gain is scaled for images of at least this side."""
    gain_classes: int = 1
    """The class gain is scaled for at least so many classes."""


def make_recipe(
    name: Literal["auto", "yolov5"],
    *,
    epochs: int,
    batches_per_epoch: int,
    global_batch_size: int,
    warmup_epochs: float,
) -> Recipe:
    """The constants of a run. ``yolov5`` keeps those of YOLOv5; ``auto`` scales them with the number of steps."""
    yolov5_warmup = max(round(warmup_epochs * batches_per_epoch), MIN_WARMUP_STEPS) if warmup_epochs > 0 else -1
    if name == "yolov5":
        return Recipe(
            warmup_steps=yolov5_warmup,
            nominal_batch_size=NOMINAL_BATCH_SIZE,
            ema_decay=EMA_DECAY,
            ema_tau_updates=EMA_TAU_UPDATES,
            closing_epochs=0,
            decay_each_step=False,
            optimizer="SGD",
        )
    micro_steps = epochs * batches_per_epoch
    # An update every 16 images where the schedule is short, every 64 where there are plenty of updates anyway.
    nominal = min(NOMINAL_BATCH_SIZE, max(16, micro_steps * global_batch_size // 4000))
    updates = max(1, micro_steps // max(1, round(nominal / global_batch_size)))
    is_short = updates < SHORT_RUN_UPDATES
    return Recipe(
        warmup_steps=min(yolov5_warmup, max(1, micro_steps // 10)),
        nominal_batch_size=nominal,
        # The average spans about a twentieth of the run, and never more than YOLOv5's 10,000 updates.
        ema_decay=min(EMA_DECAY, 1 - 1 / max(updates / 20, 2)),
        ema_tau_updates=min(EMA_TAU_UPDATES, updates / 20),
        closing_epochs=min(15, epochs // 6),
        decay_each_step=True,
        # Few updates are better spent by AdamW, at a rate for its unit-sized steps, and on gains that small images
        # and few classes do not shrink to nothing. benchmarks/README.md has the comparison.
        optimizer="AdamW" if is_short else "SGD",
        lr_scale=0.15 if is_short else 1.0,
        warmup_bias_scale=0.0 if is_short else 1.0,
        gain_image_size=LEAST_GAIN_IMAGE_SIZE if is_short else 0,
        gain_classes=LEAST_GAIN_CLASSES if is_short else 1,
    )


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
    """Micro steps to an update after the warm-up, not yet rounded."""
    cosine: bool
    decay_each_step: bool

    def decay(self, micro_step: int) -> float:
        """The factor on lr0: from 1 down to lrf over the epochs, in a line or half a cosine."""
        passed = micro_step / self.batches_per_epoch if self.decay_each_step else micro_step // self.batches_per_epoch
        fraction = min(passed / self.epochs, 1.0)
        if self.cosine:
            return (1 + math.cos(math.pi * fraction)) / 2 * (1 - self.lrf) + self.lrf
        return (1 - fraction) * (1 - self.lrf) + self.lrf

    def learning_rate(self, micro_step: int) -> float:
        """Rate of weights: from 0 through the warm-up, then the decay."""
        return self._warm(micro_step, 0.0, self.lr0 * self.decay(micro_step))

    def bias_learning_rate(self, micro_step: int) -> float:
        """Rate of biases: falls from ``warmup_bias_lr`` through the warm-up."""
        return self._warm(micro_step, self.warmup_bias_lr, self.lr0 * self.decay(micro_step))

    def momentum_at(self, micro_step: int) -> float:
        """Momentum, or Adam's first beta."""
        return self._warm(micro_step, self.warmup_momentum, self.momentum)

    def accumulation_at(self, micro_step: int) -> int:
        """Micro steps that an update gathers; grows from 1 through the warm-up."""
        return max(1, round(self._warm(micro_step, 1.0, self.accumulation)))

    def _warm(self, micro_step: int, start: float, end: float) -> float:
        if micro_step > self.warmup_steps:
            return end
        return start + (end - start) * micro_step / max(self.warmup_steps, 1)


def multi_scale_size(image_size: int, stride: int, fraction: float) -> int:
    """An image side between half and one and a half of ``image_size``, a multiple of ``stride``; fraction in [0, 1).

    At least two strides, since batch norm cannot learn from a single cell.
    """
    low, high = image_size * 0.5, image_size * 1.5 + stride
    return max(int(low + fraction * (high - low)) // stride, 2) * stride


def fitness(map50: float, map5095: float) -> float:
    """What the best epoch is chosen by: 0.1 mAP50 + 0.9 mAP50-95, as YOLOv5 does."""
    return 0.1 * map50 + 0.9 * map5095
