"""Runs ``yolo-launch node``: one node's part in training on several."""

from __future__ import annotations

import os
import shlex
import signal
from typing import NoReturn

import typer

from trainer.protocol import RunFiles
from yolo_launch.checks.preflight import refuse_failures
from yolo_launch.cli.commands.train import conclude_training, show_dry_run
from yolo_launch.cli.conclude import EndedJob, conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.views import show_differences, show_findings
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.jobs.training_job import opened, with_data
from yolo_launch.nodes.context import NodeContext, make_context
from yolo_launch.nodes.identity import find_identity, make_join_request, with_scheduled_devices
from yolo_launch.nodes.master import NodeMaster, make_settings
from yolo_launch.nodes.member import NodeMember
from yolo_launch.nodes.training import MasterTraining, MemberTraining, make_master_job, warnings_of
from yolo_launch.request.command_line import retype, without_value
from yolo_launch.request.node_options import NodeOptions


def node(ctx: typer.Context, options: NodeOptions) -> None:
    """Finds this node's rank, takes part, and exits with the job's code."""
    console = Console(json_mode=options.json)
    typed, host = without_value(typed_in(ctx), "--token"), inspect_host()
    identity = find_identity(options, typed, host, os.environ, console.note)
    options = with_scheduled_devices(options, identity, host)
    context = make_context(identity, typed, host, console.note, console_json=console.json_mode)
    run = run_master if identity.rank == 0 else run_member
    run(options, context, console)


def run_master(options: NodeOptions, context: NodeContext, console: Console) -> NoReturn:
    """Makes the job, offers it to the others, and trains."""
    job = make_master_job(options, context)
    if options.dry_run:
        show_dry_run(job, console)
    show_differences(job.differences, console)
    refuse_failures(job.findings)
    show_findings(warnings_of(job.findings), console)
    settings = make_settings(
        context.identity,
        max_restarts=options.max_restarts,
        join_timeout=options.join_timeout,
        rejoin_timeout=options.rejoin_timeout,
        join_grace=options.join_grace,
    )
    master = NodeMaster(context, make_join_request(context.identity, job.plan, context.host), settings)
    master.refuse_second()
    with opened(with_data(job)) as job:
        console.line(f"{job.config.model_name} at {job.config.imgsz}, {job.config.epochs} epochs -> {job.run_dir}")
        work = MasterTraining(job, context.status_line.over)
        outcome = master.run(work)
    command = retype(context.typed, {"--resume": str(job.run_dir)}, without=("--config",))
    is_new = not job.is_resume and not job.config.exist_ok
    conclude_training(EndedJob(outcome, work.plan, job.run_dir, command, is_new), console, is_demo=job.is_demo)


def run_member(options: NodeOptions, context: NodeContext, console: Console) -> NoReturn:
    """Takes the job from the master, checks it here, and trains."""
    work = MemberTraining(options, context, lambda findings: show_findings(findings, console))
    if options.dry_run:
        raise LaunchError(
            "--dry-run shows the job's plan, which only the master knows.",
            seen=f"--rank {context.identity.rank} --dry-run",
            expected="--dry-run on the machine with --rank 0",
        )
    join_request = make_join_request(context.identity, work.plan, context.host)
    try:
        outcome = NodeMember(context, join_request, options.join_timeout).run(work)
    except KeyboardInterrupt:
        console.note("stopped by Ctrl-C")
        raise typer.Exit(128 + signal.SIGINT) from None
    if outcome.kind == "done":
        console.note(
            f"done; the results are on the master, this machine's logs in {RunFiles(work.run_dir).logs.folder}"
        )
    conclude_job(EndedJob(outcome, work.plan, work.run_dir, shlex.join(context.typed)), console)
