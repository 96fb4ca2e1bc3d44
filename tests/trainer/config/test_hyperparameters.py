"""The built-in sets of hyperparameters are YOLOv5's, and wrong names and values are told apart."""

from __future__ import annotations

import json

import pytest

from trainer.config.hyperparameters import load_hyperparameters
from trainer.errors import ConfigError


@pytest.mark.parametrize("name", ["low", "med", "high", "none"])
def test_built_in_sets_have_yolov5s_values(golden_dir, name):
    recorded = json.loads((golden_dir / "hyp.json").read_text())[name]
    values = load_hyperparameters(name, {}).model_dump()
    assert {key: values[key] for key in recorded} == pytest.approx(recorded)


def test_single_values_replace_those_of_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr0: 0.02\nmosaic: 0.5\n")
    values = load_hyperparameters(str(path), {"mosaic": "0.25"})
    assert (values.lr0, values.mosaic) == (0.02, 0.25)
    assert values.momentum == load_hyperparameters("low", {}).momentum


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        load_hyperparameters("low", {"mosiac": "1"})
    assert "mosaic" in str(caught.value)
