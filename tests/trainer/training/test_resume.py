"""Resuming with other ranks, repeating a run, and coming back from a loss that is not finite."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import time
from pathlib import Path

import pytest
import torch

from trainer.data.sampler import epoch_order

NAN_WORKER = str(Path(__file__).parents[2] / "rank_scripts" / "nan_loss.py")


def train(run_ranks, config, run_dir, world_size=1, expected=0):
    return run_ranks(["-m", "trainer", str(config), "--run-dir", str(run_dir)], world_size, expected)


def results(run_dir):
    with (run_dir / "results.csv").open() as file:
        return list(csv.DictReader(file))


def stop_after_first_checkpoint(start_ranks, config, run_dir, world_size):
    """Start ranks, ask one of them to stop once training has begun; the exit codes."""
    processes = start_ranks(["-m", "trainer", str(config), "--run-dir", str(run_dir)], world_size)
    heartbeat, deadline = run_dir / "logs" / "rank0.heartbeat.json", time.monotonic() + 120
    while time.monotonic() < deadline:
        if heartbeat.exists() and json.loads(heartbeat.read_text())["phase"] == "train":
            break
        time.sleep(0.02)
    processes[-1].send_signal(signal.SIGTERM)
    outputs = [process.wait(120) for process in processes]
    return [process.returncode for process in processes], outputs


def test_the_same_command_twice_gives_the_same_results(run_ranks, run_config, tmp_path):
    config = run_config()
    for name in ("a", "b"):
        train(run_ranks, config, tmp_path / name)
    assert (tmp_path / "a" / "results.csv").read_text() == (tmp_path / "b" / "results.csv").read_text()
    assert len(results(tmp_path / "a")) == 2
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["checkpoint_wait"] < 1 for row in rows), "the wait for checkpoints is measured"
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert set(summary) == {
        *("run_dir", "epochs", "best_epoch", "precision", "recall", "map50", "map5095", "images_per_second"),
        *("is_judged", "weights_epoch", "start", "recipe", "world_size", "global_batch_size", "local_batch_size"),
        "data",
    }


def test_one_rank_stopped_by_a_signal_stops_all_with_the_state_saved_and_another_world_size_goes_on(
    run_ranks, start_ranks, run_config, tmp_path
):
    config, run_dir = run_config(epochs=4), tmp_path / "run"
    codes, outputs = stop_after_first_checkpoint(start_ranks, config, run_dir, 2)
    assert codes == [75, 75], outputs
    saved = torch.load(run_dir / "weights" / "last.pt", weights_only=True)
    step = saved["progress"]["micro_step"]
    assert 0 < step < 12
    output = train(run_ranks, config, run_dir, world_size=1)[0]
    assert f"step {step}" in output
    rows = results(run_dir)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]


# Step 4 is in the middle of the second epoch; 5 is the last of the run, after which no step would notice.
@pytest.mark.parametrize("step", [4, 5])
def test_a_loss_that_is_not_finite_goes_back_and_leaves_the_batch_out(
    run_ranks, run_config, small_bccd, tmp_path, step
):
    config, run_dir = run_config(epochs=2), tmp_path / "run"
    output = run_ranks([NAN_WORKER, str(config), str(run_dir), str(step)], 1)[0]
    files = sorted(path.name for path in (small_bccd.parent / "images" / "train").iterdir())
    learned = epoch_order(0, 1, 22)[(step - 3) * 8 : (step - 2) * 8]
    images = ", ".join(files[index] for index in learned)
    assert f"the loss of step {step} was not finite (NaN or infinite); its images: {images}." in output
    content = torch.load(run_dir / "weights" / "last.pt", weights_only=True)
    progress = content["progress"]
    assert progress["skipped_steps"] == [step]
    assert progress["rollbacks"] == 1
    assert [row["epoch"] for row in progress["history"]] == [0, 1]
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in progress["history"])
    assert all(tensor.isfinite().all() for tensor in content["model"].values())


def test_ranks_agree_on_a_loss_that_is_not_finite_on_one_of_them(run_ranks, run_config, tmp_path):
    config, run_dir = run_config(epochs=2), tmp_path / "run"
    run_ranks([NAN_WORKER, str(config), str(run_dir), "4"], 2, NAN_RANK="1")
    progress = torch.load(run_dir / "weights" / "last.pt", weights_only=True)["progress"]
    assert progress["skipped_steps"] == [4]


def test_it_gives_up_after_three_and_says_why(run_ranks, run_config, tmp_path):
    config, run_dir = run_config(epochs=2), tmp_path / "run"
    output = run_ranks([NAN_WORKER, str(config), str(run_dir), "1,2,3,4,5"], 1, expected=1)[0]
    assert "TrainingDiverged" in output
    assert "Gave up after 3 returns to a checkpoint" in output


def test_losses_of_a_fixed_run_are_the_recorded_ones(run_ranks, run_config, tmp_path, golden_dir):
    """A refactor that changes a digit is seen; rounding of other processors stays below the tolerance."""
    train(run_ranks, run_config(epochs=1, recipe="yolov5"), tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    recorded = json.loads((golden_dir / "run_losses.json").read_text())
    assert {name: row[name] for name in recorded} == pytest.approx(recorded, rel=1e-4)


def test_nosave_keeps_the_last_epoch_alone(run_ranks, run_config, tmp_path):
    train(run_ranks, run_config(save=False), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "weights").iterdir()) == ["best.pt", "last.pt"]
    assert torch.load(tmp_path / "run" / "weights" / "best.pt", weights_only=True)["epoch"] == 1


def test_patience_ends_a_run_that_does_not_improve(run_ranks, run_config, tmp_path):
    output = train(run_ranks, run_config(epochs=6, patience=1, hyp="none"), tmp_path / "run")[0]
    rows = results(tmp_path / "run")
    fitness = [0.1 * float(row["metrics/mAP_0.5"]) + 0.9 * float(row["metrics/mAP_0.5:0.95"]) for row in rows]
    if len(rows) < 6:
        assert "stopping early" in output
        assert fitness[-1] <= max(fitness[:-1])
    else:
        # Epochs that find nothing use up no patience.
        assert all(later > earlier or later == earlier == 0 for earlier, later in itertools.pairwise(fitness))
