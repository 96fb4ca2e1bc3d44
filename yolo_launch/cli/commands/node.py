"""Runs ``yolo-launch node``: one node's part in training on several."""

from __future__ import annotations

import shlex
import signal
from typing import NoReturn

import typer

from trainer.protocol import RunFiles
from yolo_launch.checks.preflight import refuse_failures
from yolo_launch.cli.commands.train import conclude_training, show_dry_run
from yolo_launch.cli.conclude import EndedJob, conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.cli.detach import detached
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.views import show_differences, show_findings
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.jobs.training_job import opened, with_data
from yolo_launch.nodes.context import NodeContext, find_context
from yolo_launch.nodes.identity import make_join_request
from yolo_launch.nodes.master import NodeMaster, make_settings
from yolo_launch.nodes.member import NodeMember
from yolo_launch.nodes.training import MasterTraining, MemberTraining, make_master_job, warnings_of
from yolo_launch.nodes.work import MemberWork
from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.request.command_line import retype, without_value
from yolo_launch.request.machine_options import RendezvousOptions
from yolo_launch.request.node_options import NodeOptions
from yolo_launch.spec import Outcome, Ready


def node(ctx: typer.Context, options: NodeOptions) -> None:
    """Finds this node's rank, takes part, and exits with the job's code."""
    console = Console(json_mode=options.json)
    ready = detached(options.detach, console)
    typed, host = without_value(typed_in(ctx), "--token"), inspect_host()
    options, context = find_context(options, typed, host, console.note, console_json=console.json_mode)
    run = run_master if context.identity.rank == 0 else run_member
    run(options, context, ready, console)


def run_master(options: NodeOptions, context: NodeContext, ready: Ready, console: Console) -> NoReturn:
    """Makes the job, offers it to the others, and trains."""
    job = make_master_job(options, context, console.note)
    if options.dry_run:
        show_dry_run(job, console, master=context.identity.master, port=context.identity.port)
    show_differences(job.differences, console)
    refuse_failures(job.findings)
    show_findings(warnings_of(job.findings), console)
    master = NodeMaster(
        context, make_join_request(context.identity, job.plan, context.host), settings_from(options, context)
    )
    master.refuse_second()
    with opened(with_data(job), console.note) as job:
        console.line(f"{job.config.model_name} at {job.config.imgsz}, {job.config.epochs} epochs -> {job.run_dir}")
        work = MasterTraining(job, context.status_line.over)
        outcome = master.run(work, ready)
    command = retype(context.typed, {"--resume": str(job.run_dir)}, without=("--config",))
    is_new = not job.is_resume and not job.config.exist_ok
    conclude_training(EndedJob(outcome, work.plan, job.run_dir, command, is_new), console, is_demo=job.is_demo)


def run_member(options: NodeOptions, context: NodeContext, ready: Ready, console: Console) -> NoReturn:
    """Takes the job from the master, checks it here, and trains."""
    work = MemberTraining(options, context, lambda findings: show_findings(findings, console))
    refuse_dry_run(context, asked=options.dry_run)
    outcome = take_part(work, context, options.join_timeout, ready, console)
    if outcome.kind == "done":
        console.note(
            f"done; the results are on the master, this machine's logs in {RunFiles(work.run_dir).logs.folder}"
        )
    conclude_job(EndedJob(outcome, work.plan, work.run_dir, shlex.join(context.typed)), console)


def refuse_dry_run(context: NodeContext, *, asked: bool) -> None:
    """Raises LaunchError if a member is asked to show the plan."""
    if asked:
        raise LaunchError(
            "--dry-run shows the job's plan, which only the master knows.",
            seen=f"--rank {context.identity.rank} --dry-run",
            expected="--dry-run on the machine with --rank 0",
        )


def take_part(work: MemberWork, context: NodeContext, join_timeout: float, ready: Ready, console: Console) -> Outcome:
    """Takes part in the master's job to its end, which a Ctrl-C before the rank was ready is too."""
    join_request = make_join_request(context.identity, work.plan, context.host)
    try:
        return NodeMember(context, join_request, join_timeout).run(work, ready)
    except KeyboardInterrupt:
        console.note("stopped by Ctrl-C")
        raise typer.Exit(128 + signal.SIGINT) from None


def settings_from(options: RendezvousOptions, context: NodeContext) -> RendezvousSettings:
    """Returns the master's settings for the rendezvous. Raises LaunchError."""
    return make_settings(
        context.identity,
        max_restarts=options.max_restarts,
        join_timeout=options.join_timeout,
        rejoin_timeout=options.rejoin_timeout,
        join_grace=options.join_grace,
    )
