"""Writes a batch file for Slurm that goes on after its time limit, a preemption, or the loss of a machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from trainer.protocol import EXIT_SAVED_AND_STOPPED, LAST_WEIGHTS, RunFiles
from yolo_launch import defaults
from yolo_launch.errors import LaunchError
from yolo_launch.submission.job import SubmittedJob

_TIME = r"(?:\d+-)?\d+(?::\d+){0,2}"
_WARNED_S = 120
"""Seconds before the time limit at which the launchers are told to save."""
_JOB_ID = "$SLURM_JOB_ID"


def run_directory_of(job: SubmittedJob, job_id: str) -> str:
    """Returns the run directory of the job with a number."""
    return f"{_project(job)}/{job.run_name or f'slurm-{job_id}'}"


def batch_file(job: SubmittedJob) -> str:
    """Returns the text of the batch file. Raises LaunchError for a value that Slurm would misread."""
    parts = ["\n".join(("#!/bin/bash", *_directives(job)))]
    if job.is_training:
        parts.append(_resuming(job))
    if _cores(job):
        parts.append(
            "# srun does not take --cpus-per-task over from the job by itself.\n"
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
        )
    parts.append(f"code=0\n{_step(job)} || code=$?")
    parts.append(
        f'if [ "$code" -eq {EXIT_SAVED_AND_STOPPED} ]; then\n    scontrol requeue "{_JOB_ID}"\nfi\nexit "$code"'
    )
    return "\n\n".join(parts) + "\n"


def _directives(job: SubmittedJob) -> list[str]:
    asked = job.options
    if asked.time is not None and not re.fullmatch(_TIME, asked.time):
        raise LaunchError(
            "--time cannot be used.",
            seen=f"--time {asked.time}",
            expected="minutes, or HOURS:MINUTES:SECONDS, or DAYS-HOURS:MINUTES:SECONDS",
        )
    words = [f"--job-name={job.name}", f"--nodes={job.nodes[1]}", "--ntasks-per-node=1"]
    for flag, value in (
        ("--gpus-per-node", asked.gpus_per_node),
        ("--cpus-per-task", _cores(job)),
        ("--time", asked.time),
        ("--partition", _one_word("--partition", asked.partition)),
        ("--account", _one_word("--account", asked.account)),
    ):
        words += [f"{flag}={value}"] if value is not None else []
    words += [f"--signal=USR1@{_WARNED_S}", "--requeue", "--open-mode=append", "--output=slurm-%j.out"]
    words += ["--no-kill"] if job.is_elastic else []
    return [f"#SBATCH {word}" for word in (*words, *_further(asked.sbatch))]


def _one_word(flag: str, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[\w.,:@+-]+", value):
        raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {value}", expected="one word, as Slurm takes it")
    return value


def _further(text: str | None) -> list[str]:
    """Returns further options of sbatch, one for each line."""
    if text is None:
        return []
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words or not words[0].startswith("-") or "\n" in text:
        raise LaunchError(
            "--sbatch cannot be used.", seen=f"--sbatch {text!r}", expected="options, as in --sbatch='--qos=high'"
        )
    lines: list[str] = []
    for word in words:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return lines


def _cores(job: SubmittedJob) -> int | None:
    asked = job.options
    if asked.cpus_per_node is not None:
        return asked.cpus_per_node
    return asked.gpus_per_node * defaults.CORES_PER_GPU if asked.gpus_per_node else None


def _resuming(job: SubmittedJob) -> str:
    name = shlex.quote(job.run_name) if job.run_name else f"slurm-{_JOB_ID}"
    return "\n".join(
        (
            f"run={shlex.quote(_project(job))}/{name}",
            f"resume=({shlex.join(job.fresh_only())})",
            f'if [ -e "{RunFiles(Path("$run")).weights}/{LAST_WEIGHTS}" ]; then',
            '    resume=(--resume "$run")',
            "fi",
        )
    )


def _step(job: SubmittedJob) -> str:
    """Returns the srun line: one launcher on each machine."""
    step = ["srun", "--kill-on-bad-exit=0", *(["--no-kill"] if job.is_elastic else []), "yolo-launch", job.command]
    step += ["--nodes", job.options.nodes] if job.is_elastic else []
    ours = [] if job.project else ["--project", _project(job)]
    named = " ".join([*ours, *([] if job.run_name else ["--name", _in_shell(job)])])
    typed = shlex.join(job.kept_words())
    if not job.is_training:
        return " \\\n    ".join(text for text in (f"{shlex.join(step)} {named}".rstrip(), typed) if text)
    started = " ".join(text for text in (named, "--exist-ok", '"${resume[@]}"') if text)
    return f"{shlex.join(step)} {typed}".rstrip() + f" \\\n    {started}"


def _in_shell(job: SubmittedJob) -> str:
    return shlex.quote(job.run_name) if job.run_name else f'"slurm-{_JOB_ID}"'


def _project(job: SubmittedJob) -> str:
    return job.project or ("runs/train" if job.is_training else "runs/run")
