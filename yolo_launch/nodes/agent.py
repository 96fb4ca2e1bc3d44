"""One machine's part in a job of several: round after round as the lobby says, until there is an Outcome."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from trainer.errors import EXIT_USAGE, UserError
from yolo_launch.cli import report
from yolo_launch.diagnosis.heartbeat_monitor import read_heartbeat
from yolo_launch.diagnosis.restart_policy import stopped_by
from yolo_launch.errors import ExitCode
from yolo_launch.nodes.identity import quiet_variables
from yolo_launch.nodes.status_line import NodeLine
from yolo_launch.rendezvous.client import MasterGone, Member, refusal_error
from yolo_launch.rendezvous.messages import (
    Beat,
    Cannot,
    End,
    Leave,
    Note,
    Report,
    Roster,
    Round,
    Stop,
    Store,
    StoreOpen,
    Trouble,
    clipped,
)
from yolo_launch.spec import Meeting, Outcome, RankFailure
from yolo_launch.supervision.attempt import Attempt, AttemptRunner
from yolo_launch.supervision.monitor import Watcher
from yolo_launch.workers.signals import signal_name
from yolo_launch.workers.torch_preload import WARM_S, WarmTorch

POLL_S = 0.1
LINGER_S = 1.0
"""What workers get to end once another machine has failed."""
FAREWELL_S, HASTY_FAREWELL_S = 25.0, 2.0
"""How long a machine that was signalled waits for the job's end, once it has said so and otherwise. Slurm kills 30 s
after its signal, and the others may be writing a checkpoint."""
STORE_S = WARM_S + 60.0
"""How long the master may take to load torch and open the round's store; one that is gone is noticed before."""

MakeRunner = Callable[[Round], AttemptRunner]
Reconnect = Callable[[str], Member | None]
"""Takes the reason of the loss; a new seat at the same lobby, or None where the master is gone."""


