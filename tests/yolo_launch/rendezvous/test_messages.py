"""Checks that every kind of message is parsed as it was sent, whatever it holds, and that nothing else is."""

from __future__ import annotations

import json

import pytest

from tests.yolo_launch.rendezvous.simulation import make_join_request, report
from trainer.protocol import Heartbeat
from yolo_launch.diagnosis.hangs import StalledRank
from yolo_launch.diagnosis.stacks import Frame
from yolo_launch.rendezvous import messages
from yolo_launch.rendezvous.framing import MAX_FRAME_BYTES, FramingError, text_of
from yolo_launch.rendezvous.messages import (
    MOST_TEXT,
    CoordinatorHeartbeat,
    End,
    FailureNotice,
    JoinAccepted,
    JoinRefused,
    JoinRequest,
    Leave,
    LogLine,
    NodeHeartbeat,
    Ready,
    Roster,
    Round,
    Seen,
    Stop,
    Store,
    StoreReady,
    clipped,
    parse,
)
from yolo_launch.spec import Finding, Outcome, RankFailure

FAILURE = RankFailure(
    3, 1, -9, "killed", "Traceback", {"what": "w"}, 2, 7, "train", "/logs/rank3.log", "gpu-b", "A100", 1e9, "hint"
)
STALLED = StalledRank(1, 300.5, Heartbeat(1, "train", 2, 3, 1e9, 4711), (Frame("loop.py", "12", "step"),), "stopped")
MESSAGES = [
    make_join_request(1, nodes="1:4", job_id="42", interface="eth0", clock=1e9),
    Ready(fingerprint="d" * 64),
    JoinRefused(what="w", seen="s", expected="e", next_command="n", exit_code=3),
    NodeHeartbeat(phase="train", epoch=1, step=2),
    Seen(findings=((1, Finding("machines", "failure", "a", "b")),)),
    Seen(findings=((1, Finding("all-reduce", "warning", "0.1 GB/s", "look at the cable")),)),
    StoreReady(round=1, port=4711),
    FailureNotice(round=1, kind="stalled"),
    report(1, kind="failed", failure=FAILURE, key=(0.0, 0.0, 1.0, 1e9, 3.0), ran_s=1.5, finished_a_step=True),
    report(1, kind="stalled", stalled=(STALLED, STALLED)),
    report(1, kind="stopped", signal=15, saved=True),
    Leave(reason="it left (Ctrl-C)"),
    JoinAccepted(job={"config": {"epochs": 3, "names": ["a"]}, "is_demo": False}),
    Roster(text="1/2 machines", left_s=3.5),
    Round(number=2, members=((0, 2), (3, 1)), batch_size=64, even=False),
    Store(round=1, port=65535),
    Stop(round=1, kind="save", reason="r"),
    LogLine(text="n"),
    End(outcome=Outcome("worker_failed", 1, failure=FAILURE, signal=15, restarts=2, detail="d")),
    CoordinatorHeartbeat(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message):
    assert message.pack()["type"] == type(message).__name__
    assert parse(json.loads(text_of(message.pack()))) == message


def test_every_kind_was_tried():
    kinds = {kind for kind in messages.Message.__subclasses__() if kind.__module__ == messages.__name__}
    assert {type(message) for message in MESSAGES} == kinds


LONG = "x" * (2 * MOST_TEXT) + "the end"
PATH = "/" + "/".join(["a" * 200] * 150)


@pytest.mark.parametrize(
    "message",
    [
        report(1, kind="failed", failure=RankFailure(0, 0, 1, LONG, LONG, {"what": LONG}, log_path=PATH, hint=LONG)),
        report(1, kind="stalled", stalled=(StalledRank(0, 1.0, None, (Frame(PATH, "1", LONG),) * 9, LONG),)),
        End(outcome=Outcome("worker_failed", 1, detail=LONG, failure=RankFailure(0, 0, 1, hint=LONG, device=LONG))),
    ],
    ids=["a report", "a stall", "an end"],
)
def test_no_text_is_so_long_that_a_machine_is_cut_off_for_it(message):
    text = text_of(message.pack())
    assert len(text) < MAX_FRAME_BYTES
    received = parse(json.loads(text))
    assert type(received) is type(message)
    assert "the end" in str(received)


def test_times_that_are_no_numbers_are_taken():
    message = report(1, kind="failed", failure=RankFailure(0, 0, 1), key=(0.0, 0.0, 0.0, float("inf"), 0.0))
    assert parse(json.loads(text_of(message.pack()))).report.key[3] == float("inf")


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"type": "Message"},
        {"type": "Outcome", "kind": "done"},
        {"type": ["JoinRequest"]},
        {"type": "JoinRequest"},
        {"type": "CoordinatorHeartbeat", "more": 1},
        {"type": "JoinRequest", "session": "s", "rank": -1, "host": "h", "nproc": 1},
        {"type": "JoinRequest", "session": "s", "rank": 1, "host": "h", "nproc": 0},
        {"type": "JoinRequest", "session": "s", "rank": 1, "host": "h" * 301, "nproc": 1},
        {"type": "JoinRequest", "session": "s", "rank": 1, "host": "\ud800", "nproc": 1},
        {"type": "JoinRequest", "session": "s", "rank": 1, "host": "h", "nproc": 1, "devices": ["d"] * 2000},
        {"type": "StoreReady", "round": 1, "port": 0},
        {"type": "Store", "round": 1, "port": 65536},
        {"type": "Round", "number": 1, "members": [[0, 1, 2]], "batch_size": 8, "even": True},
        {"type": "Report", "round": 1, "report": {"kind": "failed", "key": [0.0]}},
        {"type": "Report", "round": 1, "report": {"kind": "stopped", "signal": 99}},
        {"type": "Report", "round": 1, "report": {"kind": "failed", "failure": {"rank": 0, "evil": 1}}},
        {"type": "LogLine", "text": "x" * (MOST_TEXT + 1)},
        {"type": "End", "outcome": {"kind": "won", "exit_code": 0}},
    ],
    ids=lambda frame: str(frame)[:60],
)
def test_anything_else_is_refused(frame):
    with pytest.raises(FramingError):
        parse(frame)


def test_a_refused_message_is_named():
    with pytest.raises(FramingError, match="an unknown message 'Outcome'"):
        parse({"type": "Outcome", "kind": "done"})
    with pytest.raises(FramingError, match="an unknown message 'None'"):
        parse({})
    with pytest.raises(
        FramingError, match="a StoreReady that is not valid: Input should be greater than or equal to 1"
    ):
        parse({"type": "StoreReady", "round": 1, "port": 0})


def test_a_clipped_text_keeps_its_end():
    assert clipped("short") == "short"
    assert len(clipped(LONG)) == MOST_TEXT
    assert clipped(LONG).endswith("the end")


def test_the_label_of_a_machine_with_many_kinds_of_devices_stays_short():
    join_request = JoinRequest(
        session="s", rank=1, host="h" * 300, devices=tuple(f"{n}" * 300 for n in range(9)), nproc=1
    )
    assert len(join_request.label) < 2000
