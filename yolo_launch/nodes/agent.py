"""Runs one node's part in a job of several: round after round as the rendezvous says, until there is an outcome."""

from __future__ import annotations

import os
import signal
import socket
import time
from dataclasses import replace
from typing import Any

from trainer.errors import UserError
from trainer.protocol import EXIT_USAGE
from yolo_launch.diagnosis.outcome import NodeReport
from yolo_launch.diagnosis.restart_policy import stopped_by
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.context import NodeContext
from yolo_launch.nodes.events import NodeEvents
from yolo_launch.nodes.identity import quiet_variables
from yolo_launch.nodes.session import NodeSession
from yolo_launch.nodes.work import NodeWork
from yolo_launch.planning.devices import device_text
from yolo_launch.rendezvous.client import MasterGone, RendezvousClient
from yolo_launch.rendezvous.dialing import refusal_error
from yolo_launch.rendezvous.messages import (
    End,
    JoinRefused,
    Leave,
    LogLine,
    Message,
    Report,
    Roster,
    Round,
    Store,
    StoreReady,
    clipped,
)
from yolo_launch.spec import Outcome, RankFailure, StoreAddress
from yolo_launch.supervision.attempt import Attempt, AttemptRunner
from yolo_launch.supervision.monitor import WorkerMonitor
from yolo_launch.supervision.supervisor import monitoring
from yolo_launch.workers.signals import signal_name
from yolo_launch.workers.torch_preload import WARM_S, TorchPreload

POLL_S = 0.1
END_REPORTED_S, END_UNREPORTED_S = 25.0, 2.0
"""How long a node that was signaled waits for the job's end, after it has reported the signal and otherwise. Slurm
kills 30 s after its signal, and the other nodes may be writing a checkpoint."""
STORE_S = WARM_S + 60.0
"""How long the master may take to load torch and open the round's store; one that is gone is noticed before."""


