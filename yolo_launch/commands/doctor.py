"""``yolo-launch doctor``: what this machine has, and what would stand in the way of training on it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from trainer.config import make_config
from yolo_launch.check_context import Context
from yolo_launch.commands.typed import TrainCommand, typed_in
from yolo_launch.console import Console
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.inventory import inspect_host
from yolo_launch.options import (
    BATCH,
    DEBUG,
    GPUS,
    IMGSZ,
    JSON,
    LAUNCH,
    NPROC,
    PORT,
    WORKERS,
    Option,
    launch_request,
    parse_batch,
    with_options,
)
from yolo_launch.plan import make_plan
from yolo_launch.plan_view import show_findings, show_host
from yolo_launch.preflight import run_checks
from yolo_launch.probes import run_probes
from yolo_launch.spec import Finding, Host, LaunchPlan

DOCTOR_OPTIONS = (
    Option("data", ("--data",), "a data-set YAML to check as well", str, LAUNCH, metavar="FILE"),
    GPUS,
    NPROC,
    BATCH,
    IMGSZ,
    WORKERS,
    PORT,
    Option("project", ("--project",), "folder of runs, whose disk is checked", str, LAUNCH, "runs/train"),
    Option("deep", ("--deep",), "the slower checks too, which start processes: GPUs, links, disk, data", bool),
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
    host = inspect_host()
    plan, findings = _planned(values, host, typed_in(ctx))
    config = make_config({"data": values["data"], "imgsz": values["imgsz"] or 640}) if values["data"] else None
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
    if console.json_mode:
        console.json({"host": asdict(host), "findings": [asdict(finding) for finding in findings]})
    else:
        console.line(_verdict(findings, is_deep=bool(values["deep"])))
    if any(finding.level == "failure" for finding in findings):
        raise typer.Exit(ExitCode.ENVIRONMENT)


def _verdict(findings: list[Finding], *, is_deep: bool) -> str:
    """The last line: how much was found, and where there is more to look at."""
    failures, warnings = (sum(f.level == level for f in findings) for level in ("failure", "warning"))
    parts = [f"{count} {word}{'s' * (count > 1)}" for count, word in ((failures, "failure"), (warnings, "warning"))]
    told = ", ".join(part for part in parts if not part.startswith("0 ")) or "nothing stands in the way"
    return told + ("" if is_deep else "; --deep looks at GPUs, links, disk and data at work")


def _planned(values: dict[str, Any], host: Host, typed: tuple[str, ...]) -> tuple[LaunchPlan | None, list[Finding]]:
    """The plan of what was asked for; a plan that is refused is a finding here."""
    batch = values["batch_size"]
    request = launch_request(
        values,
        typed,
        global_batch_size=16 if batch is None else parse_batch(batch),
        batch_is_default=batch is None,
        image_size=values["imgsz"] or 640,
        workers=values["workers"],
    )
    try:
        plan = make_plan(request, host)
    except LaunchError as error:
        return None, [Finding("plan", "failure", error.what, error.next_command or error.expected)]
    return plan, list(plan.findings)
