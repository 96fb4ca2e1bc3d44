"""What the cluster check says of connections, clocks and sums."""

from __future__ import annotations

import json

import pytest

from yolo_launch.cluster_check import findings as cluster_check
from yolo_launch.rendezvous.admission import RendezvousSettings, refusal_of
from yolo_launch.rendezvous.messages import JoinRequest, Seen, parse
from yolo_launch.spec import Finding, Outcome


def a_claim(rank: int, host: str, **values) -> JoinRequest:
    return JoinRequest(session=host, rank=rank, host=host, nproc=1, **{"address": f"10.0.0.{rank + 1}", **values})


def test_what_is_blocked_is_named_with_its_direction():
    own, other = a_claim(0, "gpu-a"), a_claim(1, "gpu-b", check_port=40001)
    found = cluster_check.to_master(other, "gpu-a", "10.0.0.1", 41327, 1234, "timed out")
    assert found.level == "failure"
    assert found.seen == "master port 1234 OK, but gpu-b -> gpu-a:41327 blocked (timed out)"
    assert found.advice == cluster_check.OPEN_PORTS
    found = cluster_check.from_master(own, other, 1234, "refused")
    assert found.seen == "master port 1234 OK, but gpu-a -> gpu-b:40001 blocked (refused)"


def test_clocks_that_differ_by_more_than_two_seconds_are_a_warning():
    join_requests = {0: a_claim(0, "gpu-a"), 1: a_claim(1, "gpu-b"), 2: a_claim(2, "gpu-c")}
    found = cluster_check.clocks(join_requests, {0: 0.0, 1: 1.9, 2: -3.25})
    assert [(one.level, one.seen) for one in found] == [("warning", "the clock of gpu-c is 3.2 s behind that of gpu-a")]


def test_machines_that_train_and_machines_that_are_checked_refuse_one_another():
    train, check, settings = a_claim(0, "gpu-a"), a_claim(1, "gpu-b", check_port=40001), RendezvousSettings(2, 2)
    assert refusal_of(check, train, settings, None).seen == (
        "gpu-b is to make a cluster check (yolo-launch doctor), gpu-a to train (yolo-launch node)"
    )
    own = a_claim(0, "gpu-a", check_port=40000)
    assert "gpu-b is to train" in refusal_of(a_claim(1, "gpu-b"), own, settings, None).seen
    assert refusal_of(check, own, settings, None) is None


def test_findings_travel_as_plain_values():
    told = Seen(findings=((1, Finding("machines", "failure", "a", "b")),))
    assert parse(json.loads(json.dumps(told.pack()))) == told


def test_the_cause_of_a_sum_that_failed_is_its_finding(make_plan_of_two):
    outcome = Outcome("worker_failed", 1, detail="machine 1 gpu-b was lost: no word from it for 5 s")
    found = cluster_check.all_reduced(make_plan_of_two, outcome, None)
    assert found.level == "failure"
    assert found.seen == f"2 workers on 2 machines over gloo: {outcome.detail}"


@pytest.fixture
def make_plan_of_two():
    from yolo_launch.host.inventory import inspect_host
    from yolo_launch.planning.plan import make_plan
    from yolo_launch.spec import LaunchRequest

    return make_plan(LaunchRequest(gpus="cpu", nnodes=2, builtin_trainer=False, workers=0), inspect_host())
