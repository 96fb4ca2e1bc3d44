"""Connects the rendezvous with the workers of a node while the main thread is inside torch."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Literal

from trainer.protocol import read_heartbeat
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.rendezvous.client import ConnectionEvents, RendezvousClient
from yolo_launch.rendezvous.messages import FailureNotice, NodeHeartbeat, Round, Seen, Stop
from yolo_launch.supervision.attempt import AttemptRunner
from yolo_launch.supervision.monitor import AttemptEvents, WorkerMonitor

LINGER_S = 1.0
"""How long workers may go on once another node has failed."""


class NodeEvents(ConnectionEvents, AttemptEvents):
    """Answers the calls of the connection's and the monitor's threads. The main thread sets the attributes."""

    def __init__(self, status_line: StatusLine, on_findings: Callable[[Seen], None] = lambda message: None) -> None:
        self.status_line = status_line
        self.client: RendezvousClient | None = None
        self.monitor: WorkerMonitor | None = None
        self.runner: AttemptRunner | None = None
        """Of the round that runs, or ran last."""
        self._on_findings = on_findings
        self._round = 0

    def begin_round(self, start: Round, client: RendezvousClient) -> None:
        """Begins a round in the main thread; a stop or a loss that came before is answered now."""
        self._round = start.number
        if client.stop is not None:
            self.on_stop(client.stop)
        if client.gone:
            self.on_master_lost()

    # ---- from the connection's threads

    def heartbeat(self) -> NodeHeartbeat:
        """Returns phase, epoch and step of this node's first rank, from its heartbeat file."""
        if self.runner is None:
            return NodeHeartbeat()
        heartbeat = read_heartbeat(self.runner.files, self.runner.plan.first_rank)
        self.status_line.progress(heartbeat)
        if heartbeat is None:
            return NodeHeartbeat()
        return NodeHeartbeat(phase=heartbeat.phase[:100], epoch=heartbeat.epoch, step=heartbeat.step)

    def on_stop(self, message: Stop) -> None:
        """Ends this round's workers as the reason asks."""
        monitor = self.monitor
        if monitor is None or message.round != self._round:
            return
        if message.kind == "stalled":
            monitor.ask_where_workers_are()
        elif message.kind == "save":
            monitor.end_round(monitor.limits.save_s)
        elif message.kind == "join":
            monitor.end_round(monitor.limits.save_s, send=signal.SIGUSR1)
        else:
            monitor.end_round(LINGER_S if message.kind == "failed" else 0.0)

    def on_master_lost(self) -> None:
        """Ends the workers at once: their peers are ending too."""
        if self.monitor is not None:
            self.monitor.end_round(0.0)

    def on_findings(self, message: Seen) -> None:
        """Passes on what all nodes have found in a cluster check."""
        self._on_findings(message)

    # ---- from the monitor's thread

    def on_failure(self, kind: Literal["failed", "stalled"]) -> None:
        """Informs the master before the workers here are gone."""
        if self.client is not None:
            self.client.send(FailureNotice(round=self._round, kind=kind))

    def elsewhere_idle_s(self) -> float:
        """Returns for how many seconds no rank of the job has moved, as far as the master knows."""
        return super().elsewhere_idle_s() if self.client is None else self.client.idle_s()
