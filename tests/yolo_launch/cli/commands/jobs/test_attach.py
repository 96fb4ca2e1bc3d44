"""Attaching to runs that are over; tests/processes attaches to running ones."""

from __future__ import annotations

import json

import pytest

from yolo_launch.cli.main import run_program
from yolo_launch.errors import ExitCode


def make_run(folder, outcome=None, summary=None):
    (folder / "logs").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / "config.yaml").write_text("epochs: 3\n")
    (folder / "logs" / "rank0.log").write_text("".join(f"line {number}\n" for number in range(30)))
    for name, content in (("outcome.json", outcome), ("summary.json", summary)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("outcome", "summary", "code", "state"),
    [
        ({"outcome": "done", "exit_code": 0}, {}, ExitCode.DONE, "done"),
        ({"outcome": "stalled", "exit_code": 4}, None, 4, "unfinished"),
        (None, {}, ExitCode.DONE, "done"),  # of a launcher before this file was written
        (None, None, ExitCode.WORKER_FAILED, "unfinished"),  # killed
    ],
)
def test_the_code_is_the_launchers(tmp_path, capsys, outcome, summary, code, state):
    run = make_run(tmp_path / "exp", outcome, summary)
    assert run_program(["attach", str(run), "--lines", "2"]) == code
    output, errors = capsys.readouterr()
    assert output == "line 28\nline 29\n"
    assert f"{run} is {state} after 0 of 3 epochs" in errors
    assert (f"yolo-launch train --resume {run}" in errors) == (state == "unfinished")
    assert run_program(["attach", str(run), "--json"]) == code
    output, errors = capsys.readouterr()
    assert (json.loads(output)["state"], json.loads(output)["exit_code"]) == (state, code)
    assert errors.count("line ") == 20


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    assert run_program(["attach", "nowhere", "--project", str(tmp_path)]) == ExitCode.USAGE
    assert "nowhere" in capsys.readouterr().err
