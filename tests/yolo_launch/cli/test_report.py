"""Reports as they look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from yolo_launch.cli import report
from yolo_launch.spec import LEFT_TO_SCRIPT, STATE_SAVED, Device, LaunchPlan, Outcome, RankFailure

RUN_DIR = Path("runs/train/exp")
GPUS = (Device("cuda", 2, name="RTX 3090"), Device("cuda", 3, name="RTX 3090"))
PLAN = LaunchPlan(
    mode="ddp",
    nnodes=1,
    node_rank=0,
    nproc_per_node=2,
    world_size=2,
    global_batch_size=32,
    local_batch_size=16,
    devices=GPUS,
    backend="nccl",
    threads_per_rank=4,
    workers_per_rank=4,
    environment={},
    removed_environment=(),
    port=None,
    max_restarts=3,
    stall_timeout_s=300.0,
)
FAILURE = RankFailure(
    rank=1,
    local_rank=1,
    exit_code=1,
    message="ValueError: box 7 of image 12 is wrong",
    traceback="Traceback (most recent call last): ...",
    epoch=2,
    step=41,
    phase="train",
    log_path="runs/train/exp/logs/rank1.log",
    hint="look at the label",
)


def render(outcome, plan=PLAN, next_command="yolo-launch train --resume runs/train/exp"):
    shown = [report.title(outcome, plan), *report.lines(outcome, plan, RUN_DIR, next_command)]
    return "\n".join(shown).splitlines()


def test_a_failure_in_one_panel():
    outcome = Outcome("worker_failed", 1, failure=FAILURE, detail="all 3 restarts are used up")
    assert render(outcome) == [
        "rank 1 failed first",
        "rank 1 of 2 on GPU 3 (RTX 3090), epoch 3, step 41, while training",
        "ValueError: box 7 of image 12 is wrong",
        "Hint:     look at the label",
        "Restarts: all 3 restarts are used up",
        "Log:      runs/train/exp/logs/rank1.log",
        "Next:     yolo-launch train --resume runs/train/exp",
    ]
    assert report.level(outcome) == "failure"
    assert report.traceback_text(outcome) == FAILURE.traceback


def test_rank_0_has_printed_its_traceback_already():
    assert report.traceback_text(Outcome("worker_failed", 1, failure=replace(FAILURE, rank=0))) == ""


def test_a_users_mistake_has_four_parts_and_no_traceback():
    parts = {"what": "--data has no labels", "seen": "0 files", "expected": "labels/", "next_command": "try this"}
    outcome = Outcome("worker_failed", 2, failure=replace(FAILURE, user_error=parts))
    assert render(outcome)[1:] == [
        "--data has no labels",
        "Seen:     0 files",
        "Expected: labels/",
        "Next:     try this",
    ]
    assert report.traceback_text(outcome) == ""


def test_a_silent_crash_shows_its_signal_and_last_lines():
    crash = replace(FAILURE, exit_code=-11, message="crashed with a segmentation fault (SIGSEGV)", traceback="a\nb")
    shown = render(Outcome("worker_failed", 1, failure=crash))
    assert shown[2:6] == ["crashed with a segmentation fault (SIGSEGV)", "Its last lines:", "  a", "  b"]
    own_words = replace(FAILURE, exit_code=-6, message="terminate called after throwing")
    assert "The process was aborted (SIGABRT)" in "\n".join(render(Outcome("worker_failed", 1, failure=own_words)))


def test_a_worker_that_only_printed_why_shows_it():
    refused = replace(
        FAILURE,
        exit_code=2,
        message="ended with exit code 2",
        traceback="usage: train.py\nerror: unrecognized",
        hint="",
    )
    shown = render(Outcome("worker_failed", 1, failure=refused))
    assert shown[2:5] == ["ended with exit code 2", "Its last lines:", "  usage: train.py"]


def test_a_log_below_the_working_folder_is_named_as_one_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = replace(FAILURE, log_path=str(tmp_path / "runs" / "rank1.log"))
    assert "Log:      runs/rank1.log" in render(Outcome("worker_failed", 1, failure=inside))
    assert "Log:      /elsewhere/rank1.log" in render(
        Outcome("worker_failed", 1, failure=replace(FAILURE, log_path="/elsewhere/rank1.log"))
    )


def test_a_long_message_is_cut():
    long = replace(FAILURE, message="\n".join(f"line {n}" for n in range(40)))
    shown = render(Outcome("worker_failed", 1, failure=long))
    assert "... 28 more lines in the log" in shown
    assert "line 12" not in shown


def test_stops():
    saved = render(Outcome("saved_and_stopped", 75, signal=15))
    assert saved == [
        "stopped by SIGTERM with the state saved",
        "Next:     yolo-launch train --resume runs/train/exp",
    ]
    assert render(Outcome("interrupted", 130, signal=2))[0] == "stopped by Ctrl-C without saving"
    kept = Outcome("interrupted", 130, signal=2, detail=STATE_SAVED)
    assert render(kept)[0] == "stopped by Ctrl-C with the state saved"
    assert render(replace(kept, detail=LEFT_TO_SCRIPT))[0] == "stopped by Ctrl-C"
    assert render(Outcome("saved_and_stopped", 75))[0] == "stopped by a signal to the workers with the state saved"
    assert render(Outcome("done", 0)) == ["done"]
    assert report.level(Outcome("interrupted", 130, signal=2)) == "warning"


def test_a_stall_shows_who_waits_for_whom():
    stall = replace(FAILURE, message="rank 1 has been in 'val' for 300 s\nrank 0 waits in broadcast", exit_code=-9)
    shown = render(Outcome("stalled", 4, failure=stall))
    assert shown[0] == "stalled: rank 1 holds the job up"
    assert shown[2:4] == ["rank 1 has been in 'val' for 300 s", "rank 0 waits in broadcast"]
    assert not any("SIGKILL" in line for line in shown)
    assert report.traceback_text(Outcome("stalled", 4, failure=stall))


def test_data_parallel_names_all_its_devices():
    plan = replace(PLAN, mode="dp", world_size=1, nproc_per_node=1)
    outcome = Outcome("worker_failed", 1, failure=replace(FAILURE, rank=0, local_rank=0))
    assert "GPU 2 (RTX 3090), GPU 3 (RTX 3090)" in "\n".join(render(outcome, plan, "x"))
