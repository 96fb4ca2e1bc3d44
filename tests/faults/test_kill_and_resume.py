"""A run that is killed at random moments, and resumed, ends bit-identical to one that was left alone."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.faults.comparison import differences

SEED = int(os.environ.get("YOLO_FAULT_SEED", random.SystemRandom().randrange(10**6)))
KILLS = int(os.environ.get("YOLO_FAULT_KILLS", "6"))
"""Kills of each slow test; 50 of each make the hundred of a full run."""


def kill_until(run, kills, rng, duration_s):
    """Kill random ranks at random moments, resuming each time; returns how many kills hit a live run."""
    done = 0
    while done < kills:
        run.start()
        ended = run.wait(0)
        time.sleep(rng.uniform(0.1, duration_s))
        ended = all(process.exitcode is not None for process in run.ranks)
        if ended:
            # It came to its end first: begin again, so that every kill hits training.
            assert [process.exitcode for process in run.ranks] == [0] * run.world_size, run.output()
            return done
        run.kill(rng.sample(range(run.world_size), rng.randint(1, run.world_size)))
        done += 1
    return done


def expect_equal(run, reference):
    assert differences(run.result(), reference) == [], f"seed {SEED}"


def test_killed_once_in_the_middle_of_an_epoch(training):
    reference = training("reference")
    reference.finish()
    run = training("killed")
    run.start()
    weights = run.run_dir / "weights" / "last.pt"
    deadline = time.monotonic() + 120
    # The second file that appears is a checkpoint from within the first epoch.
    while not (run.run_dir / "weights" / "last.previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    run.kill([0])
    assert weights.exists()
    run.finish()
    assert "resumed at epoch" in run.output()
    expect_equal(run, reference.result())


def test_killed_while_a_checkpoint_is_being_written(training):
    reference = training("reference")
    reference.finish()
    run = training("killed")
    for _ in range(3):
        run.start()
        deadline = time.monotonic() + 60
        folder = run.run_dir / "weights"
        while not list(folder.glob(".last.pt.*.tmp")) and time.monotonic() < deadline:
            time.sleep(0.0005)
        run.kill([0])
    run.finish()
    expect_equal(run, reference.result())


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_at_random_moments(training, world_size):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    reference = training("reference", world_size)
    started_at = time.monotonic()
    reference.finish()
    duration_s = time.monotonic() - started_at
    expected, kills, round_number = reference.result(), 0, 0
    while kills < KILLS:
        run = training(f"killed{round_number}", world_size)
        kills += kill_until(run, min(KILLS - kills, 8), rng, duration_s * 0.6)
        run.finish()
        expect_equal(run, expected)
        round_number += 1
