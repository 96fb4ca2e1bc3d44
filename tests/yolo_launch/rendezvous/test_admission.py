"""Checks why machines are refused: on both sides at once, with both names."""

from __future__ import annotations

import pytest

from tests.yolo_launch.rendezvous.simulation import DATA, Stage, job_facts, make_join_request
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.rendezvous.admission import RendezvousSettings, parse_nodes, refusal_of
from yolo_launch.rendezvous.messages import (
    MOST_NODES,
    End,
    JoinAccepted,
    JoinRefused,
    JoinRequest,
    LogLine,
    Ready,
    Roster,
    Round,
)
from yolo_launch.spec import Outcome

OTHER = {"session": "other", "host": "gpu-x", "address": "10.0.0.9"}
REFUSALS = [
    pytest.param(
        {"rank": 1},
        "Rank 1 is taken twice: by 1 gpu-b (10.0.0.2, 2x A100) and by 1 gpu-x (10.0.0.9, 2x A100).",
        "--rank 1 on gpu-b and on gpu-x",
        id="a rank taken twice",
    ),
    pytest.param(
        {"rank": 0},
        "Rank 0 is taken twice: by 0 gpu-a (10.0.0.1, 2x A100) and by 0 gpu-x (10.0.0.9, 2x A100).",
        "--rank 0 on gpu-a and on gpu-x",
        id="a second master",
    ),
    pytest.param(
        {"rank": 3},
        "Rank 3 of gpu-x is out of range: the job on gpu-a has 3 machines.",
        "--rank 3",
        id="a rank out of range",
    ),
    pytest.param(
        {"rank": 2, "nodes": "4"},
        "gpu-x and gpu-a were told different numbers of machines.",
        "--nodes 4 on gpu-x, --nodes 3 on gpu-a",
        id="another number of machines",
    ),
    pytest.param(
        {"rank": 2, "job_id": "43"},
        "This port of gpu-a belongs to another job.",
        "gpu-x is in 43, the port in 42",
        id="another job on the port",
    ),
    pytest.param(
        {"rank": 2, "torch": "2.13.1"},
        "gpu-x and gpu-a have different versions of torch.",
        "2.13.1 on gpu-x, 2.15.0 on gpu-a",
        id="another torch",
    ),
    pytest.param(
        {"rank": 2, "cuda": ""},
        "gpu-x and gpu-a have different versions of CUDA.",
        "none on gpu-x, 12.8 on gpu-a",
        id="no CUDA",
    ),
    pytest.param(
        {"rank": 2, "nccl": "2.29.1"},
        "gpu-x and gpu-a have different versions of NCCL.",
        "2.29.1 on gpu-x, 2.27.5 on gpu-a",
        id="another NCCL",
    ),
    pytest.param(
        {"rank": 2, "code": "fff"},
        "gpu-x and gpu-a have different versions of yolo-launch.",
        "fff on gpu-x, abc123 on gpu-a",
        id="other code",
    ),
    pytest.param(
        {"rank": 2, "backend": "gloo"},
        "gpu-x and gpu-a would train on different kinds of devices.",
        "gloo on gpu-x, nccl on gpu-a",
        id="a CPU among GPUs",
    ),
]


@pytest.fixture
def stage():
    stage = Stage(3, job=job_facts(own=make_join_request(0, job_id="42"), settle=lambda by_node: 60))
    stage.join(0, job_id="42")
    stage.join(1)
    return stage


@pytest.mark.parametrize(("facts", "what", "seen"), REFUSALS)
def test_a_machine_is_refused_on_both_sides(stage, facts, what, seen):
    number = stage.join_request(make_join_request(**{**OTHER, **facts}))
    (received,) = stage.heard[number]
    assert isinstance(received, JoinRefused)
    assert (received.what, received.seen) == (what, seen)
    assert received.expected
    assert number in stage.closed
    assert any("gpu-x" in line and what in line for line in stage.said)
    assert sorted(stage.coordinator.participants.by_rank) == [0, 1]
    assert stage.phase == "gathering"


def test_nobody_takes_the_seat_of_a_master_that_has_not_sat_down_yet():
    stage = Stage(2)
    number = stage.join_request(make_join_request(0, **OTHER))
    assert "Rank 0 is taken twice" in stage.heard[number][0].what
    stage.join(0)
    assert stage.received(0, JoinAccepted)


def test_a_machine_of_no_scheduler_may_join_one_that_has_a_job(stage):
    stage.join(2)
    assert stage.phase == "running"


def test_other_data_is_refused_on_both_sides_and_the_seat_is_free_again(stage):
    number = stage.join(2, ready=False)
    stage.say(2, Ready(fingerprint="e" * 64))
    received = stage.last(2, JoinRefused)
    assert received.what == "The data set of gpu-c is not that of gpu-a."
    assert received.seen == f"fingerprint {'e' * 12} on gpu-c, {DATA[:12]} on gpu-a"
    assert number in stage.closed
    assert "machine 2 gpu-c (10.0.0.3, 2x A100) cannot take part: The data set of gpu-c" in stage.said[-1]
    assert "cannot take part" in stage.last(1, LogLine).text
    stage.join(2)
    assert stage.phase == "running"


