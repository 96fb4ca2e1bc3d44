"""Holds what a user asked of val, predict, export and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.inference import RESULTS, ExportConfig, PredictConfig, ValConfig
from yolo_launch.request.launch_options import DEBUG_TEXT, JSON_TEXT, LaunchOptions
from yolo_launch.request.options import DEVICES, argument, arguments, option, settings_of


def _project(command: str) -> Any:
    return option(f"runs/{command}", "--project", text="folder of the runs", panel=RESULTS)


def _one_device(default: str | None, **more: Any) -> Any:
    return option(default, "--gpus", "--device", panel=DEVICES, **more)


@dataclass(frozen=True)
class FolderOptions:
    """The folder that a command writes into."""

    project: str = _project("")
    name: str = option("exp", "--name", text="name of the run's folder; a number is added if it exists", panel=RESULTS)
    exist_ok: bool = option(False, "--exist-ok", text="use an existing folder", panel=RESULTS)


@dataclass(frozen=True)
class InferenceOptions(LaunchOptions):
    """Workers that use a trained model: they are never restarted, and share nothing but their results."""

    parallel: str | None = "ddp"
    max_restarts: int = 0


@dataclass(frozen=True)
class ValSettings:
    """What was typed of ValConfig."""

    given: Mapping[str, Any] = settings_of(ValConfig)


@dataclass(frozen=True)
class ValOptions(InferenceOptions, FolderOptions, ValSettings):
    """What ``val`` was asked."""

    project: str = _project("val")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class PredictSettings:
    """What was typed of PredictConfig, and the files to look at."""

    given: Mapping[str, Any] = settings_of(PredictConfig)
    source: str | None = option(None, "--source", text="a source, as YOLOv5 spells it", panel="Model")
    sources: tuple[str, ...] = arguments(text="pictures, films, folders or quoted patterns", metavar="SOURCE...")


@dataclass(frozen=True)
class PredictOptions(InferenceOptions, FolderOptions, PredictSettings):
    """What ``predict`` was asked."""

    project: str = _project("predict")
    gpus: str | None = _one_device(None, text="one index or UUID, or cpu", default_text="the first GPU or the CPU")
    nproc: int | None = 1
    port: int | None = None
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class ExportSettings:
    """What was typed of ExportConfig."""

    given: Mapping[str, Any] = settings_of(ExportConfig)


@dataclass(frozen=True)
class ExportOptions(InferenceOptions, ExportSettings):
    """What ``export`` was asked."""

    gpus: str | None = _one_device("cpu", text="device it runs on: cpu, or one index or UUID")
    nproc: int | None = 1
    port: int | None = None
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class WeightsOptions:
    """What ``weights`` was asked."""

    file: str = argument(text="a .pt or .safetensors file", metavar="FILE")
    convert: str | None = option(
        None, "--convert", text="write weights of yolo-launch: OUT.pt or OUT.safetensors", metavar="OUT"
    )
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)
