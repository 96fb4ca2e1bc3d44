"""Runs ``yolo-launch runs``: lists runs with their state, epoch, best mAP, machine and age."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.errors import ExitCode
from yolo_launch.jobs.overview import RunOverview, list_runs
from yolo_launch.request.machine_options import RunsOptions

_COLUMNS = ("run", "state", "epoch", "mAP50-95", "machine", "last written")
_DAY_S = 86400


def runs(ctx: typer.Context, options: RunsOptions) -> None:
    """Prints the runs below some folders."""
    console = Console(json_mode=options.json)
    folders = [Path(folder) for folder in options.folders or ("runs",)]
    found = list_runs(folders)

    def show() -> None:
        if found:
            console.table("", _COLUMNS, [_row(run) for run in found])
        else:
            console.line(f"no run below {', '.join(map(str, folders))}")

    conclude(console, ExitCode.DONE, result={"runs": [asdict(run) for run in found]}, show=show)


def _row(run: RunOverview) -> list[str]:
    epoch = f"{run.epoch}/{run.epochs}" if run.epochs else ""
    best = "" if run.map5095 is None else f"{run.map5095:.3f}"
    return [run.run_dir, run.state, epoch, best, run.machine, age_text(run.age_s)]


def age_text(seconds: float) -> str:
    """Returns how long ago something was, in the largest unit of which there is one."""
    for size, unit in ((_DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
