"""Checks what a node reports of an attempt, from how its workers ended."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from yolo_launch.diagnosis.hangs import StalledRank
from yolo_launch.diagnosis.outcome import NodeReport
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.planning.plan import make_plan
from yolo_launch.spec import LaunchRequest, RankFailure, WorkerCommand
from yolo_launch.supervision.attempt import Attempt, AttemptRunner
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import Workers

OWN, PEER = (0.0, 0.0, 0.0, 5.0, 3.0), (0.0, 1.0, 0.0, 1.0, 2.0)
FAILURE = RankFailure(3, 1, 1, message="FileNotFoundError: cats.yaml")
HEARD = {"heard": True, "finished_a_step": True, "ran_s": 7.0}


@pytest.fixture
def runner(tmp_path) -> AttemptRunner:
    """Returns the runner of the second of two nodes with two workers each."""
    request = LaunchRequest(gpus="cpu", nproc=2, nnodes=2, node_rank=1, nproc_by_node=(2, 2))
    files = WorkerFiles(tmp_path)
    files.folder.mkdir()
    return AttemptRunner(make_plan(request, inspect_host()), WorkerCommand(()), files, console_json=False)


def make_monitor(*, stop_signal=None, stall=None, round_ended=False):
    return SimpleNamespace(stop_signal=stop_signal, stall=stall, round_ended=round_ended)


def make_attempt(exit_codes=(0, 0), failures=(), agent_error=None) -> Attempt:
    workers = Workers("mark")
    for rank, code in enumerate(exit_codes, start=2):
        workers.add(rank, 1)
        workers.by_rank[rank].exit_code = code
    detector = SimpleNamespace(heard=True, finished_a_step=True)
    ends = [SimpleNamespace(exit_code=code) for code in exit_codes]
    return Attempt(workers, detector, agent_error=agent_error, ran_s=7.0, ends=ends, failures=list(failures))


@pytest.mark.parametrize(
    ("attempt", "monitor", "report"),
    [
        (make_attempt(), make_monitor(), NodeReport("done", **HEARD)),
        (make_attempt(), make_monitor(round_ended=True), NodeReport("done", **HEARD)),
        (make_attempt(()), make_monitor(), NodeReport("done", **HEARD)),
        (make_attempt(()), make_monitor(round_ended=True), NodeReport("ended", **HEARD)),
        (make_attempt((75, 75)), make_monitor(), NodeReport("saved", saved=True, **HEARD)),
        (
            make_attempt((75, 75)),
            make_monitor(stop_signal=signal.SIGTERM),
            NodeReport("stopped", saved=True, signal=signal.SIGTERM, **HEARD),
        ),
        (make_attempt(), make_monitor(stop_signal=signal.SIGTERM), NodeReport("done", **HEARD)),
    ],
    ids=["done", "done in a round that ended", "not seen", "not started", "saved", "saved on a signal", "done first"],
)
def test_an_attempt_without_a_failure(runner, attempt, monitor, report):
    assert runner.report(attempt, monitor) == report


def test_the_first_failure_is_reported_with_a_hint_and_its_key(runner):
    peer = RankFailure(2, 0, 1, "connection closed by peer")
    report = runner.report(make_attempt((1, 1), [(PEER, peer), (OWN, FAILURE)]), make_monitor())
    assert (report.kind, report.key, report.failure.rank) == ("failed", OWN, 3)
    assert "the path is looked for from the folder" in report.failure.hint


@pytest.mark.parametrize(("key", "kind"), [(OWN, "failed"), ((1.0, *OWN[1:]), "ended")])
def test_workers_that_were_ended_for_another_node_have_not_failed(runner, key, kind):
    attempt = make_attempt((1, 1), [(key, FAILURE)])
    assert runner.report(attempt, make_monitor(round_ended=True)).kind == kind


@pytest.mark.parametrize(
    ("epoch", "step", "finished"), [(0, 1, True), (1, 0, True), (0, 0, False), (None, None, False)]
)
def test_a_step_that_no_heartbeat_showed_may_stand_in_the_error_file(runner, epoch, step, finished):
    attempt = make_attempt((1, 1), [(OWN, replace(FAILURE, epoch=epoch, step=step))])
    attempt.hang_detector.finished_a_step = False
    assert runner.report(attempt, make_monitor()).finished_a_step is finished


def test_a_failure_after_a_signal_is_reported_only_with_words_of_its_own(runner):
    attempt, monitor = make_attempt((1, 1), [(OWN, FAILURE)]), make_monitor(stop_signal=signal.SIGINT)
    assert runner.report(attempt, monitor).failure is None
    runner.files.error(3).write_text(json.dumps({"message": "FileNotFoundError: cats.yaml"}))
    report = runner.report(attempt, monitor)
    assert (report.kind, report.signal, report.failure) == ("stopped", signal.SIGINT, FAILURE)


def test_a_stall_is_reported_with_the_file_of_the_blocking_ranks_stacks(runner):
    ranks = [StalledRank(2, 9.0, None, ()), StalledRank(3, 9.0, None, (), frozen="stopped")]
    report = runner.report(make_attempt((-9, -9)), make_monitor(stall=ranks, stop_signal=signal.SIGTERM))
    assert (report.kind, report.stalled) == ("stalled", tuple(ranks))
    assert (report.failure.rank, report.failure.local_rank) == (3, 1)
    assert report.failure.log_path == str(runner.files.stacks(3))


def test_an_agent_that_fails_before_any_worker_is_the_environments_mistake(runner):
    with pytest.raises(LaunchError, match="elastic agent failed") as caught:
        runner.report(make_attempt((), agent_error=RuntimeError("no port")), make_monitor())
    assert (caught.value.seen, caught.value.exit_code) == ("RuntimeError: no port", 3)
