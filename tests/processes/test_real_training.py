"""``yolo-launch train`` as a user starts it, with two real trainers: killed, stopped, frozen, and gone on with."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import sys
import time

import cv2
import numpy as np
import pytest

from tests.processes.conftest import PROGRAM

pytestmark = pytest.mark.slow
TYPED = shlex.split("train --data cats.yaml --weights '' --imgsz 64 --batch 4 --gpus cpu --nproc 2 --noplots")
RUN = "runs/train/exp"
PATIENT = f"""
import functools
from yolo_launch.supervision import supervisor
supervisor.Limits = functools.partial(supervisor.Limits, interrupt_s=30.0)
{PROGRAM}
"""
"""Gives a Ctrl-C as long as a SIGTERM: on a busy machine two real ranks may need more than the usual 3 s to reach the
end of a step, and are then killed by design. That limit itself is tested with workers of a known speed."""


@pytest.fixture
def training(job, tiny_model, tmp_path):
    """A job in a folder with a data set of a few pictures; call it with more options to start it.

    Steps of a tiny model are short, so that three seconds after a Ctrl-C are enough on a busy machine too.
    """
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (job.run_dir / "cats" / folder / split).mkdir(parents=True)
        for index in range(16):
            pixels = generator.integers(0, 255, (64, 64, 3), np.uint8)
            cv2.imwrite(str(job.run_dir / "cats" / "images" / split / f"{index}.png"), pixels)
            (job.run_dir / "cats" / "labels" / split / f"{index}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    if sys.version_info >= (3, 11):
        (job.run_dir / "trainer.py").write_text("raise RuntimeError('what lies in the working directory was taken')")
    (job.run_dir / "cats.yaml").write_text("path: cats\ntrain: images/train\nval: images/val\nnames: [cat]\n")

    def start(*more: str, program: str = PROGRAM):
        cache, cfg = str(tmp_path / "cache"), ("--cfg", str(tiny_model))
        return job.start_program(*TYPED, *cfg, *more, program=program, XDG_CACHE_HOME=cache, OMP_NUM_THREADS="1")

    return start


def epochs_done(job) -> list[int]:
    with (job.run_dir / RUN / "results.csv").open() as stream:
        return [int(row["epoch"]) for row in csv.DictReader(stream, skipinitialspace=True)]


def test_a_validation_split_without_labels_is_warned_of_and_the_run_is_no_success(training, job):
    for label in (job.run_dir / "cats" / "labels" / "val").iterdir():
        label.unlink()
    training("--epochs", "2", "--patience", "1")
    assert job.wait(120) == 7
    warned = "no validation image has a label (looked for "
    assert job.stdout.count(warned) >= 1
    assert "this run could not be judged: no validation image has a label" in job.stdout
    assert "could not be judged: no validation image has a label, so nothing was measured" in job.stdout
    assert "predict" not in job.stdout
    assert not (job.run_dir / RUN / "weights" / "best.pt").exists()
    assert epochs_done(job) == [1, 2]
    job.start_program("doctor", "--data", "cats.yaml")
    assert job.wait(60) == 0
    assert warned in job.stdout
    job.start_program(*shlex.split(f"val --weights {RUN}/weights/last.pt --data cats.yaml --gpus cpu --noplots"))
    assert job.wait(60) == 7
    assert "nothing could be measured: none of the 16 images has a label" in job.stdout
    assert "0.000" not in job.stdout


def test_a_killed_worker_costs_a_restart_from_the_newest_checkpoint(training):
    job = training("--epochs", "12")
    job.wait_for(
        f"{RUN}/results.csv"
    )  # the first last.pt is older than the first step, and nothing restarts before that
    job.worker(1).kill()
    assert job.wait(120) == 0
    assert (
        "rank 1 failed (killed by SIGKILL); restart 1 of 3, going on from the newest good checkpoint in" in job.stderr
    )
    assert len(epochs_done(job)) == len(set(epochs_done(job))) == 12
    assert job.alive() == []


@pytest.mark.parametrize(("number", "code", "title"), [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_stopped_training_saves_and_goes_on_when_resumed(training, number, code, title):
    job = training("--epochs", "40", program=PATIENT)
    job.wait_for(f"{RUN}/results.csv")
    job.signal(number)
    assert job.wait(40) == code
    assert job.alive() == []
    assert f"stopped by {title} with the state saved" in job.stderr
    assert f"Next:     yolo-launch train --resume {RUN}" in job.stderr
    before = len(epochs_done(job))
    assert 0 < before < 40
    job.start_program("train", "--resume", RUN, "--epochs", str(before + 2), "--override")
    assert job.wait(120) == 0
    assert len(epochs_done(job)) == before + 2


def test_a_frozen_rank_is_named_with_what_the_others_wait_for(training):
    job = training("--epochs", "40", "--stall-timeout", "6")
    job.wait_for(f"{RUN}/results.csv")  # every rank trains by then
    frozen = job.worker(1)
    frozen.suspend()
    since = time.monotonic()
    assert job.wait(60) == 4
    assert job.seconds_until_nothing_is_left(since) < 20
    report = job.stderr.split("stalled: rank 1 holds the job up")[1]
    assert "the process is stopped (SIGSTOP or a debugger)" in report
    assert "rank 0 has been in 'train'" in report or "rank 0 has been in 'val'" in report
    assert "waiting for the other ranks in" in report
    assert "Stack of rank 0, innermost call first:" in job.stderr


def test_every_rank_says_where_it_is(training):
    job = training("--epochs", "3")
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    while job.process.poll() is None:
        for rank, phases in seen.items():
            path = job.run_dir / RUN / "logs" / f"rank{rank}.heartbeat.json"
            if path.exists():
                beat = json.loads(path.read_text())
                assert {"phase", "epoch", "step", "time"} <= set(beat)
                phases.add(beat["phase"])
        time.sleep(0.005)
    assert job.wait() == 0
    assert all({"start", "train", "val"} <= phases for phases in seen.values()), seen
