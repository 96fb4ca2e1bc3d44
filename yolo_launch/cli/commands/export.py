"""``yolo-launch export``: a trained model as a file for other programs."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import typer

from trainer.protocol import MAX_DETECTIONS, PREDICT_CONFIDENCE, PREDICT_IOU
from yolo_launch.cli.console import Console
from yolo_launch.cli.model_command import (
    IMGSZ,
    MODEL,
    ONE_DEVICE,
    RESULTS,
    WEIGHTS,
    InferenceCommand,
    check_numbers,
    check_weights_file,
    limits,
    make_inference_plan,
    run_job,
    worker_arguments,
)
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.typer_options import with_options
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.request.options import DEBUG, JSON, STALL_TIMEOUT, Option
from yolo_launch.spec import WorkerCommand

FORMATS = ("onnx", "torchscript")
_ONNX_PACKAGES = ("onnx", "onnxruntime")

EXPORT_OPTIONS = (
    WEIGHTS,
    Option("format", ("--format", "--include"), "onnx or torchscript", str, RESULTS, "onnx"),
    Option("out", ("--out",), "the file to write", str, RESULTS, "beside the weights"),
    IMGSZ,
    Option("batch", ("--batch", "--batch-size"), "images that the file takes at once", int, MODEL, "1"),
    Option("dynamic", ("--dynamic",), "any number of images, and any sides in steps of the stride (ONNX)", bool, MODEL),
    Option("half", ("--half",), "float16", bool, MODEL),
    Option("opset", ("--opset",), "ONNX operator set", int, MODEL, "17"),
    Option("with_nms", ("--with-nms",), "non-maximum suppression in the graph (ONNX)", bool, MODEL),
    *limits(*(f"{number}, for --with-nms" for number in (PREDICT_CONFIDENCE, PREDICT_IOU, MAX_DETECTIONS))),
    Option("image", ("--image",), "picture that the file is checked on", str, RESULTS, "an embedded one"),
    Option(ONE_DEVICE.name, ONE_DEVICE.flags, "where it runs: cpu, or one index or UUID", str, ONE_DEVICE.panel, "cpu"),
    STALL_TIMEOUT,
    JSON,
    DEBUG,
)
_WORKER_FLAGS = {
    "format": "--format",
    "out": "--out",
    "imgsz": "--imgsz",
    "batch": "--batch",
    "dynamic": "--dynamic",
    "half": "--half",
    "opset": "--opset",
    "with_nms": "--with-nms",
    "conf": "--conf",
    "iou": "--iou",
    "max_det": "--max-det",
    "image": "--image",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", cls=InferenceCommand, help="Write a trained model as ONNX or TorchScript.")(export)


@with_options(EXPORT_OPTIONS)
def export(ctx: typer.Context, **values: Any) -> None:
    """Check, start one worker, and leave with its outcome."""
    console, typed = Console(json_mode=bool(values["json"])), typed_in(ctx)
    weights = check_weights_file(values["weights"], "export")
    check_numbers(values)
    _check_format(values)
    on_device = {**values, "gpus": values["gpus"] or "cpu"}
    scratch = Path(tempfile.gettempdir())
    plan, findings = make_inference_plan(on_device, typed, scratch, batch=values["batch"] or 1, one_device=True)
    # The file is the result; logs are worth keeping only where it fails.
    run_dir = Path(tempfile.mkdtemp(prefix="yolo-launch-export-"))
    arguments = (
        *("-m", "trainer.inference.export", "--weights", str(weights), "--run-dir", str(run_dir)),
        *worker_arguments(values, _WORKER_FLAGS),
    )
    summary = run_job(plan, WorkerCommand(arguments), run_dir, console, typed, findings=findings)
    shutil.rmtree(run_dir, ignore_errors=True)
    if console.json_mode:
        console.json(summary)


def _check_format(values: dict[str, Any]) -> None:
    """Raise LaunchError for what the worker would refuse seconds later."""
    wanted = values["format"] or FORMATS[0]
    if wanted not in FORMATS:
        raise LaunchError("--format cannot be used.", seen=f"--format {wanted}", expected=" or ".join(FORMATS))
    if wanted != "onnx":
        if values["with_nms"]:
            raise LaunchError("--with-nms is for ONNX.", seen=f"--format {wanted}", expected="--format onnx")
        return
    missing = [package for package in _ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise LaunchError(
            "Exporting to ONNX needs an extra that is not installed.",
            seen=f"no package {', '.join(missing)}",
            expected="the extra 'export'",
            next_command='pip install "yolo-launch[export]"',
            exit_code=ExitCode.ENVIRONMENT,
        )
