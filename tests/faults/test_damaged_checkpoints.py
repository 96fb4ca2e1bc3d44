"""A checkpoint that is damaged, cut, foreign or from the future is refused by name, and the one before it is used."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.faults.comparison import differences
from tests.faults.hooks import record_samples, set_value
from trainer.protocol import LAST_WEIGHTS, PREVIOUS_WEIGHTS
from trainer.weights.checkpoint import newest_good


@pytest.fixture(scope="module")
def killed(forkserver, fault_data, tiny_model, tmp_path_factory):
    """The folder of a run that was killed in its second epoch, with two checkpoints."""
    from tests.faults.conftest import Training, tiny_config

    folder = tmp_path_factory.mktemp("killed")
    hook = (record_samples, (str(folder), 11))
    run = Training(forkserver, tiny_config(fault_data, tiny_model), folder / "run", hooks=(hook,))
    run.start()
    run.wait(60)
    assert run.ranks[0].exitcode == -9, run.output()
    return folder / "run"


def damage(path, how):
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    if how == "foreign":
        torch.save({"model": content["model"]}, path)
    elif how == "newer":
        torch.save({**content, "version": 99}, path)
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        tensor = content["model"]["model.24.m.0.bias"].numpy().tobytes()
        at = {"header": 0, "tensor": whole.index(tensor) + 3, "checksum": whole.index(content["checksum"].encode())}
        flipped = bytearray(whole)
        flipped[at[how]] ^= 1
        path.write_bytes(flipped)


@pytest.mark.parametrize("how", ["header", "tensor", "checksum", "cut", "foreign", "newer"])
def test_it_is_refused_by_name_and_the_one_before_is_used(killed, tmp_path, how):
    weights = tmp_path / "weights"
    shutil.copytree(killed / "weights", weights)
    before = torch.load(weights / PREVIOUS_WEIGHTS, weights_only=True)["progress"]
    damage(weights / LAST_WEIGHTS, how)
    content, passed_over = newest_good(weights)
    assert content["progress"] == before
    assert len(passed_over) == 1
    assert str(weights / LAST_WEIGHTS) in passed_over[0]
    assert "the one before it is used" in passed_over[0]


@pytest.mark.parametrize("how", ["tensor", pytest.param("newer", marks=pytest.mark.slow)])
def test_the_run_goes_on_from_the_one_before_to_the_same_bits(training, undisturbed, killed, how):
    run = training("damaged")
    shutil.copytree(killed, run.run_dir)
    damage(run.run_dir / "weights" / LAST_WEIGHTS, how)
    run.finish()
    assert f"{LAST_WEIGHTS} cannot be used" in run.output()
    assert "resumed at epoch" in run.output()
    assert (run.run_dir / "weights" / f"{LAST_WEIGHTS}.refused").exists(), "it does not take the place of a good one"
    assert differences(run.result(), undisturbed()) == []


def test_a_resume_may_move_the_data_and_load_in_another_way(training, undisturbed, killed, fault_data, tmp_path):
    shutil.copytree(fault_data.parent, tmp_path / "elsewhere")
    run = training("moved", data=str(tmp_path / "elsewhere" / "data.yaml"), workers=2, cache="ram")
    shutil.copytree(killed, run.run_dir)
    run.finish()
    assert "resumed at epoch" in run.output()
    assert "instead of" not in run.output()
    assert differences(run.result(), undisturbed()) == []


@pytest.mark.slow
def test_more_epochs_keep_the_optimizer_that_the_run_began_with(training):
    """A schedule long enough for another recipe must not change the recipe under way."""
    run = training(
        "longer",
        epochs=2,
        val=False,
        checkpoint_interval_s=60,
        hooks=((set_value, ("trainer.optim.schedule.SHORT_RUN_UPDATES", 10)),),
    )
    run.finish()
    run.config["epochs"] = 8
    run.finish()
    content = torch.load(run.run_dir / "weights" / LAST_WEIGHTS, weights_only=True)
    assert len(content["progress"]["history"]) == 8
    assert (content["optimizer_name"], content["recipe"]["optimizer"]) == ("AdamW", "AdamW")
