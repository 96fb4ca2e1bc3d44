"""Checks each row of the restart rule."""

from __future__ import annotations

import pytest

from yolo_launch.diagnosis.restart_policy import Progress, decide
from yolo_launch.spec import RankFailure

WORKED = {"finished_a_step": True, "heard": True}


def decision(failure=None, *, max_restarts=3, attempt_s=5.0, port_is_fixed=False, foreign=False, **progress):
    return decide(
        failure or RankFailure(0, 0, 1, "ValueError: x"),
        Progress(**progress),
        max_restarts=max_restarts,
        attempt_s=attempt_s,
        port_is_fixed=port_is_fixed,
        foreign=foreign,
    )


def test_a_job_that_worked_is_started_again():
    found = decision(**WORKED)
    assert (found.restart, found.counts, found.why) == (True, True, "restart 1 of 3")


def test_the_budget_is_the_jobs():
    assert decision(**WORKED, restarts=2).why == "restart 3 of 3"
    assert decision(**WORKED, restarts=3).restart is False
    assert decision(**WORKED, max_restarts=0).restart is False


@pytest.mark.parametrize("foreign", [True, False])
def test_nothing_is_retried_before_the_first_step(foreign):
    found = decision(heard=True, foreign=foreign, attempt_s=500)
    assert found.restart is False
    assert "no step had finished" in found.why


def test_a_script_without_heartbeats_has_started_after_a_minute():
    assert decision(foreign=True, attempt_s=59).restart is False
    assert decision(foreign=True, attempt_s=61).restart is True


@pytest.mark.parametrize("failure", [RankFailure(0, 0, 2), RankFailure(0, 0, 1, user_error={"what": "no data"})])
def test_a_users_mistake_is_final(failure):
    assert decision(failure, **WORKED).restart is False


def test_a_port_lost_to_a_race_is_chosen_again_at_no_cost():
    clash = RankFailure(0, 0, 1, "DistNetworkError: The server socket has failed to bind: EADDRINUSE")
    found = decision(clash)
    assert (found.restart, found.counts) == (True, False)
    assert decision(clash, max_restarts=0).restart is True
    assert decision(clash, port_is_fixed=True).restart is False
    assert decision(clash, port_clashes=3).restart is False
