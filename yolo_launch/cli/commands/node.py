"""``yolo-launch node``: one machine's part in training on several."""

from __future__ import annotations

import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from trainer.config.train import TrainConfig
from trainer.errors import UserError
from yolo_launch.checks.preflight import refuse_failures
from yolo_launch.cli.commands.train import show_dry_run
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import TrainCommand, typed_in
from yolo_launch.cli.typer_options import options_from, with_options
from yolo_launch.cli.views import show_differences, show_findings, show_outcome, show_result
from yolo_launch.diagnosis.outcome import refused_outcome
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.host.network import is_local_address
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.training_job import make_job, opened, with_data
from yolo_launch.nodes import master as node_master
from yolo_launch.nodes import member as node_member
from yolo_launch.nodes.agent import refuse_job
from yolo_launch.nodes.identity import (
    describe_identity,
    find_identity,
    make_join_request,
    scheduled_devices,
    socket_variables,
)
from yolo_launch.nodes.session import NodeContext, NodeSession
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.planning.plan import make_plan
from yolo_launch.rendezvous.admission import JOIN_TIMEOUT_S
from yolo_launch.rendezvous.messages import Round
from yolo_launch.request.command_line import retype, without_value
from yolo_launch.request.options import options_of
from yolo_launch.request.train_options import NodeOptions
from yolo_launch.spec import LaunchPlan, LaunchRequest, Outcome
from yolo_launch.supervision.attempt import AttemptRunner
from yolo_launch.supervision.supervisor import source_of_restart


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Train on several machines: yolo-launch node --rank R --master ADDRESS, on each."
    app.command("node", cls=TrainCommand, help=text)(node)


@with_options(options_of(NodeOptions))
def node(ctx: typer.Context, **values: Any) -> None:
    """Find this machine's place, take part, and leave with the job's exit code."""
    console = Console(json_mode=bool(values["json"]))
    typed, host = without_value(typed_in(ctx), "--token"), inspect_host()
    identity = find_identity(values, typed, host, os.environ, console.note)
    values = scheduled_devices(values, identity, host)
    variables = socket_variables(identity, os.environ)
    console.note(describe_identity(identity, variables))
    machine = NodeContext(
        values, typed, host, identity, variables, console, StatusLine(shows_progress=identity.rank > 0)
    )
    if identity.rank == 0:
        lead(machine)
    else:
        follow(machine)


def lead(machine: NodeContext) -> None:
    """The master: make the job, open the rendezvous, take part."""
    console, identity, values = machine.console, machine.identity, machine.values
    most = identity.nodes[1] if identity.nodes else 1
    job = make_job(options_from(NodeOptions, {**values, "port": None}), machine.typed, machine.host, nnodes=most)
    if job.plan.batch_is_auto:
        raise LaunchError("--batch auto measures the GPUs of one machine.", expected="--batch with the total of all")
    if values["dry_run"]:
        show_dry_run(job, console)
        return
    show_differences(job.differences, console)
    refuse_failures(job.findings)
    show_findings(node_member.warnings_of(job.findings), console)
    settings = node_master.make_settings(values, identity, job.request.max_restarts)
    join_request = make_join_request(identity, job.plan, machine.host)
    if not is_local_address(identity.address, machine.host.addresses):
        NodeSession(machine, join_request, identity.endpoint).refuse_second_master()
    with opened(with_data(job)) as job:
        config = job.config
        console.line(f"{config.model_name} at {config.imgsz}, {config.epochs} epochs -> {job.run_dir}")

        def make_runner(start: Round) -> AttemptRunner:
            nonlocal job
            job = node_master.write_round(job, start, machine.plan(job.request, start))
            return machine.runner(job.plan, job.command, job.run_dir)

        def source() -> str:
            return source_of_restart(job.run_dir)

        fingerprint = fingerprint_of(config)
        with node_master.rendezvous_of(
            job, identity, join_request, settings, fingerprint, source, machine.line.over
        ) as rendezvous:
            session = NodeSession(machine, join_request, replace(identity.endpoint, address=rendezvous.own_address))
            session.take(patience_s=10.0)
            session.ready(fingerprint)
            try:
                outcome = session.play(make_runner)
            except UserError as error:
                rendezvous.end(refused_outcome(error))
                raise
    command = retype(machine.typed, {"--resume": str(job.run_dir)}, without=("--config",))
    finish(outcome, machine, job.plan, job.run_dir, command, is_demo=job.is_demo)


