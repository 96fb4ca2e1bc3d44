"""Options as data: types from the configuration, values as typed."""

from __future__ import annotations

import pytest

from trainer.config.train import TrainConfig
from yolo_launch.errors import LaunchError
from yolo_launch.request.launch_options import LaunchOptions
from yolo_launch.request.launch_request import DEMO_OPTIONS, launch_request
from yolo_launch.request.machine_options import RunOptions
from yolo_launch.request.node_options import NodeOptions
from yolo_launch.request.option_values import parse_batch, parse_overrides
from yolo_launch.request.options import config_field_options, config_values, options_of
from yolo_launch.request.train_options import TrainOptions


def test_every_field_with_flags_is_an_option_of_its_type():
    options = {option.name: option for option in config_field_options(TrainConfig)}
    assert options["imgsz"].type is int
    assert options["imgsz"].flags == ("--imgsz", "--img", "--img-size")
    assert options["label_smoothing"].type is float
    assert options["rect"].type is bool
    assert options["workers"].type is int
    assert options["optimizer"].metavar == "auto|SGD|Adam|AdamW"
    assert "hyperparameters" not in options
    assert "parallel" not in options


@pytest.mark.parametrize("kind", [TrainOptions, NodeOptions])
def test_no_flag_and_no_name_is_used_twice(kind):
    flags = [part for option in options_of(kind) for flag in option.flags for part in flag.split("/")]
    assert len(flags) == len(set(flags))
    names = [option.name for option in options_of(kind)]
    assert len(names) == len(set(names))


def test_the_demos_options_are_fields():
    assert set(DEMO_OPTIONS) <= set(TrainConfig.model_fields)


def test_only_what_was_typed_is_an_option_value():
    values = dict.fromkeys((option.name for option in options_of(TrainOptions)), None)
    assert config_values(TrainConfig, values) == {}
    typed = {**values, "freeze": "0,1,2", "batch_size": "64", "rect": True, "weights": "", "gpus": "0"}
    assert config_values(TrainConfig, typed) == {"freeze": (0, 1, 2), "batch_size": 64, "rect": True, "weights": ""}


@pytest.mark.parametrize(("text", "batch"), [("64", 64), ("auto", None), ("-1", None), ("AUTO", None)])
def test_batches(text, batch):
    assert parse_batch(text) == batch


@pytest.mark.parametrize("text", ["0", "-2", "x", "1.5", ""])
def test_batches_that_are_none(text):
    with pytest.raises(LaunchError, match="--batch cannot be used"):
        parse_batch(text)


def test_overrides():
    assert parse_overrides(["lr0=0.1", "mosaic = 0"]) == {"lr0": "0.1", "mosaic": "0"}
    assert parse_overrides(None) == {}
    for bad in ("lr0", "=3", ""):
        with pytest.raises(LaunchError, match="--set cannot be used"):
            parse_overrides([bad])


def test_freeze_takes_numbers_only():
    with pytest.raises(LaunchError, match="--freeze"):
        config_values(TrainConfig, {"freeze": "backbone"})


@pytest.mark.parametrize(
    "values",
    [
        {"parallel": "fsdp"},
        {"port": 0},
        {"port": 70000},
        {"max_restarts": -1},
        {"stall_timeout": 0.0},
    ],
)
def test_launcher_values_out_of_range_are_refused(values):
    with pytest.raises(LaunchError, match="cannot be used"):
        launch_request(LaunchOptions(**values), ("yolo-launch", "train"))


def test_zero_restarts_are_not_the_default():
    assert launch_request(LaunchOptions(max_restarts=0), ()).max_restarts == 0
    assert launch_request(LaunchOptions(), ()).max_restarts == 3
    assert launch_request(RunOptions(), ()).max_restarts == 0, "a script that does not resume starts from nothing"


def test_options_are_those_of_the_fields_in_their_order():
    names = [option.name for option in options_of(NodeOptions)]
    assert names.index("rank") < names.index("data") < names.index("gpus") < names.index("resume")
    assert "inline" not in names
    options = {option.name: option for option in options_of(NodeOptions)}
    assert options["hyperparameters"].type == list[str]
    assert (options["stall_timeout"].type, options["stall_timeout"].default_text) == (float, "300")
    assert (options["port"].panel, options["dry_run"].default_text) == ("Machines", "")
