"""The environment that workers inherit: the plan's variables set, another launcher's leftovers removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from trainer.process_guard import LOGS_VARIABLE, PARENT_VARIABLE
from yolo_launch.spec import LaunchPlan
from yolo_launch.worker_logs import WorkerFiles
from yolo_launch.workers import JOB_VARIABLE

FOREIGN_NAMES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_NAME",
        "ROLE_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    }
)
FOREIGN_PREFIXES = ("PET_", "TORCHELASTIC_", "TORCH_ELASTIC_")
OUTPUT_VARIABLE = "YOLO_TRAINER_OUTPUT"


def is_foreign(name: str) -> bool:
    """Whether another launcher set this variable for its own workers or agent."""
    return name in FOREIGN_NAMES or name.startswith(FOREIGN_PREFIXES)


def child_environment(
    plan: LaunchPlan, files: WorkerFiles, mark: str, inherited: Mapping[str, str], *, console_json: bool = False
) -> dict[str, str]:
    """What each worker of one attempt sees, apart from the ranks that the agent adds.

    Raises nothing; a variable that the plan sets wins over one that it removes.
    """
    removed = set(plan.removed_environment)
    environment = {name: value for name, value in inherited.items() if name not in removed and not is_foreign(name)}
    environment.update(plan.environment)
    environment[PARENT_VARIABLE] = str(os.getpid())
    environment[LOGS_VARIABLE] = str(files.folder.absolute())
    environment[JOB_VARIABLE] = mark
    # Workers that share the agent's store meet stale keys where they form a second process group (torch 2.6+).
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if console_json:
        environment[OUTPUT_VARIABLE] = "stderr"
    return environment


@contextlib.contextmanager
def applied(environment: Mapping[str, str]) -> Iterator[None]:
    """Make ``environment`` this process's own for a while: the elastic agent's children inherit nothing else."""
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
