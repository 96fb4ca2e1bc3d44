"""Checks one machine's part in a job against a simulated rendezvous: rounds that end early, signals, a lost master."""

from __future__ import annotations

import io
import queue
import signal
from types import SimpleNamespace

import pytest

from yolo_launch.diagnosis.outcome import NodeReport
from yolo_launch.errors import LaunchError
from yolo_launch.nodes import agent as node_agent
from yolo_launch.nodes.agent import NodeAgent, refuse_job
from yolo_launch.nodes.events import LINGER_S, NodeEvents
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.rendezvous.client import MasterGone
from yolo_launch.rendezvous.messages import (
    End,
    FailureNotice,
    JoinRefused,
    Leave,
    LogLine,
    Report,
    Roster,
    Round,
    Stop,
    Store,
)
from yolo_launch.spec import Outcome, RankFailure
from yolo_launch.supervision.attempt import AttemptRunner

ROUND = Round(number=1, members=((0, 1), (1, 1)), batch_size=8, even=True)
DONE = End(outcome=Outcome("done", 0))


class FakeClient:
    """Returns what was put into its inbox; keeps what was sent."""

    def __init__(self, *messages) -> None:
        self.inbox: queue.Queue = queue.Queue()
        self.stop = None
        self.gone = ""
        self.said: list = []
        for message in messages:
            self.inbox.put(message)

    def next(self, timeout_s):
        return self.inbox.get_nowait() if not self.inbox.empty() else None

    def send(self, message) -> None:
        self.said.append(message)


class FakeMonitor:
    """Holds only what a job reads from it."""

    def __init__(self) -> None:
        self.limits = SimpleNamespace(save_s=30.0)
        self.stop_signal = None
        self.stall = None
        self.round_ended = False
        self.calls: list[tuple] = []

    @property
    def stopping(self) -> bool:
        return self.stop_signal is not None

    def begin_round(self) -> None:
        self.round_ended = False

    def end_round(self, grace_s, *, send=None) -> None:
        self.round_ended = True
        self.calls.append((grace_s, send))

    def ask_where_workers_are(self) -> None:
        self.calls.append(("look",))


class FakeRunner:
    """Ends its workers at once, as a test specifies."""

    def __init__(self, **ends) -> None:
        self.plan = SimpleNamespace(first_rank=1, ranks=range(1, 2), world_size=2, global_batch_size=8)
        self.files = None
        self.ran: list[tuple] = []
        self.before = lambda: None
        facts = {"saved": False, "all_done": True, "failures": [], "agent_error": None, "ran_s": 3.0, "failure": None}
        self.attempt = SimpleNamespace(
            hang_detector=SimpleNamespace(finished_a_step=True, heard=True), **{**facts, **ends}
        )

    def run(self, monitor, number, meeting):
        self.ran.append((number, meeting.address, meeting.port))
        self.before()
        return self.attempt

    def report(self, attempt, monitor):
        return AttemptRunner.report(self, attempt, monitor)

    def _failure_report(self, *args, **more):
        return AttemptRunner._failure_report(self, *args, **more)

    def with_hint(self, failure):
        return failure


class FakeSession:
    """Holds the rank; a lost connection is replaced by what ``reconnect`` returns, if anything."""

    def __init__(self, events, reconnect) -> None:
        self.endpoint = SimpleNamespace(address="10.0.0.1")
        self._events = events
        self._reconnect = reconnect

    @property
    def client(self):
        return self._events.client

    def reconnect(self, reason) -> bool:
        found = self._reconnect(reason) if self._reconnect else None
        self._events.client = found or self._events.client
        return found is not None


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(node_agent, "STORE_S", 0.5)
    monkeypatch.setattr(node_agent, "END_REPORTED_S", 0.3)
    monkeypatch.setattr(node_agent, "END_UNREPORTED_S", 0.1)
    monkeypatch.setattr(node_agent, "device_text", lambda plan, local_rank: "a CPU")
    monkeypatch.setattr(
        node_agent, "TorchPreload", lambda: SimpleNamespace(wait=lambda should_stop: None, close=lambda: None)
    )


