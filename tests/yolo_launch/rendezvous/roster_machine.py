"""Plays one simulated machine: the connection is RendezvousClient's and NodeEvents', the workers are a timer."""

from __future__ import annotations

import types

from tests.yolo_launch.rendezvous.simulation import DATA, failed, make_join_request, report
from yolo_launch.nodes.events import NodeEvents
from yolo_launch.nodes.session import LOST_S
from yolo_launch.rendezvous.client import HEARTBEAT_S, LOOK_S, MasterGone, RendezvousClient
from yolo_launch.rendezvous.dialing import ANSWER_S
from yolo_launch.rendezvous.messages import (
    End,
    JoinAccepted,
    JoinRefused,
    Message,
    Ready,
    Report,
    Round,
    Store,
    StoreReady,
)

SAVE_S = 45.0
KILLED_S = 0.3
"""Most seconds between the decision to end workers and their end."""


class Machine:
    """One launcher on one machine; a machine that comes back is another one."""

    def __init__(self, job, rank: int, session: str, link, join_timeout_s: float) -> None:
        self.job, self.rank, self.link, self.chance = job, rank, link, job.chance
        self.state = "out"
        """out, joining, idle (its rank was accepted), store, running, or over."""
        self.how = ""
        self.begun: list[int] = []
        self.round: Round | None = None
        self.limits = types.SimpleNamespace(save_s=SAVE_S)
        self.round_ended = False
        self._request = make_join_request(rank, session=session, nproc=1)
        self._events = NodeEvents(status_line=None)
        self._events.monitor = self
        self._wire, self.client = None, None
        self._ready = False
        self._until = job.loop.now + join_timeout_s
        self._asked_at, self._ends_at, self._beat_at = 0.0, 0.0, 0.0
        job.loop.later(job.chance.uniform(0, LOOK_S), self._pulse)
        self._dial()

    # ---- the connection

    def _dial(self) -> None:
        self._wire = self.job.network.connect(self.link, self._receive)
        if self._wire is None:
            self.state = "out"
            return
        self.state, self._asked_at = "joining", self.job.loop.now
        self._wire.send(self._request.model_copy(update={"clock": 1e9 + self.job.loop.now}).pack())

    def _pulse(self) -> None:
        now = self.job.loop.now
        if self.state == "over":
            return
        if self.state in ("out", "joining"):
            is_late = now > self._until or (self.state == "joining" and now > self._asked_at + ANSWER_S)
            if is_late:
                self.leave("the master does not answer")
            elif self.state == "out":
                self._dial()
        else:
            self.client.look()
            if now - self._beat_at >= HEARTBEAT_S:
                self._beat_at = now
                self.client.beat()
            self._follow()
        self.job.loop.later(LOOK_S, self._pulse)

    def _receive(self, message: Message | None) -> None:
        if self.state == "over":
            return
        if self.state == "joining":
            self._on_answer(message)
        elif self.client is not None:
            if message is None:
                self.client.end_of_connection("the master closed the connection")
            else:
                self.client.take(message)
            self._follow()

    def _on_answer(self, message: Message | None) -> None:
        if message is None:
            self.state = "out"
        elif isinstance(message, JoinRefused):
            self.leave(f"refused: {message.what}")
        elif isinstance(message, JoinAccepted):
            self.client = self._events.client = RendezvousClient(self._wire, self._events, self.job.loop.clock)
            self.state, self._beat_at = "idle", self.job.loop.now
            first = self.chance.uniform(0.1, 2.0)  # it looks at its data
            client = self.client
            self.job.loop.later(0.0 if self._ready else first, lambda: self._get_ready(client))

    def _get_ready(self, client: RendezvousClient) -> None:
        self._ready = True
        if self.client is client and self.state != "over":
            client.send(Ready(fingerprint=DATA))

    # ---- what NodeAgent does with the messages

    def _follow(self) -> None:
        while self.state in ("idle", "store") and not self.client.inbox.empty():
            message = self.client.inbox.get()
            if self.state == "store" and isinstance(message, Store) and message.round == self.round.number:
                self._start_workers()
            elif isinstance(message, Round):
                self._begin(message)
            elif self.state == "store" and isinstance(message, (End, MasterGone, JoinRefused)):
                self.client.inbox.put(message)
                self._finish(report(self.round.number, kind="ended"))
            elif isinstance(message, End):
                self.leave(message.outcome.kind)
            elif isinstance(message, JoinRefused):
                self.leave(f"refused: {message.what}")
            elif isinstance(message, MasterGone):
                self._reconnect()

    def _reconnect(self) -> None:
        self._wire.close()
        self._until = max(self.client.heard_at + LOST_S, self.job.loop.now + 0.5)
        self.client = None
        self._dial()

    def _begin(self, start: Round) -> None:
        self.state, self.round, self.round_ended = "store", start, False
        self.job.note_round(self, start)
        self._events.begin_round(start, self.client)
        if self.rank == 0 and not self.round_ended:
            self.job.loop.later(self.chance.uniform(0.05, 0.5), lambda: self._serve(start))

    def _serve(self, start: Round) -> None:
        if self.state == "store" and self.round is start:
            self.client.send(StoreReady(round=start.number, port=4711))
            self._start_workers()

    def _start_workers(self) -> None:
        self.state = "running"
        self.job.note_running(self)
        self._end_workers_in(self.job.work_left_s + self.chance.uniform(0, 0.2), "done")

    def _end_workers_in(self, seconds: float, kind: str) -> None:
        start, ends_at = self.round, self.job.loop.now + seconds
        self._ends_at = ends_at
        self.job.loop.later(seconds, lambda: self._workers_end(start, ends_at, kind))

    def _workers_end(self, start: Round, ends_at: float, kind: str) -> None:
        if self.state == "running" and self.round is start and self._ends_at == ends_at:
            own = kind == "failed"
            facts = failed(start.number, self.rank, own=own) if own else report(start.number, kind=kind)
            self._finish(facts)

    def _finish(self, said: Report) -> None:
        self.job.note_ended(self)
        self.state, self.round = "idle", None
        self.client.send(said)
        self._follow()

    # ---- what the monitor does for NodeEvents

    def end_round(self, linger_s: float, send: object = None) -> None:
        """Ends the workers, at once or after they have saved."""
        self.round_ended = True
        start = self.round
        if self.state == "store":
            # NodeAgent looks at it every tenth of a second.
            self.job.loop.later(0.1, lambda: self._never_began(start))
        elif self.state == "running":
            saves = send is not None or linger_s == SAVE_S
            seconds = self.chance.uniform(0.1, 3.0) if saves else linger_s + self.chance.uniform(0.02, KILLED_S)
            if self.job.loop.now + seconds < self._ends_at:
                self._end_workers_in(seconds, "saved" if saves else "ended")

    def _never_began(self, start: Round) -> None:
        if self.state == "store" and self.round is start:
            self._finish(report(start.number, kind="ended"))

    def ask_where_workers_are(self) -> None:
        """Is for stalls, which are not simulated."""

    # ---- faults and ends

    def fail(self) -> None:
        """Fails a worker."""
        if self.state == "running":
            self._events.on_failure("failed")
            self._end_workers_in(0.2, "failed")

    def leave(self, how: str) -> None:
        """Ends the launcher."""
        if self.state == "over":
            return
        self.job.note_ended(self)
        self.state, self.how, self.round = "over", how, None
        if self._wire is not None:
            self._wire.close()
