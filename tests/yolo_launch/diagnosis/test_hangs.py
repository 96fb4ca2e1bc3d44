"""Checks stacks as faulthandler writes them, and which of several ranks holds the others up."""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import threading
from dataclasses import replace

import pytest

from trainer.protocol import Heartbeat, read_heartbeat
from yolo_launch.diagnosis.hangs import StalledRank, blocking_rank, describe_stall, stall_failure
from yolo_launch.diagnosis.heartbeat_monitor import HangDetector
from yolo_launch.diagnosis.stacks import collective_in, main_stack, own_frame
from yolo_launch.workers.files import WorkerFiles

WAITING = """Thread 0x00007f10 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
Current thread 0x00007f20 (most recent call first):
  File "/env/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3022 in all_reduce
  File "/env/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 84 in wrapper
  File "/home/me/trainer/distributed.py", line 107 in sum
  File "/home/me/trainer/loop.py", line 60 in run_epoch
"""
LOADING = """Current thread 0x00007f20 (most recent call first):
  File "/usr/lib/python3.11/selectors.py", line 415 in select
  File "/home/me/trainer/data/images.py", line 33 in decode
"""


def stalled(rank, text, *, phase="train", step=5, frozen="", idle_s=300.0):
    return StalledRank(rank, idle_s, Heartbeat(rank, phase, 1, step, 0.0), tuple(main_stack(text)), frozen)


