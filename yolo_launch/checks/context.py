"""What the checks before a start look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.config.train import TrainConfig
from yolo_launch.spec import Finding, Host, LaunchPlan


@dataclass(frozen=True)
class Context:
    """What the checks look at. What a command does not have is None, and its checks say nothing."""

    host: Host
    plan: LaunchPlan | None = None
    config: TrainConfig | None = None
    run_dir: Path | None = None
    is_resume: bool = False
    script: str | None = None


Check = Callable[[Context], Iterable[Finding]]
"""One check: it says what it saw, or nothing where its subject is absent."""
