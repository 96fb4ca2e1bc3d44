"""A full disk and a read-only one stop nothing: training goes on with the last good checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.faults.comparison import differences
from trainer.protocol import LAST_WEIGHTS, PREVIOUS_WEIGHTS
from trainer.weights.checkpoint import newest_good, read_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux to mount a small tmpfs"
    ),
]
CHECKPOINT_KB = 2300
"""About the size of the tiny model's."""


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def wait_for_file(path, run):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline and not run.wait(0):
        time.sleep(0.005)
    assert path.exists(), run.output()


def fill(disk, free_kb):
    """Write a file that leaves so little room."""
    room = os.statvfs(disk)
    size = room.f_bavail * room.f_bsize - free_kb * 1024
    (disk / "filler").write_bytes(bytes(max(size, 0)))


def expect_lost(run, why):
    """The run came to its end, said what it could not keep, and does not pass for finished."""
    assert run.wait(120)
    assert [process.exitcode for process in run.ranks] == [2], run.output()
    end = run.output().partition("the training came to its end, but ")[2]
    assert f"{LAST_WEIGHTS} could not be written" in end.splitlines()[0], run.output()
    assert why in end
    assert not (run.run_dir / "summary.json").exists()


def test_a_disk_without_room_costs_checkpoints_not_the_run(training, undisturbed, small_disk):
    fill(small_disk, 2 * CHECKPOINT_KB)  # the first is written; a second has no room beside it
    run = training("full", checkpoint_interval_s=600)
    run.run_dir, run.output_dir = small_disk / "run", small_disk.parent
    run.start()
    expect_lost(run, "No space left")
    found, _ = newest_good(run.run_dir / "weights")
    assert found is not None, "the last good checkpoint stays"
    assert (run.run_dir / "results.csv").read_text() == undisturbed()["results"]
    (small_disk / "filler").unlink()
    run.finish()
    assert differences(run.result(), undisturbed()) == []


def test_room_that_comes_back_is_used_without_waiting_for_the_next_checkpoint(training, undisturbed, small_disk):
    run = training("freed")
    run.run_dir, run.output_dir = small_disk / "run", small_disk.parent
    run.start()
    wait_for_file(run.run_dir / "weights" / PREVIOUS_WEIGHTS, run)
    fill(small_disk, 0)
    deadline = time.monotonic() + 60
    while "training goes on" not in run.output() and time.monotonic() < deadline and not run.wait(0):
        time.sleep(0.01)
    assert "No space left" in run.output()
    (small_disk / "filler").unlink()
    assert run.wait(120)
    assert [process.exitcode for process in run.ranks] == [0], run.output()
    assert "could be written now" in run.output()
    assert differences(run.result(), undisturbed()) == []


def test_a_disk_that_turns_read_only_in_between(training, undisturbed, small_disk):
    run = training("readonly")
    run.run_dir, run.output_dir = small_disk / "run", small_disk.parent
    run.start()
    wait_for_file(run.run_dir / "weights" / PREVIOUS_WEIGHTS, run)
    # While a file is open for writing, such as a checkpoint, the disk refuses to turn.
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    while subprocess.run(remount, capture_output=True).returncode and not run.wait(0):
        time.sleep(0.001)
    expect_lost(run, "Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert read_checkpoint(run.run_dir / "weights" / LAST_WEIGHTS)["progress"]["epoch"] < 3
    run.finish()
    assert differences(run.result(), undisturbed()) == []
