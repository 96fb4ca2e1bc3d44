"""Resumes a run from its newest good checkpoint, keeps what it settled, and reports what differs from before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config.train import TrainConfig
from trainer.errors import ConfigError
from trainer.optim.schedule import Recipe, make_recipe
from trainer.runtime.distributed import Collectives
from trainer.runtime.reporter import Reporter
from trainer.training.rollback import find_checkpoint
from trainer.training.run import Run
from trainer.weights.checkpoint import remove_leftovers


def definition_to_go_on_with(config: TrainConfig, saved: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the model definition, with its anchors, of the run that ``saved`` is a checkpoint of.

    Returns None if there is no checkpoint or the configuration asks for another model.
    """
    if saved is None or any(saved["config"][name] != getattr(config, name) for name in ("cfg", "weights")):
        return None
    return saved.get("definition")


def settle_recipe(
    config: TrainConfig,
    batches_per_epoch: int,
    saved: dict[str, Any] | None,
    *,
    learned_images: int | None = None,
    partner_window: int = 0,
) -> Recipe:
    """Returns the recipe of a run: kept on a resume, so that more --epochs do not change it under way.

    Another recipe, optimizer, batch size, nominal batch or warm-up makes a new one.
    What the run's first weights knew is kept in its checkpoint, since a resume does not read them again.
    ``partner_window`` is that of the data and the batch; the published recipe draws partners from the whole set.
    """
    if saved is not None:
        before = saved.get("recipe", {})
        learned_images = before.get("learned_images", 0) if before.get("knows_classes", False) else None
    if saved is not None and "recipe" in saved:
        before = saved["config"]
        names = ("recipe", "optimizer", "batch_size", "nominal_batch")
        is_same = all(before.get(name) == getattr(config, name) for name in names)
        if is_same and before["hyperparameters"]["warmup_epochs"] == config.hyperparameters.warmup_epochs:
            return Recipe(**saved["recipe"])
    made = make_recipe(
        config.recipe,
        epochs=config.epochs,
        batches_per_epoch=batches_per_epoch,
        global_batch_size=config.batch_size,
        warmup_epochs=config.hyperparameters.warmup_epochs,
        learned_images=learned_images,
        chosen=config.hyperparameters.chosen(),
    )
    made = replace(made, nominal_batch_size=max(made.nominal_batch_size, config.nominal_batch or 0))
    return made if config.recipe == "yolov5" else replace(made, partner_window=partner_window)


def resume(run: Run, saved: dict[str, Any] | None) -> None:
    """Restores what ``saved`` holds, on every rank; None is a fresh start. Raises ConfigError for another model."""
    if saved is None:
        return
    env = run.collectives.env
    for line in compare_names(saved.get("names"), run.checkpoint_header["names"]):
        run.reporter.warn(line)
    try:
        takes_optimizer = run.state.load_state_dict(saved, env.rank, env.world_size)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            "the run's checkpoint does not fit this configuration",
            seen=str(error).strip().splitlines()[0],
            expected="the model that the run was started with, or a new run with --weights of the old one",
            next_command="start a new run with --weights of this one",
        ) from None
    progress = run.state.progress
    _count_in_batches_of_now(run, saved)
    run.reporter.say(
        f"resumed at epoch {progress.epoch + 1}, batch {progress.batch} of {run.schedule.batches_per_epoch}, "
        f"step {progress.micro_step}"
    )
    for line in changes_since(saved, run.checkpoint_header, env.world_size):
        run.reporter.warn(line)
    if not takes_optimizer:
        run.reporter.warn("another optimizer than the run had: it starts without the old one's averages")
    if env.is_main:
        run.results.write(progress.history, progress.start)


def compare_names(before: list[str] | None, now: list[str]) -> list[str]:
    """Returns warnings about class names that are not the run's. Raises ConfigError if indices mean other classes.

    A name that now stands at another index was learned at the old index; a name that is new everywhere may be a better
    name for the old class.
    """
    if before is None or before == now:
        return []
    moved = [f"{name}: {before.index(name)} then, {index} now" for index, name in enumerate(now)
             if name in before and before[index:index + 1] != [name]]  # fmt: skip
    if len(before) != len(now) or moved:
        counts = f"{len(before)} classes then, {len(now)} now"
        raise ConfigError(
            "the data set names other classes than the run was started with",
            seen=", ".join(moved[:3]) if len(before) == len(now) else counts,
            expected=f"names: [{', '.join(before[:20])}{', ...' if len(before) > 20 else ''}]",
            next_command="correct names in the data set's YAML file, or start a new run with --weights of this one, "
            "which carries classes over by name",
        )
    renamed = [f"{old} is now {new}" for old, new in zip(before, now, strict=True) if old != new]
    return [f"classes have other names than the run had: {', '.join(renamed[:5])}"]


def _count_in_batches_of_now(run: Run, saved: dict[str, Any]) -> None:
    """Keeps the place in the epoch, on which the rates depend, if the number of batches in an epoch has changed."""
    images, now, progress = saved.get("train_images"), run.schedule.batches_per_epoch, run.state.progress
    before = -(-images // saved["config"]["batch_size"]) if images else now
    if before == now:
        return
    progress.batch = progress.batch * now // before
    progress.micro_step = progress.epoch * now + progress.batch
    progress.skipped_steps = []
    run.state.loss_sums *= now / before


def find_saved(weights_dir: Path, collectives: Collectives, reporter: Reporter) -> dict[str, Any] | None:
    """Returns the checkpoint to go on from, read by rank 0 for all; removes what killed writers left beside it."""
    if collectives.env.is_main:
        remove_leftovers(weights_dir)
    return collectives.broadcast(find_checkpoint(weights_dir, reporter, collectives.env.is_main))


def changes_since(saved: dict[str, Any], now: dict[str, Any], world_size: int) -> list[str]:
    """Describes what makes a resumed run differ from an uninterrupted one: last digits, batch norm, data set."""
    ranks_before = len(saved["loss_sums_by_rank"])
    then = [_facts(saved, ranks_before), _facts(now, world_size)]
    digits = [
        f"{what.format(after)} instead of {before}"
        for (what, before), after in zip(then[0].items(), then[1].values(), strict=True)
        if before is not None and before != after
    ]
    lines = []
    if digits:
        lines.append(f"resumed with {', '.join(digits)}: the same samples, but not the last digits of a run left alone")
    if world_size != ranks_before and not now["config"]["sync_bn"]:
        shares = f"1/{world_size} of a batch, and saw 1/{ranks_before} before"
        lines.append(f"without --sync-bn a rank's batch norm sees {shares}")
    images = (saved.get("train_images"), now.get("train_images"))
    if images[0] is not None and images[0] != images[1]:
        lines.append(f"the training set has {images[1]} images instead of {images[0]}: samples come in another order")
    return lines


def _facts(header: dict[str, Any], world_size: int) -> dict[str, Any]:
    return {
        "torch {}": header.get("versions", {}).get("torch"),
        "{} threads a rank": header.get("threads"),
        "{} ranks": world_size,
        "{} instructions": header.get("cpu"),
    }
