"""Checks that the rendezvous never waits for what cannot come, whatever machines do and in whatever order."""

from __future__ import annotations

import signal

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.yolo_launch.rendezvous.simulation import DATA, Stage, failed, job_facts, report
from yolo_launch.diagnosis.hangs import StalledRank
from yolo_launch.rendezvous.messages import FailureNotice, JoinRefused, Leave, Ready, Report, Round, StoreReady

SHORT = {
    "join_timeout_s": 20.0,
    "rejoin_timeout_s": 15.0,
    "join_grace_s": 3.0,
    "silent_s": 3.0,
    "stop_s": 5.0,
    "save_s": 8.0,
}
ALL_DEADLINES_S = 120
MACHINES = 3
STALLED = (StalledRank(0, 300.0, None, ()),)

ranks = st.integers(0, MACHINES - 1)
reports = st.sampled_from(["done", "failed", "ended", "saved", "stopped", "stalled", "twice", "late"])
event = st.one_of(
    st.tuples(st.just("join"), ranks, st.sampled_from(["same", "new", "checking", "other data"])),
    st.tuples(st.just("join"), ranks, st.just("same")),
    st.tuples(st.just("ready"), ranks),
    st.tuples(st.just("report"), ranks, reports),
    st.tuples(st.just("report"), ranks, reports),
    st.tuples(st.just("trouble"), ranks, st.sampled_from(["failed", "stalled"])),
    st.tuples(st.just("store"), ranks),
    st.tuples(st.sampled_from(["lose", "leave", "cannot", "hush", "wake"]), ranks),
    st.tuples(st.just("wait"), st.sampled_from([0.3, 1.0, 4.0, 9.0])),
    st.tuples(st.just("sleep"), st.sampled_from([1.0, 30.0])),
)


def play(stage: Stage, step: tuple) -> None:
    name, *rest = step
    if name == "wait":
        stage.wait(rest[0])
    elif name == "sleep":
        stage.sleep(rest[0])
    elif name == "join":
        rank, how = rest
        stage.silent.discard(rank)
        session = f"new-{stage.now}" if how == "new" and rank else f"session-{rank}"
        stage.join(rank, ready=False, session=session)
        if how != "checking":
            stage.say(rank, Ready(fingerprint="e" * 64 if how == "other data" else DATA))
    elif rest[0] in stage.connections:
        speak(stage, name, *rest)


def speak(stage: Stage, name: str, rank: int, how: str = "") -> None:
    number = stage.coordinator.round
    if name == "hush":
        stage.silent.add(rank)
    elif name == "wake":
        stage.silent.discard(rank)
    elif name == "lose":
        stage.lose(rank)
    elif name == "report":
        for report in report_of(how, number, rank):
            stage.say(rank, report)
    else:
        message = {
            "ready": Ready(fingerprint=DATA),
            "trouble": FailureNotice(round=number, kind=how or "failed"),
            "store": StoreReady(round=number, port=4711),
            "leave": Leave(reason="it left"),
            "cannot": JoinRefused(what="It cannot."),
        }[name]
        stage.say(rank, message)


def report_of(how: str, number: int, rank: int) -> list[Report]:
    if how == "failed":
        return [failed(number, rank)]
    if how == "twice":
        return [failed(number, rank), report(number, kind="done")]
    if how == "late":
        return [failed(max(0, number - 1), rank)]
    if how == "stopped":
        return [report(number, kind="stopped", signal=signal.SIGTERM, saved=True)]
    if how == "stalled":
        return [report(number, kind="stalled", stalled=STALLED)]
    return [report(number, kind=how, finished_a_step=True)]


def check(stage: Stage) -> None:
    coordinator = stage.coordinator
    participants = coordinator.participants.by_rank
    assert all(rank == participant.join_request.rank < MACHINES for rank, participant in participants.items())
    assert len({participant.connection for participant in participants.values()}) == len(participants)
    assert not {participant.connection for participant in participants.values()} & stage.closed, (
        "a rank whose connection was closed"
    )
    assert coordinator._progress.restarts <= coordinator.settings.max_restarts
    assert (coordinator.outcome is not None) == (coordinator.phase == "ended")
    if coordinator.phase == "running":
        assert 0 in coordinator.participants.in_round(), "a round without its master"
    for words in stage.heard.values():
        numbers = [message.number for message in words if isinstance(message, Round)]
        assert numbers == sorted(set(numbers)), "a round begun twice"


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(event, min_size=1, max_size=30),
    fewest=st.integers(1, MACHINES),
    max_restarts=st.integers(0, 2),
    starts_full=st.booleans(),
    all_go_silent=st.booleans(),
)
def test_no_order_of_events_leaves_a_rendezvous_waiting_for_ever(
    steps, fewest, max_restarts, starts_full, all_go_silent
):
    job = job_facts(settle=lambda by_node: 64)
    stage = Stage(MACHINES, fewest, job=job, max_restarts=max_restarts, **SHORT)
    if starts_full:
        for rank in range(MACHINES):
            stage.join(rank)
    for step in steps:
        play(stage, step)
        check(stage)
    if all_go_silent:
        stage.silent = set(range(MACHINES))
    stage.wait(ALL_DEADLINES_S, step_s=1.0)
    check(stage)
    assert stage.phase == "ended" or (stage.phase == "running" and not all_go_silent)
    if stage.phase == "ended":
        stage.wait(12, step_s=1.0)
        assert stage.coordinator.is_over
