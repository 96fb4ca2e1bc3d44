"""A run that is killed at random moments, and resumed, ends bit-identical to one that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
import torch
import yaml

from tests.faults.budget import SEED, WORKER_KILLS
from tests.faults.comparison import differences, newest_step
from tests.faults.hooks import (
    find_classes_by_loss,
    record_samples,
    spoil_gradient,
    stop_in_validation,
    worsen_each_epoch,
)
from trainer.weights.checkpoint import newest_good


def wait_for(condition, run, timeout_s=120, pause_s=0.0005):
    """Until something has come about, while the run goes on."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline and not run.wait(0):
        time.sleep(pause_s)
    assert condition(), run.output()


def kill_until(run, kills, rng, duration_s):
    """Kill random ranks at random moments, resuming each time; returns how many kills hit a live run."""
    done, reached = 0, -1
    while done < kills:
        run.start()
        time.sleep(rng.uniform(0.1, duration_s))
        if run.wait(0):
            # It came to its end first: begin again, so that every kill hits training.
            assert [process.exitcode for process in run.ranks] == [0] * run.world_size, run.output()
            return done
        run.kill(rng.sample(range(run.world_size), rng.randint(1, run.world_size)))
        done += 1
        assert newest_step(run.run_dir) >= reached, f"a checkpoint was lost; seed {SEED}"
        reached = newest_step(run.run_dir)
    return done


def test_killed_before_the_first_checkpoint_it_starts_again(training, undisturbed):
    run = training("killed")
    run.start()
    wait_for((run.run_dir / "logs" / "rank0.heartbeat.json").exists, run)
    run.kill([0])
    assert not list((run.run_dir / "weights").glob("*.pt"))
    run.finish()
    assert "resumed" not in run.output()
    assert differences(run.result(), undisturbed()) == []


def test_killed_once_in_the_middle_of_an_epoch(training, undisturbed):
    run = training("killed")
    run.start()
    # The second file that appears is a checkpoint from within the first epoch.
    wait_for((run.run_dir / "weights" / "last.previous.pt").exists, run)
    run.kill([0])
    run.finish()
    assert "resumed at epoch" in run.output()
    assert differences(run.result(), undisturbed()) == []


def test_killed_while_checkpoints_are_being_written(training, undisturbed):
    run = training("killed")
    folder = run.run_dir / "weights"
    reached = -1
    for number in range(3):
        run.start()
        before = set(folder.glob(".*.tmp"))
        if number == 0:
            wait_for((folder / "last.previous.pt").exists, run)
        wait_for(lambda before=before: set(folder.glob(".last.pt.*.tmp")) - before, run)
        run.kill([0])
        assert newest_step(run.run_dir) >= max(reached, 0), "the good one stays while the next is written"
        reached = newest_step(run.run_dir)
    run.finish()
    assert differences(run.result(), undisturbed()) == []
    assert not list(folder.glob(".*")), "what the killed writers left is gone"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (1, {"image_weights": True, "multi_scale": True, "hyp": "high", "recipe": "yolov5", "workers": 1}),
        (1, {"rect": True, "optimizer": "Adam", "amp": "bf16", "save_period": 1, "cache": "ram"}),
        (2, {"sync_bn": True}),
    ],
)
def test_killed_with_what_depends_on_results_and_steps(training, tmp_path, world_size, options):
    found = (find_classes_by_loss, ())
    reference = training("reference", world_size, (found,), **options)
    reference.finish()
    run = training("killed", world_size, (found, (record_samples, (str(tmp_path), 9))), **options)
    run.start()
    run.wait(60)
    assert run.ranks[0].exitcode == -9, run.output()
    run.hooks = (found,)
    run.finish()
    assert "resumed at epoch 2" in run.output()
    assert differences(run.result(), reference.result()) == []


