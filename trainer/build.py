"""The only place where configuration meets constructors: from a TrainConfig to a Run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import __version__
from trainer.checkpoint import CheckpointWriter
from trainer.config import TrainConfig, rounded_image_size
from trainer.data.augment import AugmentationSettings
from trainer.data.demo import default_cache_dir
from trainer.data.feed import TrainingFeed
from trainer.data.image_cache import open_image_cache
from trainer.data.images import ImageSource
from trainer.data.label_cache import LabelledImages
from trainer.data.loader import TrainingData, ValidationData, make_training_loader, make_validation_loader
from trainer.data.sampler import EpochBatches, ValidationBatches
from trainer.distributed import DistEnv, Peers, rehearse, wrap_model
from trainer.ema import ModelEma
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.validator import Validator
from trainer.loss.detection import DetectionLoss, scaled_gains
from trainer.model.anchors import anchors_per_level, best_possible_recall, fit_anchors
from trainer.model.graph import DetectionModel, build_model, load_definition
from trainer.optim import make_optimizer
from trainer.prepare import Data, freeze_layers, label_sizes, load_data, loader_workers, pick_autocast
from trainer.progress import Reporter
from trainer.run import LoopSettings, Run
from trainer.schedule import Recipe, Schedule, make_recipe
from trainer.state import Progress, TrainState
from trainer.telemetry import FiniteWatch, Heartbeat, ResultsWriter

MAX_VALIDATION_BATCH = 32
SUFFICIENT_RECALL = 0.98
"""Anchors that can match this share of the labels are left as they are."""


def make_model(config: TrainConfig, names: Sequence[str], reporter: Reporter) -> DetectionModel:
    """The model with its starting weights, the same on every rank."""
    torch.manual_seed(config.seed)
    model = build_model(load_definition(config.cfg), num_classes=len(names))
    if config.weights:
        from trainer.weights import load_weights_into

        reporter.say(load_weights_into(model, Path(config.weights), names).summary())
    return model


def fit_model(config: TrainConfig, model: DetectionModel, data: Data, image_size: int, reporter: Reporter) -> None:
    """Give the model anchors that suit the labels, and freeze layers."""
    if config.autoanchor:
        threshold = config.hyperparameters.anchor_t
        anchors = (model.detect.anchors.cpu() * model.stride.cpu().view(-1, 1, 1)).numpy()
        sizes = label_sizes(data.train, image_size)
        recall = best_possible_recall(anchors, sizes, threshold)
        reporter.say(f"anchors: best possible recall {recall:.3f}")
        if recall < SUFFICIENT_RECALL or not model.anchors_given:
            fitted = fit_anchors(sizes, anchors.size // 2, image_size, threshold, config.seed)
            better = best_possible_recall(fitted, sizes, threshold)
            if better > recall or not model.anchors_given:
                reporter.say(f"anchors: fitted to the labels, best possible recall {better:.3f}")
                model.set_anchors(anchors_per_level(fitted, len(anchors)))
    freeze_layers(model, config.freeze)


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


def build_run(config: TrainConfig, env: DistEnv, device: torch.device, run_dir: Path) -> tuple[Run, Data]:
    """Everything that one rank's training needs, at step 0."""
    peers = Peers(env)
    logs = run_dir / "logs"
    heartbeat = Heartbeat(logs / f"rank{env.rank}.heartbeat.json", env.rank)
    heartbeat.beat("start")
    reporter = Reporter(enabled=env.is_main, log_path=logs / "rank0.log")
    data = load_data(config.data, single_cls=config.single_cls, peers=peers, reporter=reporter, heartbeat=heartbeat)
    model = make_model(config, data.names, reporter)
    stride = int(model.stride.max())
    image_size = rounded_image_size(config.imgsz, stride)
    fit_model(config, model, data, image_size, reporter)
    if image_size != config.imgsz:
        reporter.say(f"--imgsz {config.imgsz} is not a multiple of the model's stride; {image_size} is used")
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches_per_epoch = -(-len(data.train) // config.batch_size)
    recipe = make_recipe(
        config.recipe,
        epochs=config.epochs,
        batches_per_epoch=batches_per_epoch,
        global_batch_size=config.batch_size,
        warmup_epochs=config.hyperparameters.warmup_epochs,
    )
    schedule = make_schedule(config, recipe, batches_per_epoch)
    autocast = pick_autocast(config.amp, device)
    loss = make_loss(config, model, image_size, recipe)
    cached = partial(image_source, config, image_size=image_size, heartbeat=heartbeat)
    # Loader processes are forked before CUDA is first used and the model is wrapped.
    feed = make_feed(config, data, cached(data.train, training=True), stride, image_size, recipe, peers, device)
    validator = make_validator(config, data, cached(data.val, training=False), stride, loss, image_size, peers, device)
    run = Run(
        peers=peers,
        device=device,
        model=wrap_model(model, env, device, sync_bn=config.sync_bn, data_parallel=config.parallel == "dp"),
        state=make_state(model, config, recipe, schedule, autocast is torch.float16),
        loss=loss,
        schedule=schedule,
        feed=feed,
        validator=validator,
        reporter=reporter,
        heartbeat=heartbeat,
        results=ResultsWriter(run_dir, tensorboard=env.is_main),
        checkpoints=CheckpointWriter(run_dir / "weights"),
        checkpoint_header=describe_run(config, data, model, image_size),
        settings=LoopSettings(
            epochs=config.epochs,
            seed=config.seed,
            image_size=image_size,
            strides=tuple(int(value) for value in model.stride),
            multi_scale=config.multi_scale,
            patience=config.patience,
            validate_each_epoch=config.val,
            save=config.save,
            save_period=config.save_period,
            checkpoint_interval_s=config.checkpoint_interval_s,
            autocast_dtype=autocast,
        ),
        finite=FiniteWatch(),
    )
    rehearse(run.model, torch.zeros((1, 3, 2 * stride, 2 * stride), device=device))
    return run, data


def describe_run(config: TrainConfig, data: Data, model: DetectionModel, image_size: int) -> dict[str, Any]:
    """What a weights file says of itself: plain values."""
    return {
        "config": config.model_dump(mode="json"),
        "definition": model.definition,
        "names": list(data.names),
        "image_size": image_size,
        "stride": [int(value) for value in model.stride],
        "versions": {"yolo_launch": __version__, "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
    }
