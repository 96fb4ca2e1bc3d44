"""What Typer parsed becomes one frozen value."""

from __future__ import annotations

import dataclasses

import pytest

from yolo_launch.cli.typer_options import options_from
from yolo_launch.errors import LaunchError
from yolo_launch.request.machine_options import RunOptions
from yolo_launch.request.node_options import NodeOptions
from yolo_launch.request.options import options_of
from yolo_launch.request.train_options import TrainOptions


def parsed(kind, **typed):
    """What Typer hands over: every option, None unless typed."""
    return {**dict.fromkeys((option.name for option in options_of(kind)), None), **typed}


def test_what_was_not_typed_has_its_default():
    options = options_from(TrainOptions, parsed(TrainOptions))
    assert options == TrainOptions()
    assert (options.given, options.hyperparameters, options.json, options.max_restarts) == ({}, {}, False, 3)
    assert options.stall_timeout == 300


def test_what_was_typed_is_read_into_its_type():
    typed = {"gpus": "0", "batch_size": "auto", "freeze": "0 1", "hyperparameters": ["lr0=0.1"], "rank": 0}
    options = options_from(NodeOptions, parsed(NodeOptions, **typed))
    assert options.given == {"batch_size": None, "freeze": (0, 1)}
    assert (options.gpus, options.hyperparameters, options.rank) == ("0", {"lr0": "0.1"}, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.gpus = "1"


def test_positions_reach_their_fields():
    options = options_from(RunOptions, parsed(RunOptions, script="train.py", arguments=["--data", "x"]))
    assert (options.script, options.arguments) == ("train.py", ("--data", "x"))


def test_words_that_cannot_be_read_are_refused():
    with pytest.raises(LaunchError, match="--batch cannot be used"):
        options_from(TrainOptions, parsed(TrainOptions, batch_size="many"))
