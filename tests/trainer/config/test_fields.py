"""Fields as options: their spellings, what is said of a value that cannot be used, and their files."""

from __future__ import annotations

import pytest

from trainer.config.fields import flag_of, validated, write_config
from trainer.config.inference import ExportConfig, InferenceConfig, PredictConfig, ValConfig
from trainer.config.train import TrainConfig
from trainer.errors import ConfigError

NEEDED = {"weights": "best.pt", "data": "cats.yaml"}


def test_a_field_is_named_by_its_first_flag():
    assert flag_of(TrainConfig, "autoanchor") == "--autoanchor"
    assert flag_of(ValConfig, "imgsz") == "--imgsz"
    assert flag_of(TrainConfig, "hyperparameters") == "hyperparameters"


@pytest.mark.parametrize(
    ("given", "seen", "expected"),
    [
        ({"conf": 1.5}, "--conf 1.5", "0 to 1"),
        ({"batch": 0}, "--batch 0", "a number above 0"),
        ({"workers": -1}, "--workers -1", "a number of at least 0"),
        ({"split": "dev"}, "--split dev", "train, val or test"),
        ({"max_det": 2.5}, "--max-det 2.5", "a number above 0"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_bounds(given, seen, expected):
    with pytest.raises(ConfigError) as caught:
        validated(ValConfig, {**NEEDED, **given})
    assert caught.value.what == f"{seen.split()[0]} cannot be used"
    assert (caught.value.seen, caught.value.expected) == (seen, expected)


def test_two_bounds_are_both_said():
    with pytest.raises(ConfigError) as caught:
        validated(TrainConfig, {"label_smoothing": 2})
    assert caught.value.expected == "a number of at least 0 and below 1"


@pytest.mark.parametrize(
    "config",
    [
        ValConfig(**NEEDED, conf=0.1, coco_json="x.json"),
        PredictConfig(weights="best.pt", sources=("-odd.jpg", "b"), json_lines=True),
        ExportConfig(weights="best.pt", dynamic=True, with_nms=True),
    ],
)
def test_a_written_configuration_is_read_back(config: InferenceConfig, tmp_path):
    write_config(config, tmp_path / "config.yaml")
    assert type(config).read(tmp_path / "config.yaml") == config


def test_suppression_in_the_graph_is_for_onnx():
    with pytest.raises(ConfigError, match="--with-nms is for ONNX"):
        validated(ExportConfig, {"weights": "best.pt", "format": "torchscript", "with_nms": True})


def test_an_unknown_field_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("weights: a.pt\ndata: b.yaml\nconfidence: 0.5\n")
    with pytest.raises(ConfigError, match="confidence"):
        ValConfig.read(tmp_path / "config.yaml")
