"""Runs a plan of several workers in torch's elastic agent.

One code path serves torch 1.11 to 2.15: LaunchConfig takes the fields that it has. Each attempt is an agent of its own
that never restarts workers: a second round inside one agent would find the first one's keys in the store. On several
machines each has its own agent; ranks and store address come from the plan and the rendezvous, so that no agent ever
waits for another inside torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import Std
from torch.distributed.elastic.multiprocessing import api as multiprocessing_api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from trainer.protocol import ERROR_FILE_VARIABLE
from yolo_launch.spec import LaunchPlan, StoreAddress, WorkerCommand
from yolo_launch.workers import rendezvous_handler as rendezvous
from yolo_launch.workers.environment import ROLE, new_run_id, restart_numbers
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.rank0_output import Rank0Output
from yolo_launch.workers.signals import note_signal

SHUTDOWN_S = 30
MONITOR_INTERVAL_S = 0.2
"""Slower than the monitor, so that the monitor sees exit codes first."""
ELASTIC_LOGGER = "torch.distributed.elastic"

_LogsSpecs: Any = getattr(multiprocessing_api, "LogsSpecs", object)


class StartCanceled(Exception):
    """A signal came before the workers were started."""


@dataclasses.dataclass(frozen=True)
class AgentResult:
    """Holds how the agent ended: exit codes of the ranks that it saw fail, or its own error."""

    exit_codes: dict[int, int] = dataclasses.field(default_factory=dict)
    error: Exception | None = None


class RankLogs(_LogsSpecs):  # type: ignore[misc]
    """Sends each rank's output to its log, and rank 0's to the terminal (torch 2.3 and newer).

    The agent opens every stream with ``open(stdout, "w")``, which would empty a log at each restart. Given an open
    descriptor, that call keeps what the file holds, and both streams of a rank append to one file.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        meeting: StoreAddress,
        files: WorkerFiles,
        output: Rank0Output,
        *,
        restarts: int,
        before: Callable[[], None],
    ) -> None:
        super().__init__(log_dir=str(files.folder))
        self._plan = plan
        self._meeting = meeting
        self._files = files
        self._output = output
        self._restarts = restarts
        self._before = before

    @property
    def root_log_dir(self) -> str:
        """Returns the folder that the agent mentions."""
        return str(self._files.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> Any:
        """Prepares the logs of the local ranks; the agent calls this right before it starts the workers."""
        self._before()
        stdouts: dict[int, Any] = {}
        stderrs: dict[int, Any] = {}
        errors: dict[int, str] = {}
        for local_rank, env in envs.items():
            rank = self._plan.first_rank + local_rank
            env.update(self._place_of(rank))
            errors[local_rank] = env[ERROR_FILE_VARIABLE] = str(self._files.error(rank))
            if rank > 0:
                stdouts[local_rank], stderrs[local_rank] = self._files.open_log(rank), self._files.open_log(rank)
            else:
                stdouts[local_rank], stderrs[local_rank] = os.dup(self._output.stdout), os.dup(self._output.stderr)
        return multiprocessing_api.LogsDest(stdouts, stderrs, {}, {}, errors)

    def _place_of(self, rank: int) -> dict[str, str]:
        """Returns the rank's variables that the agent does not set as the plan wants: it knows one machine."""
        plan, meeting = self._plan, self._meeting
        world = {"RANK": rank, "ROLE_RANK": rank, "WORLD_SIZE": plan.world_size, "ROLE_WORLD_SIZE": plan.world_size}
        place = {name: str(value) for name, value in world.items()}
        place |= {"GROUP_RANK": str(plan.node_rank), "GROUP_WORLD_SIZE": str(plan.nnodes)}
        # Each attempt is an agent of its own, which knows of no other.
        numbers = restart_numbers(self._restarts, plan.max_restarts)
        place |= {name: str(value) for name, value in numbers.items()}
        # Before torch 2.5 the agent publishes the host's name, whatever local_addr says.
        place["MASTER_ADDR"] = meeting.address
        if meeting.port is not None:
            place["MASTER_PORT"] = str(meeting.port)
        if meeting.is_served:
            place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        return place


def run_agent(
    plan: LaunchPlan,
    command: WorkerCommand,
    files: WorkerFiles,
    meeting: StoreAddress,
    output: Rank0Output,
    *,
    restarts: int,
    before: Callable[[], None],
) -> AgentResult:
    """Starts the workers of one attempt and returns when all have ended. Call it in the main thread.

    ``before`` runs right before the workers start and may raise StartCanceled, which passes through.
    """
    logs = (
        RankLogs(plan, meeting, files, output, restarts=restarts, before=before) if _LogsSpecs is not object else None
    )
    config = make_config(plan, files, meeting, logs)
    if _LogsSpecs is object:
        before()
    with _quiet_agent(files), _agent_ignores_signals():
        try:
            launch_agent(config, sys.executable, ["-u", *command.arguments])
        except ChildFailedError as failed:
            # The agent numbers the workers of its one machine.
            return AgentResult({plan.first_rank + local: one.exitcode for local, one in failed.failures.items()})
        except StartCanceled:
            raise
        except Exception as error:  # a damaged error file, or the rendezvous itself; the monitor knows the exit codes
            return AgentResult(error=error)
        finally:
            if _LogsSpecs is object:
                _collect_old_logs(files)
    return AgentResult()


def serve_store() -> tuple[Any, int]:
    """Returns a store for the workers of one attempt and its port; this process serves it while it is referenced."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    return store, int(store.port)


def make_config(plan: LaunchPlan, files: WorkerFiles, meeting: StoreAddress, logs: RankLogs | None) -> LaunchConfig:
    """Returns a LaunchConfig for one machine, with every field of ours that this version of torch has."""
    count = plan.nproc_per_node
    rendezvous.register()
    values: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": count,
        "run_id": new_run_id(),
        "role": ROLE,
        "rdzv_backend": rendezvous.BACKEND,
        "rdzv_endpoint": meeting.address,
        "rdzv_configs": {"address": meeting.address, "port": meeting.port, "timeout": 60},
        "rdzv_timeout": -1,
        "max_restarts": 0,
        "monitor_interval": MONITOR_INTERVAL_S,
        "start_method": "spawn",
        "metrics_cfg": {},
        "local_addr": meeting.address,
        "log_line_prefix_template": None,
        "event_log_handler": "null",
        "numa_options": None,
        # The launcher's own monitor handles signals. Nobody sends this one, and an empty list is logged as a mistake.
        "signals_to_handle": "SIGURG",
        "duplicate_stdout_filters": None,
        "duplicate_stderr_filters": None,
        "virtual_local_rank": False,
        "shutdown_timeout": SHUTDOWN_S,
    }
    fields = {field.name for field in dataclasses.fields(LaunchConfig)}
    if "logs_specs" in fields:
        values["logs_specs"] = logs
    else:
        values["log_dir"] = str(_old_log_dir(files))
        values["redirects"] = dict.fromkeys(range(1, count), Std.ALL)
        values["tee"] = Std.NONE
    return LaunchConfig(**{name: value for name, value in values.items() if name in fields})


@contextlib.contextmanager
def _quiet_agent(files: WorkerFiles) -> Iterator[None]:
    """Writes the agent's own messages to a file: the launcher reports a failure, once."""
    logger = logging.getLogger(ELASTIC_LOGGER)
    handler = logging.FileHandler(files.agent_log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagated
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # of a full disk
            handler.close()


@contextlib.contextmanager
def _agent_ignores_signals() -> Iterator[None]:
    """Leaves signals to the monitor; before torch 2.10 the agent takes no list of signals, but a handler."""
    name = "_terminate_process_handler"
    listed = "signals_to_handle" in {field.name for field in dataclasses.fields(LaunchConfig)}
    original = getattr(multiprocessing_api, name, None)
    if listed or original is None:
        previous = signal.getsignal(signal.SIGURG)
        try:
            yield
        finally:
            signal.signal(signal.SIGURG, previous)
        return
    setattr(multiprocessing_api, name, note_signal)
    try:
        yield
    finally:
        setattr(multiprocessing_api, name, original)


def _old_log_dir(files: WorkerFiles) -> Path:
    return files.folder / "agent"


def _collect_old_logs(files: WorkerFiles) -> None:
    """Adds the content of the agent's files to those of the ranks: before torch 2.3 the agent names its files."""
    folder = _old_log_dir(files)
    for path in sorted(folder.glob("*/attempt_*/*/*")):
        rank = int(path.parent.name)
        if path.name == "error.json":
            shutil.copyfile(path, files.error(rank))
        elif rank > 0:
            with path.open("rb") as source, files.log(rank).open("ab") as target:
                shutil.copyfileobj(source, target)
    shutil.rmtree(folder, ignore_errors=True)
