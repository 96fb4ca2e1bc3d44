"""Runs ``yolo-launch export``: writes a trained model as a file for other programs."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

import typer

from trainer.config.inference import ExportConfig
from yolo_launch.cli.conclude import conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.cli.model_command import (
    check_one_device,
    check_weights_file,
    make_inference_config,
    make_inference_plan,
    run_workers,
)
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.request.inference_options import ExportOptions

_ONNX_PACKAGES = ("onnx", "onnxruntime")


def export(ctx: typer.Context, options: ExportOptions) -> None:
    """Checks, starts one worker, and exits with the outcome's code."""
    console = Console(json_mode=options.json)
    weights = check_weights_file(options.given.get("weights"), "export")
    config = make_inference_config(ExportConfig, {**options.given, "weights": str(weights)}, "export")
    if config.format == "onnx":
        _require_packages()
    check_one_device(options)
    planned = make_inference_plan(options, config, typed_in(ctx), Path(tempfile.gettempdir()))
    run_dir = Path(tempfile.mkdtemp(prefix="yolo-launch-export-"))
    job = run_workers(planned, config, run_dir, console)
    summary = run_directory.read_summary(run_dir) if job.is_done else {}
    if job.is_done:
        # The file is the result; logs are worth keeping only if it fails.
        shutil.rmtree(run_dir, ignore_errors=True)
    conclude_job(job, console, summary=summary)


def _require_packages() -> None:
    """Raises LaunchError for what the worker would miss seconds later."""
    missing = [package for package in _ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise LaunchError(
            "Exporting to ONNX needs an extra that is not installed.",
            seen=f"no package {', '.join(missing)}",
            expected="the extra 'export'",
            next_command='pip install "yolo-launch[export]"',
            exit_code=ExitCode.ENVIRONMENT,
        )
