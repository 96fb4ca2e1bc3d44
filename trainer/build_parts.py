"""The parts of a run, each from the configuration and what it stands on."""

from __future__ import annotations

from dataclasses import fields

import torch

from trainer.config import TrainConfig
from trainer.data.augment import AugmentationSettings
from trainer.data.demo import default_cache_dir
from trainer.data.feed import TrainingFeed
from trainer.data.image_cache import open_image_cache
from trainer.data.images import ImageSource
from trainer.data.label_cache import LabelledImages
from trainer.data.loader import TrainingData, ValidationData, make_training_loader, make_validation_loader
from trainer.data.sampler import EpochBatches, ValidationBatches
from trainer.distributed import Peers
from trainer.ema import ModelEma
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.validator import Validator
from trainer.loss.detection import DetectionLoss, scaled_gains
from trainer.model.graph import DetectionModel
from trainer.optim import make_optimizer
from trainer.prepare import Data, loader_workers
from trainer.schedule import Recipe, Schedule
from trainer.state import Progress, TrainState
from trainer.telemetry import Heartbeat

MAX_VALIDATION_BATCH = 32


def make_state(
    model: DetectionModel, config: TrainConfig, recipe: Recipe, schedule: Schedule, fp16: bool
) -> TrainState:
    """Optimizer, average, scaler and a progress of zero for a model that is on its device."""
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
    device = next(model.parameters()).device
    return TrainState(
        model=model,
        ema=ModelEma(model, recipe.ema_decay, recipe.ema_tau_updates),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=fp16),
        progress=Progress(),
        loss_sums=torch.zeros(3, dtype=torch.float64, device=device),
    )


def make_schedule(config: TrainConfig, recipe: Recipe, batches_per_epoch: int) -> Schedule:
    """Rates from hyperparameters and recipe."""
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
    """The loss with the published gains scaled to the data and the model."""
    hyp = config.hyperparameters
    anchors = model.detect.anchors
    gains = scaled_gains(
        box=hyp.box,
        obj=hyp.obj,
        cls=hyp.cls,
        num_classes=max(model.num_classes, recipe.gain_classes),
        image_size=max(image_size, recipe.gain_image_size),
        num_levels=len(anchors),
        obj_pos_weight=hyp.obj_pw,
        cls_pos_weight=hyp.cls_pw,
        focal_gamma=hyp.fl_gamma,
        label_smoothing=config.label_smoothing,
        anchor_threshold=hyp.anchor_t,
    )
    return DetectionLoss(anchors, model.num_classes, gains)


def augmentation_of(config: TrainConfig) -> AugmentationSettings:
    """The augmentation part of the hyperparameters."""
    names = [field.name for field in fields(AugmentationSettings)]
    return AugmentationSettings(**{name: getattr(config.hyperparameters, name) for name in names})


def image_source(
    config: TrainConfig, images: LabelledImages, image_size: int, heartbeat: Heartbeat, *, training: bool
) -> ImageSource | None:
    """The machine's one decoded copy of a split where --cache asks for it."""
    if not config.cache:
        return None
    return open_image_cache(
        images,
        image_size=image_size,
        training=training,
        kind=config.cache,
        cache_dir=default_cache_dir(),
        on_progress=lambda done, total: heartbeat.beat("scan", step=done),
    )


def make_feed(
    config: TrainConfig,
    data: Data,
    source: ImageSource | None,
    stride: int,
    image_size: int,
    recipe: Recipe,
    peers: Peers,
    device: torch.device,
) -> TrainingFeed:
    """The training batches of this rank."""
    env = peers.env
    shapes = data.train.shapes_hw
    sampler = EpochBatches(
        config.seed,
        len(data.train),
        config.batch_size,
        env.rank,
        env.world_size,
        aspect_ratios=shapes[:, 0] / shapes[:, 1] if config.rect else None,
        image_size=image_size,
        stride=stride,
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
        num_workers=loader_workers(config.workers, env.local_world_size),
        pin_memory=device.type == "cuda",
    )
    return TrainingFeed(data.train, sampler, loader, num_classes=len(data.names), draws_by_weight=config.image_weights)


def make_validator(
    config: TrainConfig,
    data: Data,
    source: ImageSource | None,
    stride: int,
    loss: DetectionLoss,
    image_size: int,
    peers: Peers,
    device: torch.device,
) -> Validator:
    """The validation of this rank's share of the batches."""
    batches = ValidationBatches(
        data.val.shapes_hw,
        min(config.batch_size, MAX_VALIDATION_BATCH),
        image_size=image_size,
        stride=stride,
    )
    loader = make_validation_loader(
        ValidationData(data.val, image_size=image_size, source=source),
        batches,
        rank=peers.env.rank,
        world_size=peers.env.world_size,
        num_workers=loader_workers(config.workers, peers.env.local_world_size),
        pin_memory=device.type == "cuda",
    )
    return Validator(Evaluator(num_classes=len(data.names), names=data.names, loss=loss), loader, peers, device)
