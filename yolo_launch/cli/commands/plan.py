"""``yolo-launch plan``: what would be started, here or on a machine that ``doctor --json`` described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from trainer.protocol import CONFIG_FILE, DEFAULT_BATCH_SIZE, DEFAULT_IMAGE_SIZE
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import TrainCommand, typed_in
from yolo_launch.cli.typer_options import with_options
from yolo_launch.cli.views import show_plan
from yolo_launch.host.inventory import inspect_host, read_host_file
from yolo_launch.planning.plan import make_plan, plan_facts
from yolo_launch.request.launch_request import launch_request, parse_batch
from yolo_launch.request.options import (
    BATCH,
    DEBUG,
    GPUS,
    IMGSZ,
    JSON,
    LAUNCH,
    MAX_RESTARTS,
    NPROC,
    PARALLEL,
    PORT,
    STALL_TIMEOUT,
    SYNC_BN,
    WORKERS,
    Option,
)
from yolo_launch.spec import WorkerCommand

PLAN_OPTIONS = (
    GPUS,
    NPROC,
    PARALLEL,
    BATCH,
    IMGSZ,
    WORKERS,
    SYNC_BN,
    Option("host", ("--host",), "a machine that 'doctor --json' described", str, LAUNCH, "this one", "FILE"),
    Option("nnodes", ("--nnodes",), "machines, all like this one", int, LAUNCH, "1"),
    PORT,
    MAX_RESTARTS,
    STALL_TIMEOUT,
    JSON,
    DEBUG,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Show what would be started, here or on another machine; nothing is."
    app.command("plan", cls=TrainCommand, help=text)(plan)


@with_options(PLAN_OPTIONS)
def plan(ctx: typer.Context, **values: Any) -> None:
    """Print the plan."""
    console = Console(json_mode=bool(values["json"]))
    host = read_host_file(Path(values["host"])) if values["host"] else inspect_host()
    request = launch_request(
        values,
        typed_in(ctx),
        global_batch_size=DEFAULT_BATCH_SIZE if values["batch_size"] is None else parse_batch(values["batch_size"]),
        batch_is_default=values["batch_size"] is None,
        image_size=values["imgsz"] or DEFAULT_IMAGE_SIZE,
        workers=values["workers"],
        sync_bn=bool(values["sync_bn"]),
        nnodes=values["nnodes"] or 1,
    )
    made = make_plan(request, host)
    command = WorkerCommand(("-m", "trainer", f"RUN_DIR/{CONFIG_FILE}", "--run-dir", "RUN_DIR"))
    if console.json_mode:
        console.json({**plan_facts(made, command), "host": host.name})
    else:
        show_plan(made, command, {"host": host.name}, console)
