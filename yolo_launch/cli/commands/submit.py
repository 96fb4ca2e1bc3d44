"""Runs ``yolo-launch submit``: writes the file of a job on a cluster, hands it over, and says what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from trainer.config.fields import read_options
from trainer.config.train import make_config
from yolo_launch.cli.command_table import COMMANDS, load_command
from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import typed_in
from yolo_launch.cli.typer_options import options_from
from yolo_launch.errors import ExitCode
from yolo_launch.planning.batch_split import split_batch
from yolo_launch.request.launch_request import launch_request
from yolo_launch.request.machine_options import RunOptions
from yolo_launch.request.node_options import NodeOptions
from yolo_launch.spec import Device
from yolo_launch.submission import handover, kubernetes, slurm
from yolo_launch.submission.job import COMMANDS as SUBMITTED
from yolo_launch.submission.job import SubmittedJob, make_submitted_job
from yolo_launch.submission.submit_options import SubmitOptions


def submit(ctx: typer.Context, options: SubmitOptions) -> None:
    """Checks the command, writes the file and hands it over; the exit code is 0 once the cluster has taken it."""
    console = Console(json_mode=options.json)
    job = _checked_job(options, typed_in(ctx))
    is_slurm = options.scheduler == "slurm"
    text = slurm.batch_file(job) if is_slurm else kubernetes.manifests(job)
    facts = {"scheduler": options.scheduler, "name": job.name, "command": ["yolo-launch", job.command, *job.words]}
    if options.dry_run:
        conclude(console, ExitCode.DONE, result={**facts, "text": text}, show=lambda: console.line(text.rstrip("\n")))
    path = handover.write_job_file(job.name, ".sh" if is_slurm else ".yaml", text)
    if is_slurm:
        number = handover.submit_to_slurm(path)
        facts["job"], title = number, f"Slurm job {number} is submitted: {path}"
        rows = _next_in_slurm(job, number)
    else:
        said = handover.submit_to_kubernetes(path, options.namespace)
        title, rows = f"{said}: {path}", kubernetes.next_commands(job, str(path))
    result = {**facts, "file": str(path), "next": [command for command, _ in rows]}
    conclude(console, ExitCode.DONE, result=result, show=lambda: console.table(title, (), rows))


def _next_in_slurm(job: SubmittedJob, number: str) -> list[tuple[str, str]]:
    run = shlex.quote(slurm.run_directory_of(job, number))
    return [
        (f"squeue --jobs {number}", "whether it runs, or for what it waits"),
        (f"yolo-launch attach {run}", "what it says, once it runs"),
        (f"scancel {number}", "ends it with its state saved"),
    ]


def _checked_job(options: SubmitOptions, typed: tuple[str, ...]) -> SubmittedJob:
    """Returns the job. Raises what the command itself would raise for its words."""
    command = SUBMITTED.get(options.command, "node")
    words = list(options.words)
    params = _parsed(command, words)
    job = make_submitted_job(options, params, words)
    if command == "run":
        launch_request(options_from(RunOptions, params), typed)
    else:
        _refuse_bad_training(job, options_from(NodeOptions, params), typed)
    return job


def _parsed(command: str, words: Sequence[str]) -> Mapping[str, Any]:
    """Returns what the command's own parser reads of its words, None for what was not typed."""
    (entry,) = (one for one in COMMANDS if one.name == command)
    with load_command(entry).make_context(command, list(words)) as context:
        parsed: Mapping[str, Any] = context.params
        return parsed


def _refuse_bad_training(job: SubmittedJob, asked: NodeOptions, typed: tuple[str, ...]) -> None:
    """Raises ConfigError or LaunchError for a configuration that cannot be, or a batch that does not divide."""
    is_here = job.options.scheduler == "slurm"  # an image's files are not on this machine
    settings = dict(read_options(Path(asked.config))) if asked.config and is_here else {}
    settings.update(asked.given)
    if not is_here and Path(str(settings.get("hyp", ""))).suffix:
        del settings["hyp"]
    is_auto = "batch_size" in settings and settings["batch_size"] is None
    if is_auto:
        del settings["batch_size"]
    config = make_config(settings, dict(asked.hyperparameters))
    count, nodes = asked.nproc or job.options.gpus_per_node or 1, job.nodes[1]
    request = replace(
        launch_request(replace(asked, parallel=asked.parallel or config.parallel), typed),
        batch_is_default=is_auto or "batch_size" not in settings,
        # Fewer machines, or GPUs chosen there, share a batch as they can.
        uneven_batch_ok=job.is_elastic or asked.gpus is not None,
        nnodes=nodes,
        nproc_by_node=(count,) * nodes,
    )
    devices = [Device("cuda", index, "", "", 0) for index in range(count)]
    split_batch(request, config.batch_size, count * nodes, devices, [str(index) for index in range(count)])
