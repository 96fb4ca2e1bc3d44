"""Checks the texts of what is found when nodes are checked together."""

from __future__ import annotations

import pytest

from yolo_launch.cluster_check import findings as cluster_findings
from yolo_launch.host.inventory import inspect_host
from yolo_launch.planning.plan import make_plan
from yolo_launch.rendezvous.messages import JoinRequest
from yolo_launch.spec import Finding, LaunchPlan, LaunchRequest, Outcome


def make_join_request(rank: int, host: str, **values) -> JoinRequest:
    return JoinRequest(session=host, rank=rank, host=host, nproc=1, **{"address": f"10.0.0.{rank + 1}", **values})


def test_what_is_blocked_is_named_with_its_direction():
    own, other = make_join_request(0, "gpu-a"), make_join_request(1, "gpu-b", check_port=40001)
    found = cluster_findings.to_master(other, "gpu-a", "10.0.0.1", 41327, 1234, "timed out")
    assert found.level == "failure"
    assert found.seen == "master port 1234 OK, but gpu-b -> gpu-a:41327 blocked (timed out)"
    assert found.advice == cluster_findings.OPEN_PORTS
    found = cluster_findings.from_master(own, other, 1234, "refused")
    assert found.seen == "master port 1234 OK, but gpu-a -> gpu-b:40001 blocked (refused)"


def test_clocks_that_differ_by_more_than_two_seconds_are_a_warning():
    join_requests = {
        0: make_join_request(0, "gpu-a"),
        1: make_join_request(1, "gpu-b"),
        2: make_join_request(2, "gpu-c"),
    }
    found = cluster_findings.clocks(join_requests, {0: 0.0, 1: 1.9, 2: -3.25})
    assert [(one.level, one.seen) for one in found] == [("warning", "the clock of gpu-c is 3.2 s behind that of gpu-a")]


@pytest.fixture
def make_plan_of_two() -> LaunchPlan:
    return make_plan(LaunchRequest(gpus="cpu", nnodes=2, builtin_trainer=False, workers=0), inspect_host())


def test_the_cause_of_a_sum_that_failed_is_its_finding(make_plan_of_two):
    outcome = Outcome("worker_failed", 1, detail="machine 1 gpu-b was lost: no word from it for 5 s")
    found = cluster_findings.all_reduced(make_plan_of_two, outcome, None)
    assert found.level == "failure"
    assert found.seen == f"2 workers on 2 machines over gloo: {outcome.detail}"


def test_a_sum_over_all_workers_shows_its_speed(make_plan_of_two):
    answer = {"blocked": [], "bytes": 29_000_000, "seconds": 0.1, "small_s": 0.0005}
    (found,) = cluster_findings.of_workers(make_plan_of_two, Outcome("done", 0), answer, 1234)
    assert (found.check, found.level) == ("all-reduce", "ok")
    assert found.seen == (
        "2 workers on 2 machines over gloo: 29 MB summed in 100.0 ms (290 MB/s), one number in 0.50 ms"
    )


def test_machines_that_do_not_reach_one_another_are_named_and_no_sum_is_tried(make_plan_of_two):
    answer = {"blocked": [["gpu-b", "gpu-c", 40001, "timed out"]]}
    blocked, not_tried = cluster_findings.of_workers(make_plan_of_two, Outcome("done", 0), answer, 1234)
    assert blocked.seen == "master port 1234 OK, but gpu-b -> gpu-c:40001 blocked (timed out)"
    assert (not_tried.level, not_tried.seen) == ("warning", "not tried, because of the failures above")


def test_a_machine_with_other_devices_cannot_train_with_the_master(make_plan_of_two):
    own = make_join_request(1, "gpu-b")
    assert cluster_findings.backends(own, make_plan_of_two, "gpu-a", "gloo") == []
    (found,) = cluster_findings.backends(own, make_plan_of_two, "gpu-a", "nccl")
    assert found.seen == "gpu-b uses the CPU and gpu-a GPUs: they cannot train together"


def test_what_a_machine_found_on_itself_is_told_with_its_name_and_shown_to_the_others():
    local = [
        Finding("shm", "warning", "64 MB of /dev/shm"),
        Finding("disk", "warning", "gpu-b has no room"),
        Finding("x", "ok", "fine"),
    ]
    told = cluster_findings.for_others(local, "gpu-b")
    assert [one.seen for one in told] == ["gpu-b: 64 MB of /dev/shm", "gpu-b has no room"]
    reached = Finding(cluster_findings.CHECK, "ok", "reached")
    seen = [*((1, one) for one in told), (1, reached)]
    assert cluster_findings.for_reader(seen, 1) == [reached]
    assert cluster_findings.for_reader(seen, 0) == [*told, reached]
    assert not cluster_findings.has_failed(seen)
    assert cluster_findings.has_failed([(0, Finding(cluster_findings.CHECK, "failure", "blocked"))])
