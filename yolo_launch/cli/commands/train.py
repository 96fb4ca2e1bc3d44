"""Runs ``yolo-launch train``: makes a job of the options, runs its workers, and says what to type next."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from typing import NoReturn

import typer

from yolo_launch.checks.launchers import refuse_several_launchers
from yolo_launch.checks.preflight import exit_code_of, refuse_failures
from yolo_launch.cli.conclude import EndedJob, conclude, conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.cli.detach import detached
from yolo_launch.cli.report import from_here
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.views import show_differences, show_plan, show_result, show_start
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.smaller_batch import MOST_TRIES, with_smaller_batch
from yolo_launch.jobs.training_job import TrainingJob, make_job, opened, with_data, with_measured_batch
from yolo_launch.planning.plan import plan_facts
from yolo_launch.request.train_options import TrainOptions
from yolo_launch.spec import Outcome, Ready

DEMO_NAME = "(the embedded data set)"


def train(ctx: typer.Context, options: TrainOptions) -> None:
    """Plans, checks, starts, and says how the job ended; the exit code is the outcome's."""
    console = Console(json_mode=options.json)
    refuse_several_launchers("train", os.environ)
    if options.inline and options.detach:
        raise LaunchError("A debugger needs the terminal.", seen="--inline --detach", expected="one of the two")
    ready = detached(options.detach, console)
    typed, host = typed_in(ctx), inspect_host()
    job = make_job(options, typed, host, console.note)
    if options.dry_run:
        show_dry_run(job, console)
    show_differences(job.differences, console)
    refuse_failures(job.findings)
    show_start(job.plan, job.findings, console)
    outcome, started = start(job, console, ready, inline=options.inline)
    resume = shlex.join(("yolo-launch", "train", "--resume", str(started.run_dir)))
    is_new = not started.is_resume and not started.config.exist_ok
    ended = EndedJob(outcome, started.plan, started.run_dir, resume, is_new)
    conclude_training(ended, console, is_demo=started.is_demo)


def show_dry_run(job: TrainingJob, console: Console, *, master: str = "", port: int | None = None) -> NoReturn:
    """Prints the plan and what the checks found; nothing is made. The exit code is that of a start.

    ``master`` and ``port`` are those of a job of several machines.
    """
    plan = replace(job.plan, findings=tuple(job.findings), port=port or job.plan.port)
    facts = {**plan_facts(plan, job.command), "run_dir": str(job.run_dir), "data": job.config.data}

    def show() -> None:
        about = {
            "data": DEMO_NAME if job.is_demo else from_here(job.config.data),
            "model": f"{job.config.model_name} at {job.config.imgsz}, {job.config.epochs} epochs",
            "run directory": str(job.run_dir),
        }
        show_differences(job.differences, console)
        show_plan(plan, job.command, about, console, master=master or "MASTER")

    conclude(console, exit_code_of(job.findings), result=facts, show=show)


def start(job: TrainingJob, console: Console, ready: Ready, *, inline: bool) -> tuple[Outcome, TrainingJob]:
    """Makes the run directory, writes the plan and runs the job to its end; returns the outcome and the job.

    ``ready`` is called once the run directory is there.
    """
    if inline and job.plan.world_size > 1:
        raise LaunchError("--inline trains with one worker.", seen=f"{job.plan.world_size}", expected="--nproc 1")
    is_auto = job.plan.batch_is_auto
    with opened(with_data(with_measured_batch(job, console.note)), console.note) as job:
        config = job.config
        size = f"{config.imgsz}, batch {config.batch_size}, {config.epochs} epochs"
        console.line(f"{config.model_name} at {size} -> {job.run_dir}")
        ready(job.run_dir)
        # Only now is torch loaded, so that everything that can be refused was refused at once.
        from yolo_launch.supervision.supervisor import launch

        for try_number in range(MOST_TRIES + 1):
            outcome = launch(
                job.plan, job.command, job.run_dir, console_json=console.json_mode, inline=inline, say=console.note
            )
            smaller = with_smaller_batch(job, outcome) if is_auto and try_number < MOST_TRIES else None
            if smaller is None:
                break
            was, now, gathered = job.config.batch_size, smaller.config.batch_size, smaller.config.nominal_batch
            console.note(f"--batch auto: {was} did not fit after all; {now} now, and {gathered} images an update")
            job = smaller
    return outcome, job


def conclude_training(job: EndedJob, console: Console, *, is_demo: bool) -> NoReturn:
    """Ends a command that trained: shows the files of the run, or the cause and the command that goes on."""
    summary = run_directory.read_summary(job.run_dir) if job.is_done else {}

    def show_done() -> None:
        show_result(job.run_dir, summary, is_demo=is_demo, console=console)

    conclude_job(job, console, summary=summary, show_done=show_done)
