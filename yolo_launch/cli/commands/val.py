"""``yolo-launch val``: measure trained weights on a data set, over all chosen devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from trainer.protocol import MAX_DETECTIONS, VAL_BATCH_SIZE, VAL_CONFIDENCE, VAL_IOU
from yolo_launch.cli.console import Console
from yolo_launch.cli.model_command import (
    HALF,
    IMGSZ,
    MODEL,
    RESULTS,
    WEIGHTS,
    InferenceCommand,
    check_numbers,
    check_weights_file,
    folder_options,
    limits,
    make_inference_plan,
    run_job,
    worker_arguments,
)
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.typer_options import with_options
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.request.options import DEBUG, GPUS, JSON, NPROC, PORT, STALL_TIMEOUT, WORKERS, Option
from yolo_launch.spec import WorkerCommand

SPLITS = ("train", "val", "test")

VAL_OPTIONS = (
    WEIGHTS,
    Option("data", ("--data",), "the data set's YAML file", str, MODEL),
    Option("split", ("--split", "--task"), "which images: train, val or test", str, MODEL, "val"),
    IMGSZ,
    # Batches depend on data, image size and this number alone, so the result does not depend on the devices.
    Option("batch", ("--batch", "--batch-size"), "images a batch, of each worker", int, MODEL, str(VAL_BATCH_SIZE)),
    *limits(str(VAL_CONFIDENCE), str(VAL_IOU), str(MAX_DETECTIONS)),
    HALF,
    WORKERS,
    Option("coco_json", ("--coco-json",), "write COCO results, and COCO's own numbers with the extra", str, RESULTS),
    Option("noplots", ("--noplots",), "draw no pictures", bool, RESULTS),
    *folder_options("val"),
    GPUS,
    NPROC,
    PORT,
    STALL_TIMEOUT,
    JSON,
    DEBUG,
)
_WORKER_FLAGS = {
    "data": "--data",
    "split": "--split",
    "imgsz": "--imgsz",
    "batch": "--batch",
    "conf": "--conf",
    "iou": "--iou",
    "max_det": "--max-det",
    "half": "--half",
    "coco_json": "--coco-json",
    "noplots": "--noplots",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("val", cls=InferenceCommand, help="Measure trained weights on a data set.")(val)


@with_options(VAL_OPTIONS)
def val(ctx: typer.Context, **values: Any) -> None:
    """Check, start, and say what was measured; the exit code is the outcome's."""
    console, typed = Console(json_mode=bool(values["json"])), typed_in(ctx)
    weights = check_weights_file(values["weights"], "val")
    check_numbers(values)
    _check_data(values["data"], values["split"] or "val")
    project, name, exist_ok = values["project"] or "runs/val", values["name"] or "exp", bool(values["exist_ok"])
    planned = run_directory.next_run_dir(project, name, exist_ok=exist_ok)
    plan, findings = make_inference_plan(
        values, typed, planned, batch=values["batch"] or VAL_BATCH_SIZE, one_device=False
    )
    run_dir = run_directory.create_run_dir(project, name, exist_ok=exist_ok)
    arguments = (
        *("-m", "trainer.inference.val", "--weights", str(weights), "--run-dir", str(run_dir)),
        *("--workers", str(plan.workers_per_rank)),
        *worker_arguments(values, _WORKER_FLAGS),
    )
    summary = run_job(plan, WorkerCommand(arguments), run_dir, console, typed, findings=findings)
    if console.json_mode:
        console.json(summary)
    else:
        console.line(f"results: {run_dir}")
    if not run_directory.is_judged(summary):
        raise typer.Exit(ExitCode.NOT_JUDGED)


def _check_data(data: str | None, split: str) -> None:
    """Raise LaunchError or DataError for a data set without this split, before torch is loaded."""
    from trainer.data.dataset import find_images, load_dataset_file

    if split not in SPLITS:
        raise LaunchError("--split cannot be used.", seen=f"--split {split}", expected=", ".join(SPLITS))
    if not data:
        raise LaunchError("yolo-launch val needs a data set.", expected="--data FILE.yaml")
    find_images(load_dataset_file(Path(data)), split)