@dataclass
class NodeJob:
    """Everything that one machine keeps for the length of a job."""

    rank: int
    address: str
    """The master's, as this machine reaches it."""
    member: Member
    make_runner: MakeRunner
    reconnect: Reconnect
    line: NodeLine
    warm: WarmTorch

    def __post_init__(self) -> None:
        self._round = 0
        self._last_report: Report | None = None
        self._runner: AttemptRunner | None = None
        self._store: Any = None
        self._watcher: Watcher | None = None

    def run(self, watcher: Watcher) -> Outcome:
        """Follow the lobby to the job's end. Call it in the main thread."""
        self._watcher = watcher
        watcher.on_trouble = lambda kind: self.member.send(Trouble(round=self._round, kind=kind))
        self._listen(self.member)
        try:
            while True:
                outcome = self._step(watcher)
                if outcome is not None:
                    return outcome
        finally:
            self._store = None
            self.warm.close()
            self.line.close()

    def _listen(self, member: Member) -> None:
        member.beat, member.on_stop = self._beat, self._on_stop

    def _step(self, watcher: Watcher) -> Outcome | None:
        message = self.member.next(POLL_S)
        if isinstance(message, Round):
            self._play(message, watcher)  # after a signal too: the lobby waits for a report
        elif isinstance(message, End):
            return message.outcome
        elif watcher.stop_signal is not None:
            return self._leave(watcher.stop_signal)
        elif isinstance(message, Cannot):
            raise refusal_error(message)
        elif isinstance(message, Note):
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

    def _play(self, start: Round, watcher: Watcher) -> None:
        watcher.begin_round()
        self._round = start.number
        # What the member's thread heard before this was for a round that it did not know.
        if self.member.stop is not None:
            self._on_stop(self.member.stop)
        if self.member.gone:
            watcher.end_round(0.0)
        try:
            runner = self._runner = self.make_runner(start)
        except UserError as error:
            refuse_part(self.member, error)
            raise
        runner.elsewhere_idle_s = lambda: self.member.idle_s()
        self.line.round(runner.plan, runner.files)
        self._store = None
        self.warm.wait(lambda: watcher.stopping or watcher.round_ended)
        meeting = self._meet(start, watcher)
        if meeting is None:
            number = int(watcher.stop_signal) if watcher.stop_signal is not None else None
            last = Report(round=start.number, kind="ended" if number is None else "stopped", signal=number)
        else:
            last = self._report(runner.run(watcher, start.number - 1, meeting), watcher, runner)
        self._last_report = last
        self.member.send(last)
        self.line.waiting()

    def _meet(self, start: Round, watcher: Watcher) -> Meeting | None:
        """Where this round's workers meet; None where the round is over before they could."""
        if self.rank == 0:
            os.environ.update(quiet_variables(os.environ))
            from yolo_launch.workers import elastic_agent as elastic  # imports torch

            self._store, port = elastic.serve_store()
            self.member.send(StoreOpen(round=start.number, port=port))
            return Meeting(self.address, port, is_served=True)
        deadline = time.monotonic() + STORE_S
        while time.monotonic() < deadline and not watcher.stopping and not watcher.round_ended:
            message = self.member.next(POLL_S)
            if isinstance(message, Store) and message.round == start.number:
                return Meeting(self.address, message.port, is_served=True)
            if isinstance(message, (End, MasterGone, Cannot)):
                self.member.inbox.put(message)
                return None
            if isinstance(message, Note):
                self.line.over(message.text)
        return None

    def _on_stop(self, message: Stop | MasterGone) -> None:
        """In the member's thread, while the main thread may be inside C++."""
        watcher = self._watcher
        if watcher is None:
            return
        if isinstance(message, MasterGone):
            watcher.end_round(0.0)
        elif message.round != self._round:
            return
        elif message.kind == "stalled":
            watcher.look_around()
        elif message.kind == "save":
            watcher.end_round(watcher.limits.save_s)
        elif message.kind == "join":
            watcher.end_round(watcher.limits.save_s, tell=signal.SIGUSR1)
        else:
            watcher.end_round(LINGER_S if message.kind == "failed" else 0.0)

    def _report(self, attempt: Attempt, watcher: Watcher, runner: AttemptRunner) -> Report:
        heard = attempt.stall_watch
        facts: dict[str, Any] = {
            "round": self._round,
            "finished_a_step": heard.finished_a_step,
            "ran_s": attempt.ran_s,
            "saved": attempt.saved,
        }
        if watcher.stall:
            return Report(kind="stalled", stalled=tuple(watcher.stall), **facts)
        if watcher.stop_signal is not None and not attempt.all_done:
            return Report(kind="stopped", signal=int(watcher.stop_signal), **facts)
        if attempt.failures:
            key, failure = min(attempt.failures, key=lambda pair: pair[0])
            # Workers that were ended because of another machine are no failure of this one.
            kind = "ended" if watcher.round_ended and key[0] else "failed"
            return Report(kind=kind, failure=self._told(failure, runner), key=key, **facts)
        if attempt.saved:
            return Report(kind="saved", **facts)
        if attempt.agent_error is not None:
            error = runner.agent_failed(attempt)
            failure = RankFailure(runner.plan.first_rank, 0, int(error.exit_code), f"{error.what}: {error.seen}")
            return Report(kind="failed", failure=self._told(failure, runner), key=(0, 0, 0, time.time(), 0), **facts)
        return Report(kind="done" if attempt.all_done else "ended", **facts)

    def _told(self, failure: RankFailure, runner: AttemptRunner) -> RankFailure:
        """A failure with what only this machine knows: the device, the hint, its own name."""
        failure = runner.with_hint(failure)
        return replace(
            failure,
            message=clipped(failure.message),
            traceback=clipped(failure.traceback),
            device=failure.device or report.device_text(runner.plan, failure.local_rank),
            host=socket.gethostname(),
        )

    def _beat(self) -> Beat:
        """Where this machine's first rank is, from its heartbeat file."""
        if self._runner is None:
            return Beat()
        beat = read_heartbeat(self._runner.files, self._runner.plan.first_rank)
        self.line.beat(beat)
        return Beat(phase=beat.phase[:100], epoch=beat.epoch, step=beat.step) if beat is not None else Beat()


def refuse_part(member: Member, error: UserError) -> None:
    """Tell the lobby that this machine cannot do the job; the error itself is the caller's to raise."""
    exit_code = int(getattr(error, "exit_code", EXIT_USAGE))
    parts = {name: clipped(value) for name, value in error.to_dict().items() if name != "kind"}
    member.send(Cannot(**parts, exit_code=exit_code))
    time.sleep(0.2)  # the connection closes after this; let the word go first
