"""``yolo-launch predict``: find objects in pictures and films."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from trainer.protocol import PREDICT_BATCH_SIZE, PREDICT_CONFIDENCE, PREDICT_IOU, PREDICT_MAX_DETECTIONS
from yolo_launch.cli.console import Console
from yolo_launch.cli.model_command import (
    HALF,
    IMGSZ,
    MODEL,
    ONE_DEVICE,
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
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.request.options import DEBUG, STALL_TIMEOUT, Option
from yolo_launch.spec import WorkerCommand

PREDICT_OPTIONS = (
    WEIGHTS,
    Option("source", ("--source",), "a source, as YOLOv5 spells it", str, MODEL),
    IMGSZ,
    Option("batch", ("--batch", "--batch-size"), "pictures at a time; changes no result", int, MODEL, "8"),
    *limits(str(PREDICT_CONFIDENCE), str(PREDICT_IOU), str(PREDICT_MAX_DETECTIONS)),
    Option("classes", ("--classes",), "only these: 0,2 or person,car", str, MODEL),
    HALF,
    Option("save_txt", ("--save-txt",), "write a label file a picture, in YOLO's format", bool, RESULTS),
    Option("save_conf", ("--save-conf",), "with the confidence as sixth column", bool, RESULTS),
    Option("save_crop", ("--save-crop",), "write each object as a picture", bool, RESULTS),
    Option("nosave", ("--nosave",), "draw no pictures", bool, RESULTS),
    Option("show", ("--show", "--view-img"), "show each picture in a window", bool, RESULTS),
    *folder_options("predict"),
    ONE_DEVICE,
    STALL_TIMEOUT,
    Option("json", ("--json",), "a line of JSON a picture on stdout, everything else on stderr", bool, RESULTS),
    DEBUG,
)
_WORKER_FLAGS = {
    "imgsz": "--imgsz",
    "batch": "--batch",
    "conf": "--conf",
    "iou": "--iou",
    "max_det": "--max-det",
    "classes": "--classes",
    "half": "--half",
    "save_txt": "--save-txt",
    "save_conf": "--save-conf",
    "save_crop": "--save-crop",
    "nosave": "--nosave",
    "show": "--show",
    "json": "--json",
}
_SOURCES = inspect.Parameter(
    "sources",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE...", help="pictures, films, folders or quoted patterns")
    ],
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict", cls=InferenceCommand, help="Find objects in pictures and films.")(predict)


@with_options(PREDICT_OPTIONS, _SOURCES)
def predict(ctx: typer.Context, **values: Any) -> None:
    """Check, start one worker, and leave with its outcome."""
    console, typed = Console(json_mode=bool(values["json"])), typed_in(ctx)
    weights = check_weights_file(values["weights"], "predict")
    check_numbers(values)
    sources = [*(values["sources"] or ()), *([values["source"]] if values["source"] else ())]
    if not sources:
        raise LaunchError(
            "yolo-launch predict needs something to look at.",
            expected="a picture, a film, a folder or a quoted pattern",
            next_command=f"yolo-launch predict --weights {weights} pictures/",
        )
    project, name, exist_ok = values["project"] or "runs/predict", values["name"] or "exp", bool(values["exist_ok"])
    planned = run_directory.next_run_dir(project, name, exist_ok=exist_ok)
    plan, findings = make_inference_plan(
        values, typed, planned, batch=values["batch"] or PREDICT_BATCH_SIZE, one_device=True
    )
    run_dir = run_directory.create_run_dir(project, name, exist_ok=exist_ok)
    arguments = (
        *("-m", "trainer.inference.predict", "--weights", str(weights), "--run-dir", str(run_dir)),
        *worker_arguments(values, _WORKER_FLAGS),
        # A file may be called like an option.
        *("--", *sources),
    )
    run_job(plan, WorkerCommand(arguments), run_dir, console, typed, findings=findings, worker_owns_stdout=True)
