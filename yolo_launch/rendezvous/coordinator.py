"""The lobby's mind: who is there, when a round starts, why it stops, what comes next. Pure but for the time given.

Events come in (``on_...``, ``tick``); what is to be said collects at the table.

    gathering -> running -> stopping -> gathering ... -> ended
"""

from __future__ import annotations

from typing import Literal

from trainer.errors import UserError
from yolo_launch.diagnosis.restart_policy import Progress
from yolo_launch.errors import ExitCode
from yolo_launch.rendezvous.admission import JobFacts, Terms, other_data, refusal_of
from yolo_launch.rendezvous.membership import Patience, Seat, Table, missing_text, roster_text
from yolo_launch.rendezvous.messages import (
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
    clipped,
)
from yolo_launch.rendezvous.round_outcome import Verdict, judge, refused
from yolo_launch.spec import Outcome

PULSE_S = 1.0
ASLEEP_S = 2.0
"""A gap of so much between two ticks was this process's own: nobody else is to blame for the silence."""
FAREWELL_S = 10.0
ROSTER_S = 0.2
"""The roster is told at most so often: each telling is a message for every machine."""


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
        self._patience = Patience()
        self._lost: list[tuple[Claim, str]] = []
        self._paused = self._completed = False
        self._batch_size, self._progress = 0, Progress()
        self._last_tick = self._last_pulse = self._moved_at = now
        self._roster_is_old, self._last_roster = False, now - ROSTER_S

    def on_claim(self, connection: int, claim: Claim, now: float, wall: float) -> None:
        """A machine asks for a rank. ``wall`` is the master's clock."""
        self._wake(now)
        seat = self.table.seats.get(claim.rank)
        holder = self.job.own if claim.rank == self.job.own.rank else seat.claim if seat else None
        refusal = refusal_of(claim, self.job.own, self.terms, holder)
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
        # The others see it in the roster: a line each would be a message of everybody to everybody.
        self.table.said.append(f"machine {claim.label} joined")
        self._roster_is_old = True

    def on_message(self, connection: int, message: Message, now: float) -> None:
        """A seated machine says something."""
        self._wake(now)
        seat = self.table.seat_of(connection)
        if seat is None:
            return
        seat.heard_at = now
        if isinstance(message, Beat):
            if message != seat.beat:
                seat.beat, self._moved_at = message, now
        elif isinstance(message, Seen):
            seat.seen = message
        elif isinstance(message, Ready):
            self._on_ready(seat, message, now)
        elif isinstance(message, Cannot):
            self._dismiss(seat, message, now)
        elif isinstance(message, Leave):
            self.on_gone(connection, message.reason or "it left", now)
        elif isinstance(message, (StoreOpen, Trouble, Report)) and self._is_about_this_round(seat, message.round):
            self._on_round(seat, message, now)

    def on_gone(self, connection: int, reason: str, now: float) -> None:
        """A connection ended."""
        self._wake(now)
        seat = self.table.seat_of(connection)
        if seat is None:
            return
        del self.table.seats[seat.claim.rank]
        self._roster_is_old = True
        if self._is_about_this_round(seat, self.round) and seat.report is None and not self._completed:
            self._lost.append((seat.claim, reason))
            text = f"machine {seat.label} is lost: {reason}"
            self.table.say(text) if self.phase == "stopping" else self._stop("lost", text, now)
        elif self.phase != "ended":
            # A machine that had reported is no loss of this round; the next one waits for it.
            if seat.in_round and seat.report is not None:
                self.table.departed[seat.claim.rank] = (seat, seat.report)
            self.table.say(f"machine {seat.label} is gone: {reason}")
        self._maybe_judge(now)

    def _is_about_this_round(self, seat: Seat, number: int) -> bool:
        return self.phase in ("running", "stopping") and seat.in_round and number == self.round

    def tick(self, now: float) -> None:
        """Time has passed: pulses, silence, deadlines."""
        self._wake(now)
        self._last_tick = now
        if now - self._last_pulse >= PULSE_S:
            self._last_pulse = now
            self.table.tell_all(Pulse(idle_s=now - self._moved_at))
        if self.phase == "ended":
            return
        for seat in list(self.table.seats.values()):
            if now - seat.heard_at > self.terms.silent_s:
                self.table.closing.append(seat.connection)
                self.on_gone(seat.connection, f"no word from it for {self.terms.silent_s:g} s", now)
        self._maybe_judge(now)
        self._maybe_start(now)
        if self._roster_is_old and self.phase == "gathering" and now - self._last_roster >= ROSTER_S:
            self._tell_roster(now)

    def _tell_roster(self, now: float) -> None:
        self._roster_is_old, self._last_roster = False, now
        left_s = max(0.0, self._deadline - now)
        self.table.tell_all(Roster(text=roster_text(self.table.seats, self.terms), left_s=left_s))

    def _wake(self, now: float) -> None:
        """Before anything that arrived is judged by the clock: forgive the time in which this process slept."""
        asleep_s = now - self._last_tick
        if asleep_s > ASLEEP_S:
            self.table.forgive(asleep_s, now)
            self._deadline += asleep_s
            self._last_tick = now

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
        if seat.ready:
            return
        if message.fingerprint != self.job.fingerprint:
            self._dismiss(seat, other_data(seat.claim, message.fingerprint, self.job), now)
            return
        seat.ready = self._roster_is_old = True
        if self.phase == "running":
            self._paused = True
            self._stop("join", f"machine {seat.label} comes in: the others save and go on with it", now)
        self._maybe_start(now)

    def _dismiss(self, seat: Seat, why: Cannot, now: float) -> None:
        """Let a machine go that cannot do the job, with its reason on both sides."""
        self.table.dismiss(seat.connection, why)
        if seat.in_round:
            self.on_gone(seat.connection, why.what[:300], now)
            return
        self.table.seats.pop(seat.claim.rank)
        self.table.say(f"machine {seat.label} cannot take part: {why.what}" + f" ({why.seen})" * bool(why.seen))
        self._roster_is_old = True

    def _maybe_start(self, now: float) -> None:
        if self.phase != "gathering":
            return
        seats, terms, is_late = self.table.seats, self.terms, now > self._deadline
        ready = self._patience.who_may_start(seats, terms, now, is_late=is_late, is_first=self.round == 0)
        if ready:
            self._start(ready, now)
        elif is_late:
            detail, restarts = missing_text(seats, terms, first_round=self.round == 0), self._progress.restarts
            self.end(Outcome("not_joined", ExitCode.NOT_JOINED, restarts=restarts, detail=detail), now)

    def _start(self, ranks: list[int], now: float) -> None:
        by_node = tuple(self.table.seats[rank].claim.nproc for rank in ranks)
        if not self._batch_size:
            try:
                self._batch_size = self.job.settle(by_node)
            except UserError as error:
                self.end(refused(error), now)
                return
        self._tell_roster(now)
        even = self.job.even and self.round == 0
        self.round += 1
        self.phase, self._lost, self._paused, self.table.departed = "running", [], False, {}
        for rank, seat in self.table.seats.items():
            seat.in_round, seat.report = rank in ranks, None
        members = tuple(zip(ranks, by_node, strict=True))
        start = Round(number=self.round, members=members, batch_size=self._batch_size, even=even)
        self.table.tell(ranks, start)

    def _on_round(self, seat: Seat, message: StoreOpen | Trouble | Report, now: float) -> None:
        if isinstance(message, StoreOpen):
            if seat.claim.rank == 0:
                self.table.tell(self.table.in_round(), Store(round=message.round, port=message.port))
        elif isinstance(message, Trouble):
            self._stop(message.kind, f"machine {seat.label} {_TROUBLES[message.kind]}", now)
        else:
            self._on_report(seat, message, now)

    def _on_report(self, seat: Seat, report: Report, now: float) -> None:
        if seat.report is not None:
            return
        seat.report = report
        self._progress.heard = True
        self._progress.finished_a_step |= report.finished_a_step
        if seat.claim.rank == 0 and report.kind == "done":
            # Rank 0 leaves last: what the others do from now on changes nothing.
            self._completed, self.phase, self._deadline = True, "stopping", now + FAREWELL_S
        elif report.kind in ("saved", "stopped"):
            # A save that was asked for on one machine ends the workers of all by itself, as a rule.
            self._stop("save", f"the workers of machine {seat.label} were told to stop", now)
        elif report.kind != "done":
            self._stop("failed", f"the workers of machine {seat.label} have ended", now)
        self._maybe_judge(now)

    def _stop(self, kind: StopKind, reason: str, now: float) -> None:
        if self.phase != "running":
            return
        self.phase = "stopping"
        self._deadline = now + (self.terms.save_s if kind in ("join", "save") else self.terms.stop_s)
        if kind not in ("failed", "save"):  # told with its cause, once that is known
            self.table.say(reason)
        self.table.tell(self.table.in_round(), Stop(round=self.round, kind=kind, reason=clipped(reason)))

    def _maybe_judge(self, now: float) -> None:
        if self.phase != "stopping":
            return
        waiting = [rank for rank in self.table.in_round() if self.table.seats[rank].report is None]
        if waiting and now <= self._deadline:
            return
        for rank in [] if self._completed else waiting:  # who is late then hears the end all the same
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
            leaving = self.table.seats.pop(rank, None)
            if leaving is not None:
                self.table.dismiss(leaving.connection, End(outcome=outcome))
        self.phase = "gathering"
        self._deadline = now + self.terms.rejoin_timeout_s
        self._patience, self._roster_is_old = Patience(), True
        self._maybe_start(now)


_TROUBLES = {"failed": "reports a failed worker", "stalled": "reports that nothing moves"}
