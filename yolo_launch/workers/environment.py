"""Builds the environment that workers inherit: sets the plan's variables, removes those of other launchers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from trainer.protocol import LOGS_VARIABLE, OUTPUT_ON_STDERR, OUTPUT_VARIABLE, PARENT_VARIABLE
from yolo_launch.host.inventory import is_rank_variable
from yolo_launch.spec import LaunchPlan
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import JOB_VARIABLE


def child_environment(
    plan: LaunchPlan, files: WorkerFiles, mark: str, inherited: Mapping[str, str], *, console_json: bool = False
) -> dict[str, str]:
    """Returns the environment of each worker of one attempt, without the ranks that the agent adds.

    Raises nothing; a variable that the plan sets wins over one that it removes.
    """
    removed = set(plan.removed_environment)
    removed.update(name for name in inherited if is_rank_variable(name))
    environment = {name: value for name, value in inherited.items() if name not in removed}
    environment.update(plan.environment)
    environment[PARENT_VARIABLE] = str(os.getpid())
    environment[LOGS_VARIABLE] = str(files.folder.absolute())
    environment[JOB_VARIABLE] = mark
    if console_json:
        environment[OUTPUT_VARIABLE] = OUTPUT_ON_STDERR
    return environment


@contextlib.contextmanager
def applied(environment: Mapping[str, str]) -> Iterator[None]:
    """Makes ``environment`` this process's own for a while: the elastic agent's children inherit nothing else."""
    saved = dict(os.environ)
    _replace_environment(environment)
    try:
        yield
    finally:
        _replace_environment(saved)


def _replace_environment(environment: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
