"""Checks each transition from nodes' reports to the end of a job or its next round."""

from __future__ import annotations

import signal

import pytest

from yolo_launch.diagnosis.hangs import StalledRank
from yolo_launch.diagnosis.heartbeat_monitor import Heartbeat
from yolo_launch.diagnosis.outcome import JobRules, NodeEnd, NodeReport, decide_outcome, refused_outcome
from yolo_launch.diagnosis.restart_policy import Progress
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.spec import LEFT_TO_SCRIPT, Outcome, RankFailure

FAILURE = RankFailure(0, 0, 1, message="Traceback ...\nMemoryError: no room", epoch=1, step=4)
OWN, PEER = (0.0, 0.0, 0.0, 5.0, 0.0), (0.0, 1.0, 0.0, 1.0, 1.0)
FAILED = NodeReport("failed", failure=FAILURE, key=OWN, heard=True, finished_a_step=True, ran_s=60.0)
DONE, SAVED = NodeReport("done"), NodeReport("saved", saved=True)
ONE, TWO, ELASTIC = JobRules(), JobRules(2, 2), JobRules(1, 2)
LABELS = ("0 gpu-a", "1 gpu-b", "2 gpu-c")


def decide_one(report: NodeReport, rules: JobRules = ONE, progress: Progress | None = None):
    """Returns what becomes of a job of one node."""
    return decide_outcome({0: NodeEnd(report)}, progress or Progress(), rules, lambda: "from the newest checkpoint")


def decide_several(*reports: NodeReport | None, rules: JobRules = TWO, progress: Progress | None = None, **more):
    """Returns what becomes of a job of several nodes; None for a node without a report."""
    ends = {
        rank: NodeEnd(report, LABELS[rank], LABELS[rank][2:])
        for rank, report in enumerate(reports)
        if report is not None
    }
    return decide_outcome(ends, progress or Progress(), rules, lambda: "from the newest checkpoint", **more)


def stalled(rank: int, step: int, *, log_path: str = "") -> NodeReport:
    rank_there = StalledRank(rank, 300.0, Heartbeat(rank, "train", 0, step, 0.0), ())
    return NodeReport("stalled", stalled=(rank_there,), failure=RankFailure(rank, 0, -9, log_path=log_path))


# ---- one node


@pytest.mark.parametrize(
    ("report", "outcome"),
    [
        (DONE, Outcome("done", ExitCode.DONE)),
        (SAVED, Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED)),
        (
            NodeReport("stopped", signal=signal.SIGTERM, saved=True),
            Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED, signal=signal.SIGTERM),
        ),
        (
            NodeReport("stopped", signal=signal.SIGTERM, failure=FAILURE),
            Outcome("interrupted", 143, signal=signal.SIGTERM, failure=FAILURE),
        ),
        (
            NodeReport("stopped", signal=signal.SIGINT, saved=True),
            Outcome("interrupted", 130, signal=signal.SIGINT, detail="the state was saved"),
        ),
    ],
    ids=["done", "saved", "saved on a signal", "failed on a signal", "saved on Ctrl-C"],
)
def test_the_only_node_ends_the_job_without_a_note(report, outcome):
    decision = decide_one(report)
    assert (decision.outcome, decision.note, decision.leaving) == (outcome, "", {})


def test_what_a_script_saved_is_its_own_affair():
    report = NodeReport("stopped", signal=signal.SIGINT)
    assert decide_one(report, JobRules(foreign=True)).outcome.detail == LEFT_TO_SCRIPT
    assert decide_one(report).outcome.detail == ""


def test_the_only_node_is_started_again_after_a_failure():
    decision = decide_one(FAILED)
    assert decision.outcome is None
    assert decision.note == ("rank 0 failed (MemoryError: no room); restart 1 of 3, from the newest checkpoint")
    assert decision.progress == Progress(restarts=1, finished_a_step=True, heard=True, failed_at=(1, 4))


def test_the_last_restart_is_counted_over_all_attempts():
    decision = decide_one(FAILED, progress=Progress(restarts=3))
    assert decision.outcome == Outcome(
        "worker_failed", ExitCode.WORKER_FAILED, failure=FAILURE, restarts=3, detail="all 3 restarts are used up"
    )


