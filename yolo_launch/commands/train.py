"""``yolo-launch train``: options to a configuration and a plan, then to workers, then to what to type next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from trainer.config import CONFIG_FILE, TrainConfig, make_config, read_config, read_options, write_config
from yolo_launch import run_directory
from yolo_launch.arguments import NEWEST_RUN
from yolo_launch.check_context import Context
from yolo_launch.commands.typed import TrainCommand, typed_in
from yolo_launch.console import Console
from yolo_launch.errors import LaunchError
from yolo_launch.inventory import inspect_host
from yolo_launch.options import (
    DEMO_OPTIONS,
    config_options,
    launch_request,
    parse_overrides,
    train_options,
    with_options,
)
from yolo_launch.plan import make_plan, plan_facts
from yolo_launch.plan_view import show_differences, show_outcome, show_plan, show_result, show_start
from yolo_launch.preflight import exit_code_of, refuse_failures, run_checks
from yolo_launch.report import from_here
from yolo_launch.resume import Difference, find_differences, refuse_changed_result, resumed_config
from yolo_launch.spec import Finding, Host, LaunchPlan, LaunchRequest, Outcome, WorkerCommand

DEMO_NAME = "(the embedded data set)"


@dataclass(frozen=True)
class Job:
    """One training run, decided but not started."""

    host: Host
    config: TrainConfig
    request: LaunchRequest
    plan: LaunchPlan
    run_dir: Path
    """For a new run the folder that it would get."""
    findings: list[Finding] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    is_resume: bool = False
    is_demo: bool = False

    @property
    def command(self) -> WorkerCommand:
        """What each worker runs."""
        config_path = self.run_dir / CONFIG_FILE
        return WorkerCommand(("-m", "trainer", str(config_path), "--run-dir", str(self.run_dir)))


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Train a detector; without --data, on a small embedded data set."
    app.command("train", cls=TrainCommand, help=text)(train)


@with_options(train_options())
def train(ctx: typer.Context, **values: Any) -> None:
    """Plan, check, start, and say what came of it; the exit code is the outcome's."""
    console = Console(json_mode=bool(values["json"]))
    typed, host = typed_in(ctx), inspect_host()
    job = resumed_job(values, typed, host) if values["resume"] is not None else new_job(values, typed, host)
    if values["dry_run"]:
        show_dry_run(job, console)
        return
    show_differences(job.differences, console)
    refuse_failures(job.findings)
    show_start(job.plan, job.findings, console)
    outcome, started = start(job, console, inline=bool(values["inline"]))
    finish(outcome, started, console)


def new_job(values: Mapping[str, Any], typed: tuple[str, ...], host: Host) -> Job:
    """The job of a fresh start: defaults, then ``--config``, then what was typed."""
    given, overrides = config_options(values), parse_overrides(values["set_"])
    options = dict(read_options(Path(values["config"]))) if values["config"] else {}
    if "hyp" in given:
        # A set named now goes before the resolved values of the file.
        options.pop("hyperparameters", None)
    is_demo = not (given.get("data") or options.get("data"))
    options = {**(DEMO_OPTIONS if is_demo else {}), **options, **given}
    wants_auto = "batch_size" in options and options["batch_size"] is None
    if wants_auto:
        del options["batch_size"]
    config = _with_absolute_paths(make_config(options, overrides))
    request = launch_request(
        {**values, "parallel": config.parallel} if values["parallel"] is None else values,
        typed,
        workers=config.workers,
        global_batch_size=None if wants_auto else config.batch_size,
        batch_is_default="batch_size" not in given and not wants_auto and not values["config"],
        **_facts(config),
    )
    plan = make_plan(request, host)
    config = _settled(config, plan)
    run_dir = run_directory.next_run_dir(config.project, config.name, exist_ok=config.exist_ok)
    job = Job(host, config, request, plan, run_dir, is_demo=is_demo)
    return replace(job, findings=_check(job))


def resumed_job(values: Mapping[str, Any], typed: tuple[str, ...], host: Host) -> Job:
    """The job of a run that goes on: its own configuration, and what may change of it."""
    given, overrides = config_options(values), parse_overrides(values["set_"])
    if values["config"]:
        raise LaunchError("--resume takes the run's own configuration.", seen="--config", expected="--resume alone")
    project = given.get("project", TrainConfig.model_fields["project"].default)
    run_dir = run_directory.find_run_to_resume(project, values["resume"], NEWEST_RUN)
    saved = read_config(run_dir / CONFIG_FILE)
    config = _with_absolute_paths(resumed_config(saved, given, overrides))
    if run_directory.is_finished(run_dir) and config.epochs <= saved.epochs:
        raise LaunchError(
            f"{run_dir} is finished; there is nothing to resume.",
            seen=f"{saved.epochs} epochs done",
            expected="more epochs than it had",
            next_command=f"yolo-launch train --resume {run_dir} --epochs {2 * saved.epochs}",
        )
    differences = find_differences(saved, config)
    if not values["override"]:
        refuse_changed_result(differences, str(run_dir), shlex.join(typed))
    request = launch_request(
        {**values, "parallel": config.parallel} if values["parallel"] is None else values,
        typed,
        workers=given.get("workers"),
        global_batch_size=config.batch_size,
        uneven_batch_ok=True,
        **_facts(config),
    )
    request, plan = _plan_on_same_devices(request, host, run_dir)
    job = Job(host, _settled(config, plan), request, plan, run_dir, differences=differences, is_resume=True)
    return replace(job, findings=_check(job))


