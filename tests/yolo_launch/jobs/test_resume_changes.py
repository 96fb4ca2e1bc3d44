"""What may change when a run goes on."""

from __future__ import annotations

import pytest

from trainer.config.train import make_config
from yolo_launch.errors import LaunchError
from yolo_launch.jobs.resume_changes import find_differences, refuse_changed_result, resumed_config

SAVED = make_config({"data": "a.yaml", "epochs": 10, "seed": 3, "hyp": "med"}, {"lr0": 0.05})


def differences(given, overrides=None):
    return find_differences(SAVED, resumed_config(SAVED, given, overrides or {}))


def test_nothing_typed_changes_nothing():
    assert resumed_config(SAVED, {}, {}) == SAVED
    assert differences({}) == []


@pytest.mark.parametrize(
    "given",
    [{"data": "b.yaml"}, {"workers": 3}, {"epochs": 20}, {"cache": "ram"}, {"patience": 5}, {"plots": False}],
)
def test_places_and_paces_are_free(given):
    found = differences(given)
    assert [difference.changes_result for difference in found] == [False]
    refuse_changed_result(found, "runs/train/exp", "yolo-launch train --resume")


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"epochs": 5}, "--epochs"),
        ({"seed": 4}, "--seed"),
        ({"batch_size": 32}, "--batch"),
        ({"imgsz": 320}, "--imgsz"),
    ],
)
def test_what_changes_the_result_needs_a_word(given, option):
    with pytest.raises(LaunchError, match="these change its result") as caught:
        refuse_changed_result(differences(given), "runs/train/exp", "yolo-launch train --resume")
    assert caught.value.seen.startswith(option)
    assert caught.value.next_command == "yolo-launch train --resume --override"


def test_hyperparameters_are_compared_one_by_one():
    assert [(d.option, d.before, d.after) for d in differences({}, {"lr0": 0.1})] == [("--set lr0", "0.05", "0.1")]
    assert {d.option for d in differences({"hyp": "med"})} == {"--set lr0"}
    assert {d.option for d in differences({"hyp": "high"})} == {"--set lr0", "--set copy_paste"}


def test_the_place_of_a_run_is_its_own():
    assert differences({"project": "elsewhere", "name": "x", "exist_ok": True}) == []
