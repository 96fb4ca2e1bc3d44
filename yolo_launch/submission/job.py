"""Describes a job on a cluster: its machines, and the command that each of them runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from yolo_launch.errors import LaunchError
from yolo_launch.rendezvous.admission import parse_nodes
from yolo_launch.request.command_line import retype
from yolo_launch.submission.submit_options import KINDS, KUBERNETES, SLURM, SubmitOptions, typed_of

SCHEDULERS = {"slurm": SLURM, "kubernetes": KUBERNETES}
COMMANDS = {"train": "node", "node": "node", "run": "run"}
"""What may be submitted, and what then runs on each machine: there a job is one of several machines, or of one."""
_LONGEST_NAME = 40
_NAME = rf"[a-z0-9](?:[a-z0-9-]{{0,{_LONGEST_NAME - 2}}}[a-z0-9])?"
_NOT_IN_A_JOB = {
    "rank": "the scheduler numbers the machines",
    "master": "the scheduler names the first machine",
    "resume": "a job resumes by itself: --project and --name of a run go on with that run",
    "token": "a secret would stand in a file; use --token-file, YOLO_LAUNCH_TOKEN, or --token-secret on Kubernetes",
    "detach": "the scheduler keeps a job running",
}


@dataclass(frozen=True)
class SubmittedJob:
    """One job, decided but not written."""

    options: SubmitOptions
    command: str
    """``node`` or ``run``."""
    words: tuple[str, ...]
    """The command's own words as typed, a script's behind ``--``."""
    name: str
    nodes: tuple[int, int]
    """Fewest and most machines."""
    project: str | None = None
    run_name: str | None = None
    """Folder and name of the run as typed; None leaves them to the scheduler's file."""

    @property
    def is_elastic(self) -> bool:
        """Returns whether the job may run with fewer machines."""
        return self.nodes[0] < self.nodes[1]

    @property
    def is_training(self) -> bool:
        """Returns whether our trainer runs, which saves and resumes."""
        return self.command == "node"

    def fresh_only(self) -> list[str]:
        """Returns words for a first start alone: a resumed run has a configuration of its own."""
        kept = self.kept_words()
        return [word for word in self.words if word not in kept] if self.is_training else []

    def kept_words(self) -> list[str]:
        """Returns the words that count at every start."""
        if not self.is_training:
            return list(self.words)
        return shlex.split(retype(self.words, {}, without=("--config",)))


def make_submitted_job(options: SubmitOptions, typed_words: Mapping[str, Any], words: Sequence[str]) -> SubmittedJob:
    """Returns the job of submit's options and the command's, of which ``typed_words`` has None unless typed.

    Raises LaunchError for what no job can have.
    """
    _refuse_unknown(options)
    for name, reason in _NOT_IN_A_JOB.items():
        if typed_words.get(name) is not None:
            raise LaunchError(
                f"--{name} cannot be submitted: {reason}.",
                seen=f"--{name}",
                expected="options that are the same on every machine",
                next_command="yolo-launch submit --help",
            )
    for flag, value in (("--gpus-per-node", options.gpus_per_node), ("--cpus-per-node", options.cpus_per_node)):
        if value is not None and value < 1:
            raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {value}", expected="a number above 0")
    subject = typed_words.get("data") or typed_words.get("script") or options.command
    name = options.job_name or _as_name(PurePath(str(subject)).stem) or options.command
    if not re.fullmatch(_NAME, name):
        raise LaunchError(
            "--job-name cannot be used.",
            seen=f"--job-name {name}",
            expected=f"at most {_LONGEST_NAME} small letters, digits and hyphens, as Kubernetes takes them",
        )
    return SubmittedJob(
        options,
        COMMANDS[options.command],
        tuple(words),
        name,
        parse_nodes(options.nodes),
        project=typed_words.get("project"),
        run_name=typed_words.get("name"),
    )


def _as_name(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower())[:_LONGEST_NAME].strip("-")


def _refuse_unknown(options: SubmitOptions) -> None:
    """Raises LaunchError for another scheduler, command or kind, and for options of the other scheduler."""
    for what, seen, known in (
        ("The scheduler", options.scheduler, tuple(SCHEDULERS)),
        ("The command to submit", options.command, tuple(COMMANDS)),
        ("--kind", options.kind or KINDS[0], KINDS),
    ):
        if seen not in known:
            raise LaunchError(
                f"{what} cannot be used.",
                seen=seen,
                expected=f"one of {', '.join(known)}",
                next_command="yolo-launch submit --help",
            )
    for scheduler, panel in SCHEDULERS.items():
        foreign = typed_of(options, panel) if scheduler != options.scheduler else []
        if foreign:
            raise LaunchError(
                f"{foreign[0]} is an option of submit {scheduler}.",
                seen=f"submit {options.scheduler} {options.command} ... {foreign[0]}",
                expected=f"options of submit {options.scheduler}",
                next_command="yolo-launch submit --help",
            )
