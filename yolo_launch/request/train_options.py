"""Holds what a user asked of a training run, on one machine or on several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.train import TrainConfig
from trainer.protocol import CONFIG_FILE
from yolo_launch.request.launch_options import DEBUG_TEXT, DETACH_TEXT, JSON_TEXT, LaunchOptions
from yolo_launch.request.option_values import parse_overrides
from yolo_launch.request.options import option, settings_of


@dataclass(frozen=True)
class GivenSettings:
    """What was typed of a run's configuration."""

    given: Mapping[str, Any] = settings_of(TrainConfig)
    """Values by field name of TrainConfig, only those that were typed; a batch of None is ``--batch auto``."""


@dataclass(frozen=True)
class JobOptions(LaunchOptions, GivenSettings):
    """What decides a training run."""

    dry_run: bool = option(False, "--dry-run", text="show the plan and start nothing")
    detach: bool = option(False, "--detach", text=DETACH_TEXT)
    json: bool = option(False, "--json", text=JSON_TEXT)
    resume: str | None = option(
        None, "--resume", text="go on with a run: alone, the newest unfinished one", metavar="[RUN]"
    )
    mirror: str | None = option(
        None, "--mirror", text="copy checkpoints and results to a folder of a store while training", metavar="URL"
    )
    override: bool = option(False, "--override", text="resume though changed options change the result")
    config: str | None = option(
        None, "--config", text=f"options from a file, such as a run's {CONFIG_FILE}", metavar="FILE"
    )
    hyperparameters: Mapping[str, str] = option(
        {},
        "--set",
        text="one hyperparameter, such as lr0=0.02; may be repeated",
        metavar="NAME=VALUE",
        parse=parse_overrides,
    )


@dataclass(frozen=True)
class TrainOptions(JobOptions):
    """What ``train`` was asked."""

    inline: bool = option(False, "--inline", text="train in this process, for a debugger (one worker)")
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)
