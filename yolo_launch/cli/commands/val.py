"""Runs ``yolo-launch val``: measures trained weights on a data set, over all chosen devices."""

from __future__ import annotations

import os

import typer

from trainer.config.inference import ValConfig
from trainer.data.formats.load import load_dataset
from trainer.data.split_files import find_images
from yolo_launch.checks.launchers import refuse_several_launchers
from yolo_launch.cli.conclude import conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.cli.model_command import (
    check_weights_file,
    make_inference_config,
    make_inference_plan,
    run_workers,
)
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.request.inference_options import ValOptions


def val(ctx: typer.Context, options: ValOptions) -> None:
    """Checks, starts, and says what was measured; the exit code is the outcome's."""
    console = Console(json_mode=options.json)
    refuse_several_launchers("val", os.environ)
    weights = check_weights_file(options.given.get("weights"), "val")
    if not options.given.get("data"):
        raise LaunchError("yolo-launch val needs a data set.", expected="--data FILE.yaml")
    config = make_inference_config(ValConfig, {**options.given, "weights": str(weights)}, "val")
    find_images(load_dataset(config.data, leave_out=config.leave_out), config.split)
    project, name, exist_ok = options.project, options.name, options.exist_ok
    planned = make_inference_plan(
        options, config, typed_in(ctx), run_directory.next_run_dir(project, name, exist_ok=exist_ok)
    )
    run_dir = run_directory.create_run_dir(project, name, exist_ok=exist_ok)
    config = config.model_copy(update={"workers": planned.plan.workers_per_rank})
    job = run_workers(planned, config, run_dir, console)
    summary = run_directory.read_summary(run_dir) if job.is_done else {}
    conclude_job(job, console, summary=summary, show_done=lambda: console.line(f"results: {run_dir}"))
