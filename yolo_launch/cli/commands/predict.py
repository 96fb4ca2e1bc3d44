"""Runs ``yolo-launch predict``: finds objects in pictures and films."""

from __future__ import annotations

import typer

from trainer.config.inference import PredictConfig
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
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.request.inference_options import PredictOptions


def predict(ctx: typer.Context, options: PredictOptions) -> None:
    """Checks, starts one worker, and exits with the outcome's code."""
    console = Console(json_mode=bool(options.given.get("json_lines")))
    weights = check_weights_file(options.given.get("weights"), "predict")
    sources = (*options.sources, *((options.source,) if options.source else ()))
    given = {**options.given, "weights": str(weights), "sources": sources}
    config = make_inference_config(PredictConfig, given, "predict")
    if not sources:
        raise LaunchError(
            "yolo-launch predict needs something to look at.",
            expected="a picture, a film, a folder or a quoted pattern",
            next_command=f"yolo-launch predict --weights {weights} pictures/",
        )
    check_one_device(options)
    project, name, exist_ok = options.project, options.name, options.exist_ok
    planned = make_inference_plan(
        options, config, typed_in(ctx), run_directory.next_run_dir(project, name, exist_ok=exist_ok)
    )
    run_dir = run_directory.create_run_dir(project, name, exist_ok=exist_ok)
    job = run_workers(planned, config, run_dir, console, worker_owns_stdout=True)
    conclude_job(job, console, worker_owns_stdout=True)
