"""What a forked worker may have done to it before it trains."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
from pathlib import Path
from typing import Any


def set_value(dotted: str, value: Any) -> None:
    """Replace a constant of a module."""
    module, _, name = dotted.rpartition(".")
    setattr(importlib.import_module(module), name, value)


def find_classes_by_loss() -> None:
    """Let the mAP of classes, which is zero in runs as short as these, follow the validation losses."""
    from trainer.evaluation.evaluator import Metrics

    Metrics.class_map = lambda self: [(value * 1e4) % 1 for value in list(self.row().values())[-3:]]


def worsen_each_epoch() -> None:
    """Let every validation measure less than the one before; epochs that find nothing use up no patience."""
    from trainer.evaluation.evaluator import Metrics

    measured: list[Any] = []

    def fitness(self: Any) -> float:
        if not any(one is self for one in measured):
            measured.append(self)
        return 1 / (1 + next(place for place, one in enumerate(measured) if one is self))

    Metrics.fitness = property(fitness)


def stop_in_validation(module: str, rank: int, epoch: int) -> None:
    """Send a rank SIGTERM after the first batch of a validation that ``module`` starts in or after an epoch."""
    starter = importlib.import_module(module)
    validation_beat = starter.validation_beat

    def beat_and_stop(run: Any) -> Any:
        beat = validation_beat(run)

        def on_batch(done: int, total: int) -> bool:
            if run.state.progress.epoch == epoch and run.collectives.env.rank == rank:
                os.kill(os.getpid(), signal.SIGTERM)
            return beat(done, total)

        return on_batch

    starter.validation_beat = beat_and_stop


def spoil_gradient(step: int) -> None:
    """Make a gradient infinite at the first update that is due at a micro step or later, whatever the loss was."""
    import trainer.training.loop as loop

    update_weights, done = loop.update_weights, []

    def spoilt(run: Any) -> None:
        if run.state.progress.micro_step >= step and not done:
            done.append(step)
            next(run.state.model.parameters()).grad.fill_(float("inf"))
        update_weights(run)

    loop.update_weights = spoilt


def record_samples(folder: str, die_after: int | None = None) -> None:
    """Write down what each global step learns from; kill -9 this rank after a step, if one is named."""
    import trainer.training.loop as loop

    rank, train_step = int(os.environ.get("RANK", "0")), loop.train_step
    path = Path(folder) / f"samples.{rank}.jsonl"

    def recorded(run: Any, batch: Any, *, is_update: bool) -> Any:
        step = run.state.progress.micro_step
        images = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images_bchw]
        labels = [batch.targets[batch.targets[:, 0] == at, 1:].tolist() for at in range(len(batch))]
        with path.open("a") as file:
            file.write(json.dumps([step, batch.positions.tolist(), images, labels]) + "\n")
        step_control = train_step(run, batch, is_update=is_update)
        if step == die_after:
            run.checkpoints.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return step_control

    loop.train_step = recorded


def recorded_samples(folder: Path) -> dict[int, list[Any]]:
    """Per global step, the samples of all ranks in order; a step that was repeated counts as it was last."""
    steps: dict[int, dict[int, list[Any]]] = {}
    for path in sorted(folder.glob("samples.*.jsonl")):
        rank = int(path.name.split(".")[1])
        for line in path.read_text().splitlines():
            step, *columns = json.loads(line)
            steps.setdefault(step, {})[rank] = [list(row) for row in zip(*columns, strict=True)]
    return {step: [row for rank in sorted(by_rank) for row in by_rank[rank]] for step, by_rank in steps.items()}
