"""Shows plans, findings, hosts and results to a reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.protocol import LAST_WEIGHTS, RunFiles
from yolo_launch.cli import report
from yolo_launch.cli.console import Console
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.resume_changes import Difference
from yolo_launch.planning.masks import describe_device
from yolo_launch.planning.plan import rank_lines, srun_command, torchrun_command
from yolo_launch.spec import Finding, Host, LaunchPlan, Outcome, WorkerCommand
from yolo_launch.words import counted

_MODES = {"single": "one worker", "ddp": "DistributedDataParallel", "dp": "DataParallel"}


def show_plan(
    plan: LaunchPlan, command: WorkerCommand, about: Mapping[str, str], console: Console, *, master: str = "MASTER"
) -> None:
    """Prints a plan in full: job, devices, and the torchrun command that comes nearest, of each machine."""
    workers = _MODES[plan.mode]
    if plan.world_size > 1:
        count = counted(plan.world_size, "worker")
        workers = count if command.foreign else f"{workers}, {count}"
    share = [counted(plan.threads_per_rank, "thread")]
    if not command.foreign:  # a script loads in its own way
        share.append(counted(plan.workers_per_rank, "loader process"))
    rows = [
        *([key, value] for key, value in about.items()),
        ["mode", f"{workers} on {plan.nnodes} machines" if plan.nnodes > 1 else workers],
        *([] if command.foreign else [["batch", _batch_text(plan)]]),
        ["backend", plan.backend],
        ["per worker", ", ".join(share)],
        ["restarts", _restart_text(plan, command)],
    ]
    console.table("Plan", (), rows)
    for line in rank_lines(plan):
        console.line(line)
    show_findings(plan.findings, console)
    for rank in range(plan.nnodes):
        console.line(f"equivalent on machine {rank}:" if plan.nnodes > 1 else "equivalent:")
        console.line(f"  {torchrun_command(replace(plan, node_rank=rank), command, master)}")
    if plan.nnodes > 1:
        console.line("equivalent in a job of Slurm:")
        console.line(f"  {srun_command(plan, command, master)}")


def show_start(plan: LaunchPlan, findings: Iterable[Finding], console: Console) -> None:
    """Prints the lines before a start: the device of each rank, and what could be better."""
    for line in rank_lines(plan):
        console.line(line)
    show_findings((finding for finding in findings if finding.level != "ok"), console)


def show_findings(findings: Iterable[Finding], console: Console) -> None:
    """Prints findings, one after another."""
    for finding in findings:
        console.finding(finding)


def show_differences(differences: Sequence[Difference], console: Console) -> None:
    """Prints what a resumed run does otherwise than before."""
    if differences:
        rows = [[d.option, d.before, d.after, "changes the result" if d.changes_result else ""] for d in differences]
        console.table("Changed since the run began", ("option", "before", "now", ""), rows)


def show_host(host: Host, console: Console) -> None:
    """Prints what a machine has."""
    limits = f"{host.open_file_limit} open files"
    rows = [
        ["machine", f"{host.name}, {host.platform}, Python {host.python_version}"],
        ["cores", f"{host.cpu_cores} usable"],
        ["memory", f"{_gb(host.memory_available_bytes)} of {_gb(host.memory_total_bytes)} free"],
        ["shared memory", f"{_gb(host.shm_free_bytes)} of {_gb(host.shm_total_bytes)} free"],
        ["limits", limits],
        ["torch", f"{host.torch.torch_version or 'absent'}, torchvision {host.torch.torchvision_version or 'absent'}"],
    ]
    if host.driver_version:
        rows.append(["driver", host.driver_version])
    if host.visible_devices is not None:
        rows.append([host.mask_variable, host.visible_devices or "(empty: no GPU)"])
    rows += [["network", f"{name}: {', '.join(found)}"] for name, found in host.addresses.items() if name != "lo"]
    console.table("Host", (), rows)
    if not host.devices:
        console.line("no GPU was found")
        return
    for device in host.devices:
        capability = ".".join(map(str, device.compute_capability or ())) or "unknown"
        total = f", {_gb(device.memory_total_bytes)} in all" if device.memory_total_bytes else ""
        console.line(f"{describe_device(device)}{total}, compute capability {capability}")
        for process in device.processes:
            console.line(f"  PID {process.pid} {process.user}: {process.command} ({_gb(process.memory_bytes)})")
        for other in host.devices:
            if other.uuid in device.links and other.index > device.index:
                console.line(f"  to GPU {other.index}: {device.links[other.uuid]}")


def show_outcome(outcome: Outcome, plan: LaunchPlan, run_dir: Path, next_command: str, console: Console) -> None:
    """Prints how a job failed or was stopped; the cause comes last."""
    if text := report.traceback_text(outcome):
        console.note(text)
    lines = report.lines(outcome, plan, run_dir, next_command)
    console.panel(report.title(outcome, plan), "\n".join(lines), report.level(outcome))


def show_result(run_dir: Path, summary: Mapping[str, Any], *, is_demo: bool, console: Console) -> None:
    """Prints the files of a finished run, and what to type next."""
    if summary:
        console.line(_measured(summary))
    files = RunFiles(run_dir)
    weights = files.best_weights if run_directory.is_judged(summary) else files.weights / LAST_WEIGHTS
    further = "yolo-launch train --data YOUR.yaml" if is_demo else _longer(run_dir, summary)
    if not run_directory.is_judged(summary):
        steps = [["next", f"yolo-launch val --weights {weights} --data LABELED.yaml"]]
    elif _is_worth_using(summary):
        steps = [["next", f"yolo-launch predict --weights {weights} PICTURES"], ["or", further]]
    else:
        steps = [["next", further]]
    rows = [
        ["results", str(files.results)],
        ["weights", str(weights)],
        ["pictures", str(run_dir)],
        *steps,
    ]
    console.table("", (), rows)


def _measured(summary: Mapping[str, Any]) -> str:
    """Returns what the kept weights of a run were measured at, and what else was better."""
    if not run_directory.is_judged(summary):
        return "could not be judged: no validation image has a label, so nothing was measured and no epoch is the best"
    best, epochs = summary.get("best_epoch", "?"), summary.get("epochs", "?")
    kept = summary.get("weights_epoch", best)
    line = f"mAP50 {summary.get('map50', 0):.3f}, mAP50-95 {summary.get('map5095', 0):.3f} at epoch {kept} of {epochs}"
    if kept == 0:
        return f"{line}: the weights you started from; no epoch after it measured better"
    if kept != best:
        better = "the weights you started from" if best == 0 else f"epoch {best}"
        return f"{line}; {better} measured better, and only epoch {kept} was kept"
    return line


def _is_worth_using(summary: Mapping[str, Any]) -> bool:
    """Returns True if the kept weights find anything and nothing better is known."""
    best = summary.get("best_epoch")
    return bool(summary.get("map50", 1) > 0) and summary.get("weights_epoch", best) == best


def _longer(run_dir: Path, summary: Mapping[str, Any]) -> str:
    epochs = summary.get("epochs")
    return f"yolo-launch train --resume {run_dir} --epochs {2 * epochs if isinstance(epochs, int) else 'N'}"


def _restart_text(plan: LaunchPlan, command: WorkerCommand) -> str:
    restarts = f"at most {plan.max_restarts}" if plan.max_restarts else "none"
    if plan.stall_timeout_s <= 0:
        return restarts
    watched = " if it writes heartbeats" if command.foreign else ""
    return f"{restarts}; stopped after {plan.stall_timeout_s:g} s without progress{watched}"


def _batch_text(plan: LaunchPlan) -> str:
    if plan.batch_is_auto:
        return "measured on the devices at the start"
    if plan.mode == "dp":
        return f"{plan.global_batch_size} over {len(plan.devices)} devices"
    return f"{plan.global_batch_size} in all, {plan.local_batch_size} a worker"


def _gb(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
