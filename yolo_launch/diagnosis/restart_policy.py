"""Decides whether a failed job is started again."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from trainer.protocol import OUT_OF_GPU_MEMORY
from yolo_launch.diagnosis.causes import PORT_CLASH
from yolo_launch.errors import ExitCode
from yolo_launch.spec import LEFT_TO_SCRIPT, STATE_SAVED, Outcome, RankFailure

UNWATCHED_START_S = 60.0
"""A script without heartbeats counts as started once it has run this long."""
PORT_TRIES = 3
_COMES_BACK = re.compile(rf"{OUT_OF_GPU_MEMORY}|device-side assert")
"""What a step does again that gets the same samples and memory."""


@dataclass(frozen=True)
class Progress:
    """Holds what is known of the job so far, over all attempts."""

    restarts: int = 0
    port_clashes: int = 0
    finished_a_step: bool = False
    heard: bool = False
    """Whether any heartbeat was ever seen."""
    failed_at: tuple[int | None, int | None] | None = None
    """Epoch and step of the last failure that a restart followed."""


@dataclass(frozen=True)
class Decision:
    """Start again or not, and why; ``counts`` is False for a restart that is the launcher's own doing."""

    restart: bool
    why: str
    counts: bool = True


def decide(
    failure: RankFailure, progress: Progress, *, max_restarts: int, attempt_s: float, port_is_fixed: bool, foreign: bool
) -> Decision:
    """Restarts a job that worked before it failed, at most ``max_restarts`` times in all, and explains a refusal.

    ``attempt_s`` is how long the failed attempt ran.
    """
    if failure.user_error is not None or failure.exit_code == ExitCode.USAGE:
        return Decision(False, "")
    text = f"{failure.message}\n{failure.traceback}"
    # The worker that hosts the store binds a port that was free a few seconds ago.
    if PORT_CLASH.search(text) and not port_is_fixed and not progress.finished_a_step:
        if progress.port_clashes < PORT_TRIES:
            return Decision(True, "another process took the port that was chosen; choosing another", counts=False)
        return Decision(False, f"not restarted again: {PORT_TRIES} chosen ports in a row were taken")
    if max_restarts <= 0:
        return Decision(False, "")
    started = progress.finished_a_step
    if foreign and not progress.heard:
        started = attempt_s >= UNWATCHED_START_S
    if not started:
        reason = (
            f"it ended within {attempt_s:.0f} s and writes no heartbeat"
            if foreign and not progress.heard
            else "no step had finished yet"
        )
        return Decision(False, f"not restarted: {reason}, so it would fail in the same way again")
    if progress.failed_at == (failure.epoch, failure.step) and _COMES_BACK.search(text):
        return Decision(False, "not restarted again: the same step failed in the same way twice")
    if progress.restarts >= max_restarts:
        return Decision(False, f"all {max_restarts} restarts are used up")
    return Decision(True, f"restart {progress.restarts + 1} of {max_restarts}")


def stopped_by(
    by: signal.Signals, saved: bool, failure: RankFailure | None = None, *, foreign: bool = False
) -> Outcome:
    """Returns the outcome of a job that a signal to a launcher ended."""
    if saved and by != signal.SIGINT:
        return Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED, signal=by)
    # 75 would make a scheduler start the job again, which is not what Ctrl-C asks for.
    detail = STATE_SAVED if saved else LEFT_TO_SCRIPT if foreign else ""
    return Outcome("interrupted", 128 + by, failure=failure, signal=by, detail=detail)
