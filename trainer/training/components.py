"""Makes the parts of a run from its configuration and from the parts that they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config.train import TrainConfig
from trainer.data.augment.basic import AugmentationSettings
from trainer.data.collate import Match
from trainer.data.demo.dataset import default_cache_dir
from trainer.data.epoch_loader import EpochLoader
from trainer.data.image_cache import open_image_cache
from trainer.data.images import ImageFiles, ImageSource
from trainer.data.loader import (
    TrainingData,
    ValidationData,
    loader_workers,
    make_training_loader,
    make_validation_loader,
)
from trainer.data.loading.image_store import decoded_bytes, keep_decoded
from trainer.data.loading.partners import partner_window
from trainer.data.sampler import EpochBatches, ValidationBatches
from trainer.data.scan.label_cache import LabeledImages
from trainer.errors import ConfigError
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.validator import Validator
from trainer.loss import DetectionLoss, LossGains, Matches, scaled_gains
from trainer.model.graph import DetectionModel
from trainer.optim.ema import ModelEma
from trainer.optim.optimizer import make_optimizer
from trainer.optim.schedule import Recipe, Schedule
from trainer.runtime.distributed import Collectives, DistEnv
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.training.run_data import Data
from trainer.training.state import Progress, TrainState

MAX_VALIDATION_BATCH = 32
FIRST_LOSS_SCALE = 1024.0


def make_state(
    model: DetectionModel, config: TrainConfig, recipe: Recipe, schedule: Schedule, fp16: bool
) -> TrainState:
    """Makes optimizer, average, scaler and a progress of zero for a model that is on its device."""
    hyp = config.hyperparameters
    gathered = config.batch_size * max(1, round(schedule.accumulation))
    optimizer = make_optimizer(
        model,
        recipe.optimizer if config.optimizer == "auto" else config.optimizer,
        lr=schedule.lr0,
        momentum=hyp.momentum,
        # The published decay is meant for updates of 64 images.
        weight_decay=hyp.weight_decay * gathered / 64,
    )
    scale_statistics(model, recipe.statistics_scale)
    device = next(model.parameters()).device
    return TrainState(
        model=model,
        ema=ModelEma(model, recipe.ema_decay, recipe.ema_tau_updates),
        optimizer=optimizer,
        # torch's own first scale, 65,536, overflows where a gradient is above 1, as they are from scratch.
        scaler=torch.amp.GradScaler(device.type, init_scale=FIRST_LOSS_SCALE, enabled=fp16),
        progress=Progress(),
        loss_sums=torch.zeros(3, dtype=torch.float64, device=device),
    )


def scale_statistics(model: nn.Module, factor: float) -> None:
    """Slows the running statistics of every batch norm down by a factor of 0 to 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum *= factor


def make_schedule(config: TrainConfig, recipe: Recipe, batches_per_epoch: int) -> Schedule:
    """Makes the schedule of rates from hyperparameters and recipe."""
    hyp = config.hyperparameters
    is_recipes_choice = config.optimizer == "auto"  # an optimizer chosen by name gets the rates as they are written
    return Schedule(
        epochs=config.epochs,
        batches_per_epoch=batches_per_epoch,
        lr0=hyp.lr0 * (recipe.lr_scale if is_recipes_choice else 1.0),
        lrf=hyp.lrf,
        momentum=hyp.momentum,
        warmup_momentum=hyp.warmup_momentum,
        warmup_bias_lr=hyp.warmup_bias_lr * (recipe.warmup_bias_scale if is_recipes_choice else 1.0),
        warmup_steps=recipe.warmup_steps,
        accumulation=max(recipe.nominal_batch_size / config.batch_size, 1.0),
        cosine=config.cos_lr,
        decay_each_step=recipe.decay_each_step,
    )


def make_loss(config: TrainConfig, model: DetectionModel, image_size: int, recipe: Recipe) -> DetectionLoss:
    """Makes the loss, with the published gains scaled to the data and the model."""
    hyp = config.hyperparameters
    anchors = model.detect.anchors
    published = LossGains(
        box=hyp.box,
        obj=hyp.obj,
        cls=hyp.cls,
        obj_pos_weight=hyp.obj_pw,
        cls_pos_weight=hyp.cls_pw,
        focal_gamma=hyp.fl_gamma,
        label_smoothing=config.label_smoothing,
        anchor_threshold=hyp.anchor_t,
    )
    gains = scaled_gains(
        published,
        num_classes=max(model.num_classes, recipe.gain_classes),
        image_size=max(image_size, recipe.gain_image_size),
        num_levels=len(anchors),
    )
    loss = DetectionLoss(anchors, model.num_classes, gains)
    if config.compile:
        loss.compile()
    return loss


def augmentation_of(config: TrainConfig) -> AugmentationSettings:
    """Returns the augmentation part of the hyperparameters."""
    names = [field.name for field in fields(AugmentationSettings)]
    return AugmentationSettings(**{name: getattr(config.hyperparameters, name) for name in names})


