"""The rendezvous's mind: who is there, when a round starts, why it stops, what comes next. Pure but for the time given.

Events come in (``on_...``, ``tick``); what is to be said collects at the table.

    gathering -> running -> stopping -> gathering ... -> ended
"""

from __future__ import annotations

from typing import Literal

from trainer.errors import UserError
from yolo_launch.diagnosis.outcome import NodeReport, RoundDecision, decide_outcome, refused_outcome
from yolo_launch.diagnosis.restart_policy import Progress
from yolo_launch.errors import ExitCode
from yolo_launch.rendezvous.admission import JobOffer, RendezvousSettings, other_data, refusal_of
from yolo_launch.rendezvous.membership import LastCall, Participant, Participants, missing_text, roster_text
from yolo_launch.rendezvous.messages import (
    CoordinatorHeartbeat,
    End,
    FailureNotice,
    JoinAccepted,
    JoinRefused,
    JoinRequest,
    Leave,
    Message,
    NodeHeartbeat,
    Ready,
    Report,
    Roster,
    Round,
    Seen,
    Stop,
    StopKind,
    Store,
    StoreReady,
    clipped,
)
from yolo_launch.spec import Outcome

PULSE_S = 1.0
ASLEEP_S = 2.0
"""A gap of so much between two ticks was this process's own: nobody else is to blame for the silence."""
FAREWELL_S = 10.0
ROSTER_S = 0.2
"""The roster is told at most so often: each telling is a message for every machine."""


