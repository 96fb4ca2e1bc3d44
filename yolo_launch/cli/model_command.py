"""What ``val``, ``predict`` and ``export`` share: their options, the plan of their workers, and how they end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from trainer.protocol import BEST_WEIGHTS, DEFAULT_IMAGE_SIZE, SUMMARY_FILE
from yolo_launch.checks.context import Context
from yolo_launch.checks.inputs import OFFICIAL_WEIGHTS
from yolo_launch.checks.preflight import refuse_failures, run_checks
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import TypedCommand
from yolo_launch.cli.views import show_outcome, show_start
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.jobs import run_directory
from yolo_launch.planning.plan import make_plan
from yolo_launch.request.launch_request import launch_request
from yolo_launch.request.options import DEVICES, Option
from yolo_launch.spec import Finding, LaunchPlan, WorkerCommand

MODEL = "Model"
RESULTS = "Results"

WEIGHTS = Option("weights", ("--weights",), "a .pt file of yolo-launch or YOLOv5, or a .safetensors file", str, MODEL)
IMGSZ = Option(
    "imgsz",
    ("--imgsz", "--img", "--img-size"),
    "image side in pixels",
    int,
    MODEL,
    f"as trained, else {DEFAULT_IMAGE_SIZE}",
)
HALF = Option("half", ("--half",), "float16 (on a GPU)", bool, MODEL)
ONE_DEVICE = Option(
    "gpus", ("--gpus", "--device"), "one index or UUID, or cpu", str, DEVICES, "the first GPU or the CPU"
)
EXIST_OK = Option("exist_ok", ("--exist-ok",), "use an existing folder", bool, RESULTS)

_FRACTIONS = {"conf": "--conf", "iou": "--iou"}
_COUNTS = {"batch": "--batch", "max_det": "--max-det", "imgsz": "--imgsz", "opset": "--opset"}


def limits(conf: str, iou: str, max_det: str) -> tuple[Option, ...]:
    """The three options of suppression, with a command's defaults."""
    return (
        Option("conf", ("--conf", "--conf-thres"), "least confidence of a detection", float, MODEL, conf),
        Option("iou", ("--iou", "--iou-thres"), "overlap at which the weaker of two boxes goes", float, MODEL, iou),
        Option("max_det", ("--max-det",), "most detections an image", int, MODEL, max_det),
    )


def folder_options(command: str) -> tuple[Option, ...]:
    """Where a command's runs go."""
    return (
        Option("project", ("--project",), "folder of the runs", str, RESULTS, f"runs/{command}"),
        Option("name", ("--name",), "name of the run's folder; a number is added where it exists", str, RESULTS, "exp"),
        EXIST_OK,
    )


class InferenceCommand(TypedCommand):
    """A command that also takes YOLOv5's underscores, as in ``--save_txt``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turn underscores of option names into hyphens, then parse."""
        return super().parse_args(ctx, [_with_hyphens(word) for word in args])


def check_weights_file(weights: str | None, command: str) -> Path:
    """The path of an existing file. Raises LaunchError; nothing is ever downloaded."""
    if not weights:
        raise LaunchError(
            f"yolo-launch {command} needs weights.",
            expected="--weights FILE",
            next_command=f"yolo-launch {command} --weights runs/train/exp/weights/{BEST_WEIGHTS}",
        )
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    expected = "the path of a .pt or .safetensors file"
    if path.is_dir():
        raise LaunchError(f"{path} is a folder, not a weights file.", seen=weights, expected=expected)
    if path.name.startswith(OFFICIAL_WEIGHTS) and path.suffix == ".pt":
        repository = "ultralytics/yolov3" if path.name.startswith("yolov3") else "ultralytics/yolov5"
        expected = f"{path.name} from the releases of github.com/{repository} (mind its license); nothing is downloaded"
    raise LaunchError(f"The weights file {path.name} is missing.", seen=str(path.absolute()), expected=expected)


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raise LaunchError for a threshold outside 0 to 1 or a count below 1."""
    for name, flag in _FRACTIONS.items():
        if (value := values.get(name)) is not None and not 0 <= value <= 1:
            raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {value:g}", expected="0 to 1")
    for name, flag in _COUNTS.items():
        if (value := values.get(name)) is not None and value < 1:
            raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {value}", expected="a number above 0")


def make_inference_plan(
    values: Mapping[str, Any], typed: tuple[str, ...], run_dir: Path, *, batch: int, one_device: bool
) -> tuple[LaunchPlan, list[Finding]]:
    """The plan of workers that each take ``batch`` images at a time, and what the checks say. Raises LaunchError."""
    host = inspect_host()
    chosen = {**values, "max_restarts": 0, "parallel": "ddp"}
    if one_device:
        if "," in (values.get("gpus") or ""):
            raise LaunchError("This command uses one device.", seen=f"--gpus {values['gpus']}", expected="one device")
        chosen["nproc"] = 1
    facts: dict[str, Any] = {"image_size": values.get("imgsz") or DEFAULT_IMAGE_SIZE, "workers": values.get("workers")}
    request = launch_request(chosen, typed, global_batch_size=batch, uneven_batch_ok=True, **facts)
    # How many workers there are is known only now; the batch is that of each.
    total = batch * make_plan(request, host).world_size
    plan = make_plan(replace(request, global_batch_size=total), host)
    findings = [*plan.findings, *run_checks(Context(host, plan, None, run_dir))]
    refuse_failures(findings)
    # What concerns training alone is of no interest here.
    return plan, [finding for finding in findings if finding.check != "batch"]


def run_job(
    plan: LaunchPlan,
    command: WorkerCommand,
    run_dir: Path,
    console: Console,
    typed: tuple[str, ...],
    *,
    findings: list[Finding],
    worker_owns_stdout: bool = False,
) -> dict[str, Any]:
    """Run the workers to their end; the summary that rank 0 wrote. Leaves with the outcome's code where they fail.

    ``worker_owns_stdout``: with --json the worker itself writes to stdout.
    """
    show_start(plan, findings, console)
    with run_directory.writing_to(run_dir):
        (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    # Only now is torch loaded, so that everything that can be refused was refused at once.
    from yolo_launch.supervision.supervisor import launch

    outcome = launch(
        plan, command, run_dir, console_json=console.json_mode and not worker_owns_stdout, say=console.note
    )
    if outcome.kind == "done":
        return run_directory.read_summary(run_dir)
    show_outcome(outcome, plan, run_dir, shlex.join(typed), console)
    if console.json_mode and not worker_owns_stdout:
        console.json({"run_dir": str(run_dir), "outcome": outcome.kind, "exit_code": outcome.exit_code})
    raise typer.Exit(outcome.exit_code)


def worker_arguments(values: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, ...]:
    """What was typed, as the worker's own options: ``names`` maps an option to the worker's flag."""
    words: list[str] = []
    for name, flag in names.items():
        value = values.get(name)
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return tuple(words)


def _with_hyphens(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value
