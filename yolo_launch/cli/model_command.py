"""Does what ``val``, ``predict`` and ``export`` share: reads their options, plans their workers and runs them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from trainer.config.fields import validated, write_config
from trainer.config.inference import ExportConfig, InferenceConfig, PredictConfig, ValConfig
from trainer.errors import ConfigError
from trainer.protocol import BEST_WEIGHTS, DEFAULT_IMAGE_SIZE, SUMMARY_FILE
from yolo_launch.checks.context import Context
from yolo_launch.checks.inputs import OFFICIAL_WEIGHTS
from yolo_launch.checks.preflight import refuse_failures, run_checks
from yolo_launch.cli.conclude import EndedJob
from yolo_launch.cli.console import Console
from yolo_launch.cli.views import show_start
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.jobs import run_directory
from yolo_launch.planning.plan import make_plan
from yolo_launch.request.inference_options import InferenceOptions
from yolo_launch.request.launch_request import launch_request
from yolo_launch.spec import Finding, LaunchPlan, WorkerCommand

ModelConfig = ValConfig | PredictConfig | ExportConfig
_PROGRAMS: dict[type[InferenceConfig], str] = {
    ValConfig: "trainer.inference.val",
    PredictConfig: "trainer.inference.predict",
    ExportConfig: "trainer.inference.export",
}
"""What the workers of each configuration run."""
C = TypeVar("C", bound=InferenceConfig)


def check_weights_file(weights: str | None, command: str) -> Path:
    """Returns the path of an existing file. Raises LaunchError; nothing is ever downloaded."""
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


def make_inference_config(model: type[C], given: Mapping[str, Any], command: str) -> C:
    """Returns the configuration of a command's workers. Raises LaunchError for a value that cannot be used."""
    try:
        return validated(model, given)
    except ConfigError as error:
        raise LaunchError(
            error.what, seen=error.seen, expected=error.expected, next_command=f"yolo-launch {command} --help"
        ) from None


def check_one_device(options: InferenceOptions) -> None:
    """Raises LaunchError if several devices were typed for a command that uses one."""
    if "," in (options.gpus or ""):
        raise LaunchError("This command uses one device.", seen=f"--gpus {options.gpus}", expected="one device")


@dataclass(frozen=True)
class InferencePlan:
    """The workers of a command as decided, and what the checks say of them."""

    plan: LaunchPlan
    findings: list[Finding]
    typed: tuple[str, ...]


def make_inference_plan(
    options: InferenceOptions, config: ModelConfig, typed: tuple[str, ...], run_dir: Path
) -> InferencePlan:
    """Returns the plan of workers that each take ``config.batch`` images at a time. Raises LaunchError."""
    host = inspect_host()
    request = launch_request(
        options,
        typed,
        global_batch_size=config.batch,
        uneven_batch_ok=True,
        image_size=config.imgsz or DEFAULT_IMAGE_SIZE,
        workers=config.workers if isinstance(config, ValConfig) else None,
    )
    # How many workers there are is known only now; the batch is that of each.
    total = config.batch * make_plan(request, host).world_size
    plan = make_plan(replace(request, global_batch_size=total), host)
    findings = [*plan.findings, *run_checks(Context(host, plan, None, run_dir))]
    refuse_failures(findings)
    # What concerns training alone is of no interest here.
    return InferencePlan(plan, [finding for finding in findings if finding.check != "batch"], typed)


def run_workers(
    planned: InferencePlan, config: ModelConfig, run_dir: Path, console: Console, *, worker_owns_stdout: bool = False
) -> EndedJob:
    """Writes the configuration of the workers and runs them to their end.

    ``worker_owns_stdout``: with --json the worker itself writes to stdout.
    """
    show_start(planned.plan, planned.findings, console)
    program = _PROGRAMS[type(config)]
    config_path = run_dir / f"{program.rpartition('.')[2]}.yaml"
    with run_directory.writing_to(run_dir):
        (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
        write_config(config, config_path)
    command = WorkerCommand(("-m", program, str(config_path), "--run-dir", str(run_dir)))
    # Only now is torch loaded, so that everything that can be refused was refused at once.
    from yolo_launch.supervision.supervisor import launch

    shares_stdout = console.json_mode and not worker_owns_stdout
    outcome = launch(planned.plan, command, run_dir, console_json=shares_stdout, say=console.note)
    return EndedJob(outcome, planned.plan, run_dir, shlex.join(planned.typed), is_new="--exist-ok" not in planned.typed)
