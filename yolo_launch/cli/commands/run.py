"""Runs ``yolo-launch run``: any torchrun-style script with the same planning, devices, supervision and report."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

import typer

from trainer.protocol import RunFiles
from yolo_launch.checks.context import Context
from yolo_launch.checks.launchers import refuse_several_launchers
from yolo_launch.checks.preflight import exit_code_of, refuse_failures, run_checks
from yolo_launch.cli.conclude import EndedJob, conclude, conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.cli.detach import detached
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.views import show_plan, show_start
from yolo_launch.host.inventory import inspect_host
from yolo_launch.jobs import run_directory, run_lock
from yolo_launch.nodes.identity import names_machines
from yolo_launch.planning.plan import make_plan, plan_facts
from yolo_launch.request.command_line import without_value
from yolo_launch.request.launch_request import launch_request
from yolo_launch.request.machine_options import RunOptions
from yolo_launch.spec import LaunchPlan, Outcome, WorkerCommand


def run(ctx: typer.Context, options: RunOptions) -> None:
    """Plans, checks and starts; the exit code is the outcome's."""
    console = Console(json_mode=options.json)
    if names_machines(options, without_value(typed_in(ctx), "--token"), os.environ):
        # Only now: a rendezvous is more than a job on one machine needs.
        from yolo_launch.cli.commands.run_machines import run_on_machines

        run_on_machines(options, typed_in(ctx), console)
    refuse_several_launchers("run", os.environ)
    ready = detached(options.detach, console)
    module = ("-m",) if options.module else ()
    command = WorkerCommand((*module, options.script, *options.arguments), foreign=True)
    host = inspect_host()
    plan = make_plan(launch_request(options, typed_in(ctx), builtin_trainer=False), host)
    run_dir = run_directory.next_run_dir(options.project, options.name, exist_ok=False)
    shown_script = " ".join((*module, options.script))
    findings = [*plan.findings, *run_checks(Context(host, plan, None, run_dir, script=shown_script))]
    if options.dry_run:
        plan = replace(plan, findings=tuple(findings))

        def show() -> None:
            show_plan(plan, command, {"logs": str(run_dir)}, console)

        conclude(console, exit_code_of(findings), result=plan_facts(plan, command), show=show)
    refuse_failures(findings)
    show_start(plan, findings, console)
    run_dir = run_directory.create_run_dir(options.project, options.name, exist_ok=False)
    run_directory.write_plan(run_dir, plan_facts(plan, command))
    with run_directory.discarded_if_refused(run_dir, is_new=True), run_lock.hold(run_dir):
        ready(run_dir)
        outcome = _start(plan, command, run_dir, console)
    job = EndedJob(outcome, plan, run_dir, shlex.join(without_value(typed_in(ctx), "--token")))
    conclude_job(job, console, show_done=lambda: console.line(f"done; logs: {RunFiles(run_dir).logs.folder}"))


def _start(plan: LaunchPlan, command: WorkerCommand, run_dir: Path, console: Console) -> Outcome:
    # Only now is torch loaded.
    from yolo_launch.supervision.supervisor import launch

    with run_directory.writing_to(run_dir):
        RunFiles(run_dir).logs.folder.mkdir(exist_ok=True)
    return launch(plan, command, run_dir, console_json=console.json_mode, say=console.note)
