"""Runs ``yolo-launch doctor``: says what this machine has, and what would prevent training on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from trainer.config.train import TrainConfig, make_config
from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import run_checks
from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.views import show_findings, show_host
from yolo_launch.cluster_check import findings as cluster_findings
from yolo_launch.cluster_check.check import check_nodes
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.nodes.context import NodeContext, make_context
from yolo_launch.nodes.identity import (
    NodeIdentity,
    find_identity,
    with_scheduled_devices,
)
from yolo_launch.planning.plan import make_plan
from yolo_launch.probes.deep_checks import run_probes
from yolo_launch.request.command_line import without_value
from yolo_launch.request.launch_request import launch_request, shape_facts
from yolo_launch.request.machine_options import DoctorOptions
from yolo_launch.spec import Finding, Host, LaunchPlan
from yolo_launch.words import counted


def doctor(ctx: typer.Context, options: DoctorOptions) -> None:
    """Prints host and findings; the exit code is 3 if something fails."""
    console = Console(json_mode=options.json)
    typed, host = without_value(typed_in(ctx), "--token"), inspect_host()
    with_others = (options.rank, options.master, options.nodes) != (None, None, None)
    identity = find_identity(options, typed, host, os.environ, console.note) if with_others else None
    if identity is not None:
        options = with_scheduled_devices(options, identity, host)
    plan, findings = _planned(options, host, typed, identity)
    config = make_config({"data": options.data, "imgsz": options.imgsz}) if options.data else None
    run_dir = Path(options.project) / "exp"
    context = Context(host, plan, config, run_dir)
    findings += run_checks(context)
    found_in_data, reports = _scanned(config)
    findings += [] if options.deep else found_in_data  # a probe says the same
    if not console.json_mode:
        show_host(host, console)
        show_findings(findings, console)
    if options.deep:
        deeper = run_probes(context, console.note)
        findings += deeper
        if not console.json_mode:
            show_findings(deeper, console)
    exit_code = int(ExitCode.ENVIRONMENT if any(found.level == "failure" for found in findings) else ExitCode.DONE)
    if identity is not None:
        node = make_context(identity, typed, host, console.note, console_json=console.json_mode)
        more, exit_code_of_check = _check_with_others(node, options, findings, plan)
        exit_code = exit_code_of_check or exit_code
        if not console.json_mode:
            show_findings(more, console)
        findings += more
    report: dict[str, Any] = {"host": asdict(host), "findings": [asdict(finding) for finding in findings]}
    if config is not None:
        report["data"] = reports
    last = _last_line(findings, is_deep=options.deep)
    conclude(console, exit_code, result=report, show=lambda: console.line(last))


def _scanned(config: TrainConfig | None) -> tuple[list[Finding], dict[str, Any]]:
    """Scans the data set, if one was named; returns the findings, and the report of each split."""
    if config is None:
        return [], {}
    from yolo_launch.checks.data_scan import scan_data  # it loads OpenCV

    return scan_data(config)


def _last_line(findings: list[Finding], *, is_deep: bool) -> str:
    """Returns the last line: how much was found, and which option shows more."""
    failures, warnings = (sum(f.level == level for f in findings) for level in ("failure", "warning"))
    parts = [counted(count, noun) for count, noun in ((failures, "failure"), (warnings, "warning")) if count]
    return (", ".join(parts) or "nothing stands in the way") + (
        "" if is_deep else "; --deep looks at GPUs, links, disk and data at work"
    )


def _check_with_others(
    node: NodeContext, options: DoctorOptions, own: Sequence[Finding], plan: LaunchPlan | None
) -> tuple[list[Finding], int]:
    """Returns the findings of several machines about one another; that this one cannot take part is a finding too."""
    if plan is None:
        text = "this machine does not take part, because of the failures above: the others will wait for it"
        return [Finding(cluster_findings.CHECK, "warning", text)], ExitCode.DONE
    try:
        return check_nodes(node, options, own, plan.devices)
    except LaunchError as error:
        advice = error.next_command or error.expected
        if advice.startswith("yolo-launch doctor"):  # that is what did not work
            port = node.identity.port
            advice = f"start the cluster check on the master too (--rank 0), and open TCP port {port} toward it"
        return [
            Finding(cluster_findings.CHECK, "failure", f"{error.what}\n{error.seen}".strip(), advice)
        ], error.exit_code


def _planned(
    options: DoctorOptions, host: Host, typed: tuple[str, ...], identity: NodeIdentity | None
) -> tuple[LaunchPlan | None, list[Finding]]:
    """Returns the plan of the request, or the finding that says why such a plan is refused."""
    facts: dict[str, Any] = {}
    if identity is not None:
        options = replace(options, port=None)
        # How the batch divides is known once all workers are.
        facts = {"nnodes": identity.nodes[1] if identity.nodes else 2, "uneven_batch_ok": True}
    request = launch_request(options, typed, **shape_facts(options), **facts)
    try:
        plan = make_plan(request, host)
    except LaunchError as error:
        return None, [Finding("plan", "failure", error.what, error.next_command or error.expected)]
    return plan, [found for found in plan.findings if identity is None or found.check != "batch"]
