"""Decides which nodes take part, when a round starts, why it stops and what follows. Its time is passed in.

Events come in (``on_...``, ``tick``); messages to send collect in ``participants``.

    gathering -> running -> stopping -> gathering ... -> ended
"""

from __future__ import annotations

from typing import Literal

from trainer.errors import UserError
from yolo_launch.diagnosis.outcome import NodeReport, RoundDecision, decide_outcome, refused_outcome
from yolo_launch.diagnosis.restart_policy import Progress
from yolo_launch.errors import ExitCode
from yolo_launch.rendezvous.admission import JobOffer, RendezvousSettings, other_data, refusal_of
from yolo_launch.rendezvous.announcements import Announcements, missing_text
from yolo_launch.rendezvous.membership import LastCall, Participant, Participants
from yolo_launch.rendezvous.messages import (
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
    Round,
    Seen,
    Stop,
    StopKind,
    Store,
    StoreReady,
    clipped,
)
from yolo_launch.spec import Outcome

SUSPENDED_S = 2.0
"""A gap of so much between two ticks was this process's own: no node was silent for it."""
END_S = 10.0
"""How long the nodes may take to leave once the job has ended."""


class Coordinator:
    """Holds one job's rendezvous."""

    def __init__(self, settings: RendezvousSettings, job: JobOffer, now: float) -> None:
        self.settings = settings
        self.job = job
        self.participants = Participants()
        self.phase: Literal["gathering", "running", "stopping", "ended"] = "gathering"
        self.round = 0
        self.outcome: Outcome | None = None
        self._deadline = now + settings.join_timeout_s
        self._last_call = LastCall()
        self._announcements = Announcements(self.participants, settings, now)
        self._lost: list[tuple[JoinRequest, str]] = []
        self._paused = self._completed = False
        self._batch_size, self._progress = 0, Progress()
        self._last_tick = now

    def on_join_request(self, connection: int, join_request: JoinRequest, now: float, wall: float) -> None:
        """Accepts or refuses a node that requests a rank. ``wall`` is the master's clock."""
        self._discount_suspension(now)
        participant = self.participants.by_rank.get(join_request.rank)
        holder = participant.join_request if participant else None
        if join_request.rank == self.job.own.rank:
            holder = self.job.own
        refusal = refusal_of(join_request, self.job.own, self.settings, holder)
        if self.phase == "ended":
            refusal = JoinRefused(what=f"The job on {self.job.own.host} is over.", exit_code=int(ExitCode.NOT_JOINED))
        if refusal is not None:
            self.participants.dismiss(connection, refusal)
            self.participants.said.append(f"refused {join_request.label}: {refusal.what}")
            return
        if participant is not None:
            # The same launcher came back before its old connection was seen to end.
            self.participants.closing.append(participant.connection)
            self.on_gone(participant.connection, "it came back over a new connection", now)
        ahead_s = join_request.clock - wall
        self.participants.add(Participant(join_request, connection, heard_at=now, clock_ahead_s=ahead_s))
        self.participants.outbox.append((connection, JoinAccepted(job=self.job.description)))
        # The others see it in the roster: a line each would be a message of everybody to everybody.
        self.participants.said.append(f"machine {join_request.label} joined")
        self._announcements.note_change()

    def on_message(self, connection: int, message: Message, now: float) -> None:
        """Handles a message of a node whose rank was accepted."""
        self._discount_suspension(now)
        participant = self.participants.participant_of(connection)
        if participant is None:
            return
        participant.heard_at = now
        if isinstance(message, NodeHeartbeat):
            if message != participant.beat:
                participant.beat = message
                self._announcements.note_progress(now)
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
        """Handles the end of a connection."""
        self._discount_suspension(now)
        participant = self.participants.participant_of(connection)
        if participant is None:
            return
        self.participants.remove(participant.join_request.rank)
        self._announcements.note_change()
        if self._is_about_this_round(participant, self.round) and participant.report is None and not self._completed:
            self._lost.append((participant.join_request, reason))
            text = f"machine {participant.label} is lost: {reason}"
            self.participants.say(text) if self.phase == "stopping" else self._stop("lost", text, now)
        elif self.phase != "ended":
            # A machine that had reported is no loss of this round; the next one waits for it.
            if participant.in_round and participant.end is not None:
                self.participants.departed[participant.join_request.rank] = participant.end
            self.participants.say(f"machine {participant.label} is gone: {reason}")
        self._maybe_decide(now)

    def _is_about_this_round(self, participant: Participant, number: int) -> bool:
        return self.phase in ("running", "stopping") and participant.in_round and number == self.round

    def tick(self, now: float) -> None:
        """Sends heartbeats, and handles silent nodes and deadlines."""
        self._discount_suspension(now)
        self._last_tick = now
        self._announcements.send_heartbeat(now)
        if self.phase == "ended":
            return
        for participant in self.participants.silent(self.settings.silent_s, now):
            self.participants.give_up(participant, self.settings.silent_s)
            self.on_gone(participant.connection, f"no word from it for {self.settings.silent_s:g} s", now)
        self._maybe_decide(now)
        self._maybe_start(now)
        if self.phase == "gathering":
            self._announcements.send_changed_roster(now, self._deadline)

    def _discount_suspension(self, now: float) -> None:
        """Leaves out the time in which this process was suspended, before anything is decided by the clock."""
        suspended_s = now - self._last_tick
        if suspended_s > SUSPENDED_S:
            self.participants.discount_silence(suspended_s, now)
            self._deadline += suspended_s
            self._last_tick = now

    def end(self, outcome: Outcome, now: float) -> None:
        """Ends the job for every machine."""
        if self.phase == "ended":
            return
        self.phase, self.outcome = "ended", outcome
        self._deadline = now + END_S
        self.participants.send_all(End(outcome=outcome))

    @property
    def is_over(self) -> bool:
        """Returns whether the job has ended, and the other nodes have left or had their time to."""
        return self.phase == "ended" and (set(self.participants.by_rank) <= {0} or self._last_tick > self._deadline)

    def _on_ready(self, participant: Participant, message: Ready, now: float) -> None:
        if participant.ready:
            return
        if message.fingerprint != self.job.fingerprint:
            self._dismiss(participant, other_data(participant.join_request, message.fingerprint, self.job), now)
            return
        participant.ready = True
        self._announcements.note_change()
        if self.phase == "running":
            self._paused = True
            self._stop("join", f"machine {participant.label} comes in: the others save and go on with it", now)
        self._maybe_start(now)

    def _dismiss(self, participant: Participant, why: JoinRefused, now: float) -> None:
        """Dismisses a machine that cannot do the job, with its reason on both sides."""
        self.participants.dismiss(participant.connection, why)
        if participant.in_round:
            self.on_gone(participant.connection, why.what[:300], now)
            return
        self.participants.remove(participant.join_request.rank)
        reason = f"{why.what} ({why.seen})" if why.seen else why.what
        self.participants.say(f"machine {participant.label} cannot take part: {reason}")
        self._announcements.note_change()

    def _maybe_start(self, now: float) -> None:
        if self.phase != "gathering" or now < self.participants.may_start_at:
            return
        participants, settings, is_late = self.participants.by_rank, self.settings, now > self._deadline
        ready = self._last_call.who_may_start(participants, settings, now, is_late=is_late, is_first=self.round == 0)
        if ready:
            self._start(ready, now)
        elif is_late:
            detail = missing_text(participants, settings, first_round=self.round == 0)
            outcome = Outcome("not_joined", ExitCode.NOT_JOINED, restarts=self._progress.restarts, detail=detail)
            self.end(outcome, now)

    def _start(self, ranks: list[int], now: float) -> None:
        by_node = tuple(self.participants.by_rank[rank].join_request.nproc for rank in ranks)
        if not self._batch_size:
            try:
                self._batch_size = self.job.settle(by_node)
            except UserError as error:
                self.end(refused_outcome(error), now)
                return
        self._announcements.send_roster(now, self._deadline)
        even = self.job.even and self.round == 0
        self.round += 1
        self.phase, self._lost, self._paused, self.participants.departed = "running", [], False, {}
        for rank, participant in self.participants.by_rank.items():
            participant.in_round, participant.report = rank in ranks, None
        members = tuple(zip(ranks, by_node, strict=True))
        start = Round(number=self.round, members=members, batch_size=self._batch_size, even=even)
        self.participants.send(ranks, start)

    def _on_round(self, participant: Participant, message: StoreReady | FailureNotice | Report, now: float) -> None:
        if isinstance(message, StoreReady):
            if participant.join_request.rank == 0:
                self.participants.send(self.participants.in_round(), Store(round=message.round, port=message.port))
        elif isinstance(message, FailureNotice):
            self._stop(message.kind, f"machine {participant.label} {_FAILURE_TEXTS[message.kind]}", now)
        else:
            self._on_report(participant, message.report, now)

    def _on_report(self, participant: Participant, report: NodeReport, now: float) -> None:
        if participant.report is not None:
            return
        participant.report = report
        if participant.join_request.rank == 0 and report.kind == "done":
            # Rank 0 leaves last: what the others do from now on changes nothing.
            self._completed, self.phase, self._deadline = True, "stopping", now + END_S
        elif report.kind in ("saved", "stopped"):
            # A save that was asked for on one machine ends the workers of all by itself, as a rule.
            self._stop("save", f"the workers of machine {participant.label} were told to stop", now)
        elif report.kind != "done":
            self._stop("failed", f"the workers of machine {participant.label} have ended", now)
        self._maybe_decide(now)

    def _stop(self, kind: StopKind, reason: str, now: float) -> None:
        if self.phase != "running":
            return
        self.phase = "stopping"
        self._deadline = now + (self.settings.save_s if kind in ("join", "save") else self.settings.stop_s)
        if kind not in ("failed", "save"):  # shown with its cause, once that is known
            self.participants.say(reason)
        self.participants.send(self.participants.in_round(), Stop(round=self.round, kind=kind, reason=clipped(reason)))

    def _maybe_decide(self, now: float) -> None:
        if self.phase != "stopping":
            return
        waiting = [rank for rank in self.participants.in_round() if self.participants.by_rank[rank].report is None]
        if waiting and now <= self._deadline:
            return
        for rank in [] if self._completed else waiting:  # a late node receives the end all the same
            participant = self.participants.by_rank[rank]
            self.participants.remove(rank)
            self.participants.closing.append(participant.connection)
            self._lost.append((participant.join_request, "it did not say how the round ended"))
        decision = decide_outcome(
            self.participants.ends(),
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
            self.participants.say(decision.note)
        if decision.outcome is not None:
            self.end(decision.outcome, now)
            return
        for participant in self.participants.by_rank.values():
            participant.in_round, participant.report = False, None
        for rank, outcome in decision.leaving.items():
            leaving = self.participants.remove(rank)
            if leaving is not None:
                self.participants.dismiss(leaving.connection, End(outcome=outcome))
        self.phase = "gathering"
        self._deadline = now + self.settings.rejoin_timeout_s
        self._last_call = LastCall()
        self._announcements.note_change()
        self._maybe_start(now)


_FAILURE_TEXTS = {"failed": "reports a failed worker", "stalled": "reports that nothing moves"}