def image_source(
    config: TrainConfig,
    env: DistEnv,
    image_size: int,
    heartbeat: HeartbeatWriter,
    images: LabeledImages,
    *,
    window: int,
    training: bool,
) -> ImageSource:
    """Returns where a split's pixels come from: the machine's decoded copy if --cache asks for it, else the files."""
    cache = None
    if config.cache:
        cache = open_image_cache(
            images,
            image_size=image_size,
            training=training,
            kind=config.cache,
            cache_dir=default_cache_dir(),
            on_progress=lambda done, total: heartbeat.beat("scan", step=done),
        )
    if cache is not None:
        return cache
    files = ImageFiles(images.paths, images.shapes_hw, image_size, training=training)
    return keep_decoded(files, images.shapes_hw, image_size, window=window, local_world_size=env.local_world_size)


def _matcher_of(config: TrainConfig, loss: DetectionLoss, strides: Sequence[int]) -> Match | None:
    """Returns what finds a batch's matches while it is joined; None if its size is only known in the step."""
    if config.multi_scale:
        return None

    def match(targets: Tensor, canvas_hw: tuple[int, int]) -> Matches:
        return loss.match(targets, [(canvas_hw[0] // stride, canvas_hw[1] // stride) for stride in strides])

    return match


def strides_of(model: DetectionModel) -> tuple[int, ...]:
    """Returns pixels per cell of each level, finest first."""
    return tuple(int(value) for value in model.stride)


def window_for(config: TrainConfig, data: Data, image_size: int) -> int:
    """Returns how many steps of its lane a sample's partners come from; 0: from the whole set."""
    if config.rect:
        return 0  # no mosaics
    return partner_window(decoded_bytes(data.train.shapes_hw, image_size), config.batch_size, image_size)


def make_epoch_loader(  # noqa: PLR0913 (what build.py has made so far)
    config: TrainConfig,
    data: Data,
    source: ImageSource,
    model: DetectionModel,
    loss: DetectionLoss,
    image_size: int,
    recipe: Recipe,
    collectives: Collectives,
    device: torch.device,
) -> EpochLoader:
    """Makes the loader of this rank's training batches."""
    env = collectives.env
    shapes = data.train.shapes_hw
    sampler = EpochBatches(
        config.seed,
        len(data.train),
        config.batch_size,
        env.rank,
        env.world_size,
        aspect_ratios=shapes[:, 0] / shapes[:, 1] if config.rect else None,
        image_size=image_size,
        stride=model.size_grid,
        window=recipe.partner_window,
    )
    training = TrainingData(
        data.train,
        image_size=image_size,
        settings=augmentation_of(config),
        seed=config.seed,
        mosaic_until_epoch=config.epochs - recipe.closing_epochs if recipe.closing_epochs else None,
        source=source,
    )
    loader = make_training_loader(
        training,
        sampler,
        num_workers=loader_workers(config.workers, env.local_world_size, device.type),
        pin_memory=device.type == "cuda",
        match=_matcher_of(config, loss, strides_of(model)),
    )
    return EpochLoader(data.train, sampler, loader, num_classes=len(data.names), draws_by_weight=config.image_weights)


def make_validator(  # noqa: PLR0913 (what build.py has made so far)
    config: TrainConfig,
    data: Data,
    source: ImageSource,
    stride: int,
    loss: DetectionLoss,
    image_size: int,
    collectives: Collectives,
    device: torch.device,
) -> Validator:
    """Makes the validator of this rank's share of the batches."""
    batches = ValidationBatches(
        data.val.shapes_hw,
        min(config.batch_size, MAX_VALIDATION_BATCH),
        image_size=image_size,
        stride=stride,
    )
    loader = make_validation_loader(
        ValidationData(data.val, image_size=image_size, source=source),
        batches,
        rank=collectives.env.rank,
        world_size=collectives.env.world_size,
        num_workers=loader_workers(config.workers, collectives.env.local_world_size, device.type),
        pin_memory=device.type == "cuda",
    )
    return Validator(Evaluator(num_classes=len(data.names), names=data.names, loss=loss), loader, collectives, device)


def label_sizes(images: LabeledImages, image_size: int) -> np.ndarray:
    """Returns width and height of every label in pixels of an image whose long side is ``image_size``: (n, 2)."""
    shapes = images.shapes_hw.astype(np.float64)
    scale = shapes[:, ::-1] * image_size / shapes.max(axis=1, keepdims=True, initial=1)
    sizes: np.ndarray = images.boxes.rows[:, 3:5] * np.repeat(scale, images.boxes.counts, axis=0)
    return sizes


def freeze_layers(model: DetectionModel, freeze: tuple[int, ...]) -> None:
    """Stops the gradient of the first n layers (one number) or of just those named (several). Raises ConfigError."""
    layers = range(freeze[0]) if len(freeze) == 1 else freeze
    for index in layers:
        if not 0 <= index < len(model.model):
            raise ConfigError(
                "--freeze names a layer that the model lacks", seen=str(index), expected=f"0 to {len(model.model) - 1}"
            )
        model.model[index].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "--freeze leaves nothing to train",
            seen=f"all {len(model.model)} layers are frozen",
            expected=f"at most {len(model.model) - 1}, so that the head learns",
        )
