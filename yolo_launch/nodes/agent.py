"""One machine's part in a job of several: round after round as the rendezvous says, until there is an Outcome."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from trainer.errors import EXIT_USAGE, UserError
from yolo_launch.diagnosis.heartbeat_monitor import read_heartbeat
from yolo_launch.diagnosis.outcome import NodeReport
from yolo_launch.diagnosis.restart_policy import stopped_by
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.identity import quiet_variables
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.planning.devices import device_text
from yolo_launch.rendezvous.client import MasterGone, RendezvousClient, refusal_error
from yolo_launch.rendezvous.messages import (
    End,
    FailureNotice,
    JoinRefused,
    Leave,
    LogLine,
    NodeHeartbeat,
    Report,
    Roster,
    Round,
    Stop,
    Store,
    StoreReady,
    clipped,
)
from yolo_launch.spec import Outcome, RankFailure, StoreAddress
from yolo_launch.supervision.attempt import Attempt, AttemptRunner
from yolo_launch.supervision.monitor import WorkerMonitor
from yolo_launch.workers.signals import signal_name
from yolo_launch.workers.torch_preload import WARM_S, TorchPreload

POLL_S = 0.1
LINGER_S = 1.0
"""What workers get to end once another machine has failed."""
FAREWELL_S, HASTY_FAREWELL_S = 25.0, 2.0
"""How long a machine that was signaled waits for the job's end, once it has said so and otherwise. Slurm kills 30 s
after its signal, and the others may be writing a checkpoint."""
STORE_S = WARM_S + 60.0
"""How long the master may take to load torch and open the round's store; one that is gone is noticed before."""

MakeRunner = Callable[[Round], AttemptRunner]
Reconnect = Callable[[str], RendezvousClient | None]
"""Takes the reason of the loss; a new seat at the same rendezvous, or None where the master is gone."""