def play(*messages, runner=None, reconnect=None, monitor=None):
    """Makes a job of machine 1 that receives these messages; returns it with the fakes around it."""
    member, monitor, runner = FakeClient(*messages), monitor or FakeMonitor(), runner or FakeRunner()
    shown = io.StringIO()
    events = NodeEvents(StatusLine(shown))
    monitor.events, events.client = events, member
    context = SimpleNamespace(
        identity=SimpleNamespace(rank=1), status_line=events.status_line, runner=lambda work, start: runner
    )
    job = NodeAgent(context, SimpleNamespace(foreign=False), FakeSession(events, reconnect), events)
    return SimpleNamespace(job=job, member=member, monitor=monitor, runner=runner, shown=shown, events=events)


def reports(it) -> list[NodeReport]:
    """Returns what was reported of each round."""
    return [message.report for message in it.member.said if isinstance(message, Report)]


def test_a_round_is_played_where_the_rendezvous_says_and_reported():
    it = play(Roster(text="2/2 machines"), LogLine(text="hello"), ROUND, Store(round=1, port=4711), DONE)
    assert it.job.follow(it.monitor) == Outcome("done", 0)
    assert it.runner.ran == [(0, "10.0.0.1", 4711)]
    (message,) = [message for message in it.member.said if isinstance(message, Report)]
    report = message.report
    assert (message.round, report.kind, report.ran_s, report.finished_a_step) == (1, "done", 3.0, True)
    assert "hello\n" in it.shown.getvalue()


def test_the_store_of_another_round_is_not_this_ones():
    it = play(ROUND, Store(round=0, port=4711), LogLine(text="n"), Store(round=1, port=4712), DONE)
    it.job.follow(it.monitor)
    assert it.runner.ran == [(0, "10.0.0.1", 4712)]


def test_a_stop_that_was_heard_before_the_round_was_known_ends_it():
    it = play(ROUND, Store(round=1, port=4711), DONE)
    it.member.stop = Stop(round=1, kind="lost")
    it.job.follow(it.monitor)
    assert it.monitor.calls == [(0.0, None)]
    assert it.runner.ran == []
    assert reports(it)[0].kind == "ended"


def test_a_stop_of_the_last_round_does_not_end_this_one():
    it = play(ROUND, Store(round=1, port=4711), DONE)
    it.member.stop = Stop(round=0, kind="lost")
    it.job.follow(it.monitor)
    assert it.runner.ran
    assert not it.monitor.calls


def test_a_round_of_a_master_that_is_gone_is_not_played():
    it = play(ROUND, Store(round=1, port=4711), MasterGone(reason="no word"))
    it.member.gone = "no word"
    outcome = it.job.follow(it.monitor)
    assert it.runner.ran == []
    assert (outcome.kind, outcome.exit_code, outcome.detail) == ("master_lost", 6, "no word")


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("failed", (LINGER_S, None)),
        ("lost", (0.0, None)),
        ("save", (30.0, None)),
        ("join", (30.0, signal.SIGUSR1)),
        ("stalled", ("look",)),
    ],
)
def test_a_stop_ends_the_workers_as_its_reason_asks(kind, call):
    it = play(ROUND, Store(round=1, port=4711), DONE)
    it.runner.before = lambda: it.events.on_stop(Stop(round=1, kind=kind))
    it.job.follow(it.monitor)
    assert it.monitor.calls == [call]


def test_the_end_while_waiting_for_the_store_is_the_end():
    it = play(ROUND, DONE)
    assert it.job.follow(it.monitor).kind == "done"
    assert it.runner.ran == []


def test_a_store_that_never_opens_ends_the_round():
    it = play(ROUND)
    it.member.send = lambda message: (it.member.said.append(message), it.member.inbox.put(DONE))
    it.job.follow(it.monitor)
    assert reports(it)[0].kind == "ended"


def test_a_signal_while_waiting_for_the_store_is_reported_as_one():
    it = play(ROUND)
    it.monitor.stop_signal = signal.SIGTERM
    it.member.send = lambda message: (it.member.said.append(message), it.member.inbox.put(DONE))
    assert it.job.follow(it.monitor).kind == "done"
    assert (reports(it)[0].kind, reports(it)[0].signal) == ("stopped", signal.SIGTERM)


