"""A full disk and a read-only one stop nothing: training goes on with the last good checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.comparison import differences
from trainer.checkpoint import newest_good

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux to mount a small tmpfs"
    ),
]


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs with room for two checkpoints of yolov5n, but not for a third beside them."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=56m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_costs_checkpoints_not_the_run(training, small_disk):
    run = training("full", checkpoint_interval_s=600)
    run.run_dir = small_disk / "run"
    run.finish()
    assert "training goes on" in run.output()
    found, _ = newest_good(run.run_dir / "weights")
    assert found is not None, "the last good checkpoint stays"
    reference = training("reference", checkpoint_interval_s=600)
    reference.finish()
    assert (run.run_dir / "results.csv").read_text() == (reference.run_dir / "results.csv").read_text()


def test_a_disk_that_turns_read_only_in_between(training, small_disk):
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    run = training("readonly", epochs=6)
    run.run_dir = small_disk / "run"
    run.start()
    weights = run.run_dir / "weights" / "last.previous.pt"
    for _ in range(6000):
        if weights.exists() or run.wait(0.01):
            break
    remounted = subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True)
    if remounted.returncode:
        # Files open for writing keep it writable; a bind mount of the same folder is as good.
        pytest.skip(f"the disk is busy: {remounted.stderr.decode().strip()}")
    assert run.wait(240)
    assert [process.exitcode for process in run.ranks] == [0]
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert newest_good(run.run_dir / "weights")[0] is not None
    run.finish()
    reference = training("reference", epochs=6)
    reference.finish()
    assert differences(run.result()["model"], reference.result()["model"]) == []
    assert isinstance(run.result()["ema"]["model"]["model.0.conv.weight"], torch.Tensor)
    assert Path(run.run_dir / "results.csv").read_text() == (reference.run_dir / "results.csv").read_text()
