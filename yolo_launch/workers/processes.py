"""Finds, watches, signals and sweeps the worker processes of one attempt, with all their children.

A worker leads a session of its own. What is left in that session when the worker is dead, such as a loader process
stuck in an item, is killed. Processes that left the session on purpose (daemons) are left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from trainer.protocol import rank_in

JOB_VARIABLE = "YOLO_LAUNCH_JOB"
"""Marks the environment of an attempt's workers, so that they can be distinguished from other children."""
SEARCH_S = 20.0
ORPHANS_S = 0.5
"""Pause between two looks for adopted processes, each of which reads all processes."""
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process the parent of processes whose worker died, so that it can wait for them."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass
class Worker:
    """One worker process. The exit code is None while it runs, and negative for a signal."""

    rank: int
    pid: int
    exit_code: int | None = None
    ended_at: float = 0.0
    """Wall-clock seconds."""
    reaped_unseen: bool = False
    """True if other code collected the exit code first."""
    killed_by_us: bool = False
    signals_sent: set[int] = field(default_factory=set)
    """Signals that were passed on to it."""
    swept: bool = False

    @property
    def alive(self) -> bool:
        """Returns whether the process still runs."""
        return self.exit_code is None and not self.reaped_unseen


class Workers:
    """All workers of one attempt. ``mark`` is the value of JOB_VARIABLE in their environment.

    ``look_at`` is called with the id of each living worker, now and then.
    """

    def __init__(self, mark: str, look_at: Callable[[int], object] = lambda pid: None) -> None:
        self.mark = mark
        self._look_at = look_at
        self.by_rank: dict[int, Worker] = {}
        self._expected = 0
        self._search_until = 0.0
        self._orphans_at = 0.0

    def expect(self, count: int) -> None:
        """Sets the number of workers that ``find`` looks for, for at most SEARCH_S: one may die before it is seen."""
        self._expected = count
        self._search_until = time.monotonic() + SEARCH_S

    def add(self, rank: int, pid: int) -> None:
        """Adds a process that the caller started as leader of a new session."""
        self.by_rank[rank] = Worker(rank, pid)

    def find(self) -> None:
        """Looks for workers that the elastic agent started, until all are known."""
        if len(self.by_rank) >= self._expected or time.monotonic() > self._search_until:
            return
        known = {worker.pid for worker in self.by_rank.values()}
        for child in psutil.Process().children():
            if child.pid in known:
                continue
            # Between fork and exec a child still shows this process's environment, and a dead one shows none.
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                environment = child.environ()
                if environment.get(JOB_VARIABLE) == self.mark and os.getsid(child.pid) == child.pid:
                    self.add(rank_in(environment), child.pid)

    def living(self) -> list[Worker]:
        """Returns the workers that still run, by rank."""
        return [self.by_rank[rank] for rank in sorted(self.by_rank) if self.by_rank[rank].alive]

    def notice_deaths(self) -> list[Worker]:
        """Returns workers that ended since the last call; leaves their exit codes for the code that waits for them."""
        ended = []
        for worker in self.living():
            self._look_at(worker.pid)
            try:
                result = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                worker.reaped_unseen = True
            else:
                if result is None:
                    continue
                exited = result.si_code == os.CLD_EXITED
                worker.exit_code = result.si_status if exited else -result.si_status
            worker.ended_at = time.time()
            ended.append(worker)
        return ended

    def send(self, signum: int) -> None:
        """Sends a signal, once, to each worker itself and not to its loader processes."""
        for worker in self.living():
            if signum not in worker.signals_sent:
                worker.signals_sent.add(signum)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signum)

    def kill(self) -> None:
        """Kills every worker that runs, with its process group."""
        for worker in self.living():
            worker.killed_by_us = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)

    def collect_orphans(self) -> None:
        """Waits for processes that this one adopted and that have ended, so that they do not stay as zombies."""
        if len(self.by_rank) < self._expected or time.monotonic() < self._orphans_at or sys.platform != "linux":
            return
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return  # nobody has ended: as cheap as it is usual
            self._orphans_at = time.monotonic() + ORPHANS_S
            own_session, known = os.getsid(0), {worker.pid for worker in self.by_rank.values()}
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error, OSError):
                    # Children of this process's own are waited for by who started them.
                    is_adopted = child.pid not in known and os.getsid(child.pid) != own_session
                    if is_adopted and child.status() == psutil.STATUS_ZOMBIE:
                        os.waitpid(child.pid, os.WNOHANG)

    def sweep(self) -> bool:
        """Kills what dead workers left in their sessions; returns True if nothing of them is left."""
        open_sessions = {w.pid: w for w in self.by_rank.values() if not w.alive and not w.swept}
        if not open_sessions:
            return True
        left: set[int] = set()
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                session = os.getsid(pid)
                if session not in open_sessions or pid == session:
                    continue
                os.kill(pid, signal.SIGKILL)
                # Its parent is dead, so it is ours: collect it if it has ended, else look again.
                with contextlib.suppress(ChildProcessError):
                    if os.waitpid(pid, os.WNOHANG)[0] == pid:
                        continue
                left.add(session)
        for session, worker in open_sessions.items():
            # An empty session is never looked at again: its number may come back as someone else's.
            worker.swept = session not in left
        return not left
