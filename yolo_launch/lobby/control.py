"""The lobby's mind: who is there, when a round starts, why it stops, what comes next. Pure but for the time given.

Events come in (``on_...``, ``tick``); what is to be said collects at the table.

    gathering -> running -> stopping -> gathering ... -> ended
"""

from __future__ import annotations

from typing import Literal

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.lobby.messages import (
    Beat,
    Cannot,
    Claim,
    End,
    Joined,
    Leave,
    Message,
    Pulse,
    Ready,
    Report,
    Roster,
    Round,
    Seen,
    Stop,
    StopKind,
    Store,
    StoreOpen,
    Trouble,
)
from yolo_launch.lobby.seats import Seat, Table, roster_text
from yolo_launch.lobby.terms import JobFacts, Terms, refusal_of
from yolo_launch.lobby.verdict import Verdict, judge
from yolo_launch.restarts import Progress
from yolo_launch.spec import Outcome, RankFailure

PULSE_S = 1.0
ASLEEP_S = 2.0
"""A gap of so much between two ticks was this process's own: nobody else is to blame for the silence."""
FAREWELL_S = 10.0

class Control:
    """One job's lobby."""

    def __init__(self, terms: Terms, job: JobFacts, now: float) -> None:
        self.terms = terms
        self.job = job
        self.table = Table()
        self.phase: Literal["gathering", "running", "stopping", "ended"] = "gathering"
        self.round = 0
        self.outcome: Outcome | None = None
        self._deadline = now + terms.join_timeout_s
        self._enough_since: float | None = None
        self._lost: list[tuple[Claim, str]] = []
        self._paused = False
        self._completed = False
        self._batch_size = 0
        self._progress = Progress()
        self._last_tick = self._last_pulse = now

    def on_claim(self, connection: int, claim: Claim, now: float, wall: float) -> None:
        """A machine asks for a rank. ``wall`` is the master's clock."""
        seat = self.table.seats.get(claim.rank)
        refusal = refusal_of(claim, self.job.own, self.terms, seat.claim if seat else None)
        if self.phase == "ended":
            refusal = Cannot(what=f"The job on {self.job.own.host} is over.", exit_code=int(ExitCode.NOT_JOINED))
        if refusal is not None:
            self.table.dismiss(connection, refusal)
            self.table.said.append(f"refused {claim.label}: {refusal.what}")
            return
        if seat is not None:
            # The same launcher came back before its old connection was seen to end.
            self.table.closing.append(seat.connection)
            self.on_gone(seat.connection, "it came back over a new connection", now)
        self.table.seats[claim.rank] = Seat(claim, connection, heard_at=now, clock_ahead_s=claim.clock - wall)
        self.table.outbox.append((connection, Joined(job=self.job.description)))
        self.table.say(f"machine {claim.label} joined")
        self._show_roster(now)

    def on_message(self, connection: int, message: Message, now: float) -> None:
        """A seated machine says something."""
        seat = self.table.seat_of(connection)
        if seat is None:
            return
        seat.heard_at = now
        if isinstance(message, Beat):
            seat.beat = message
        elif isinstance(message, Seen):
            seat.seen = message
        elif isinstance(message, Ready):
            self._on_ready(seat, message, now)
        elif isinstance(message, Cannot):
            self._dismiss(seat, message, now)
        elif isinstance(message, Leave):
            self.on_gone(connection, message.reason or "it left", now)
        elif isinstance(message, (StoreOpen, Trouble, Report)) and message.round == self.round and seat.in_round:
            self._on_round(seat, message, now)

    def on_gone(self, connection: int, reason: str, now: float) -> None:
        """A connection ended."""
        seat = self.table.seat_of(connection)
        if seat is None:
            return
        del self.table.seats[seat.claim.rank]
        if self.phase in ("running", "stopping") and seat.in_round and not self._completed:
            self._lost.append((seat.claim, reason))
            self._stop("lost", f"machine {seat.label} is lost: {reason}", now)
            self._maybe_judge(now)
        elif self.phase != "ended":
            self.table.say(f"machine {seat.label} is gone: {reason}")
        self._show_roster(now)

    def tick(self, now: float) -> None:
        """Time has passed: pulses, silence, deadlines."""
        asleep_s = now - self._last_tick
        if asleep_s > ASLEEP_S:
            self.table.forgive(asleep_s)
            self._deadline += asleep_s
        self._last_tick = now
        if now - self._last_pulse >= PULSE_S:
            self._last_pulse = now
            self.table.tell_all(Pulse())
        if self.phase == "ended":
            return
        for seat in list(self.table.seats.values()):
            if now - seat.heard_at > self.terms.silent_s:
                self.table.closing.append(seat.connection)
                self.on_gone(seat.connection, f"no word from it for {self.terms.silent_s:g} s", now)
        self._maybe_start(now)
        self._maybe_judge(now)

    def end(self, outcome: Outcome, now: float) -> None:
        """The job is over, for every machine."""
        if self.phase == "ended":
            return
        self.phase, self.outcome = "ended", outcome
        self._deadline = now + FAREWELL_S
        self.table.tell_all(End(outcome=outcome))

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and nobody is left to tell, or they have had their time."""
        return self.phase == "ended" and (set(self.table.seats) <= {0} or self._last_tick > self._deadline)

    def _on_ready(self, seat: Seat, message: Ready, now: float) -> None:
        if message.fingerprint != self.job.fingerprint:
            host, own = seat.claim.host, self.job.own.host
            refusal = Cannot(
                what=f"The data set of {host} is not that of {own}.",
                seen=f"fingerprint {message.fingerprint[:12]} on {host}, {self.job.fingerprint[:12]} on {own}",
                expected="the same classes, images and labels; --data names another path to the same data",
            )
            self._dismiss(seat, refusal, now)
            return
        seat.ready = True
        self._show_roster(now)
        if self.phase == "running":
            self._paused = True
            self._stop("join", f"machine {seat.label} comes in: the others save and go on with it", now)
        self._maybe_start(now)

    def _dismiss(self, seat: Seat, why: Cannot, now: float) -> None:
        """Let a machine go that cannot do the job, with its reason on both sides."""
        self.table.dismiss(seat.connection, why)
        del self.table.seats[seat.claim.rank]
        self.table.say(f"machine {seat.label} cannot take part: {why.what}" + f" ({why.seen})" * bool(why.seen))
        self._show_roster(now)

    def _maybe_start(self, now: float) -> None:
        if self.phase != "gathering":
            return
        seats = self.table.seats
        ready = sorted(rank for rank, seat in seats.items() if seat.ready)
        enough = 0 in ready and len(ready) >= self.terms.min_nodes and len(ready) == len(seats)
        if not enough:
            self._enough_since = None
        elif self._enough_since is None:
            self._enough_since = now
        grace_s = self.terms.join_grace_s if self.round == 0 else 0.0
        waited = self._enough_since is not None and now - self._enough_since >= grace_s
        if len(ready) == self.terms.max_nodes or (enough and waited):
            self._start(ready, now)
        elif now > self._deadline:
            self._give_up(ready, now)

    def _start(self, ranks: list[int], now: float) -> None:
        by_node = tuple(self.table.seats[rank].claim.nproc for rank in ranks)
        if not self._batch_size:
            try:
                self._batch_size = self.job.settle(by_node)
            except LaunchError as error:
                failure = RankFailure(-1, 0, int(error.exit_code), error.what, user_error=error.to_dict())
                self.end(Outcome("worker_failed", error.exit_code, failure=failure), now)
                return
        even = self.job.even and self.round == 0
        self.round += 1
        self.phase = "running"
        self._lost, self._paused = [], False
        for rank, seat in self.table.seats.items():
            seat.in_round, seat.report = rank in ranks, None
        members = tuple(zip(ranks, by_node, strict=True))
        start = Round(number=self.round, members=members, batch_size=self._batch_size, even=even)
        self.table.tell(ranks, start)

    def _give_up(self, ready: list[int], now: float) -> None:
        missing = [str(rank) for rank in range(self.terms.max_nodes) if rank not in ready]
        again, limit_s = "join", self.terms.join_timeout_s
        if self.round:
            again, limit_s = "come back", self.terms.rejoin_timeout_s
        detail = f"machine{'s' * (len(missing) > 1)} {', '.join(missing)} did not {again} within {limit_s:g} s"
        self.end(Outcome("not_joined", ExitCode.NOT_JOINED, restarts=self._progress.restarts, detail=detail), now)

    def _on_round(self, seat: Seat, message: StoreOpen | Trouble | Report, now: float) -> None:
        if isinstance(message, StoreOpen):
            if seat.claim.rank == 0:
                self.table.tell(self.table.in_round(), Store(round=message.round, port=message.port))
        elif isinstance(message, Trouble):
            self._stop(message.kind, f"machine {seat.label} {_TROUBLES[message.kind]}", now)
        else:
            self._on_report(seat, message, now)

    def _on_report(self, seat: Seat, report: Report, now: float) -> None:
        seat.report = report
        self._progress.heard = True
        self._progress.finished_a_step |= report.finished_a_step
        if seat.claim.rank == 0 and report.kind == "done":
            # Rank 0 leaves last: what the others do from now on changes nothing.
            self._completed, self.phase, self._deadline = True, "stopping", now + FAREWELL_S
        elif report.kind in ("saved", "stopped") and self.phase == "running":
            # A save that was asked for on one machine ends the workers of all by itself.
            self.phase, self._deadline = "stopping", now + self.terms.save_s
        elif report.kind != "done":
            self._stop("failed", f"the workers of machine {seat.label} have ended", now)
        self._maybe_judge(now)

    def _stop(self, kind: StopKind, reason: str, now: float) -> None:
        if self.phase != "running":
            return
        self.phase = "stopping"
        self._deadline = now + (self.terms.save_s if kind == "join" else self.terms.stop_s)
        if kind != "failed":  # a failure is told with its cause, once that is known
            self.table.say(reason)
        self.table.tell(self.table.in_round(), Stop(round=self.round, kind=kind, reason=reason))

    def _maybe_judge(self, now: float) -> None:
        if self.phase != "stopping":
            return
        waiting = [rank for rank in self.table.in_round() if self.table.seats[rank].report is None]
        if waiting and now <= self._deadline:
            return
        for rank in waiting:
            seat = self.table.seats.pop(rank)
            self.table.closing.append(seat.connection)
            self._lost.append((seat.claim, "it did not say how the round ended"))
        verdict = judge(
            self.table.reports(),
            self._lost,
            self._progress,
            self.terms,
            completed=self._completed,
            paused=self._paused,
            source=self.job.source_of_restart,
        )
        self._act(verdict, now)

    def _act(self, verdict: Verdict, now: float) -> None:
        if verdict.note:
            self.table.say(verdict.note)
        if verdict.outcome is not None:
            self.end(verdict.outcome, now)
            return
        for seat in self.table.seats.values():
            seat.in_round, seat.report = False, None
        for rank, outcome in verdict.leaving.items():
            self.table.dismiss(self.table.seats.pop(rank).connection, End(outcome=outcome))
        self.phase = "gathering"
        self._deadline = now + self.terms.rejoin_timeout_s
        self._enough_since = None
        self._show_roster(now)
        self._maybe_start(now)

    def _show_roster(self, now: float) -> None:
        if self.phase == "gathering":
            text = roster_text(self.table.seats, self.terms)
            self.table.tell_all(Roster(text=text, left_s=max(0.0, self._deadline - now)))


_TROUBLES = {"failed": "reports a failed worker", "stalled": "reports that nothing moves"}
