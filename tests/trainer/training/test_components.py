"""Options that change data, model or optimizer train to the end, together."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from trainer.training.components import scale_statistics

RUNS = {
    "rectangles": {
        "imgsz": 70,
        "rect": True,
        "single_cls": True,
        "freeze": [10],
        "cache": "ram",
        "cos_lr": True,
        "label_smoothing": 0.1,
    },
    "weights": {
        "image_weights": True,
        "multi_scale": True,
        "optimizer": "Adam",
        "amp": "bf16",
        "hyp": "high",
        "save_period": 1,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_options_train_to_the_end(run_ranks, run_config, tmp_path, name):
    run_dir = tmp_path / "run"
    output = run_ranks(["-m", "trainer", str(run_config(workers=1, **RUNS[name])), "--run-dir", str(run_dir)], 1)[0]
    assert json.loads((run_dir / "summary.json").read_text())["epochs"] == 2
    saved = torch.load(run_dir / "weights" / "last.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in saved["model"].values())
    if name == "rectangles":
        assert "96 is used" in output
        assert saved["names"] == ["item"]
        assert "model.0.conv.weight" not in frozen_changes(saved)
    else:
        assert (run_dir / "weights" / "epoch1.pt").exists()
        assert saved["progress"]["class_map"]


def frozen_changes(saved):
    """Weights of the ten frozen layers that differ from their seeded start."""
    from trainer.model.graph import build_model, load_definition

    torch.manual_seed(0)
    start = build_model(load_definition("yolov5n"), num_classes=1).state_dict()
    frozen = tuple(f"model.{layer}." for layer in range(10))
    return [
        key
        for key, value in saved["model"].items()
        if key.startswith(frozen) and key.endswith("weight") and not torch.equal(value, start[key])
    ]


def test_statistics_of_batch_norms_follow_more_slowly():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.03), nn.Sequential(nn.BatchNorm2d(4)))
    scale_statistics(model, 0.5)
    assert (model[1].momentum, model[2][0].momentum) == (0.015, 0.05)
