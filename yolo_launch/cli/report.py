"""Words an Outcome for a person: the rank that failed first, its place and cause, a hint, and what to type."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

from trainer.protocol import RunFiles
from yolo_launch.diagnosis.causes import describe_exit
from yolo_launch.planning.devices import device_text
from yolo_launch.spec import STATE_SAVED, LaunchPlan, Outcome, RankFailure
from yolo_launch.workers.signals import signal_name

MAX_MESSAGE_LINES = 12
_SAVED = {"": "without saving", STATE_SAVED: "with the state saved"}
"""What the detail of an interrupted job says; what a script has saved is its own affair."""
_PHASES = {
    "start": "while starting",
    "scan": "while scanning the data set",
    "train": "while training",
    "val": "while validating",
    "save": "while saving",
    "done": "after training",
}

_WITHOUT_FAILURE = {
    "not_joined": "not all machines are there",
    "master_lost": "the master is lost",
    "worker_failed": "the job failed",
}


def level(outcome: Outcome) -> Literal["ok", "warning", "failure"]:
    """Returns the level that colors the report."""
    if outcome.kind == "done":
        return "ok"
    return "warning" if outcome.kind in ("saved_and_stopped", "interrupted") else "failure"


def title(outcome: Outcome, plan: LaunchPlan) -> str:
    """Returns one line on how the job ended."""
    failure = outcome.failure
    if outcome.kind == "done":
        return "done"
    if outcome.kind == "saved_and_stopped":
        return f"stopped by {_signal_name(outcome.signal)} with the state saved"
    if outcome.kind == "interrupted":
        return " ".join(filter(None, ("stopped by", _signal_name(outcome.signal), _SAVED.get(outcome.detail))))
    if outcome.kind == "stalled":
        return f"stalled: rank {failure.rank} holds the job up" if failure is not None else "stalled"
    if failure is not None and failure.user_error is not None:
        return "the job cannot start" if failure.rank < 0 else "the worker refused its input"
    if failure is None:
        return _WITHOUT_FAILURE.get(outcome.kind, outcome.kind.replace("_", " "))
    return f"rank {failure.rank} failed first" if plan.world_size > 1 else "the worker failed"


def lines(outcome: Outcome, plan: LaunchPlan, run_dir: Path, next_command: str) -> list[str]:
    """Returns the lines of the panel. A user's mistake has its four parts and no traceback."""
    failure = outcome.failure
    rows: list[str] = []
    if failure is not None and failure.user_error is not None:
        error = failure.user_error
        if plan.nnodes > 1 and failure.host:
            rows.append(f"rank {failure.rank} on {failure.host}:")
        rows.append(error.get("what", failure.message))
        rows += [_labeled(label, error.get(key, "")) for label, key in (("Seen", "seen"), ("Expected", "expected"))]
        rows.append(_labeled("Next", error.get("next_command", "") or next_command))
        return [row for row in rows if row]
    if failure is not None:
        rows += [_where(failure, plan), *_cause(outcome, failure)]
        rows.append(_labeled("Hint", failure.hint))
    if failure is None and outcome.kind not in ("interrupted", "saved_and_stopped"):
        rows.append(outcome.detail)
    elif outcome.detail and outcome.kind == "worker_failed":
        rows.append(_labeled("Restarts", outcome.detail))
    if failure is not None:
        rows.append(_labeled("Log", from_here(failure.log_path or str(RunFiles(run_dir).logs.folder))))
    if outcome.kind != "done":
        rows.append(_labeled("Next", next_command))
    return [row for row in rows if row]


def traceback_text(outcome: Outcome) -> str:
    """Returns what belongs above the panel and was not printed yet: the traceback of a rank other than 0, or stacks."""
    failure = outcome.failure
    if failure is None or failure.user_error is not None:
        return ""
    return failure.traceback if failure.rank != 0 or outcome.kind == "stalled" else ""


def _where(failure: RankFailure, plan: LaunchPlan) -> str:
    place = f"rank {failure.rank} of {plan.world_size}"
    # Of a rank on another machine only that machine can tell the device.
    device = failure.device or ("" if plan.nnodes > 1 else device_text(plan, failure.local_rank))
    if device:
        place += f" on {device}"
    if plan.nnodes > 1 and failure.host:
        place += f" of {failure.host}" if device else f" on {failure.host}"
    if failure.epoch is not None and failure.step is not None and failure.phase not in ("start", "scan"):
        place += f", epoch {failure.epoch + 1}, step {failure.step}"
    return f"{place}, {_PHASES[failure.phase]}" if failure.phase in _PHASES else place


def _cause(outcome: Outcome, failure: RankFailure) -> list[str]:
    said = failure.message.strip().split("\n")
    shown = said[:MAX_MESSAGE_LINES]
    if len(said) > len(shown):
        shown.append(f"... {len(said) - len(shown)} more lines in the log")
    if outcome.kind == "stalled":
        return shown
    ended = describe_exit(failure.exit_code)
    if failure.exit_code < 0 and ended not in failure.message:
        shown.append(f"The process was {ended}.")
    elif ended in failure.message and failure.traceback:
        shown += ["Its last lines:", *(f"  {line}" for line in failure.traceback.split("\n")[-4:])]
    return shown


def from_here(path: str) -> str:
    """Returns a path as one would type it: relative to the working folder if it lies inside."""
    with contextlib.suppress(ValueError, OSError):
        return str(Path(path).relative_to(Path.cwd()))
    return path


def _labeled(label: str, text: str) -> str:
    if not text:
        return ""
    head = f"{label}:".ljust(10)
    return head + text.replace("\n", "\n" + " " * len(head))


def _signal_name(number: int | None) -> str:
    if number is None:
        return "a signal to the workers"
    return signal_name(number)