def show_dry_run(job: Job, console: Console) -> None:
    """Print the plan and what the checks found; nothing is made. The exit code is that of a start."""
    plan = replace(job.plan, findings=tuple(job.findings))
    if console.json_mode:
        console.json({**plan_facts(plan, job.command), "run_dir": str(job.run_dir), "data": job.config.data})
    else:
        about = {
            "data": DEMO_NAME if job.is_demo else from_here(job.config.data),
            "model": f"{job.config.model_name} at {job.config.imgsz}, {job.config.epochs} epochs",
            "run directory": str(job.run_dir),
        }
        show_differences(job.differences, console)
        show_plan(plan, job.command, about, console)
    if exit_code := exit_code_of(job.findings):
        raise typer.Exit(exit_code)


def start(job: Job, console: Console, *, inline: bool) -> tuple[Outcome, Job]:
    """Make the run directory, write what will run, and run it to its end; the outcome and the job as started."""
    if inline and job.plan.world_size > 1:
        raise LaunchError("--inline trains with one worker.", seen=f"{job.plan.world_size}", expected="--nproc 1")
    job = _with_measured_batch(job)
    config = job.config
    if job.is_demo:
        from trainer.data.demo import default_cache_dir, ensure_demo_dataset

        config = config.model_copy(update={"data": str(ensure_demo_dataset(default_cache_dir()))})
    run_dir = job.run_dir
    if not job.is_resume:
        run_dir = run_directory.create_run_dir(config.project, config.name, exist_ok=config.exist_ok)
    lock = run_directory.claim(run_dir)
    try:
        with run_directory.writing_to(run_dir):
            if job.is_resume:
                run_directory.reopen_run(run_dir)
            elif config.exist_ok:
                run_directory.clear_old_run(run_dir)
            write_config(config, run_dir / CONFIG_FILE)
        job = replace(job, config=config, run_dir=run_dir)
        chosen = {"gpus": job.request.gpus, "nproc": job.request.nproc}
        size = f"{config.imgsz}, batch {config.batch_size}, {config.epochs} epochs"
        console.line(f"{config.model_name} at {size} -> {run_dir}")
        run_directory.write_plan(run_dir, {**plan_facts(job.plan, job.command), "request": chosen})
        # Only now is torch loaded, so that everything that can be refused was refused at once.
        from yolo_launch.supervise import launch

        outcome = launch(job.plan, job.command, run_dir, console_json=console.json_mode, inline=inline)
    finally:
        lock.close()
    return outcome, job


def finish(outcome: Outcome, job: Job, console: Console) -> None:
    """Say what came of a run and leave with its exit code."""
    if outcome.kind == "done":
        summary = run_directory.read_summary(job.run_dir)
        if console.json_mode:
            console.json(summary)
        else:
            show_result(job.run_dir, summary, is_demo=job.is_demo, console=console)
        return
    show_outcome(outcome, job.plan, job.run_dir, shlex.join(_resume_command(job.run_dir)), console)
    if console.json_mode:
        console.json({"run_dir": str(job.run_dir), "outcome": outcome.kind, "exit_code": outcome.exit_code})
    raise typer.Exit(outcome.exit_code)


def _resume_command(run_dir: Path) -> tuple[str, ...]:
    return ("yolo-launch", "train", "--resume", str(run_dir))


def _facts(config: TrainConfig) -> dict[str, Any]:
    """What the plan needs to know of a configuration."""
    return {"sync_bn": config.sync_bn, "image_size": config.imgsz}


def _plan_on_same_devices(request: LaunchRequest, host: Host, run_dir: Path) -> tuple[LaunchRequest, LaunchPlan]:
    """The plan on the devices that were chosen when the run began, unless others are typed or they are gone."""
    if request.gpus is not None or request.nproc is not None:
        return request, make_plan(request, host)
    chosen = run_directory.read_plan(run_dir).get("request", {})
    as_before = replace(request, gpus=chosen.get("gpus"), nproc=chosen.get("nproc"))
    try:
        return as_before, make_plan(as_before, host)
    except LaunchError as error:
        plan = make_plan(request, host)
        gone = Finding("devices", "warning", f"the run's own choice of devices is not possible here: {error.what}")
        return request, replace(plan, findings=(gone, *plan.findings))


def _settled(config: TrainConfig, plan: LaunchPlan) -> TrainConfig:
    """The configuration with what the plan decided."""
    parallel = "dp" if plan.mode == "dp" else "auto"
    return config.model_copy(
        update={
            "parallel": parallel,
            "workers": plan.workers_per_rank,
            "sync_bn": config.sync_bn and plan.mode == "ddp" and plan.backend == "nccl",
            **({} if plan.batch_is_auto else {"batch_size": plan.global_batch_size}),
        }
    )


def _check(job: Job) -> list[Finding]:
    context = Context(job.host, job.plan, job.config, job.run_dir, is_resume=job.is_resume)
    return [*job.plan.findings, *run_checks(context)]


def _with_measured_batch(job: Job) -> Job:
    if not job.plan.batch_is_auto:
        return job
    from yolo_launch.batch_probe import measure_batch

    batch = measure_batch(job.plan, job.config)
    plan = make_plan(replace(job.request, global_batch_size=batch), job.host)
    return replace(job, plan=plan, config=_settled(job.config, plan))


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Files as absolute paths, so that the written configuration works from any folder."""
    found = {
        name: os.path.abspath(os.path.expanduser(getattr(config, name)))
        for name in ("data", "weights", "cfg")
        if getattr(config, name) and Path(getattr(config, name)).expanduser().is_file()
    }
    return config.model_copy(update=found)
