"""Runs ``yolo-launch plan``: shows what would be started, here or on a machine that ``doctor --json`` described."""

from __future__ import annotations

from pathlib import Path

import typer

from trainer.protocol import CONFIG_FILE
from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.views import show_plan
from yolo_launch.errors import ExitCode
from yolo_launch.host.inventory import inspect_host, read_host_file
from yolo_launch.planning.plan import make_plan, plan_facts
from yolo_launch.request.launch_request import launch_request, shape_facts
from yolo_launch.request.machine_options import PlanOptions
from yolo_launch.spec import WorkerCommand


def plan(ctx: typer.Context, options: PlanOptions) -> None:
    """Prints the plan."""
    console = Console(json_mode=options.json)
    host = read_host_file(Path(options.host)) if options.host else inspect_host()
    request = launch_request(
        options, typed_in(ctx), **shape_facts(options), sync_bn=options.sync_bn, nnodes=options.nnodes
    )
    made = make_plan(request, host)
    command = WorkerCommand(("-m", "trainer", f"RUN_DIR/{CONFIG_FILE}", "--run-dir", "RUN_DIR"))
    facts = {**plan_facts(made, command), "host": host.name}
    conclude(console, ExitCode.DONE, result=facts, show=lambda: show_plan(made, command, {"host": host.name}, console))
