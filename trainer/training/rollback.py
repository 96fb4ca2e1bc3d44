"""Saves a run's state and goes back to a saved one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.protocol import LAST_WEIGHTS
from trainer.runtime.reporter import Reporter
from trainer.training.run import LocalRequests, Run
from trainer.weights.checkpoint import copied, newest_good, set_aside

MAX_ROLLBACKS = 3


class TrainingDiverged(RuntimeError):
    """The loss stopped being finite, and going back did not help."""


def find_checkpoint(weights_dir: Path, reporter: Reporter, is_main: bool) -> dict[str, Any] | None:
    """Returns the newest good checkpoint, on rank 0; a damaged one is named and set aside."""
    if not is_main:
        return None
    content, passed_over = newest_good(weights_dir)
    for line in passed_over:
        reporter.warn(line)
    if passed_over:
        set_aside(weights_dir)
    return content


def any_not_finite(run: Run) -> bool:
    """Returns whether on any rank a loss, a gradient or the state was not finite up to the latest step; collective."""
    run.finite.settle()
    if run.finite.bad_step is None and not run.state.is_finite():
        run.finite.bad_step = max(run.state.progress.micro_step - 1, 0)
    return run.collectives.sum(torch.tensor([float(run.finite.bad_step is not None)])).item() > 0


def save_checkpoint(run: Run, *, wait: bool = False) -> bool:
    """Copies the state of all ranks between two updates and hands the copy to the writer; collective.

    Returns False, on all ranks, if the state is not finite.
    """
    with _waited(run.local_requests):
        sums = torch.stack(run.collectives.gather(run.state.loss_sums.cpu()))
        is_good = not any_not_finite(run) and bool(torch.isfinite(sums).all())
        if is_good and run.collectives.env.is_main:
            content = {**run.checkpoint_header, **copied(run.state.state_dict(sums))}
            run.checkpoints.submit(LAST_WEIGHTS, content, keep_previous=True)
            if wait:
                run.checkpoints.flush()
    run.local_requests.checkpointed_at = time.monotonic()
    return is_good


def save_for_inference(run: Run, name: str) -> None:
    """Hands the averaged weights, their epoch and metrics, and the run's header to the writer; rank 0 alone."""
    with _waited(run.local_requests):
        progress = run.state.progress
        content = {
            **run.checkpoint_header,
            "ema": copied(run.state.ema.state_dict()),
            "epoch": progress.epoch - 1,
            "metrics": dict(progress.history[-1] if progress.history else progress.start),
        }
        run.checkpoints.submit(name, content)


@contextmanager
def _waited(local_requests: LocalRequests) -> Iterator[None]:
    started_at = time.monotonic()
    yield
    local_requests.checkpoint_wait_s += time.monotonic() - started_at


def roll_back(run: Run) -> None:
    """Returns to the last good checkpoint and leaves out the batch whose loss was not finite; all ranks together."""
    steps = [step for step in run.collectives.gather(run.finite.bad_step) if step is not None]
    bad_step = min(steps)
    run.checkpoints.flush()
    content = run.collectives.broadcast(
        find_checkpoint(run.checkpoints.weights_dir, run.reporter, run.collectives.env.is_main)
    )
    rollbacks, skipped = run.state.progress.rollbacks + 1, [*run.state.progress.skipped_steps, bad_step]
    names = run.epoch_loader.image_names(bad_step, run.state.progress.class_map)
    what = f"the loss of step {bad_step} was not finite (NaN or infinite); its images: {', '.join(names)}"
    if rollbacks > MAX_ROLLBACKS or content is None:
        raise TrainingDiverged(f"{what}. Gave up after {rollbacks - 1} returns to a checkpoint")
    env = run.collectives.env
    run.state.load_state_dict(content, env.rank, env.world_size)
    run.state.progress.rollbacks, run.state.progress.skipped_steps = rollbacks, skipped
    run.state.optimizer.zero_grad(set_to_none=True)
    run.finite.reset()
    run.reporter.stop()
    run.reporter.warn(f"{what}. Back to step {run.state.progress.micro_step}, without that batch")
