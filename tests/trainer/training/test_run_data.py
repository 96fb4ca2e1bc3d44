"""What the ranks of a run agree on before they train: one precision, and the same images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from trainer.config.fields import read_options
from trainer.config.train import make_config
from trainer.errors import ConfigError
from trainer.model.graph import build_model, load_definition
from trainer.protocol import LogFiles
from trainer.runtime.distributed import Collectives, DistEnv
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter
from trainer.training import build
from trainer.training.components import freeze_layers
from trainer.training.precision import agree_on_autocast, shared_autocast

TWO_MACHINES = str(Path(__file__).parents[2] / "rank_scripts" / "two_machines.py")
BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("choices", "shared"),
    [
        ([None], None),
        ([FP16], FP16),
        ([BF16], BF16),
        ([BF16, BF16], BF16),
        ([BF16, FP16], FP16),
        ([FP16, BF16, BF16], FP16),
        ([FP16, None], None),
        ([None, BF16], None),
        ([BF16, FP16, None], None),
    ],
)
def test_all_ranks_train_in_what_the_least_of_them_can_do(choices, shared):
    assert shared_autocast(choices) is shared


class KnownPeers(Collectives):
    """Peers of a rank whose values are given."""

    def __init__(self, *others):
        super().__init__(DistEnv())
        self.others = others

    def gather(self, value):
        return [value, *self.others] if isinstance(value, torch.dtype) else [value]


@pytest.mark.parametrize(
    ("others", "shared", "warning"),
    [
        ((BF16,), BF16, ""),
        ((FP16,), FP16, "(bfloat16, float16 by rank); all of them train in float16"),
        ((FP16, None), None, "(bfloat16, float16, float32 by rank); all of them train in float32"),
    ],
)
def test_devices_that_would_choose_differently_are_named_once(capsys, others, shared, warning):
    for is_main in (True, False):
        reporter = Reporter(enabled=is_main)
        assert agree_on_autocast("bf16", torch.device("cpu"), KnownPeers(*others), reporter) is shared
    output = capsys.readouterr().out
    assert warning in output
    assert output.count("warning") == bool(warning)


def test_a_run_is_built_with_the_precision_of_all_ranks(run_config, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "Collectives", lambda env: KnownPeers(FP16))
    config, heartbeat = make_config(read_options(run_config(amp="bf16"))), HeartbeatWriter(LogFiles(tmp_path), 0)
    device, reporter = torch.device("cpu"), Reporter(enabled=False)
    run, _ = build.build_run(config, DistEnv(), device, tmp_path, reporter, heartbeat)
    assert run.settings.autocast_dtype is FP16
    assert run.state.scaler.is_enabled()


@pytest.fixture
def other_machine(small_bccd, tmp_path):
    """The data set as a second machine has it."""
    return Path(shutil.copytree(small_bccd.parent, tmp_path / "other")) / small_bccd.name


@pytest.mark.parametrize("split", ["train", "val"])
def test_machines_with_different_images_are_refused_on_every_rank(
    run_ranks, small_bccd, other_machine, tmp_path, split
):
    next((other_machine.parent / "images" / split).iterdir()).unlink()
    outputs = run_ranks([TWO_MACHINES, str(tmp_path), str(small_bccd), str(other_machine)], 2)
    counts = "22, 21" if split == "train" else "10, 9"
    for output in outputs:
        assert f"the machines have different usable '{split}' images\nSeen: {counts}, rank by rank" in output


def test_machines_with_copies_of_the_same_images_go_on(run_ranks, small_bccd, other_machine, tmp_path):
    outputs = run_ranks([TWO_MACHINES, str(tmp_path), str(small_bccd), str(other_machine)], 2)
    assert all(output.endswith("22 and 10 images\n") for output in outputs), outputs


def test_freezing_every_layer_is_refused():
    model = build_model(load_definition("yolov5n"), num_classes=1)
    with pytest.raises(ConfigError, match="nothing to train") as caught:
        freeze_layers(model, (len(model.model),))
    assert "24" in caught.value.expected


@pytest.mark.parametrize(("wanted", "per_level"), [(None, 3), (0, 3), (3.44, 3), (5, 5)])
def test_the_hyperparameter_anchors_asks_for_as_many_to_be_fitted(wanted, per_level):
    config = make_config({"cfg": "yolov5n"}, {} if wanted is None else {"anchors": wanted})
    model, _ = build.make_model(config, ["cat"], Collectives(DistEnv()), Reporter(enabled=False), None)
    assert len(model.detect.anchors[0]) == per_level
    assert model.anchors_given is not bool(wanted)
