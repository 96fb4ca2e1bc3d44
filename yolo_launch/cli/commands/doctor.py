"""``yolo-launch doctor``: what this machine has, and what would stand in the way of training on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from trainer.config.train import make_config
from trainer.protocol import DEFAULT_BATCH_SIZE, DEFAULT_IMAGE_SIZE
from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import run_checks
from yolo_launch.cli.commands.node import NODE_OPTIONS
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import TrainCommand, typed_in
from yolo_launch.cli.typer_options import with_options
from yolo_launch.cli.views import show_findings, show_host
from yolo_launch.cluster_check import check as node_checkup
from yolo_launch.cluster_check import findings as cluster_check
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.nodes.identity import (
    NodeIdentity,
    describe_identity,
    find_identity,
    scheduled_devices,
    socket_variables,
)
from yolo_launch.nodes.session import NodeContext
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.planning.plan import make_plan
from yolo_launch.probes.deep_checks import run_probes
from yolo_launch.request.command_line import without_value
from yolo_launch.request.launch_request import launch_request, parse_batch
from yolo_launch.request.options import BATCH, DEBUG, GPUS, IMGSZ, JSON, LAUNCH, NPROC, WORKERS, Option
from yolo_launch.spec import Finding, Host, LaunchPlan

TOGETHER = ("rank", "master", "nodes", "join_timeout", "token", "token_file")
"""Options of a cluster check, from those of ``node``."""
DOCTOR_OPTIONS = (
    Option("data", ("--data",), "a data-set YAML to check as well", str, LAUNCH, metavar="FILE"),
    GPUS,
    NPROC,
    BATCH,
    IMGSZ,
    WORKERS,
    Option(
        "port",
        ("--port",),
        "a port to check; with --master, the rendezvous port",
        int,
        LAUNCH,
        "none; with --master 1234",
    ),
    Option("project", ("--project",), "folder of runs, whose disk is checked", str, LAUNCH, "runs/train"),
    Option("deep", ("--deep",), "the slower checks too, which start processes: GPUs, links, disk, data", bool),
    *(option for option in NODE_OPTIONS if option.name in TOGETHER),
    JSON,
    DEBUG,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Look at this machine and say what would stand in the way of training. Exit code 0, or 3."
    app.command("doctor", cls=TrainCommand, help=text)(doctor)


@with_options(DOCTOR_OPTIONS)
def doctor(ctx: typer.Context, **values: Any) -> None:
    """Print host and findings; exit code 3 where something fails."""
    console = Console(json_mode=bool(values["json"]))
    typed, host = without_value(typed_in(ctx), "--token"), inspect_host()
    together = any(values[name] is not None for name in ("rank", "master", "nodes"))
    identity = find_identity(values, typed, host, os.environ, console.note) if together else None
    values = scheduled_devices(values, identity, host) if identity is not None else values
    plan, findings = _planned(values, host, typed, identity)
    config = (
        make_config({"data": values["data"], "imgsz": values["imgsz"] or DEFAULT_IMAGE_SIZE})
        if values["data"]
        else None
    )
    run_dir = Path(values["project"] or "runs/train") / "exp"
    context = Context(host, plan, config, run_dir)
    findings += run_checks(context)
    if not console.json_mode:
        show_host(host, console)
        show_findings(findings, console)
    if values["deep"]:
        deeper = run_probes(context, console.note)
        findings += deeper
        if not console.json_mode:
            show_findings(deeper, console)
    exit_code = int(ExitCode.ENVIRONMENT if any(found.level == "failure" for found in findings) else ExitCode.DONE)
    if identity is not None:
        variables = socket_variables(identity, os.environ)
        console.note(describe_identity(identity, variables))
        line = StatusLine(shows_progress=identity.rank > 0)
        more, found_together = _together(
            NodeContext(values, typed, host, identity, variables, console, line), findings, plan
        )
        exit_code = found_together or exit_code
        if not console.json_mode:
            show_findings(more, console)
        findings += more
    if console.json_mode:
        console.json({"host": asdict(host), "findings": [asdict(finding) for finding in findings]})
    else:
        console.line(_verdict(findings, is_deep=bool(values["deep"])))
    if exit_code:
        raise typer.Exit(exit_code)


def _verdict(findings: list[Finding], *, is_deep: bool) -> str:
    """The last line: how much was found, and where there is more to look at."""
    failures, warnings = (sum(f.level == level for f in findings) for level in ("failure", "warning"))
    parts = [f"{count} {word}{'s' * (count > 1)}" for count, word in ((failures, "failure"), (warnings, "warning"))]
    told = ", ".join(part for part in parts if not part.startswith("0 ")) or "nothing stands in the way"
    return told + ("" if is_deep else "; --deep looks at GPUs, links, disk and data at work")


def _together(machine: NodeContext, own: Sequence[Finding], plan: LaunchPlan | None) -> tuple[list[Finding], int]:
    """What several machines find with one another; that this one cannot take part is a finding too."""
    if plan is None:
        text = "this machine does not take part, because of the failures above: the others will wait for it"
        return [Finding(cluster_check.CHECK, "warning", text)], ExitCode.DONE
    try:
        return node_checkup.check_nodes(machine, own)
    except LaunchError as error:
        advice = error.next_command or error.expected
        if advice.startswith("yolo-launch doctor"):  # that is what did not work
            port = machine.identity.port
            advice = f"start the cluster check on the master too (--rank 0), and open TCP port {port} toward it"
        return [Finding(cluster_check.CHECK, "failure", f"{error.what}\n{error.seen}".strip(), advice)], error.exit_code


def _planned(
    values: dict[str, Any], host: Host, typed: tuple[str, ...], identity: NodeIdentity | None
) -> tuple[LaunchPlan | None, list[Finding]]:
    """The plan of what was asked for; a plan that is refused is a finding here."""
    facts: dict[str, Any] = {}
    if identity is not None:
        values = {**values, "port": None}
        # How the batch divides is known once all workers are.
        facts = {"nnodes": identity.nodes[1] if identity.nodes else 2, "uneven_batch_ok": True}
    batch = values["batch_size"]
    request = launch_request(
        values,
        typed,
        global_batch_size=DEFAULT_BATCH_SIZE if batch is None else parse_batch(batch),
        batch_is_default=batch is None,
        image_size=values["imgsz"] or DEFAULT_IMAGE_SIZE,
        workers=values["workers"],
        **facts,
    )
    try:
        plan = make_plan(request, host)
    except LaunchError as error:
        return None, [Finding("plan", "failure", error.what, error.next_command or error.expected)]
    return plan, [found for found in plan.findings if identity is None or found.check != "batch"]