def test_a_users_mistake_is_the_end_with_its_exit_code():
    failure = RankFailure(0, 0, 1, user_error={"what": "no such file"})
    outcome = decide_one(NodeReport("failed", failure=failure, key=OWN, finished_a_step=True)).outcome
    assert (outcome.kind, outcome.exit_code, outcome.detail) == ("worker_failed", ExitCode.USAGE, "")


def test_a_step_of_an_earlier_attempt_counts():
    report = NodeReport("failed", failure=RankFailure(0, 0, 1, "bad"), key=OWN, ran_s=2.0)
    assert "no step had finished yet" in decide_one(report).outcome.detail
    assert decide_one(report, progress=Progress(finished_a_step=True)).outcome is None


def test_a_port_that_another_process_took_costs_no_restart():
    failure = RankFailure(0, 0, 1, "The server socket has failed to listen: EADDRINUSE, address already in use")
    report = NodeReport("failed", failure=failure, key=OWN)
    decision = decide_one(report)
    assert decision.outcome is None
    assert decision.note == "another process took the port that was chosen; choosing another"
    assert decision.progress == Progress(port_clashes=1)
    assert decide_one(report, JobRules(port_is_fixed=True)).outcome.kind == "worker_failed"


def test_a_script_without_heartbeats_counts_as_started_by_its_time():
    failure = RankFailure(0, 0, 1, "bad")
    rules = JobRules(foreign=True)
    assert decide_one(NodeReport("failed", failure=failure, key=OWN, ran_s=61.0), rules).outcome is None
    assert decide_one(NodeReport("failed", failure=failure, key=OWN, ran_s=5.0), rules).outcome is not None
    heard = NodeReport("failed", failure=failure, key=OWN, ran_s=61.0, heard=True)
    assert decide_one(heard, rules).outcome is not None


def test_a_stall_of_the_only_node_names_the_file_of_the_stacks():
    outcome = decide_one(stalled(1, 7, log_path="/logs/rank1.stacks")).outcome
    assert (outcome.kind, outcome.exit_code) == ("stalled", ExitCode.STALLED)
    assert (outcome.failure.rank, outcome.failure.log_path, outcome.failure.host) == (1, "/logs/rank1.stacks", "")
    assert (outcome.failure.phase, outcome.failure.step, outcome.failure.exit_code) == ("train", 7, -signal.SIGKILL)


# ---- several nodes


def test_a_job_is_done_when_every_node_is():
    assert decide_several(DONE, DONE).outcome == Outcome("done", ExitCode.DONE)
    assert decide_several(DONE, None, completed=True, lost=[("1 gpu-b", "cut")]).outcome.kind == "done"


def test_the_node_that_holds_the_others_up_is_named():
    failure = decide_several(stalled(0, 9, log_path="/a"), stalled(1, 8, log_path="/b")).outcome.failure
    assert (failure.rank, failure.host, failure.log_path) == (1, "gpu-b", "/b")
    assert "rank 0 has been in" in failure.message


def test_an_own_failure_is_the_cause_before_a_lost_peer_and_a_loss():
    other = NodeReport("failed", failure=RankFailure(2, 0, 1, "connection closed by peer"), key=PEER, ran_s=70.0)
    decision = decide_several(FAILED, other, lost=[("2 gpu-c", "cut")])
    assert decision.note.startswith("rank 0 on machine 0 gpu-a failed (MemoryError: no room); restart 1 of 3")


def test_clocks_are_compared_as_the_deciding_nodes():
    def failed_at(rank: int, time_s: float) -> NodeReport:
        return NodeReport("failed", failure=RankFailure(rank, 0, 1, "bad"), key=(0.0, 0.0, 0.0, time_s, float(rank)))

    ends = {0: NodeEnd(failed_at(0, 50.0)), 1: NodeEnd(failed_at(1, 140.0), clock_ahead_s=100.0)}
    outcome = decide_outcome(ends, Progress(), JobRules(2, 2, max_restarts=0), str).outcome
    assert outcome.failure.rank == 1