class Coordinator:
    """One job's rendezvous."""

    def __init__(self, settings: RendezvousSettings, job: JobOffer, now: float) -> None:
        self.settings = settings
        self.job = job
        self.table = Participants()
        self.phase: Literal["gathering", "running", "stopping", "ended"] = "gathering"
        self.round = 0
        self.outcome: Outcome | None = None
        self._deadline = now + settings.join_timeout_s
        self._patience = LastCall()
        self._lost: list[tuple[JoinRequest, str]] = []
        self._paused = self._completed = False
        self._batch_size, self._progress = 0, Progress()
        self._last_tick = self._last_pulse = self._moved_at = now
        self._roster_is_old, self._last_roster = False, now - ROSTER_S

    def on_join_request(self, connection: int, join_request: JoinRequest, now: float, wall: float) -> None:
        """A machine asks for a rank. ``wall`` is the master's clock."""
        self._wake(now)
        participant = self.table.participants.get(join_request.rank)
        holder = (
            self.job.own
            if join_request.rank == self.job.own.rank
            else participant.join_request
            if participant
            else None
        )
        refusal = refusal_of(join_request, self.job.own, self.settings, holder)
        if self.phase == "ended":
            refusal = JoinRefused(what=f"The job on {self.job.own.host} is over.", exit_code=int(ExitCode.NOT_JOINED))
        if refusal is not None:
            self.table.dismiss(connection, refusal)
            self.table.said.append(f"refused {join_request.label}: {refusal.what}")
            return
        if participant is not None:
            # The same launcher came back before its old connection was seen to end.
            self.table.closing.append(participant.connection)
            self.on_gone(participant.connection, "it came back over a new connection", now)
        self.table.participants[join_request.rank] = Participant(
            join_request, connection, heard_at=now, clock_ahead_s=join_request.clock - wall
        )
        self.table.outbox.append((connection, JoinAccepted(job=self.job.description)))
        # The others see it in the roster: a line each would be a message of everybody to everybody.
        self.table.said.append(f"machine {join_request.label} joined")
        self._roster_is_old = True

    def on_message(self, connection: int, message: Message, now: float) -> None:
        """A seated machine says something."""
        self._wake(now)
        participant = self.table.participant_of(connection)
        if participant is None:
            return
        participant.heard_at = now
        if isinstance(message, NodeHeartbeat):
            if message != participant.beat:
                participant.beat, self._moved_at = message, now
        elif isinstance(message, Seen):
            participant.seen = message
        elif isinstance(message, Ready):
            self._on_ready(participant, message, now)
        elif isinstance(message, JoinRefused):
            self._dismiss(participant, message, now)
        elif isinstance(message, Leave):
            self.on_gone(connection, message.reason or "it left", now)
        elif isinstance(message, (StoreReady, FailureNotice, Report)) and self._is_about_this_round(
            participant, message.round
        ):
            self._on_round(participant, message, now)

    def on_gone(self, connection: int, reason: str, now: float) -> None:
        """A connection ended."""
        self._wake(now)
        participant = self.table.participant_of(connection)
        if participant is None:
            return
        del self.table.participants[participant.join_request.rank]
        self._roster_is_old = True
        if self._is_about_this_round(participant, self.round) and participant.report is None and not self._completed:
            self._lost.append((participant.join_request, reason))
            text = f"machine {participant.label} is lost: {reason}"
            self.table.say(text) if self.phase == "stopping" else self._stop("lost", text, now)
        elif self.phase != "ended":
            # A machine that had reported is no loss of this round; the next one waits for it.
            if participant.in_round and participant.end is not None:
                self.table.departed[participant.join_request.rank] = participant.end
            self.table.say(f"machine {participant.label} is gone: {reason}")
        self._maybe_judge(now)

    def _is_about_this_round(self, participant: Participant, number: int) -> bool:
        return self.phase in ("running", "stopping") and participant.in_round and number == self.round

    def tick(self, now: float) -> None:
        """Time has passed: pulses, silence, deadlines."""
        self._wake(now)
        self._last_tick = now
        if now - self._last_pulse >= PULSE_S:
            self._last_pulse = now
            self.table.send_all(CoordinatorHeartbeat(idle_s=now - self._moved_at))
        if self.phase == "ended":
            return
        for participant in list(self.table.participants.values()):
            if now - participant.heard_at > self.settings.silent_s:
                self.table.closing.append(participant.connection)
                self.on_gone(participant.connection, f"no word from it for {self.settings.silent_s:g} s", now)
        self._maybe_judge(now)
        self._maybe_start(now)
        if self._roster_is_old and self.phase == "gathering" and now - self._last_roster >= ROSTER_S:
            self._send_roster(now)

    def _send_roster(self, now: float) -> None:
        self._roster_is_old, self._last_roster = False, now
        left_s = max(0.0, self._deadline - now)
        self.table.send_all(Roster(text=roster_text(self.table.participants, self.settings), left_s=left_s))

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
        self.table.send_all(End(outcome=outcome))

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and nobody is left to tell, or they have had their time."""
        return self.phase == "ended" and (set(self.table.participants) <= {0} or self._last_tick > self._deadline)

    def _on_ready(self, participant: Participant, message: Ready, now: float) -> None:
        if participant.ready:
            return
        if message.fingerprint != self.job.fingerprint:
            self._dismiss(participant, other_data(participant.join_request, message.fingerprint, self.job), now)
            return
        participant.ready = self._roster_is_old = True
        if self.phase == "running":
            self._paused = True
            self._stop("join", f"machine {participant.label} comes in: the others save and go on with it", now)
        self._maybe_start(now)

    def _dismiss(self, participant: Participant, why: JoinRefused, now: float) -> None:
        """Let a machine go that cannot do the job, with its reason on both sides."""
        self.table.dismiss(participant.connection, why)
        if participant.in_round:
            self.on_gone(participant.connection, why.what[:300], now)
            return
        self.table.participants.pop(participant.join_request.rank)
        self.table.say(f"machine {participant.label} cannot take part: {why.what}" + f" ({why.seen})" * bool(why.seen))
        self._roster_is_old = True

    def _maybe_start(self, now: float) -> None:
        if self.phase != "gathering":
            return
        participants, settings, is_late = self.table.participants, self.settings, now > self._deadline
        ready = self._patience.who_may_start(participants, settings, now, is_late=is_late, is_first=self.round == 0)
        if ready:
            self._start(ready, now)
        elif is_late:
            detail, restarts = (
                missing_text(participants, settings, first_round=self.round == 0),
                self._progress.restarts,
            )
            self.end(Outcome("not_joined", ExitCode.NOT_JOINED, restarts=restarts, detail=detail), now)

    def _start(self, ranks: list[int], now: float) -> None:
        by_node = tuple(self.table.participants[rank].join_request.nproc for rank in ranks)
        if not self._batch_size:
            try:
                self._batch_size = self.job.settle(by_node)
            except UserError as error:
                self.end(refused_outcome(error), now)
                return
        self._send_roster(now)
        even = self.job.even and self.round == 0
        self.round += 1
        self.phase, self._lost, self._paused, self.table.departed = "running", [], False, {}
        for rank, participant in self.table.participants.items():
            participant.in_round, participant.report = rank in ranks, None
        members = tuple(zip(ranks, by_node, strict=True))
        start = Round(number=self.round, members=members, batch_size=self._batch_size, even=even)
        self.table.send(ranks, start)

    def _on_round(self, participant: Participant, message: StoreReady | FailureNotice | Report, now: float) -> None:
        if isinstance(message, StoreReady):
            if participant.join_request.rank == 0:
                self.table.send(self.table.in_round(), Store(round=message.round, port=message.port))
        elif isinstance(message, FailureNotice):
            self._stop(message.kind, f"machine {participant.label} {_TROUBLES[message.kind]}", now)
        else:
            self._on_report(participant, message.report, now)

    def _on_report(self, participant: Participant, report: NodeReport, now: float) -> None:
        if participant.report is not None:
            return
        participant.report = report
        if participant.join_request.rank == 0 and report.kind == "done":
            # Rank 0 leaves last: what the others do from now on changes nothing.
            self._completed, self.phase, self._deadline = True, "stopping", now + FAREWELL_S
        elif report.kind in ("saved", "stopped"):
            # A save that was asked for on one machine ends the workers of all by itself, as a rule.
            self._stop("save", f"the workers of machine {participant.label} were told to stop", now)
        elif report.kind != "done":
            self._stop("failed", f"the workers of machine {participant.label} have ended", now)
        self._maybe_judge(now)

    def _stop(self, kind: StopKind, reason: str, now: float) -> None:
        if self.phase != "running":
            return
        self.phase = "stopping"
        self._deadline = now + (self.settings.save_s if kind in ("join", "save") else self.settings.stop_s)
        if kind not in ("failed", "save"):  # told with its cause, once that is known
            self.table.say(reason)
        self.table.send(self.table.in_round(), Stop(round=self.round, kind=kind, reason=clipped(reason)))

    def _maybe_judge(self, now: float) -> None:
        if self.phase != "stopping":
            return
        waiting = [rank for rank in self.table.in_round() if self.table.participants[rank].report is None]
        if waiting and now <= self._deadline:
            return
        for rank in [] if self._completed else waiting:  # who is late then hears the end all the same
            participant = self.table.participants.pop(rank)
            self.table.closing.append(participant.connection)
            self._lost.append((participant.join_request, "it did not say how the round ended"))
        decision = decide_outcome(
            self.table.ends(),
            self._progress,
            self.settings,
            self.job.source_of_restart,
            lost=[(join_request.label, reason) for join_request, reason in self._lost],
            completed=self._completed,
            paused=self._paused,
        )
        self._progress = decision.progress
        self._act(decision, now)

    def _act(self, decision: RoundDecision, now: float) -> None:
        if decision.note:
            self.table.say(decision.note)
        if decision.outcome is not None:
            self.end(decision.outcome, now)
            return
        for participant in self.table.participants.values():
            participant.in_round, participant.report = False, None
        for rank, outcome in decision.leaving.items():
            leaving = self.table.participants.pop(rank, None)
            if leaving is not None:
                self.table.dismiss(leaving.connection, End(outcome=outcome))
        self.phase = "gathering"
        self._deadline = now + self.settings.rejoin_timeout_s
        self._patience, self._roster_is_old = LastCall(), True
        self._maybe_start(now)


_TROUBLES = {"failed": "reports a failed worker", "stalled": "reports that nothing moves"}