@dataclass
class NodeAgent:
    """Everything that one machine keeps for the length of a job."""

    rank: int
    address: str
    """The master's, as this machine reaches it."""
    member: RendezvousClient
    make_runner: MakeRunner
    reconnect: Reconnect
    line: StatusLine
    warm: TorchPreload

    def __post_init__(self) -> None:
        self._round = 0
        self._last_report: NodeReport | None = None
        self._runner: AttemptRunner | None = None
        self._store: Any = None
        self._monitor: WorkerMonitor | None = None

    def run(self, monitor: WorkerMonitor) -> Outcome:
        """Follow the rendezvous to the job's end. Call it in the main thread."""
        self._monitor = monitor
        monitor.on_trouble = lambda kind: self.member.send(FailureNotice(round=self._round, kind=kind))
        self._listen(self.member)
        try:
            while True:
                outcome = self._step(monitor)
                if outcome is not None:
                    return outcome
        finally:
            self._store = None
            self.warm.close()
            self.line.close()

    def _listen(self, member: RendezvousClient) -> None:
        member.beat, member.on_stop = self._beat, self._on_stop

    def _step(self, monitor: WorkerMonitor) -> Outcome | None:
        message = self.member.next(POLL_S)
        if isinstance(message, Round):
            self._play(message, monitor)  # after a signal too: the rendezvous waits for a report
        elif isinstance(message, End):
            return message.outcome
        elif monitor.stop_signal is not None:
            return self._leave(monitor.stop_signal)
        elif isinstance(message, JoinRefused):
            raise refusal_error(message)
        elif isinstance(message, LogLine):
            self.line.over(message.text)
        elif isinstance(message, Roster):
            self.line.roster(message.text, message.left_s)
        elif isinstance(message, MasterGone):
            return self._find_again(message.reason)
        self.line.tick()
        return None

    def _leave(self, number: signal.Signals) -> Outcome:
        """A signal, and no workers run here any more. The job's own end may already be on its way."""
        last = self._last_report
        has_told = last is not None and last.signal is not None
        patience_s = FAREWELL_S if has_told and number != signal.SIGINT else HASTY_FAREWELL_S
        deadline = time.monotonic() + (patience_s if self._round else 0.0)
        while time.monotonic() < deadline and not self.member.gone:
            message = self.member.next(POLL_S)
            if isinstance(message, End):
                return message.outcome
        name = signal_name(number)
        self.member.send(Leave(reason=f"it left ({name})"))
        return stopped_by(number, saved=last is not None and last.saved)

    def _find_again(self, reason: str) -> Outcome | None:
        found = self.reconnect(reason)
        if found is None:
            return Outcome("master_lost", ExitCode.MASTER_LOST, detail=reason)
        self.member = found
        self._listen(found)
        return None

    # ---- a round

    def _play(self, start: Round, monitor: WorkerMonitor) -> None:
        monitor.begin_round()
        self._round = start.number
        # What the member's thread heard before this was for a round that it did not know.
        if self.member.stop is not None:
            self._on_stop(self.member.stop)
        if self.member.gone:
            monitor.end_round(0.0)
        try:
            runner = self._runner = self.make_runner(start)
        except UserError as error:
            refuse_job(self.member, error)
            raise
        runner.elsewhere_idle_s = lambda: self.member.idle_s()
        self.line.round(runner.plan, runner.files)
        self._store = None
        self.warm.wait(lambda: monitor.stopping or monitor.round_ended)
        meeting = self._meet(start, monitor)
        if meeting is None:
            number = int(monitor.stop_signal) if monitor.stop_signal is not None else None
            last = NodeReport("ended" if number is None else "stopped", signal=number)
        else:
            last = self._report(runner.run(monitor, start.number - 1, meeting), monitor, runner)
        self._last_report = last
        self.member.send(Report(round=start.number, report=last))
        self.line.waiting()

    def _meet(self, start: Round, monitor: WorkerMonitor) -> StoreAddress | None:
        """Where this round's workers meet; None where the round is over before they could."""
        if self.rank == 0:
            os.environ.update(quiet_variables(os.environ))
            from yolo_launch.workers import elastic_agent as elastic  # imports torch

            self._store, port = elastic.serve_store()
            self.member.send(StoreReady(round=start.number, port=port))
            return StoreAddress(self.address, port, is_served=True)
        deadline = time.monotonic() + STORE_S
        while time.monotonic() < deadline and not monitor.stopping and not monitor.round_ended:
            message = self.member.next(POLL_S)
            if isinstance(message, Store) and message.round == start.number:
                return StoreAddress(self.address, message.port, is_served=True)
            if isinstance(message, (End, MasterGone, JoinRefused)):
                self.member.inbox.put(message)
                return None
            if isinstance(message, LogLine):
                self.line.over(message.text)
        return None

    def _on_stop(self, message: Stop | MasterGone) -> None:
        """In the member's thread, while the main thread may be inside C++."""
        monitor = self._monitor
        if monitor is None:
            return
        if isinstance(message, MasterGone):
            monitor.end_round(0.0)
        elif message.round != self._round:
            return
        elif message.kind == "stalled":
            monitor.look_around()
        elif message.kind == "save":
            monitor.end_round(monitor.limits.save_s)
        elif message.kind == "join":
            monitor.end_round(monitor.limits.save_s, send=signal.SIGUSR1)
        else:
            monitor.end_round(LINGER_S if message.kind == "failed" else 0.0)

    def _report(self, attempt: Attempt, monitor: WorkerMonitor, runner: AttemptRunner) -> NodeReport:
        try:
            report = runner.report(attempt, monitor)
        except LaunchError as error:
            failure = RankFailure(runner.plan.first_rank, 0, int(error.exit_code), f"{error.what}: {error.seen}")
            report = NodeReport("failed", failure=failure, key=(0, 0, 0, time.time(), 0), ran_s=attempt.ran_s)
        if report.failure is None or report.kind == "stalled":
            return report
        return replace(report, failure=self._located(report.failure, runner))

    def _located(self, failure: RankFailure, runner: AttemptRunner) -> RankFailure:
        """A failure with what only this node knows: the device and the node's name."""
        failure = runner.with_hint(failure)
        return replace(
            failure,
            message=clipped(failure.message),
            traceback=clipped(failure.traceback),
            device=failure.device or device_text(runner.plan, failure.local_rank),
            host=socket.gethostname(),
        )

    def _beat(self) -> NodeHeartbeat:
        """Where this machine's first rank is, from its heartbeat file."""
        if self._runner is None:
            return NodeHeartbeat()
        beat = read_heartbeat(self._runner.files, self._runner.plan.first_rank)
        self.line.beat(beat)
        return (
            NodeHeartbeat(phase=beat.phase[:100], epoch=beat.epoch, step=beat.step)
            if beat is not None
            else NodeHeartbeat()
        )


def refuse_job(member: RendezvousClient, error: UserError) -> None:
    """Tell the rendezvous that this machine cannot do the job; the error itself is the caller's to raise."""
    exit_code = int(getattr(error, "exit_code", EXIT_USAGE))
    parts = {name: clipped(value) for name, value in error.to_dict().items() if name != "kind"}
    member.send(JoinRefused(**parts, exit_code=exit_code))
    time.sleep(0.2)  # the connection closes after this; let the word go first
