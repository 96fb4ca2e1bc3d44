"""A plan on this machine from its first worker to its Outcome: attempts, restarts, signals, nothing left behind."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from yolo_launch import one_worker, ports
from yolo_launch.causes import count_oom_kills, hint_for, look_up_facts
from yolo_launch.console import Console
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.failures import first_failure, read_error, worker_ends
from yolo_launch.heartbeats import StallWatch
from yolo_launch.restarts import Progress, decide
from yolo_launch.signals import SignalInbox
from yolo_launch.spec import LEFT_TO_SCRIPT, STATE_SAVED, LaunchPlan, Outcome, RankFailure, WorkerCommand
from yolo_launch.stalls import stall_failure
from yolo_launch.watcher import Limits, Watcher
from yolo_launch.worker_environment import applied, child_environment
from yolo_launch.worker_logs import WorkerFiles
from yolo_launch.workers import Workers, adopt_orphans

SHIM = "yolo_launch.worker_shim"
Say = Callable[[str], None]


def launch(
    plan: LaunchPlan,
    command: WorkerCommand,
    run_dir: Path,
    *,
    console_json: bool = False,
    inline: bool = False,
    say: Say | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """Run the plan's workers until they are done, failed or stopped. Call it in the main thread.

    Rank 0 writes to the terminal (to stderr with ``console_json``), the others to ``run_dir/logs``. ``inline`` runs
    the one worker in this process, unwatched, and lets its exceptions through. ``say`` gets one-line messages.
    Raises LaunchError for what cannot be started at all.
    """
    if plan.nnodes != 1:
        raise LaunchError("this plan is for several machines", seen=f"{plan.nnodes} machines", expected="one machine")
    if plan.port is not None and plan.nproc_per_node > 1:
        ports.require_free(plan.port)
    if command.foreign and not inline:
        command = replace(command, arguments=("-m", SHIM, *command.arguments))
    job = Job(plan, command, WorkerFiles(run_dir.absolute()), console_json, say or Console(json_mode=console_json).note)
    if inline:
        return job.run_inline()
    adopt_orphans()
    limits = limits or Limits()
    # The built-in trainer saves on SIGTERM; a foreign script is told what the user did.
    interrupt_as = signal.SIGINT if command.foreign else signal.SIGTERM
    with SignalInbox() as inbox, Watcher(inbox, limits, job.say, interrupt_as=interrupt_as) as watcher:
        return job.run(watcher)


@dataclass
class Attempt:
    """One start of all workers and what came of it."""

    workers: Workers
    stall_watch: StallWatch
    agent_exit_codes: dict[int, int]
    agent_error: Exception | None = None
    ran_s: float = 0.0


class Job:
    """One launch: attempt after attempt until there is an Outcome."""

    def __init__(
        self, plan: LaunchPlan, command: WorkerCommand, files: WorkerFiles, console_json: bool, say: Say
    ) -> None:
        self.plan = plan
        self.command = command
        self.files = files
        self.say = say
        self._console_json = console_json
        self._progress = Progress()
        self._oom_kills_before = count_oom_kills()

    def run_inline(self) -> Outcome:
        """Run the one worker in this process."""
        if self.plan.nproc_per_node != 1:
            raise LaunchError(
                "--inline runs one worker",
                seen=f"{self.plan.nproc_per_node} workers",
                expected="one device, for example --gpus 0",
            )
        environment = child_environment(
            self.plan, self.files, "inline", dict(os.environ), console_json=self._console_json
        )
        environment.pop("YOLO_PARENT_PID")  # this process is nobody's worker
        with applied(environment):
            return one_worker.run_inline(self.command)

    def run(self, watcher: Watcher) -> Outcome:
        """All attempts."""
        number = 0
        while not watcher.stopping:
            attempt = self._attempt(watcher, number)
            number += 1
            self._progress.heard |= attempt.stall_watch.heard
            self._progress.finished_a_step |= attempt.stall_watch.finished_a_step
            outcome = self._judge(watcher, attempt)
            if outcome is not None:
                return replace(outcome, restarts=self._progress.restarts)
        stopped_by = watcher.stop_signal or signal.SIGTERM
        return Outcome("interrupted", 128 + stopped_by, signal=stopped_by, restarts=self._progress.restarts)

    def _attempt(self, watcher: Watcher, number: int) -> Attempt:
        plan, files = self.plan, self.files
        files.begin_attempt(number, range(plan.world_size))
        mark = f"{uuid.uuid4().hex}.{number}"
        stall_watch = StallWatch(
            files,
            plan.stall_timeout_s,
            start_allowance_s=watcher.limits.start_allowance_s,
            required=not self.command.foreign,
        )
        attempt = Attempt(Workers(mark), stall_watch, {})
        environment = child_environment(plan, files, mark, dict(os.environ), console_json=self._console_json)
        began_at = time.monotonic()
        watcher.begin(attempt.workers, files, stall_watch)
        try:
            with applied(environment):
                if plan.nproc_per_node == 1:
                    self._run_one(watcher, attempt)
                else:
                    self._run_several(watcher, attempt)
        finally:
            watcher.end()
        attempt.ran_s = time.monotonic() - began_at
        # The watcher reads heartbeats now and then; what came after its last look counts as well.
        stall_watch.look(range(plan.world_size), time.monotonic())
        return attempt

    def _run_one(self, watcher: Watcher, attempt: Attempt) -> None:
        attempt.agent_exit_codes[0] = one_worker.run_child(
            self.command, self.files, rank0_to_stderr=self._console_json, started=watcher.worker_started
        )

    def _run_several(self, watcher: Watcher, attempt: Attempt) -> None:
        from yolo_launch import elastic  # imports torch

        def before() -> None:
            if not watcher.workers_start(self.plan.nproc_per_node):
                raise elastic.StartCancelled

        try:
            result = elastic.run_agent(
                self.plan, self.command, self.files, rank0_to_stderr=self._console_json, before=before
            )
        except elastic.StartCancelled:
            return
        attempt.agent_exit_codes.update(result.exit_codes)
        attempt.agent_error = result.error

    def _judge(self, watcher: Watcher, attempt: Attempt) -> Outcome | None:
        """The job's outcome, or None where it is to be started again."""
        ends = worker_ends(attempt.workers.by_rank, attempt.agent_exit_codes, self.plan.world_size)
        heartbeats = attempt.stall_watch.latest()
        failure = first_failure(ends, self.files, heartbeats)
        if watcher.stall:
            stalled = stall_failure(watcher.stall, self.files)
            return Outcome("stalled", ExitCode.STALLED, failure=stalled)
        saved = any(end.exit_code == ExitCode.SAVED_AND_STOPPED for end in ends)
        if watcher.stop_signal is not None and not (attempt.workers.by_rank and all(e.exit_code == 0 for e in ends)):
            told = failure is not None and bool(read_error(self.files, failure.rank)[0])
            shown = failure if told and not saved else None
            return _stopped(watcher.stop_signal, saved, shown, foreign=self.command.foreign)
        if saved and failure is None:
            # A scheduler may signal the workers themselves.
            return Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED)
        if failure is not None:
            return self._failed(failure, attempt)
        if attempt.agent_error is not None:
            raise LaunchError(
                "torch's elastic agent failed before the workers could start",
                seen=f"{type(attempt.agent_error).__name__}: {attempt.agent_error}",
                expected=f"see {self.files.agent_log}",
                exit_code=ExitCode.ENVIRONMENT,
            ) from attempt.agent_error
        return Outcome("done", ExitCode.DONE)

    def _failed(self, failure: RankFailure, attempt: Attempt) -> Outcome | None:
        progress = self._progress
        progress.finished_a_step |= (failure.epoch or 0, failure.step or 0) > (0, 0)
        decision = decide(
            failure,
            progress,
            max_restarts=self.plan.max_restarts,
            attempt_s=attempt.ran_s,
            port_is_fixed=self.plan.port is not None,
            foreign=self.command.foreign,
        )
        if not decision.restart:
            return Outcome(
                "worker_failed",
                ExitCode.USAGE if failure.user_error is not None else ExitCode.WORKER_FAILED,
                failure=replace(failure, hint=self._hint(failure)),
                detail=decision.why,
            )
        if not decision.counts:
            progress.port_clashes += 1
            self.say(decision.why)
            return None
        progress.restarts += 1
        last_line = failure.message.strip().split("\n")[-1][:200]
        self.say(f"rank {failure.rank} failed ({last_line}); {decision.why}, {self._source_of_restart()}")
        return None

    def _source_of_restart(self) -> str:
        if self.command.foreign:
            return "the script starts again"
        weights = self.files.run_dir / "weights"
        if any(weights.glob("*.pt")):
            return f"going on from the newest good checkpoint in {weights}"
        return "from the first step: no checkpoint was written yet"

    def _hint(self, failure: RankFailure) -> str:
        if failure.user_error is not None:
            return ""
        return hint_for(failure, look_up_facts(failure, self.plan, self._oom_kills_before))


def _stopped(by: signal.Signals, saved: bool, failure: RankFailure | None, *, foreign: bool) -> Outcome:
    if saved and by != signal.SIGINT:
        return Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED, signal=by)
    # 75 would make a scheduler start the job again, which is not what Ctrl-C asks for.
    return Outcome(
        "interrupted",
        128 + by,
        failure=failure,
        signal=by,
        detail=STATE_SAVED if saved else LEFT_TO_SCRIPT if foreign else "",
    )