@pytest.mark.slow
def test_stopped_by_an_early_warning_to_one_rank_it_goes_on_to_the_same_bits(training, undisturbed):
    run = training("stopped", 2, checkpoint_interval_s=600)
    run.start()
    wait_for((run.run_dir / "weights" / "last.pt").exists, run)
    os.kill(run.ranks[1].pid, signal.SIGUSR1)
    assert run.wait(60)
    assert [process.exitcode for process in run.ranks] == [75, 75], run.output()
    run.finish()
    assert "resumed at epoch" in run.output()
    assert differences(run.result(), undisturbed(2)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "epoch", "batch"), [("trainer.training.selection", 1, 7), ("trainer.training.summary", 3, 0)]
)
def test_stopped_in_a_validation_it_saves_at_once_and_validates_again(training, undisturbed, module, epoch, batch):
    run = training("stopped", 2, ((stop_in_validation, (module, 1, epoch)),), checkpoint_interval_s=600)
    run.start()
    assert run.wait(120)
    assert [process.exitcode for process in run.ranks] == [75, 75], run.output()
    content, _ = newest_good(run.run_dir / "weights")
    assert (content["progress"]["epoch"], content["progress"]["batch"]) == (epoch, batch)
    assert not (run.run_dir / "summary.json").exists()
    run.hooks = ()
    run.finish()
    assert "resumed at epoch" in run.output()
    assert (run.run_dir / "summary.json").exists()
    assert differences(run.result(), undisturbed(2)) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "cfg"])
def test_a_run_goes_on_without_the_files_it_was_started_from(training, tiny_model, detector, tmp_path, what):
    """Also with the anchors that were fitted to the labels then."""
    given = tmp_path / ("start.pt" if what == "weights" else "model.yaml")
    if what == "weights":
        shutil.copy(detector, given)
    else:
        given.write_text(yaml.safe_dump({**yaml.safe_load(tiny_model.read_text()), "anchors": 3}))
    options = {"cfg": "", "checkpoint_interval_s": 600, what: str(given)}
    reference = training("reference", **options)
    reference.finish()
    assert ("fitted to the labels" in reference.output()) == (what == "cfg")
    run = training("stopped", 1, ((stop_in_validation, ("trainer.training.selection", 0, 1)),), **options)
    run.start()
    assert run.wait(120)
    assert run.ranks[0].exitcode == 75, run.output()
    given.unlink()
    run.hooks = ()
    run.finish()
    assert differences(run.result(), reference.result()) == []


@pytest.mark.parametrize("step", [5, pytest.param(20, marks=pytest.mark.slow)])  # 20 is the run's last
def test_an_infinite_gradient_goes_back_and_reaches_no_file(training, step):
    run = training("spoilt", 1, ((spoil_gradient, (step,)),))
    run.finish()
    assert "was not finite (NaN or infinite); its images: " in run.output()
    for path in (run.run_dir / "weights").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        states = [content["ema"]["model"], content.get("model", {})]
        assert all(bool(torch.isfinite(tensor).all()) for state in states for tensor in state.values()), path
    assert "nan" not in (run.run_dir / "results.csv").read_text()


@pytest.mark.slow
def test_a_run_that_stopped_early_is_finished_by_a_resume_and_not_trained_on(training):
    options = {"patience": 1, "epochs": 6}
    hooks = ((worsen_each_epoch, ()), (stop_in_validation, ("trainer.training.summary", 0, 2)))
    run = training("stopped", 1, hooks, **options)
    run.start()
    assert run.wait(120)
    assert run.ranks[0].exitcode == 75, run.output()
    before = run.result()
    run.hooks = ()
    run.finish()
    assert (run.run_dir / "summary.json").exists()
    assert differences(run.result(), before) == []


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_at_random_moments(training, undisturbed, world_size):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    kills, round_number, duration_s = 0, 0, 4.0 * world_size
    while kills < WORKER_KILLS:
        run = training(f"killed{round_number}", world_size)
        started_at = time.monotonic()
        kills += kill_until(run, min(WORKER_KILLS - kills, 8), rng, duration_s)
        run.finish()
        assert differences(run.result(), undisturbed(world_size)) == [], f"seed {SEED}"
        print(f"{kills} kills, {time.monotonic() - started_at:.0f} s this round")
        round_number += 1