class NodeAgent:
    """Follows the rendezvous on one node for the length of a job."""

    def __init__(self, context: NodeContext, work: NodeWork, session: NodeSession, events: NodeEvents) -> None:
        self._context = context
        self._work = work
        self._session = session
        self._events = events
        self._status_line = context.status_line
        self._preload = TorchPreload()
        self._began_a_round = False
        self._last_report: NodeReport | None = None
        self._store: Any = None

    def run(self) -> Outcome:
        """Takes part until the job is over. Call it in the main thread. Raises what the work raises."""
        with monitoring(self._status_line.over, foreign=self._work.foreign, events=self._events) as monitor:
            outcome = self.follow(monitor)
        self._client.close()
        return outcome

    def follow(self, monitor: WorkerMonitor) -> Outcome:
        """Answers the master's messages with a monitor that runs."""
        self._events.monitor = monitor
        try:
            while True:
                outcome = self._step(monitor)
                if outcome is not None:
                    return outcome
        finally:
            self._store = None
            self._preload.close()
            self._status_line.close()

    @property
    def _client(self) -> RendezvousClient:
        return self._session.client

    def _step(self, monitor: WorkerMonitor) -> Outcome | None:
        message = self._client.next(POLL_S)
        if isinstance(message, Round):
            self._run_round(message, monitor)  # after a signal too: the rendezvous waits for a report
        elif isinstance(message, End):
            return message.outcome
        elif monitor.stop_signal is not None:
            return self._leave(monitor.stop_signal)
        elif isinstance(message, MasterGone):
            if not self._session.reconnect(message.reason):
                return Outcome("master_lost", ExitCode.MASTER_LOST, detail=message.reason)
        elif message is not None:
            self._show(message)
        self._status_line.tick()
        return None

    def _show(self, message: Message) -> None:
        if isinstance(message, JoinRefused):
            raise refusal_error(message)
        if isinstance(message, LogLine):
            self._status_line.over(message.text)
        elif isinstance(message, Roster):
            self._status_line.roster(message.text, message.left_s)

    def _leave(self, number: signal.Signals) -> Outcome:
        """Leaves the job after a signal when no workers run; first waits for the job's end, which may come soon."""
        last = self._last_report
        is_reported = last is not None and last.signal is not None
        wait_s = END_REPORTED_S if is_reported and number != signal.SIGINT else END_UNREPORTED_S
        deadline = time.monotonic() + (wait_s if self._began_a_round else 0.0)
        while time.monotonic() < deadline and not self._client.gone:
            message = self._client.next(POLL_S)
            if isinstance(message, End):
                return message.outcome
        self._client.send(Leave(reason=f"it left ({signal_name(number)})"))
        return stopped_by(number, saved=last is not None and last.saved)

    # ---- a round

    def _run_round(self, start: Round, monitor: WorkerMonitor) -> None:
        self._began_a_round = True
        monitor.begin_round()
        self._events.begin_round(start, self._client)
        try:
            runner = self._events.runner = self._context.runner(self._work, start)
        except UserError as error:
            refuse_job(self._client, error)
            raise
        self._status_line.round(runner.plan, runner.files)
        self._store = None
        self._preload.wait(lambda: monitor.stopping or monitor.round_ended)
        address = self._store_address(start, monitor)
        if address is None:
            number = int(monitor.stop_signal) if monitor.stop_signal is not None else None
            report = NodeReport("ended" if number is None else "stopped", signal=number)
        else:
            report = self._report(runner.run(monitor, start.number - 1, address), monitor, runner)
        self._last_report = report
        self._client.send(Report(round=start.number, report=report))
        self._status_line.waiting()

    def _store_address(self, start: Round, monitor: WorkerMonitor) -> StoreAddress | None:
        """Returns the address at which this round's workers meet; None if the round is over before they could."""
        address = self._session.endpoint.address
        if self._context.identity.rank == 0:
            os.environ.update(quiet_variables(os.environ))
            from yolo_launch.workers import elastic_agent as elastic  # imports torch

            self._store, port = elastic.serve_store()
            self._client.send(StoreReady(round=start.number, port=port))
            return StoreAddress(address, port, is_served=True)
        deadline = time.monotonic() + STORE_S
        while time.monotonic() < deadline and not monitor.stopping and not monitor.round_ended:
            message = self._client.next(POLL_S)
            if isinstance(message, Store) and message.round == start.number:
                return StoreAddress(address, message.port, is_served=True)
            if isinstance(message, (End, MasterGone, JoinRefused)):
                self._client.inbox.put(message)
                return None
            if isinstance(message, LogLine):
                self._status_line.over(message.text)
        return None

    def _report(self, attempt: Attempt, monitor: WorkerMonitor, runner: AttemptRunner) -> NodeReport:
        try:
            report = runner.report(attempt, monitor)
        except LaunchError as error:  # torch's agent itself failed
            failure = RankFailure(runner.plan.first_rank, 0, int(error.exit_code), f"{error.what}: {error.seen}")
            failure = runner.with_hint(failure)
            report = NodeReport("failed", failure=failure, key=(0, 0, 0, time.time(), 0), ran_s=attempt.ran_s)
        if report.failure is None or report.kind == "stalled":
            return report
        return replace(report, failure=_located(report.failure, runner))


def _located(failure: RankFailure, runner: AttemptRunner) -> RankFailure:
    """Returns a failure with the device and the host name, which the master does not know."""
    return replace(
        failure,
        message=clipped(failure.message),
        traceback=clipped(failure.traceback),
        device=failure.device or device_text(runner.plan, failure.local_rank),
        host=socket.gethostname(),
    )


def refuse_job(client: RendezvousClient, error: UserError) -> None:
    """Tells the rendezvous that this node cannot do the job; the caller has to raise the error."""
    exit_code = int(getattr(error, "exit_code", EXIT_USAGE))
    parts = {name: clipped(value) for name, value in error.to_dict().items() if name != "kind"}
    client.send(JoinRefused(**parts, exit_code=exit_code))
    time.sleep(0.2)  # the connection closes after this; let the message go first
