"""Holds what the checks before a start read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.config.train import TrainConfig
from yolo_launch.spec import Finding, Host, LaunchPlan


@dataclass(frozen=True)
class Context:
    """Everything that the checks read. A value that a command does not have is None, and its checks yield nothing."""

    host: Host
    plan: LaunchPlan | None = None
    config: TrainConfig | None = None
    run_dir: Path | None = None
    is_resume: bool = False
    script: str | None = None


Check = Callable[[Context], Iterable[Finding]]
"""A check yields findings, or nothing if the value it reads is absent."""