def follow(machine: NodeContext) -> None:
    """Any other machine: take the job from the rendezvous, check it here, take part."""
    identity, values = machine.identity, machine.values
    draft = node_member.draft_request(values, machine.typed)
    plan = make_plan(draft, machine.host)
    if values["dry_run"]:
        raise LaunchError(
            "--dry-run shows the job's plan, which only the master knows.",
            seen=f"--rank {identity.rank} --dry-run",
            expected="--dry-run on the machine with --rank 0",
        )
    session = NodeSession(machine, make_join_request(identity, plan, machine.host), identity.endpoint)
    patience_s = JOIN_TIMEOUT_S if values["join_timeout"] is None else values["join_timeout"]
    try:
        description = session.take(patience_s)
        config, request, run_dir = check_job(machine, draft, description, session)
    except KeyboardInterrupt:
        session.leave("it left (Ctrl-C)")
        machine.console.note("stopped by Ctrl-C")
        raise typer.Exit(128 + signal.SIGINT) from None

    def make_runner(start: Round) -> AttemptRunner:
        nonlocal plan
        plan = machine.plan(request, start)
        settled = config.model_copy(update={"batch_size": start.batch_size, "workers": plan.workers_per_rank})
        command = node_member.member_command(settled, run_dir, identity.rank)
        return machine.runner(plan, command, run_dir)

    outcome = session.play(make_runner)
    finish(outcome, machine, plan, run_dir, shlex.join(machine.typed))


def check_job(
    machine: NodeContext, draft: LaunchRequest, description: dict[str, Any], session: NodeSession
) -> tuple[TrainConfig, LaunchRequest, Path]:
    """What this machine makes of the job. A reason why it cannot take part is told to the rendezvous and raised."""
    values, rank = machine.values, machine.identity.rank
    try:
        config = node_member.job_config(description, values)
        request = node_member.member_request(draft, config, description)
        run_dir = node_member.own_run_dir(description, rank, values["project"])
        warnings = node_member.check_node(machine.host, request, config, run_dir)
        session.ready(fingerprint_of(config))
    except UserError as error:
        refuse_job(session.member, error)
        raise
    show_findings(warnings, machine.console)
    return config, request, run_dir


def fingerprint_of(config: TrainConfig) -> str:
    """Of the data set, equal where classes, images and labels are."""
    from trainer.data.dataset import fingerprint, load_dataset_file

    return fingerprint(load_dataset_file(config.data))


def finish(
    outcome: Outcome, machine: NodeContext, plan: LaunchPlan, run_dir: Path, next_command: str, *, is_demo: bool = False
) -> None:
    """Say what came of the job and leave with its exit code."""
    console, is_master = machine.console, machine.identity.rank == 0
    if outcome.kind == "done" and is_master:
        summary = run_directory.read_summary(run_dir)
        if console.json_mode:
            console.json(summary)
        else:
            show_result(run_dir, summary, is_demo=is_demo, console=console)
        return
    if outcome.kind == "done":
        console.note(f"done; the results are on the master, this machine's logs in {run_dir / 'logs'}")
    else:
        show_outcome(outcome, plan, run_dir, next_command, console)
    if console.json_mode:
        console.json({"run_dir": str(run_dir), "outcome": outcome.kind, "exit_code": outcome.exit_code})
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
