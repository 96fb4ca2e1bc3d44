"""Watches the workers of a node for signals, ends, deadlines and stalls, in a thread: the main one may be in C++."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from trainer.protocol import HEARTBEAT_PATTERN, read_heartbeat
from yolo_launch.diagnosis.hangs import StalledRank, examine
from yolo_launch.diagnosis.heartbeat_monitor import HangDetector
from yolo_launch.errors import ExitCode
from yolo_launch.supervision.limits import Limits
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import Worker, Workers
from yolo_launch.workers.signals import SignalInbox

logger = logging.getLogger(__name__)


class AttemptEvents:
    """Holds the calls of a monitor to the code that knows the job's other nodes; here there are none.

    Its methods are called from the monitor's thread.
    """

    def on_failure(self, kind: Literal["failed", "stalled"]) -> None:
        """Reacts to an attempt that is about to end here; its workers are not gone yet."""

    def elsewhere_idle_s(self) -> float:
        """Returns for how many seconds no rank of another node has moved."""
        return math.inf


class WorkerMonitor:
    """Runs while it is entered, over several attempts: ``begin`` starts to watch one and ``end`` ends it."""

    def __init__(
        self,
        inbox: SignalInbox,
        limits: Limits,
        say: Callable[[str], None],
        *,
        interrupt_as: int = signal.SIGINT,
        events: AttemptEvents | None = None,
    ) -> None:
        self.limits = limits
        self.stop_signal: signal.Signals | None = None
        """The first signal that asked the job to stop."""
        self.stall: list[StalledRank] | None = None
        self.events = events or AttemptEvents()
        self._inbox = inbox
        self._say = say
        self._interrupt_as = interrupt_as
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._problem: BaseException | None = None
        self._workers: Workers | None = None
        self._files: WorkerFiles | None = None
        self._stall_watch: HangDetector | None = None
        self._forward: int | None = None
        self._kill_at: float | None = None
        self._stacks_at: float | None = None
        self._failing = False
        self._ended = False
        self._saving_allowed = True
        self._heartbeats_read_at = 0.0
        self._blindness_said = False
        self._awake_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="worker_monitor", daemon=True)

    def __enter__(self) -> WorkerMonitor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with self._lock:
            if self._workers is not None:  # an exception left an attempt open
                self._finish_off(self._workers)

    @property
    def stopping(self) -> bool:
        """Returns whether no new worker may start."""
        return self.stop_signal is not None or self._problem is not None

    @property
    def round_ended(self) -> bool:
        """Returns whether ``end_round`` was called since the round began."""
        return self._ended

    def begin_round(self) -> None:
        """Permits workers to start again after ``end_round``."""
        with self._lock:
            self._ended = False
            if not self.stopping:
                self._kill_at = self._forward = None

    def end_round(self, grace_s: float, *, send: int | None = None) -> None:
        """Ends the workers within so many seconds, after a signal if one is given, and starts none; from any thread."""
        with self._lock:
            self._ended = True
            self._forward = self._forward or send
            self._end_within(grace_s)

    def ask_where_workers_are(self) -> None:
        """Asks the workers for their stacks, since another node has stalled, then ends them; from any thread."""
        with self._lock:
            if self._workers is None:
                self._ended = True  # they were just to be started
            elif self._stacks_at is None and self.stall is None:
                self._ask_for_stacks(time.monotonic())

    def begin(self, workers: Workers, files: WorkerFiles, hang_detector: HangDetector) -> None:
        """Watches the workers of a new attempt, before they are started."""
        with self._lock:
            self._workers, self._files, self._stall_watch = workers, files, hang_detector
            self._stacks_at = None
            self._failing = False
            if not self.stopping and not self._ended:
                self._kill_at = None

    def workers_start(self, count: int) -> bool:
        """Expects ``count`` workers, right before the agent starts them; returns False if the job is to stop."""
        with self._lock:
            if self._workers is not None:
                self._workers.expect(count)
            return not self.stopping and not self._ended

    def worker_started(self, rank: int, pid: int) -> None:
        """Adds a worker that the caller started itself."""
        with self._lock:
            if self._workers is not None:
                self._workers.add(rank, pid)

    def end(self) -> None:
        """Ends an attempt: kills and collects whatever is left of it. Raises what stopped the monitor itself."""
        with self._lock:
            workers, self._workers = self._workers, None
            if workers is not None:
                self._finish_off(workers)
        if self._problem is not None:
            raise self._problem

    def _finish_off(self, workers: Workers) -> None:
        give_up_at = time.monotonic() + self.limits.sweep_s
        while time.monotonic() < give_up_at:
            workers.notice_deaths()
            workers.kill()
            if workers.sweep() and not workers.living():
                return
            time.sleep(0.02)
        logger.warning("processes of the job do not end: %s", [w.pid for w in workers.by_rank.values() if not w.swept])

    def _run(self) -> None:
        while not self._over.is_set():
            signals = self._inbox.wait(self.limits.tick_s)
            try:
                with self._lock:
                    self._forgive_pause()
                    for signum in signals:
                        self._on_signal(signum)
                    if self._workers is not None:
                        self._tick(self._workers)
            except BaseException as error:
                # No other code would end the workers: end them here, and let the main thread raise this.
                self._problem = error
                with self._lock:
                    if self._workers is not None:
                        self._workers.kill()

    def _forgive_pause(self) -> None:
        """Moves every deadline by the time in which this process did not run: then nobody on this machine did."""
        now = time.monotonic()
        paused_s = now - self._awake_at - self.limits.tick_s
        self._awake_at = now
        if paused_s < self.limits.pause_s:
            return
        if self._stall_watch is not None:
            self._stall_watch.forgive(paused_s)
        self._kill_at = None if self._kill_at is None else self._kill_at + paused_s
        self._stacks_at = None if self._stacks_at is None else self._stacks_at + paused_s

    def _on_signal(self, signum: signal.Signals) -> None:
        grace_s = self.limits.grace_s(signum)
        first = self.stop_signal is None
        self.stop_signal = self.stop_signal or signum
        if first:
            self._say(_announcement(signum, grace_s))
        elif signum in (signal.SIGINT, signal.SIGQUIT):
            grace_s, self._saving_allowed = 0.0, False
            if self._workers is not None and not self._workers.living() and self._workers.sweep():
                # Only torch holds the main thread, in an import or a rendezvous. A worker that it is just about to
                # start would find its parent gone and end.
                os._exit(128 + signum)
        self._end_within(grace_s)
        self._forward = {signal.SIGHUP: signal.SIGTERM, signal.SIGINT: self._interrupt_as}.get(signum, signum)

    def _tick(self, workers: Workers) -> None:
        workers.find()
        for worker in workers.notice_deaths():
            self._on_death(worker)
        self._notice_failing(workers)
        if self._forward is not None and self._forward != signal.SIGQUIT:
            workers.send(self._forward)
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at and not self._lets_them_save(workers, now):
            workers.kill()
        workers.sweep()
        workers.collect_orphans()
        if self._kill_at is None:
            self._look_for_stall(workers, now)

    def _lets_them_save(self, workers: Workers, now: float) -> bool:
        """Gives a worker that writes its state after a Ctrl-C more time, once; returns whether it did."""
        if self.stop_signal != signal.SIGINT or not self._saving_allowed or self._files is None:
            return False
        beats = [(worker.pid, read_heartbeat(self._files, worker.rank)) for worker in workers.living()]
        # The file of an earlier run may still exist.
        if not any(beat is not None and beat.phase == "save" and beat.pid == pid for pid, beat in beats):
            return False
        self._saving_allowed = False
        self._kill_at = now + self.limits.save_s
        self._say(f"the workers are saving: {self.limits.save_s:g} s more; Ctrl-C again ends them at once")
        return True

    def _on_death(self, worker: Worker) -> None:
        # If other code collected the exit code, the error file decides; see _notice_failing.
        if worker.exit_code not in (0, None):
            saved = worker.exit_code == ExitCode.SAVED_AND_STOPPED
            # Rank 0 may still be writing the checkpoint that its peers have agreed on.
            self._end_within(self.limits.save_s if saved else self.limits.linger_s)
            if not saved:
                self._report_failure("failed")

    def _notice_failing(self, workers: Workers) -> None:
        """Ends an attempt once an error file exists: its worker may still wait for a loader process or a peer."""
        files = self._files
        if not self._failing and files is not None and any(files.error(rank).exists() for rank in workers.by_rank):
            self._end_within(self.limits.linger_s)
            self._report_failure("failed")

    def _report_failure(self, kind: Literal["failed", "stalled"]) -> None:
        if not self._failing:
            self._failing = True
            self.events.on_failure(kind)

    def _end_within(self, seconds: float) -> None:
        kill_at = time.monotonic() + seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _look_for_stall(self, workers: Workers, now: float) -> None:
        watch, files = self._stall_watch, self._files
        if watch is None or files is None:
            return
        if self._stacks_at is not None:
            if now >= self._stacks_at:
                self.stall = [
                    examine(files, w.rank, w.pid, watch.idle_s(w.rank, now), watch.position(w.rank))
                    for w in workers.living()
                ] or None
                self._stacks_at = None
                self._kill_at = now if self.stall else None
            return
        if now - self._heartbeats_read_at < self.limits.heartbeat_s:
            return
        self._heartbeats_read_at = now
        if not self._blindness_said and watch.is_blind(now):
            self._blindness_said = True
            self._say(f"this script writes no heartbeats (logs/{HEARTBEAT_PATTERN}), so a hang will not be noticed")
        if watch.look([w.rank for w in workers.living()], now):
            self._say("no rank has moved for too long: asking the workers where they are")
            self._ask_for_stacks(now)
            self._report_failure("stalled")

    def _ask_for_stacks(self, now: float) -> None:
        if self._workers is not None:
            self._workers.send(signal.SIGUSR2)
            self._stacks_at = now + self.limits.stacks_s


def _announcement(signum: signal.Signals, grace_s: float) -> str:
    if signum == signal.SIGINT:
        return f"Ctrl-C: the workers have {grace_s:g} s to end; press it again to end them at once"
    if grace_s == 0:
        return f"{signum.name}: ending the workers"
    return f"{signum.name}: the workers have {grace_s:g} s to save their state"
