"""Run folders: numbered, claimed, cleared, found again."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.jobs import run_directory, run_lock

NEWEST = "newest"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def make_run(project, name, *, finished=False, age_s=0.0):
    folder = project / name
    (folder / "weights").mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: 1\n")
    (folder / "plan.json").write_text("{}")
    (folder / "weights" / "last.pt").write_text("w")
    if finished:
        (folder / "summary.json").write_text(json.dumps({"map50": 0.5}))
    for path in (folder / "config.yaml", folder / "plan.json", folder / "weights" / "last.pt"):
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


def test_names_count_up_and_gaps_are_filled(tmp_path):
    project = str(tmp_path / "runs" / "train")
    made = [run_directory.create_run_dir(project, "exp", exist_ok=False).name for _ in range(3)]
    assert made == ["exp", "exp2", "exp3"]
    (tmp_path / "runs" / "train" / "exp2").rmdir()
    assert run_directory.next_run_dir(project, "exp", exist_ok=False).name == "exp2"
    assert run_directory.next_run_dir(project, "exp", exist_ok=True).name == "exp"


def _create(project):
    return run_directory.create_run_dir(project, "exp", exist_ok=False).name


def test_launchers_at_once_never_share_a_folder(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        names = pool.map(_create, [str(tmp_path)] * 24, chunksize=1)
    assert len(set(names)) == 24


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_a_name_must_name_a_folder(tmp_path, name):
    with pytest.raises(LaunchError, match="--name must name a folder"):
        run_directory.create_run_dir(str(tmp_path), name, exist_ok=True)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(LaunchError, match="cannot be written") as caught:
        run_directory.create_run_dir(str(tmp_path / "runs" / "train"), "exp", exist_ok=False)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LaunchError, match="cannot be written") as caught:
        run_directory.write_plan(tmp_path, {})
    assert caught.value.seen == "No space left on device"
    assert "--project /elsewhere" in caught.value.next_command


def test_an_old_run_is_cleared_and_nothing_else(tmp_path):
    run = make_run(tmp_path, "exp", finished=True)
    (run / "logs").mkdir()
    for name in ("results.csv", "metrics.jsonl", "logs/rank0.heartbeat.json", "notes.txt"):
        (run / name).write_text("x")
    run_directory.clear_old_run(run)
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert left == ["config.yaml", "notes.txt", "plan.json"]


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "precious.pt").write_text("x")
    with pytest.raises(LaunchError, match="not a run of yolo-launch"):
        run_directory.clear_old_run(tmp_path)
    assert (tmp_path / "weights" / "precious.pt").exists()


def test_the_newest_unfinished_run_is_resumed(tmp_path):
    make_run(tmp_path, "exp", age_s=50)
    make_run(tmp_path, "exp2", age_s=30)
    make_run(tmp_path, "exp3", finished=True)
    assert run_directory.find_run_to_resume(str(tmp_path), NEWEST, NEWEST).name == "exp2"
    (tmp_path / "exp" / "weights" / "last.pt").touch()
    assert run_directory.find_run_to_resume(str(tmp_path), NEWEST, NEWEST).name == "exp"
    with run_lock.hold(tmp_path / "exp"):
        assert run_directory.find_run_to_resume(str(tmp_path), NEWEST, NEWEST).name == "exp2"


@pytest.mark.parametrize("wanted", ["{run}", "{run}/weights/last.pt", "{run}/config.yaml", "exp", "{run}/"])
def test_a_run_is_found_by_folder_file_and_name(tmp_path, wanted):
    run = make_run(tmp_path, "exp")
    assert run_directory.find_run_to_resume(str(tmp_path), wanted.format(run=run), NEWEST) == run


def test_runs_that_are_not_there_are_explained(tmp_path):
    with pytest.raises(LaunchError, match="no unfinished run") as caught:
        run_directory.find_run_to_resume(str(tmp_path), NEWEST, NEWEST)
    assert caught.value.next_command == "yolo-launch train"
    make_run(tmp_path, "exp", finished=True)
    with pytest.raises(LaunchError, match="no unfinished run") as caught:
        run_directory.find_run_to_resume(str(tmp_path), NEWEST, NEWEST)
    assert caught.value.next_command == f"yolo-launch train --resume {tmp_path / 'exp'} --epochs N"
    with pytest.raises(LaunchError, match="is not there") as caught:
        run_directory.find_run_to_resume(str(tmp_path), "exp9", NEWEST)
    assert str(tmp_path / "exp") in caught.value.expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(LaunchError, match="is not there") as caught:
        run_directory.find_run_to_resume(str(tmp_path), str(tmp_path / "empty"), NEWEST)
    assert "no config.yaml" in caught.value.seen


def test_damaged_summaries_and_plans_are_empty(tmp_path):
    assert run_directory.read_summary(tmp_path) == {}
    (tmp_path / "summary.json").write_text("[1")
    assert run_directory.read_summary(tmp_path) == {}
    (tmp_path / "plan.json").write_text("[1]")
    assert run_directory.read_plan(tmp_path) == {}
