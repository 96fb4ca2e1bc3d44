"""Builds a Run from a TrainConfig, out of the parts that components.py makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import __version__
from trainer.config.train import TrainConfig, rounded_image_size
from trainer.model.anchors import anchors_per_level, best_possible_recall, fit_anchors
from trainer.model.compiled import FixedShapeCompiled
from trainer.model.graph import DetectionModel, build_model, load_definition
from trainer.optim.schedule import Recipe
from trainer.protocol import RunFiles
from trainer.runtime.device_progress import DeviceProgress
from trainer.runtime.distributed import Collectives, DistEnv, warm_up_ddp, wrap_model
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter
from trainer.training.components import (
    freeze_layers,
    image_source,
    label_sizes,
    make_epoch_loader,
    make_loss,
    make_schedule,
    make_state,
    make_validator,
    strides_of,
    window_for,
)
from trainer.training.precision import agree_on_autocast
from trainer.training.resume import definition_to_go_on_with, settle_recipe
from trainer.training.run import LoopSettings, Run
from trainer.training.run_data import Data, count_small_boxes, load_data
from trainer.training.telemetry import NonFiniteDetector, ResultsWriter
from trainer.weights.checkpoint import CheckpointWriter
from trainer.weights.load import definition_of, load_weights_into

SUFFICIENT_RECALL = 0.98
"""Anchors that can match this share of the labels are left as they are."""


def make_model(
    config: TrainConfig,
    names: Sequence[str],
    collectives: Collectives,
    reporter: Reporter,
    definition: dict[str, Any] | None,
) -> tuple[DetectionModel, int | None]:
    """Returns the model with its starting weights, the same on every rank, and how many images taught them ``names``.

    The number is 0 if it is unknown, and None if the weights do not detect all ``names``.

    Only rank 0 reads files, and it sends their content, so other machines need no copies. If a run goes on with a
    ``definition``, no file is read: the weights come from the run's checkpoint.
    """
    torch.manual_seed(config.seed)
    if definition is not None:
        return build_model(definition, num_classes=len(names)), None

    def read_definition() -> Any:
        takes_model_of_weights = bool(config.weights and not config.cfg)
        return definition_of(Path(config.weights)) if takes_model_of_weights else load_definition(config.model_name)

    found = collectives.from_main(read_definition)
    anchors_per_cell = round(config.hyperparameters.anchors or 0)
    if anchors_per_cell:  # a count alone, so that they are fitted to the labels
        found = {**found, "anchors": anchors_per_cell}
    model = build_model(found, num_classes=len(names))
    if not config.weights:
        return model, None

    def load() -> int | None:
        report = load_weights_into(model, Path(config.weights), names)
        reporter.say(report.summary())
        return report.learned_images if report.knows_classes else None

    learned_images = collectives.from_main(load)
    collectives.broadcast_tensors(list(model.state_dict().values()))
    return model, learned_images


def suitable_anchors(
    config: TrainConfig, model: DetectionModel, data: Data, image_size: int, knows_classes: bool, reporter: Reporter
) -> list[list[float]] | None:
    """Returns anchors that suit the labels, per level in pixels, or None to keep those of the model.

    Weights that know the classes keep their anchors: with others the head would have to learn every box anew.
    """
    threshold = config.hyperparameters.anchor_t
    anchors = (model.detect.anchors.cpu() * model.stride.cpu().view(-1, 1, 1)).numpy()
    sizes = label_sizes(data.train, image_size)
    recall = best_possible_recall(anchors, sizes, threshold)
    reporter.say(f"anchors: best possible recall {recall:.3f}")
    if knows_classes and not config.hyperparameters.anchors:
        if recall < SUFFICIENT_RECALL:
            reporter.say(
                "anchors: those of the weights are kept, which know the classes; --set anchors=3 fits new ones"
            )
        return None
    if recall < SUFFICIENT_RECALL or not model.anchors_given:
        fitted = fit_anchors(sizes, anchors.size // 2, image_size, threshold, config.seed)
        better = best_possible_recall(fitted, sizes, threshold)
        if better > recall or not model.anchors_given:
            reporter.say(f"anchors: fitted to the labels, best possible recall {better:.3f}")
            return anchors_per_level(fitted, len(anchors))
    return None


def read_data(config: TrainConfig, collectives: Collectives, reporter: Reporter, heartbeat: HeartbeatWriter) -> Data:
    """Returns the data set of a configuration. Raises DataError or ConfigError on all ranks."""
    return load_data(
        config.data,
        val_path=config.val_data,
        leave_out=config.leave_out,
        single_cls=config.single_cls,
        max_bad_share=config.max_bad_share,
        allow_leakage=config.allow_leakage,
        collectives=collectives,
        reporter=reporter,
        heartbeat=heartbeat,
    )


def build_run(
    config: TrainConfig,
    env: DistEnv,
    device: torch.device,
    run_dir: Path,
    reporter: Reporter,
    heartbeat: HeartbeatWriter,
    saved: dict[str, Any] | None = None,
) -> tuple[Run, Data]:
    """Builds everything that one rank's training needs, at step 0.

    ``saved`` is the checkpoint from which the training will go on.
    """
    collectives = Collectives(env)
    data = read_data(config, collectives, reporter, heartbeat)
    definition = definition_to_go_on_with(config, saved)
    model, learned_images = make_model(config, data.names, collectives, reporter, definition)
    grid = model.size_grid
    image_size = image_size_on_grid(config.imgsz, grid, reporter)
    data = count_small_boxes(data, image_size, reporter)
    if config.autoanchor and definition is None:
        # Fitted once: the last digits of a fit depend on the processor, which may differ between machines.
        fit = partial(suitable_anchors, config, model, data, image_size, learned_images is not None, reporter)
        if (found := collectives.from_main(fit)) is not None:
            model.set_anchors(found)
            learned_images = None  # the head's boxes were learned for the anchors that the weights came with
    freeze_layers(model, config.freeze)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches_per_epoch = -(-len(data.train) // config.batch_size)
    window = window_for(config, data, image_size)
    recipe = settle_recipe(config, batches_per_epoch, saved, learned_images=learned_images, partner_window=window)
    schedule = make_schedule(config, recipe, batches_per_epoch)
    autocast = agree_on_autocast(config.amp, device, collectives, reporter)
    loss = make_loss(config, model, image_size, recipe)
    source = partial(image_source, config, env, image_size, heartbeat)
    to_learn = source(data.train, window=recipe.partner_window, training=True)
    to_measure = source(data.val, window=0, training=False)
    epoch_loader = make_epoch_loader(config, data, to_learn, model, loss, image_size, recipe, collectives, device)
    validator = make_validator(config, data, to_measure, grid, loss, image_size, collectives, device)
    run = Run(
        collectives=collectives,
        device=device,
        model=model_to_train(config, model, env, device, image_size, autocast),
        state=make_state(model, config, recipe, schedule, autocast is torch.float16),
        loss=loss,
        schedule=schedule,
        epoch_loader=epoch_loader,
        validator=validator,
        reporter=reporter,
        heartbeat=heartbeat,
        results=ResultsWriter(run_dir, tensorboard=env.is_main),
        checkpoints=CheckpointWriter(RunFiles(run_dir).weights),
        checkpoint_header=describe_run(config, data, model, image_size, recipe),
        settings=loop_settings(config, data, model, image_size, recipe, autocast),
        finite=NonFiniteDetector(),
        device_progress=DeviceProgress(heartbeat, device),
    )
    warm_up_ddp(run.model, torch.zeros((1, 3, 2 * grid, 2 * grid), device=device))
    return run, data


def model_to_train(
    config: TrainConfig,
    model: DetectionModel,
    env: DistEnv,
    device: torch.device,
    image_size: int,
    autocast: torch.dtype | None,
) -> nn.Module:
    """Returns the model as the training step calls it: compiled if that is asked for, and shared between ranks."""
    called: nn.Module = model
    if config.compile:
        local_batch = config.local_batch_size(env.world_size)
        called = FixedShapeCompiled(model, (local_batch, 3, image_size, image_size))
    is_dp = config.parallel == "dp"
    return wrap_model(called, env, device, sync_bn=config.sync_bn, data_parallel=is_dp, autocast_dtype=autocast)


def image_size_on_grid(wanted: int, grid: int, reporter: Reporter) -> int:
    """Returns the side in pixels that training uses, a multiple of ``grid``; the reporter names a change."""
    image_size = rounded_image_size(wanted, grid)
    if image_size != wanted:
        reporter.say(f"--imgsz {wanted} is not a multiple of the model's stride {grid}; {image_size} is used")
    return image_size


def loop_settings(
    config: TrainConfig,
    data: Data,
    model: DetectionModel,
    image_size: int,
    recipe: Recipe,
    autocast: torch.dtype | None,
) -> LoopSettings:
    """Returns the loop's plain numbers and switches."""
    return LoopSettings(
        epochs=config.epochs,
        seed=config.seed,
        image_size=image_size,
        strides=strides_of(model),
        size_grid=model.size_grid,
        multi_scale=config.multi_scale,
        patience=config.patience,
        validate_each_epoch=config.val,
        can_measure=data.can_measure,
        measures_start=recipe.knows_classes,
        save=config.save,
        save_period=config.save_period,
        checkpoint_interval_s=config.checkpoint_interval_s,
        autocast_dtype=autocast,
        sync_bn=config.sync_bn,
    )


def describe_run(
    config: TrainConfig, data: Data, model: DetectionModel, image_size: int, recipe: Recipe
) -> dict[str, Any]:
    """Returns what a weights file contains about its run: plain values."""
    return {
        "config": config.model_dump(mode="json"),
        "definition": model.definition,
        "names": list(data.names),
        "image_size": image_size,
        "stride": [int(value) for value in model.stride],
        "versions": {"yolo_launch": __version__, "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "recipe": asdict(recipe),
        "train_images": len(data.train),
        "learned_images": max(len(data.train), recipe.learned_images),
    }
