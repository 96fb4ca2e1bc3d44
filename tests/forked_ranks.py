"""Ranks as processes that are forked from a server which has torch loaded, so that a start costs little."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = (
    "trainer.training.worker",
    "trainer.inference.val",
    "torch._dynamo",  # what the first optimizer step imports
)


def fork_context() -> Any:
    """Returns the context whose server loads torch once for all processes that the tests of this session start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def become_rank(environ: dict[str, str], log: str | Path) -> None:
    """Makes this process what a launcher starts: a session, an output and an environment of its own, one thread."""
    import torch

    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environ)
    torch.set_num_threads(1)


def rank_environments(world_size: int) -> list[dict[str, str]]:
    """Returns what a launcher puts into the environment of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environments = []
    for rank in range(world_size):
        environ = {"OMP_NUM_THREADS": "1"}
        if world_size > 1:
            environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        environments.append(environ)
    return environments


def run_python(arguments: Sequence[str], environ: dict[str, str], log: Path) -> None:
    """Runs ``python ARGUMENTS``, a script or ``-m MODULE``, in this process, which ends with it."""
    become_rank(environ, log)
    module = arguments[0] == "-m"
    sys.argv = list(arguments[1:] if module else arguments)
    code = 0
    try:
        if module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class ForkedRank:
    """One process of ``python ARGUMENTS`` and its output."""

    def __init__(self, process: BaseProcess, log: Path) -> None:
        self._process = process
        self._log = log
        process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout_s: float) -> str:
        """Returns what it printed until its end; fails if that does not come."""
        self._process.join(timeout_s)
        output = self._log.read_text() if self._log.exists() else ""
        assert self.returncode is not None, f"still running after {timeout_s} s: {output}"
        return output

    def end(self) -> None:
        """Leaves no process behind."""
        if self.returncode is None:
            self._process.kill()
            self._process.join(10)


def start_ranks(arguments: Sequence[str], world_size: int, log_dir: Path, **extra: str) -> list[ForkedRank]:
    """Starts ``python ARGUMENTS`` once a rank, with the environment that a launcher gives."""
    context, ranks = fork_context(), []
    for rank, environ in enumerate(rank_environments(world_size)):
        log = log_dir / f"rank{rank}.out"
        log.unlink(missing_ok=True)
        process = context.Process(target=run_python, args=(list(arguments), {**environ, **extra}, log))
        ranks.append(ForkedRank(process, log))
    return ranks
