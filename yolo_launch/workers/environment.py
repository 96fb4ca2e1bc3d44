"""Builds the environment that workers inherit: sets the plan's variables, removes those of other launchers."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping

from trainer.protocol import LOGS_VARIABLE, OUTPUT_ON_STDERR, OUTPUT_VARIABLE, PARENT_VARIABLE, RUN_ID_VARIABLE
from yolo_launch.host import ports
from yolo_launch.host.inventory import is_rank_variable
from yolo_launch.spec import LaunchPlan
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import JOB_VARIABLE

LONGEST_TEMPORARY_FOLDER = 75
"""Characters; a loader process makes a socket below it, whose path the kernel allows 107."""
SHORT_TEMPORARY_FOLDER = "/tmp"
ROLE = "worker"
"""What torch's agent calls the workers."""


def child_environment(
    plan: LaunchPlan,
    files: WorkerFiles,
    mark: str,
    inherited: Mapping[str, str],
    *,
    console_json: bool = False,
    keep_temporary_folder: bool = False,
) -> dict[str, str]:
    """Returns the environment of each worker of one attempt, without the ranks that the agent adds.

    A temporary folder whose path is too long for sockets gives way to a short one, unless it is to be kept.

    Raises nothing; a variable that the plan sets wins over one that it removes.
    """
    removed = set(plan.removed_environment)
    removed.update(name for name in inherited if is_rank_variable(name))
    environment = {name: value for name, value in inherited.items() if name not in removed}
    environment.update(plan.environment)
    if is_too_long_for_sockets(environment.get("TMPDIR", "")) and not keep_temporary_folder:
        environment["TMPDIR"] = SHORT_TEMPORARY_FOLDER
    environment[PARENT_VARIABLE] = str(os.getpid())
    environment[LOGS_VARIABLE] = str(files.folder.absolute())
    environment[JOB_VARIABLE] = mark
    if console_json:
        environment[OUTPUT_VARIABLE] = OUTPUT_ON_STDERR
    return environment


def is_too_long_for_sockets(folder: str) -> bool:
    """Returns True if sockets of loader processes cannot be made in a temporary folder of that name."""
    return len(os.fsencode(folder)) > LONGEST_TEMPORARY_FOLDER


def only_rank_environment(restarts: int, max_restarts: int) -> dict[str, str]:
    """Returns the variables that torchrun gives the only worker of a job: a script that asks for a group finds one.

    There is no agent that keeps the store, so the worker serves it at a port that was free a moment ago.
    """
    numbers = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "ROLE_RANK": 0}
    numbers |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"), 1)
    numbers |= restart_numbers(restarts, max_restarts) | {"MASTER_PORT": ports.free_port()}
    texts = {name: str(value) for name, value in numbers.items()}
    texts |= {"MASTER_ADDR": "127.0.0.1", "ROLE_NAME": ROLE, RUN_ID_VARIABLE: new_run_id()}
    return texts | {"TORCHELASTIC_USE_AGENT_STORE": "False", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}


def restart_numbers(restarts: int, max_restarts: int) -> dict[str, int]:
    """Returns torchrun's variables for how often the job was started again, and how often it may be."""
    return {"TORCHELASTIC_RESTART_COUNT": restarts, "TORCHELASTIC_MAX_RESTARTS": max_restarts}


def new_run_id() -> str:
    """Returns a name for one start of the workers that no other start has."""
    return f"yolo-launch-{uuid.uuid4().hex}"


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