def test_the_main_threads_stack_is_read_from_a_real_dump(tmp_path):
    ready, over = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: (ready.set(), over.wait()))
    other.start()
    ready.wait()
    with (tmp_path / "stacks").open("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        frames = main_stack(file.read())
    over.set()
    other.join()
    assert frames[0].function == "test_the_main_threads_stack_is_read_from_a_real_dump"
    assert own_frame(frames).path == __file__


def test_a_stack_ends_where_the_script_begins():
    starting = (
        '  File "/home/me/train.py", line 9 in <module>\n'
        '  File "<frozen runpy>", line 88 in _run_code\n'
        '  File "/env/yolo_launch/workers/script_entrypoint.py", line 48 in main\n'
        '  File "/usr/lib/python3.10/runpy.py", line 196 in _run_module_as_main\n'
    )
    assert main_stack(LOADING + starting)[-1].path == "/home/me/train.py"
    assert len(main_stack(LOADING + starting)) == 3
    assert len(main_stack(starting.split("\n", 1)[1])) == 1


def test_a_process_group_gives_up_in_minutes():
    from trainer.runtime.distributed import process_group

    assert 60 <= inspect.signature(process_group).parameters["timeout_s"].default <= 1200


def test_a_collective_is_recognized_below_its_wrappers():
    assert collective_in(main_stack(WAITING)) == "all_reduce"
    assert collective_in(main_stack(LOADING)) == ""
    waiting = (
        '  File "/env/trainer/runtime/patience.py", line 33 in wait_for_ranks\n'
        '  File "/env/trainer/runtime/distributed.py", line 160 in _wait_for\n'
    )
    assert (
        collective_in(main_stack("Current thread 0x1 (most recent call first):\n" + waiting))
        == "the work of another rank"
    )
    assert str(own_frame(main_stack(WAITING))) == "trainer/distributed.py:107 in sum"


def test_the_rank_that_does_not_wait_is_named_with_what_the_others_wait_for():
    ranks = [stalled(0, WAITING, step=5), stalled(1, LOADING, step=5), stalled(2, WAITING, step=4)]
    assert blocking_rank(ranks).rank == 1
    lines = describe_stall(ranks).splitlines()
    assert lines[0] == "rank 1 has been in 'train' (epoch 2, step 5) for 300 s, at data/images.py:33 in decode"
    assert lines[1].startswith("rank 0 ")
    assert "waiting for the other ranks in all_reduce" in lines[1]
    assert len(lines) == 3


def on_gpu(rank: int, *, step: int, device_marks: int) -> StalledRank:
    """A rank whose main thread is anywhere: it has given its GPU work, and waits for something of it."""
    found = stalled(rank, LOADING, step=step)
    return replace(found, heartbeat=replace(found.heartbeat, device_marks=device_marks))


def test_of_ranks_that_wait_for_their_gpus_the_one_whose_gpu_stands_still_is_named():
    # All have queued step 8. The GPUs of 0 and 2 wait in its backward pass for that of 1, which is in its forward pass.
    ranks = [on_gpu(0, step=7, device_marks=15), on_gpu(1, step=8, device_marks=14), on_gpu(2, step=7, device_marks=15)]
    assert blocking_rank(ranks).rank == 1
    first, second, _ = describe_stall(ranks).splitlines()
    assert "rank 1 has been in 'train'" in first
    assert "waiting for its GPU, which has finished step 7 and nothing since, at data/images.py:33" in first
    assert "its GPU, which has finished the forward pass of step 8" in second


def test_of_gpus_in_one_step_the_one_that_has_not_come_to_the_collective_is_named():
    name = "all_reduce number 8 of sizes [[64, 3]]"
    ranks = []
    for rank, marks in enumerate((15, 14, 15)):
        found = on_gpu(rank, step=7, device_marks=15)
        beat = replace(found.heartbeat, collective_marks=marks, collective=name)
        ranks.append(replace(found, heartbeat=beat))
    first, second, _ = describe_stall(ranks).splitlines()
    assert "rank 1 has been in 'train'" in first
    assert f"the forward pass of step 8 and nothing since and has not come to {name}, at data" in first
    assert f"and has begun {name}, at data" in second


def test_a_gpu_that_has_done_all_it_was_given_is_not_waited_for():
    assert "GPU" not in on_gpu(0, step=7, device_marks=16).describe()
    assert "GPU" not in stalled(0, LOADING, step=7).describe()


def test_a_frozen_process_comes_first():
    ranks = [stalled(0, LOADING), stalled(1, "", frozen="stopped (SIGSTOP or a debugger)")]
    assert blocking_rank(ranks).rank == 1
    assert describe_stall(ranks).startswith("rank 1")
    assert "the process is stopped" in describe_stall(ranks)


def test_where_all_wait_the_one_furthest_behind_is_shown_and_said_to_wait():
    ranks = [stalled(0, WAITING, step=9), stalled(1, WAITING, step=8)]
    assert blocking_rank(ranks).rank == 1
    assert describe_stall(ranks).startswith("every rank waits in a collective")


def test_the_failure_carries_every_stack_the_blocking_ranks_first():
    failure = stall_failure([stalled(0, WAITING), stalled(1, LOADING)])
    assert failure.rank == 1
    assert failure.traceback.index("Stack of rank 1") < failure.traceback.index("Stack of rank 0")
    assert "(none:" in stall_failure([stalled(0, "")]).traceback


def test_a_wait_for_loaders_is_said_and_has_a_hint():
    frame = '  File "/env/lib/python3.11/site-packages/torch/utils/data/dataloader.py", line 725 in __next__\n'
    first = stalled(0, LOADING.replace("  File", frame + "  File", 1))
    assert "waiting for its loader processes, at data/images.py:33" in first.describe()
    assert "--workers 0" in stall_failure([first]).hint
    assert "doctor" in stall_failure([stalled(0, WAITING)]).hint


@pytest.fixture
def files(tmp_path) -> WorkerFiles:
    found = WorkerFiles(tmp_path)
    found.begin_attempt(0, range(2))
    return found


def beat(files, rank, **content):
    files.heartbeat(rank).write_text(json.dumps({"rank": rank, "phase": "train", "epoch": 0, "step": 1, **content}))


def watch(files, required=True):
    return HangDetector(files, 10.0, start_allowance_s=60.0, required=required)


def test_one_rank_that_moves_is_enough(files):
    monitor = watch(files)
    beat(files, 0, step=1)
    beat(files, 1, phase="val", time=1.0)
    assert not monitor.look([0, 1], 0.0)
    for second in range(1, 30):
        beat(files, 1, phase="val", time=1.0 + second)  # validation counts as moving
        assert not monitor.look([0, 1], float(second))
    assert not monitor.look([0, 1], 38.9)
    assert monitor.look([0, 1], 39.1)
    assert monitor.idle_s(0, 39.1) == pytest.approx(39.1)


def test_ranks_that_wait_for_another_machine_are_no_stall(files):
    elsewhere_idle_s = 0.0
    monitor = HangDetector(
        files, 10.0, start_allowance_s=60.0, required=True, elsewhere_idle_s=lambda: elsewhere_idle_s
    )
    beat(files, 0, step=1)
    assert not monitor.look([0], 0.0)
    assert not monitor.look([0], 50.0)
    elsewhere_idle_s = 9.0
    assert not monitor.look([0], 59.0)
    elsewhere_idle_s = 11.0
    assert monitor.look([0], 61.0)


def test_a_rank_that_has_ended_is_not_waited_for(files):
    monitor = watch(files)
    beat(files, 0)
    beat(files, 1)
    assert not monitor.look([0, 1], 0.0)
    assert not monitor.look([], 100.0)


def test_imports_may_take_a_minute(files):
    monitor = watch(files)
    assert not monitor.look([0, 1], 0.0)
    assert not monitor.look([0, 1], 59.0)
    assert monitor.look([0, 1], 61.0)


def test_scripts_without_heartbeats_are_not_watched_until_they_write_one(files):
    monitor = watch(files, required=False)
    assert not monitor.look([0], 0.0)
    assert not monitor.look([0], 9999.0)
    beat(files, 0)
    assert not monitor.look([0], 10000.0)
    assert monitor.look([0], 10011.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": "x"}', '{"step": [1]}'])
def test_a_foreign_heartbeat_file_is_none(files, text):
    files.heartbeat(0).write_text(text)
    assert read_heartbeat(files, 0) is None


@pytest.mark.parametrize(
    ("phase", "epoch", "step", "finished"),
    [("start", 0, 0, False), ("scan", 3, 9, False), ("train", 0, 0, False), ("train", 0, 1, True), ("val", 1, 0, True)],
)
def test_what_counts_as_a_finished_step(phase, epoch, step, finished):
    assert Heartbeat(0, phase, epoch, step, 0.0).finished_a_step is finished


def test_no_stall_timeout_means_no_stall(files):
    assert not HangDetector(files, 0.0, start_allowance_s=1.0, required=True).look([0], 0.0)
    assert os.path.isdir(files.folder)
