"""A plan on this machine from its first worker to its Outcome: attempts, restarts, signals, nothing left behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trainer.protocol import PARENT_VARIABLE, RunFiles
from yolo_launch.diagnosis.hangs import stall_failure
from yolo_launch.diagnosis.restart_policy import Progress, decide, stopped_by
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host import ports
from yolo_launch.spec import LaunchPlan, Outcome, RankFailure, StoreAddress, WorkerCommand
from yolo_launch.supervision.attempt import Attempt, AttemptRunner, Say
from yolo_launch.supervision.monitor import Limits, WorkerMonitor
from yolo_launch.workers import single_worker as one_worker
from yolo_launch.workers.environment import applied
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import adopt_orphans
from yolo_launch.workers.signals import SignalInbox

SCRIPT_ENTRYPOINT = "yolo_launch.workers.script_entrypoint"


def launch(
    plan: LaunchPlan,
    command: WorkerCommand,
    run_dir: Path,
    *,
    console_json: bool = False,
    inline: bool = False,
    say: Say,
    limits: Limits | None = None,
) -> Outcome:
    """Run the plan's workers until they are done, failed or stopped. Call it in the main thread.

    Rank 0 writes to the terminal (to stderr with ``console_json``), the others to ``run_dir/logs``. ``inline`` runs
    the one worker in this process, unwatched, and lets its exceptions through. ``say`` gets one-line messages.
    Raises LaunchError for what cannot be started at all.
    """
    if plan.port is not None and plan.nproc_per_node > 1:
        ports.require_free(plan.port)
    if command.foreign and not inline:
        command = replace(command, arguments=("-m", SCRIPT_ENTRYPOINT, *command.arguments))
    runner = AttemptRunner(plan, command, WorkerFiles(run_dir.absolute()), console_json=console_json)
    if inline:
        return run_inline(runner)
    job = Supervisor(runner, say)
    with monitoring(command, limits or Limits(), job.say) as monitor:
        return job.run(monitor)


@contextlib.contextmanager
def monitoring(command: WorkerCommand, limits: Limits, say: Say) -> Iterator[WorkerMonitor]:
    """The watcher and its signals, for as long as this process looks after workers."""
    adopt_orphans()
    # The built-in trainer saves on SIGTERM; a foreign script is told what the user did.
    interrupt_as = signal.SIGINT if command.foreign else signal.SIGTERM
    with SignalInbox() as inbox, WorkerMonitor(inbox, limits, say, interrupt_as=interrupt_as) as monitor:
        yield monitor


class Supervisor:
    """One launch on this machine: attempt after attempt until there is an Outcome."""

    def __init__(self, runner: AttemptRunner, say: Say) -> None:
        self.runner = runner
        self.plan = runner.plan
        self.say = say
        self._progress = Progress()

    def run(self, monitor: WorkerMonitor) -> Outcome:
        """All attempts."""
        number = 0
        while not monitor.stopping:
            attempt = self.runner.run(monitor, number, StoreAddress(port=self.plan.port))
            number += 1
            self._progress.heard |= attempt.hang_detector.heard
            self._progress.finished_a_step |= attempt.hang_detector.finished_a_step
            outcome = self._judge(monitor, attempt)
            if outcome is not None:
                return replace(outcome, restarts=self._progress.restarts)
        stopped_by = monitor.stop_signal or signal.SIGTERM
        return Outcome("interrupted", 128 + stopped_by, signal=stopped_by, restarts=self._progress.restarts)

    def _judge(self, monitor: WorkerMonitor, attempt: Attempt) -> Outcome | None:
        """The job's outcome, or None where it is to be started again."""
        failure, saved = attempt.failure, attempt.saved
        if monitor.stall:
            stalled = stall_failure(monitor.stall, self.runner.files)
            return Outcome("stalled", ExitCode.STALLED, failure=stalled)
        if monitor.stop_signal is not None and not attempt.all_done:
            told = failure is not None and self.runner.told_why(failure)
            shown = failure if told and not saved else None
            return stopped_by(monitor.stop_signal, saved, shown, foreign=self.runner.command.foreign)
        if saved and failure is None:
            # A scheduler may signal the workers themselves.
            return Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED)
        if failure is not None:
            return self._failed(failure, attempt)
        if attempt.agent_error is not None:
            raise self.runner.agent_failed(attempt) from attempt.agent_error
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
            foreign=self.runner.command.foreign,
        )
        if not decision.restart:
            return Outcome(
                "worker_failed",
                ExitCode.USAGE if failure.user_error is not None else ExitCode.WORKER_FAILED,
                failure=self.runner.with_hint(failure),
                detail=decision.why,
            )
        if not decision.counts:
            progress.port_clashes += 1
            self.say(decision.why)
            return None
        progress.restarts += 1
        source = source_of_restart(self.runner.files.run_dir, foreign=self.runner.command.foreign)
        last_line = failure.message.strip().split("\n")[-1][:200]
        self.say(f"rank {failure.rank} failed ({last_line}); {decision.why}, {source}")
        return None


def run_inline(runner: AttemptRunner) -> Outcome:
    """Run the one worker in this process, unwatched."""
    if runner.plan.nproc_per_node != 1:
        raise LaunchError(
            "--inline runs one worker",
            seen=f"{runner.plan.nproc_per_node} workers",
            expected="one device, for example --gpus 0",
        )
    environment = runner.environment("inline")
    environment.pop(PARENT_VARIABLE)  # this process is nobody's worker
    with applied(environment):
        return one_worker.run_inline(runner.command)


def source_of_restart(run_dir: Path, *, foreign: bool = False) -> str:
    """Where a restarted job goes on from, in words."""
    if foreign:
        return "the script starts again"
    weights = RunFiles(run_dir).weights
    if any(weights.glob("*.pt")):
        return f"going on from the newest good checkpoint in {weights}"
    return "from the first step: no checkpoint was written yet"