def test_an_end_that_comes_with_a_signal_is_not_lost():
    it = play(End(outcome=Outcome("saved_and_stopped", 75)))
    it.monitor.stop_signal = signal.SIGTERM
    assert it.job.follow(it.monitor).exit_code == 75


def test_a_signal_in_a_round_is_reported_and_the_jobs_end_waited_for():
    it = play(ROUND, Store(round=1, port=4711), runner=FakeRunner(all_done=False, saved=True))

    def signaled():
        it.monitor.stop_signal = signal.SIGTERM

    it.runner.before = signaled
    ends = iter([None, None, None, End(outcome=Outcome("saved_and_stopped", 75, restarts=1))])
    inbox_next = it.member.next
    it.member.next = lambda timeout_s: inbox_next(0) or (next(ends, None) if reports(it) else None)
    assert it.job.follow(it.monitor).restarts == 1
    (report,) = reports(it)
    assert (report.kind, report.signal, report.saved) == ("stopped", signal.SIGTERM, True)
    assert not [message for message in it.member.said if isinstance(message, Leave)]


def test_a_signaled_machine_whose_rendezvous_says_nothing_leaves_with_what_it_knows():
    it = play(ROUND, Store(round=1, port=4711), runner=FakeRunner(all_done=False, saved=True))

    def signaled():
        it.monitor.stop_signal = signal.SIGTERM

    it.runner.before = signaled
    outcome = it.job.follow(it.monitor)
    assert (outcome.kind, outcome.exit_code) == ("saved_and_stopped", 75)
    assert it.member.said[-1] == Leave(reason="it left (SIGTERM)")


def test_a_signal_before_any_round_leaves_at_once():
    it = play()
    it.monitor.stop_signal = signal.SIGINT
    outcome = it.job.follow(it.monitor)
    assert (outcome.kind, outcome.exit_code) == ("interrupted", 130)
    assert it.member.said == [Leave(reason="it left (Ctrl-C)")]


def test_a_lost_master_that_answers_again_goes_on():
    second = FakeClient(DONE)
    it = play(MasterGone(reason="cut"), reconnect=lambda reason: second)
    assert it.job.follow(it.monitor).kind == "done"
    assert it.job._client is second
    assert second.said == []


def test_a_refusal_is_this_machines_error():
    it = play(JoinRefused(what="The data set differs.", seen="here", exit_code=2))
    with pytest.raises(LaunchError, match="data set differs") as caught:
        it.job.follow(it.monitor)
    assert caught.value.seen == "here"


@pytest.mark.parametrize(
    ("key", "ended", "kind"), [(0.0, True, "failed"), (1.0, True, "ended"), (1.0, False, "failed")]
)
def test_workers_that_were_ended_for_another_machine_are_no_failure_of_this_one(key, ended, kind):
    failure = RankFailure(1, 0, 1, message="x" * 50_000 + "ValueError", traceback="t" * 50_000)
    it = play(
        ROUND,
        Store(round=1, port=4711),
        DONE,
        runner=FakeRunner(all_done=False, failures=[((key, 0.0, 0.0, 5.0, 1.0), failure)]),
    )
    if ended:
        it.runner.before = lambda: it.events.on_stop(Stop(round=1, kind="failed"))
    it.job.follow(it.monitor)
    (report,) = reports(it)
    assert (report.kind, report.key[0], report.failure.device) == (kind, key, "a CPU")
    assert report.failure.message.endswith("ValueError")
    assert len(report.failure.message) <= 20_000


def test_trouble_is_told_before_the_workers_are_gone():
    it = play(ROUND, Store(round=1, port=4711), DONE)
    it.runner.before = lambda: it.monitor.events.on_failure("stalled")
    it.job.follow(it.monitor)
    assert it.member.said[0] == FailureNotice(round=1, kind="stalled")


def test_a_reason_not_to_take_part_is_told_in_four_parts(monkeypatch):
    monkeypatch.setattr(node_agent.time, "sleep", lambda seconds: None)
    member = FakeClient()
    refuse_job(member, LaunchError("no disk", seen="0 bytes", expected="some", next_command="df"))
    assert member.said == [JoinRefused(what="no disk", seen="0 bytes", expected="some", next_command="df", exit_code=2)]