def test_a_machine_that_cannot_do_the_job_says_why_on_every_console(stage):
    stage.join(2, ready=False)
    stage.say(2, JoinRefused(what="The data set is missing.", seen="/data/coco.yaml", exit_code=2))
    assert "cannot take part: The data set is missing. (/data/coco.yaml)" in stage.said[-1]
    assert "The data set is missing." in stage.last(1, LogLine).text
    assert sorted(stage.coordinator.participants.by_rank) == [0, 1]


def test_a_batch_that_does_not_divide_ends_it_on_every_machine_with_totals_that_fit():
    stage = Stage(2)
    stage.join(0)
    stage.join(1, nproc=1)
    for rank in (0, 1):
        outcome = stage.last(rank, End).outcome
        assert outcome.exit_code == ExitCode.USAGE
        assert outcome.failure.message == "--batch 64 cannot be split evenly over 3 GPUs. Use --batch 63 or 66."
        assert outcome.failure.user_error["what"] == outcome.failure.message
        assert not stage.received(rank, Round)


def test_a_job_that_is_over_takes_nobody():
    stage = Stage(2).running(0, 1)
    stage.coordinator.end(Outcome("done", 0), stage.now)
    number = stage.join_request(make_join_request(1, **OTHER))
    assert stage.heard[number][0].what == "The job on gpu-a is over."


def test_the_roster_reads_as_promised():
    stage = Stage(2)
    stage.join(0)
    stage.wait(10)
    roster = stage.last(0, Roster)
    assert roster.text == "1/2 machines: 0 gpu-a (10.0.0.1, 2x A100) - waiting for 1"
    assert roster.left_s == pytest.approx(600, abs=1)


def test_the_roster_names_a_few_and_counts_the_rest():
    stage = Stage(64)
    for rank in range(6):
        stage.join(rank, ready=rank != 1)
    stage.wait(1)
    text = stage.last(0, Roster).text
    assert text.startswith("6/64 machines: 0 gpu-a (10.0.0.1, 2x A100), 1 gpu-b (10.0.0.2, 2x A100), checking, ")
    assert text.endswith("and 2 others - waiting for 6, 7, 8, 9 and 54 others")


def test_a_roster_is_told_a_few_times_a_second_however_many_come():
    stage = Stage(64)
    stage.join(0)
    for rank in range(1, 64):
        stage.join(rank, ready=False)
        stage.wait(0.01, step_s=0.01)
    assert len(stage.received(0, Roster)) <= 5
    stage.wait(1)
    assert stage.last(0, Roster).text.startswith("64/64 machines")


def test_a_machine_that_leaves_is_shown_leaving():
    stage = Stage(3)
    stage.join(0)
    stage.join(1)
    stage.lose(1)
    stage.wait(1)
    assert stage.said[-1] == "machine 1 gpu-b (10.0.0.2, 2x A100) is gone: its connection was closed"
    assert stage.last(0, Roster).text.endswith("waiting for 1, 2")


def test_training_starts_only_when_all_are_ready():
    stage = Stage(3, job=job_facts(settle=lambda by_node: 60))
    stage.join(0)
    stage.join(1, ready=False)
    stage.join(2)
    stage.wait(60)
    assert stage.phase == "gathering"
    stage.say(1, Ready(fingerprint=DATA))
    assert stage.phase == "running"
    assert [stage.round(rank) for rank in range(3)] == [stage.round(0)] * 3
    assert stage.round(0).members == ((0, 2), (1, 2), (2, 2))


def test_who_did_not_come_is_named_when_the_time_is_up():
    stage = Stage(3, job=job_facts(settle=lambda by_node: 64))
    stage.join(0)
    stage.join(2, ready=False)
    stage.wait(601)
    outcome = stage.last(0, End).outcome
    assert (outcome.kind, outcome.exit_code) == ("not_joined", ExitCode.NOT_JOINED)
    assert outcome.detail == (
        "machine 1 did not join and machine 2 gpu-c (10.0.0.3, 2x A100) did not finish checking within 600 s"
    )


def test_names_of_machines_cannot_draw_on_terminals():
    join_request = JoinRequest(session="s", rank=1, host="gpu\x1b[2J\nb", nproc=1, devices=("A\r100",))
    assert join_request.label == "1 gpu?[2J?b (1x A?100)"


@pytest.mark.parametrize(("text", "nodes"), [("2", (2, 2)), ("1:4", (1, 4)), ("3:3", (3, 3))])
def test_numbers_of_machines(text, nodes):
    assert parse_nodes(text) == nodes


@pytest.mark.parametrize("text", ["0", "4:2", "", ":", "2:", "-1", "two", "1:2:3", "²", str(MOST_NODES + 1)])
def test_numbers_of_machines_that_cannot_be(text):
    with pytest.raises(LaunchError, match="--nodes cannot be used"):
        parse_nodes(text)


def test_machines_that_train_and_machines_that_are_checked_refuse_one_another():
    settings = RendezvousSettings(2, 2)
    train, check = make_join_request(0), make_join_request(1, check_port=40001)
    assert refusal_of(check, train, settings, None).seen == (
        "gpu-b is to make a cluster check (yolo-launch doctor), gpu-a to train (yolo-launch node)"
    )
    own = make_join_request(0, check_port=40000)
    assert "gpu-b is to train" in refusal_of(make_join_request(1), own, settings, None).seen
    assert refusal_of(check, own, settings, None) is None