@pytest.mark.parametrize(
    ("rules", "how"),
    [(TWO, "when it is back (within 300 s)"), (ELASTIC, "with the 1 machine left"),
     (JobRules(1, 3), "with the 1 machine left")],
)  # fmt: skip
def test_a_lost_node_costs_a_restart(rules, how):
    ended = NodeReport("ended", failure=RankFailure(0, 0, 1, "connection closed by peer"), key=PEER)
    decision = decide_several(ended, lost=[("1 gpu-b", "cut")], rules=rules)
    assert decision.outcome is None
    assert decision.note == f"restart 1 of 3 {how}, from the newest checkpoint"
    assert decision.progress.restarts == 1


def test_without_restarts_a_loss_is_the_end():
    lost = [("1 gpu-b", "cut"), ("2 gpu-c", "no word")]
    outcome = decide_several(DONE, lost=lost, rules=JobRules(3, 3, max_restarts=0)).outcome
    assert outcome.detail == "machine 1 gpu-b was lost: cut; machine 2 gpu-c was lost: no word"
    used_up = decide_several(DONE, lost=lost[:1], progress=Progress(restarts=3)).outcome
    assert used_up.detail == "machine 1 gpu-b was lost: cut. All 3 restarts are used up"
    assert used_up.restarts == 3


STOPPED = NodeReport("stopped", signal=signal.SIGTERM, saved=True, failure=FAILURE)


def test_a_signal_to_one_node_stops_a_job_that_needs_it():
    decision = decide_several(SAVED, STOPPED)
    assert decision.outcome == Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED, signal=signal.SIGTERM)
    assert decision.note == "SIGTERM on machine 1 gpu-b stops the job"


def test_a_failure_after_a_signal_is_no_cause_among_several():
    report = NodeReport("stopped", signal=signal.SIGTERM, failure=FAILURE)
    assert decide_several(DONE, report).outcome == Outcome("interrupted", 143, signal=signal.SIGTERM)


def test_an_elastic_job_goes_on_without_the_node_that_was_signaled_but_not_without_the_first():
    decision = decide_several(SAVED, STOPPED, rules=ELASTIC, progress=Progress(restarts=2))
    assert (decision.outcome, decision.note) == (None, "SIGTERM on machine 1 gpu-b; going on without it")
    assert {rank: (one.kind, one.restarts) for rank, one in decision.leaving.items()} == {1: ("saved_and_stopped", 2)}
    assert decide_several(STOPPED, SAVED, rules=ELASTIC).outcome.kind == "saved_and_stopped"


def test_a_round_that_was_stopped_for_another_node_goes_on():
    ended = NodeReport("ended", failure=RankFailure(0, 0, -15), key=(1.0, 0.0, 0.0, 1.0, 0.0))
    decision = decide_several(ended, SAVED, paused=True)
    assert (decision.outcome, decision.note) == (
        None,
        "the workers have ended for the new machine; going on with all",
    )
    assert "rank 0 on machine 0 gpu-a failed" in decide_several(FAILED, SAVED, paused=True).note


def test_workers_that_save_by_themselves_end_the_job():
    assert decide_several(SAVED, NodeReport("ended")).outcome.kind == "saved_and_stopped"


def test_an_end_that_nobody_explains_is_a_failure():
    outcome = decide_several(NodeReport("ended"), DONE, progress=Progress(restarts=1)).outcome
    detail = "the workers ended, and no machine says why: see the logs"
    assert outcome == Outcome("worker_failed", ExitCode.WORKER_FAILED, restarts=1, detail=detail)


# ---- values


def test_a_number_that_is_no_signal_is_refused():
    with pytest.raises(ValueError, match="Signals"):
        NodeReport("stopped", signal=4711)


def test_a_refusal_before_any_worker_has_no_rank():
    error = LaunchError("--batch 64 cannot be split", seen="3 GPUs", exit_code=ExitCode.ENVIRONMENT)
    outcome = refused_outcome(error)
    assert (outcome.kind, outcome.exit_code, outcome.failure.rank) == ("worker_failed", 3, -1)
    assert outcome.failure.user_error["seen"] == "3 GPUs"
