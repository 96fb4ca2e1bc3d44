"""Runs ``yolo-launch stop RUN``: ends a run of this machine with its state saved."""

from __future__ import annotations

import typer

from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.errors import ExitCode
from yolo_launch.jobs.overview import stop_run
from yolo_launch.jobs.run_directory import find_run
from yolo_launch.request.machine_options import StopOptions


def stop(ctx: typer.Context, options: StopOptions) -> None:
    """Asks the run's launcher to save and stop, and waits for it."""
    console = Console(json_mode=options.json)
    run_dir = find_run(options.project, options.run)
    state = stop_run(run_dir, options.wait)
    after = f"yolo-launch train --resume {run_dir} goes on with it" if state == "unfinished" else "it had ended"
    result = {"run_dir": str(run_dir), "state": state}
    conclude(console, ExitCode.DONE, result=result, show=lambda: console.line(f"{run_dir} has stopped; {after}"))
