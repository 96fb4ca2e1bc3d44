"""Runs a script on several machines: one machine's part of ``yolo-launch run``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import NoReturn

from trainer.protocol import RunFiles
from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import exit_code_of, refuse_failures, run_checks
from yolo_launch.cli.commands.node import refuse_dry_run, settings_from, take_part
from yolo_launch.cli.conclude import EndedJob, conclude, conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.cli.detach import detached
from yolo_launch.cli.views import show_findings, show_plan
from yolo_launch.host.inventory import inspect_host
from yolo_launch.jobs import run_directory, run_lock
from yolo_launch.nodes.context import NodeContext, find_context
from yolo_launch.nodes.identity import make_join_request
from yolo_launch.nodes.master import NodeMaster
from yolo_launch.nodes.script import MasterScript, MemberScript, script_request, shown_script
from yolo_launch.nodes.training import warnings_of
from yolo_launch.planning.plan import make_plan, plan_facts
from yolo_launch.request.command_line import without_value
from yolo_launch.request.machine_options import RunOptions
from yolo_launch.spec import Ready, WorkerCommand


def run_on_machines(options: RunOptions, typed: tuple[str, ...], console: Console) -> NoReturn:
    """Finds this machine's rank, takes part, and exits with the job's code."""
    ready = detached(options.detach, console)
    typed, host = without_value(typed, "--token"), inspect_host()
    options, context = find_context(options, typed, host, console.note, console_json=console.json_mode)
    run = _run_master if context.identity.rank == 0 else _run_member
    run(options, context, ready, console)


def _run_master(options: RunOptions, context: NodeContext, ready: Ready, console: Console) -> NoReturn:
    request = script_request(options, context)
    plan = make_plan(request, context.host)
    module = ("-m",) if options.module else ()
    shown = WorkerCommand((*module, options.script, *options.arguments), foreign=True)
    run_dir = run_directory.next_run_dir(options.project, options.name, exist_ok=False)
    checked = Context(context.host, plan, None, run_dir, script=shown_script(options))
    findings = [*plan.findings, *run_checks(checked)]
    if options.dry_run:
        plan = replace(plan, findings=tuple(findings), port=context.identity.port)

        def show() -> None:
            show_plan(plan, shown, {"logs": str(run_dir)}, console, master=context.identity.master)

        conclude(console, exit_code_of(findings), result=plan_facts(plan, shown), show=show)
    refuse_failures(findings)
    show_findings(warnings_of(findings), console)
    join_request = make_join_request(context.identity, plan, context.host)
    master = NodeMaster(context, join_request, settings_from(options, context))
    master.refuse_second()
    run_dir = run_directory.create_run_dir(options.project, options.name, exist_ok=False)
    run_directory.write_plan(run_dir, plan_facts(plan, shown))
    with run_directory.writing_to(run_dir):
        RunFiles(run_dir).logs.folder.mkdir(exist_ok=True)
    with run_directory.discarded_if_refused(run_dir, is_new=True), run_lock.hold(run_dir):
        work = MasterScript(options, request, plan, run_dir)
        outcome = master.run(work, ready)
    job = EndedJob(outcome, work.plan, run_dir, shlex.join(context.typed))
    conclude_job(job, console, show_done=lambda: console.line(f"done; logs: {RunFiles(run_dir).logs.folder}"))


def _run_member(options: RunOptions, context: NodeContext, ready: Ready, console: Console) -> NoReturn:
    refuse_dry_run(context, asked=options.dry_run)
    work = MemberScript(options, context, lambda findings: show_findings(findings, console))
    outcome = take_part(work, context, options.join_timeout, ready, console)
    if outcome.kind == "done":
        console.note(f"done; this machine's logs: {RunFiles(work.run_dir).logs.folder}")
    conclude_job(EndedJob(outcome, work.plan, work.run_dir, shlex.join(context.typed)), console)
