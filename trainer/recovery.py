"""Keeping a run's state and going back to it; every rank takes part in each of these."""

from __future__ import annotations

import time
from typing import Any

import torch

from trainer.checkpoint import LAST, copied, newest_good
from trainer.run import Run

MAX_ROLLBACKS = 3


class TrainingDiverged(RuntimeError):
    """The loss stopped being finite, and going back did not help."""


def save_checkpoint(run: Run, *, wait: bool = False) -> None:
    """Copy the state of all ranks between two updates and hand it to the writer; only a finite state is kept."""
    started_at = time.monotonic()
    sums = torch.stack(run.peers.gather(run.state.loss_sums.cpu()))
    run.finite.settle()
    flagged = run.peers.sum(torch.tensor([float(run.finite.bad_step is not None)])).item()
    if flagged == 0 and bool(torch.isfinite(sums).all()) and run.peers.env.is_main:
        content = {**run.checkpoint_header, **copied(run.state.state_dict(sums))}
        run.checkpoints.submit(LAST, content, keep_previous=True)
        if wait:
            run.checkpoints.flush()
    run.control.checkpointed_at = time.monotonic()
    run.control.checkpoint_wait_s += run.control.checkpointed_at - started_at


def inference_content(run: Run) -> dict[str, Any]:
    """What a file for inference holds: the averaged weights, the model and where they come from."""
    progress = run.state.progress
    return {
        **run.checkpoint_header,
        "ema": copied(run.state.ema.state_dict()),
        "epoch": progress.epoch - 1,
        "metrics": dict(progress.history[-1]) if progress.history else {},
    }


def roll_back(run: Run) -> None:
    """Return to the last good checkpoint and leave out the batch whose loss was not finite; all ranks together."""
    steps = [step for step in run.peers.gather(run.finite.bad_step) if step is not None]
    bad_step = min(steps)
    run.checkpoints.flush()
    content = newest_good(run.checkpoints.weights_dir)[0] if run.peers.env.is_main else None
    content = run.peers.broadcast(content)
    rollbacks, skipped = run.state.progress.rollbacks + 1, [*run.state.progress.skipped_steps, bad_step]
    names = run.feed.image_names(bad_step, run.state.progress.class_map)
    what = f"the loss of step {bad_step} was not finite (NaN or infinite); its images: {', '.join(names)}"
    if rollbacks > MAX_ROLLBACKS or content is None:
        raise TrainingDiverged(f"{what}. Gave up after {rollbacks - 1} returns to a checkpoint")
    env = run.peers.env
    run.state.load_state_dict(content, env.rank, env.world_size)
    run.state.progress.rollbacks, run.state.progress.skipped_steps = rollbacks, skipped
    run.state.optimizer.zero_grad(set_to_none=True)
    run.finite.reset()
    run.reporter.stop()
    run.reporter.warn(f"{what}. Back to step {run.state.progress.micro_step}, without that batch")
