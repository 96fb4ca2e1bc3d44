"""What a resume keeps, and what it says of a machine, a data set or options that are not as they were."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from trainer.config.fields import write_config
from trainer.config.train import make_config, read_config
from trainer.errors import ConfigError
from trainer.optim.ema import ModelEma
from trainer.optim.optimizer import make_optimizer
from trainer.optim.schedule import make_recipe
from trainer.training.resume import changes_since, compare_names, settle_recipe
from trainer.training.run import LoopSettings
from trainer.training.selection import START, out_of_patience
from trainer.training.state import Progress, TrainState
from trainer.weights.checkpoint import read_checkpoint

HEADER = {"versions": {"torch": "2.15.0"}, "threads": 1, "cpu": "AVX512", "train_images": 26}
HEADER["config"] = {"sync_bn": False}
SAVED = {**HEADER, "loss_sums_by_rank": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    ("changed", "world_size", "expected"),
    [
        ({"versions": {"torch": "2.16.0"}}, 2, ["torch 2.16.0 instead of 2.15.0"]),
        ({"threads": 4}, 2, ["4 threads a rank instead of 1"]),
        ({"cpu": "AVX2"}, 2, ["AVX2 instructions instead of AVX512"]),
        ({}, 1, ["1 ranks instead of 2", "batch norm sees 1/1 of a batch, and saw 1/2 before"]),
        ({"config": {"sync_bn": True}}, 1, ["1 ranks instead of 2"]),
        ({"threads": 2, "cpu": "AVX2"}, 2, ["2 threads a rank instead of 1, AVX2 instructions instead of AVX512"]),
        ({"train_images": 30}, 2, ["the training set has 30 images instead of 26"]),
        ({}, 2, []),
    ],
)
def test_what_differs_from_the_run_as_it_was_is_said(changed, world_size, expected):
    found = changes_since(SAVED, {**HEADER, **changed}, world_size)
    assert len(found) == len(expected)
    for line, part in zip(found, expected, strict=True):
        assert part in line


def test_a_checkpoint_of_an_earlier_version_is_taken_without_comparison():
    assert changes_since({"loss_sums_by_rank": torch.zeros(1, 3)}, HEADER, 1) == []


def test_a_configuration_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_config(make_config({"seed": 1}), path)

    def full(descriptor):
        assert len(list(tmp_path.iterdir())) == 2, "the new text lies beside the old one"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_config(make_config({"seed": 2}), path)
    assert read_config(path).seed == 1
    assert list(tmp_path.iterdir()) == [path]


def saved_with(config):
    recipe = make_recipe(
        config.recipe, epochs=config.epochs, batches_per_epoch=50, global_batch_size=16, warmup_epochs=3.0
    )
    return {"config": config.model_dump(mode="json"), "recipe": dict(vars(recipe))}


def test_the_recipe_of_a_run_stays_while_its_epochs_grow():
    short, long = make_config({"epochs": 100}), make_config({"epochs": 2000})
    assert settle_recipe(long, 50, None).optimizer == "SGD"
    assert settle_recipe(long, 50, saved_with(short)) == settle_recipe(short, 50, None)
    assert settle_recipe(short, 50, saved_with(short)).optimizer == "AdamW"


@pytest.mark.parametrize("changed", [{"recipe": "yolov5"}, {"optimizer": "SGD"}, {"batch_size": 8}])
def test_options_that_a_user_overrides_choose_it_anew(changed):
    saved, config = saved_with(make_config({"epochs": 100})), make_config({"epochs": 100, **changed})
    assert settle_recipe(config, 50, saved) == settle_recipe(config, 50, None)


def state_with(optimizer):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    made = make_optimizer(model, optimizer, lr=0.1, momentum=0.9, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, ModelEma(model, 0.9, 10), made, scaler, Progress(), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(("before", "after", "takes"), [("AdamW", "AdamW", True), ("AdamW", "SGD", False)])
def test_another_optimizer_starts_without_the_state_of_the_old_one(before, after, takes):
    old, new = state_with(before), state_with(after)
    old.model(torch.ones(1, 3)).sum().backward()
    old.optimizer.step()
    assert new.load_state_dict(old.state_dict(torch.zeros(1, 3, dtype=torch.float64)), 0, 1) is takes
    assert torch.equal(new.model[0].weight, old.model[0].weight)
    kept = [value for state in new.optimizer.state.values() for value in state.values()]
    assert any(bool(value.any()) for value in kept) is takes, "SGD begins with a momentum of zero"
    new.model(torch.ones(1, 3)).sum().backward()
    new.optimizer.step()


def test_how_much_weights_decay_is_not_taken_from_the_checkpoint():
    old, new = state_with("AdamW"), state_with("AdamW")
    new.optimizer.param_groups[1]["weight_decay"] = 0.05
    new.load_state_dict(old.state_dict(torch.zeros(1, 3, dtype=torch.float64)), 0, 1)
    assert [group["weight_decay"] for group in new.optimizer.param_groups] == [0.0, 0.05]


def test_a_resume_with_another_batch_keeps_its_place_in_the_epoch(run_ranks, run_config, tmp_path):
    run_dir = tmp_path / "run"
    trainer = ["-m", "trainer", "--run-dir", str(run_dir)]
    run_ranks([*trainer, str(run_config(epochs=2, batch_size=4, val=False))], 1)
    (run_dir / "summary.json").unlink()
    run_ranks([*trainer, str(run_config(epochs=4, batch_size=11, val=False))], 1)
    progress = read_checkpoint(run_dir / "weights" / "last.pt")["progress"]
    assert progress["micro_step"] == 8, "four epochs of two batches"
    rates = [row["x/lr1"] for row in progress["history"]]
    assert rates[2] > 2 * rates[3], "the rate falls to its end in the last epoch"


def test_what_the_first_weights_knew_is_kept_by_a_resume_that_does_not_read_them_again():
    config = make_config({"epochs": 4})
    recipe = settle_recipe(config, 50, None, learned_images=0)
    assert recipe.knows_classes
    saved = {"config": config.model_dump(mode="json"), "recipe": dict(vars(recipe))}
    assert settle_recipe(config, 50, saved) == recipe
    other = make_config({"epochs": 4, "batch_size": 8})
    assert settle_recipe(other, 50, saved) == settle_recipe(other, 50, None, learned_images=0)
    assert not settle_recipe(config, 50, saved_with(config)).knows_classes


def test_a_hyperparameter_that_is_not_the_published_one_is_the_users_choice_and_stays():
    published, chosen = (make_config({"epochs": 4}, overrides) for overrides in ({}, {"warmup_bias_lr": 0.05}))
    assert published.hyperparameters.chosen() == frozenset()
    assert chosen.hyperparameters.chosen() == {"warmup_bias_lr"}
    assert settle_recipe(published, 50, None, learned_images=0).warmup_bias_scale == 0.1
    assert settle_recipe(chosen, 50, None, learned_images=0).warmup_bias_scale == 1.0


@pytest.mark.parametrize(
    ("start", "fitnesses", "best", "is_out"),
    [
        ([], [0.0, 0.0, 0.0], 2, False),  # a start that finds nothing takes no patience
        ([], [0.0, 0.0, 0.2, 0.1], 2, False),
        ([], [0.2, 0.1, 0.1], 0, True),
        ([0.3], [0.1, 0.2], -1, True),
        ([0.3], [0.4, 0.2], 0, False),
        ([0.0], [0.0], 0, False),
        ([], [], -1, False),
    ],
)
def test_the_best_epoch_and_the_end_of_patience(start, fitnesses, best, is_out):
    progress = Progress()
    for fitness in start:
        progress.consider(START, fitness)
    for epoch, fitness in enumerate(fitnesses):
        progress.consider(epoch, fitness)
        progress.epoch = epoch + 1
    run = SimpleNamespace(
        state=SimpleNamespace(progress=progress), settings=LoopSettings(9, 0, 64, (32,), 32, patience=2)
    )
    assert progress.is_judged is bool(start or fitnesses)
    assert progress.best_epoch == best
    assert out_of_patience(run) is is_out


RUN_NAMES = ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("now", "seen"),
    [
        (["green", "red", "blue"], "green: 1 then, 0 now, red: 0 then, 1 now"),
        (["red", "green"], "3 classes then, 2 now"),
        (["red", "green", "blue", "gray"], "3 classes then, 4 now"),
        (["violet", "red", "blue"], "red: 0 then, 1 now"),
    ],
)
def test_a_resume_whose_indices_mean_other_classes_is_refused(now, seen):
    with pytest.raises(ConfigError, match=r"names: \[red, green, blue\]") as caught:
        compare_names(RUN_NAMES, now)
    assert caught.value.seen == seen
    assert caught.value.next_command


def test_a_class_under_a_better_word_is_a_warning():
    assert compare_names(RUN_NAMES, ["red", "grass green", "blue"]) == [
        "classes have other names than the run had: green is now grass green"
    ]
    assert compare_names(RUN_NAMES, RUN_NAMES) == compare_names(None, RUN_NAMES) == []


def test_a_resume_with_reordered_names_trains_nothing(run_ranks, run_config, tmp_path, small_bccd):
    folder = tmp_path / "set"
    shutil.copytree(small_bccd.parent, folder)
    config = run_config(data=str(folder / small_bccd.name), epochs=1)
    run_ranks(["-m", "trainer", str(config), "--run-dir", str(tmp_path / "run")], 1)
    before = (tmp_path / "run" / "weights" / "last.pt").read_bytes()
    text = (folder / small_bccd.name).read_text()
    content = {**yaml.safe_load(text), "names": ["WBC", "RBC", "Platelets"]}
    (folder / small_bccd.name).write_text(yaml.safe_dump(content))
    config = run_config(data=str(folder / small_bccd.name), epochs=2)
    output = run_ranks(["-m", "trainer", str(config), "--run-dir", str(tmp_path / "run")], 1, expected=2)[0]
    assert "names: [RBC, WBC, Platelets]" in output
    assert "Traceback" not in output
    assert (tmp_path / "run" / "weights" / "last.pt").read_bytes() == before
