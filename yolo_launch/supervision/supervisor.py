"""Runs a plan on one node from its first worker to its outcome, with restarts and signals."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trainer.protocol import PARENT_VARIABLE, RunFiles
from yolo_launch.diagnosis.outcome import JobRules, NodeEnd, decide_outcome
from yolo_launch.diagnosis.restart_policy import Progress
from yolo_launch.errors import LaunchError
from yolo_launch.host import ports
from yolo_launch.spec import LaunchPlan, Outcome, StoreAddress, WorkerCommand
from yolo_launch.supervision.attempt import AttemptRunner, Say
from yolo_launch.supervision.limits import Limits
from yolo_launch.supervision.monitor import AttemptEvents, WorkerMonitor
from yolo_launch.workers import single_worker as one_worker
from yolo_launch.workers.environment import applied
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.nonblocking_stream import NonblockingWriter
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
    """Runs the plan's workers until they are done, failed or stopped. Call it in the main thread.

    Rank 0 writes to the terminal (to stderr with ``console_json``), the others to ``run_dir/logs``. ``inline`` runs
    the one worker in this process, unwatched, and passes on its exceptions. ``say`` gets one-line messages.
    Raises LaunchError for what cannot be started at all.
    """
    if plan.port is not None and plan.nproc_per_node > 1:
        ports.require_free(plan.port)
    if command.foreign and not inline:
        command = replace(command, arguments=("-m", SCRIPT_ENTRYPOINT, *command.arguments))
    runner = AttemptRunner(plan, command, WorkerFiles(run_dir.absolute()), console_json=console_json)
    if inline:
        return run_inline(runner)
    # Neither a step nor a signal waits for a terminal that is held.
    voice = NonblockingWriter(say)
    job = Supervisor(runner, voice.put)
    try:
        with monitoring(job.say, limits, foreign=command.foreign) as monitor:
            return job.run(monitor)
    finally:
        voice.drain()


@contextlib.contextmanager
def monitoring(
    say: Say, limits: Limits | None = None, *, foreign: bool = False, events: AttemptEvents | None = None
) -> Iterator[WorkerMonitor]:
    """Watches workers and takes signals, for as long as the block runs. ``foreign`` workers run a script."""
    adopt_orphans()
    # The built-in trainer saves on SIGTERM; a script gets the signal that the user sent.
    interrupt_as = signal.SIGINT if foreign else signal.SIGTERM
    with (
        SignalInbox() as inbox,
        WorkerMonitor(inbox, limits or Limits(), say, interrupt_as=interrupt_as, events=events) as monitor,
    ):
        yield monitor


class Supervisor:
    """Runs attempt after attempt on the only node of a job until there is an outcome."""

    def __init__(self, runner: AttemptRunner, say: Say) -> None:
        self.runner = runner
        self.plan = runner.plan
        self.say = say
        self._progress = Progress()
        self._rules = JobRules(
            max_restarts=self.plan.max_restarts,
            port_is_fixed=self.plan.port is not None,
            foreign=runner.command.foreign,
        )

    def run(self, monitor: WorkerMonitor) -> Outcome:
        """Runs all attempts. Raises LaunchError if torch's agent itself failed."""
        number = 0
        while not monitor.stopping:
            attempt = self.runner.run(monitor, number, StoreAddress(port=self.plan.port))
            number += 1
            end = NodeEnd(self.runner.report(attempt, monitor))
            decision = decide_outcome({0: end}, self._progress, self._rules, self._source_of_restart)
            self._progress = decision.progress
            if decision.note:
                self.say(decision.note)
            if decision.outcome is not None:
                return decision.outcome
        stopped_by = monitor.stop_signal or signal.SIGTERM
        return Outcome("interrupted", 128 + stopped_by, signal=stopped_by, restarts=self._progress.restarts)

    def _source_of_restart(self) -> str:
        return source_of_restart(self.runner.files.run_dir, foreign=self.runner.command.foreign)


def run_inline(runner: AttemptRunner) -> Outcome:
    """Runs the one worker in this process, unwatched."""
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
    """Returns what a restarted job goes on from, as it is shown."""
    if foreign:
        return "the script starts again"
    weights = RunFiles(run_dir).weights
    if any(weights.glob("*.pt")):
        return f"going on from the newest good checkpoint in {weights}"
    return "from the first step: no checkpoint was written yet"
