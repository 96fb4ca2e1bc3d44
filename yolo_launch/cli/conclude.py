"""Ends every command: shows what came of it, prints its JSON object and leaves with its exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer

from yolo_launch.cli.console import Console
from yolo_launch.cli.views import show_outcome
from yolo_launch.errors import ExitCode
from yolo_launch.jobs import run_directory
from yolo_launch.spec import LaunchPlan, Outcome


@dataclass(frozen=True)
class EndedJob:
    """A job that is over, and what to type next if it did not end well."""

    outcome: Outcome
    plan: LaunchPlan
    run_dir: Path
    next_command: str
    is_new: bool = False
    """Whether this command made the run directory, so that nothing is left of it if the job was refused."""

    @property
    def is_refused(self) -> bool:
        """Returns True if the workers refused what they were given."""
        failure = self.outcome.failure
        return failure is not None and failure.user_error is not None

    @property
    def is_done(self) -> bool:
        """Returns True if the job came to its end."""
        return self.outcome.kind == "done"

    def facts(self) -> dict[str, Any]:
        """Returns what JSON says of a job without a summary."""
        return {
            "run_dir": str(self.run_dir),
            "outcome": self.outcome.kind,
            "exit_code": self.outcome.exit_code,
        }


def conclude(
    console: Console, exit_code: int, *, result: Mapping[str, Any] | None, show: Callable[[], None] | None = None
) -> NoReturn:
    """Ends a command: ``result`` is its JSON object, ``show`` says the same to a person. Raises typer.Exit."""
    if console.json_mode and result is not None:
        console.json(result)
    elif not console.json_mode and show is not None:
        show()
    raise typer.Exit(exit_code)


def conclude_job(
    job: EndedJob,
    console: Console,
    *,
    summary: Mapping[str, Any] | None = None,
    show_done: Callable[[], None] | None = None,
    worker_owns_stdout: bool = False,
) -> NoReturn:
    """Ends a command that ran a job: shows its failure, or ``show_done`` if the job is done. Raises typer.Exit.

    ``summary`` is the JSON object of a job that is done; without it, run directory and outcome are. A summary that
    says that nothing could be measured has an exit code of its own. With ``worker_owns_stdout`` the worker has
    written the JSON itself.
    """
    if not job.is_done:
        show_outcome(job.outcome, job.plan, job.run_dir, job.next_command, console)
    if job.is_refused and job.is_new:
        run_directory.discard(job.run_dir)
    elif job.run_dir.is_dir():
        run_directory.write_outcome(job.run_dir, job.facts())
    result = summary if job.is_done and summary is not None else job.facts()
    is_judged = not job.is_done or run_directory.is_judged(summary or {})
    conclude(
        console,
        job.outcome.exit_code if is_judged else ExitCode.NOT_JUDGED,
        result=None if worker_owns_stdout else result,
        show=show_done if job.is_done else None,
    )
