"""Every command ends here: one JSON object or words for a person, then the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from yolo_launch.cli.conclude import EndedJob, conclude, conclude_job
from yolo_launch.cli.console import Console
from yolo_launch.host.inventory import inspect_host
from yolo_launch.planning.plan import make_plan
from yolo_launch.spec import LaunchRequest, Outcome, RankFailure

FAILED = Outcome("worker_failed", 1, RankFailure(0, 0, 1, message="ValueError: box 7"))


@pytest.fixture(scope="module")
def plan():
    return make_plan(LaunchRequest(gpus="cpu"), inspect_host())


def ended(outcome, plan):
    return EndedJob(outcome, plan, Path("runs/train/exp"), "yolo-launch train --resume runs/train/exp")


def leave(function, *arguments, **more):
    with pytest.raises(typer.Exit) as caught:
        function(*arguments, **more)
    return caught.value.exit_code


def test_a_result_is_said_once_and_in_one_way(capsys):
    for json_mode, expected in ((True, {"map50": 0.5}), (False, "words\n")):
        console = Console(json_mode=json_mode)
        assert leave(conclude, console, 3, result={"map50": 0.5}, show=lambda: print("words")) == 3
        out = capsys.readouterr().out
        assert (json.loads(out) if json_mode else out) == expected


def test_a_done_job_has_its_summary(plan, capsys):
    job = ended(Outcome("done", 0), plan)
    assert leave(conclude_job, job, Console(json_mode=True), summary={"map50": 0.5}) == 0
    assert json.loads(capsys.readouterr().out) == {"map50": 0.5}
    assert leave(conclude_job, job, Console(), show_done=lambda: print("done")) == 0
    assert capsys.readouterr().out == "done\n"
    assert leave(conclude_job, job, Console(json_mode=True)) == 0
    assert json.loads(capsys.readouterr().out) == {"run_dir": "runs/train/exp", "outcome": "done", "exit_code": 0}


def test_a_failed_job_has_its_cause_and_never_its_summary(plan, capsys):
    job = ended(FAILED, plan)
    assert leave(conclude_job, job, Console(json_mode=True), summary={"map50": 0.5}) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["outcome"] == "worker_failed"
    assert "ValueError: box 7" in captured.err
    assert leave(conclude_job, job, Console(), show_done=lambda: print("done")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.rstrip().endswith("yolo-launch train --resume runs/train/exp")


@pytest.mark.parametrize("outcome", [FAILED, Outcome("done", 0)])
def test_a_worker_that_owns_stdout_has_said_it_all(outcome, plan, capsys):
    console = Console(json_mode=True)
    assert leave(conclude_job, ended(outcome, plan), console, worker_owns_stdout=True) == outcome.exit_code
    assert capsys.readouterr().out == ""
