"""Golden records and models that this folder's tests share."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.model.graph import DetectionModel, build_model, load_definition

_EVERY_LAYER = """
nc: 4
depth_multiple: 0.67
width_multiple: 0.5
anchors: 3
activation: nn.LeakyReLU(0.1)
backbone:
  - [-1, 1, Focus, [32, 3]]
  - [-1, 1, DWConv, [32, 3, 2]]
  - [-1, 3, C3Ghost, [64]]
  - [-1, 1, nn.MaxPool2d, [2, 2, 0]]
  - [-1, 3, C3, [64]]
  - [-1, 1, GhostConv, [64, 3, 2]]
  - [-1, 4, Bottleneck, [64]]
  - [-1, 1, SPP, [64, [5, 9, 13]]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 3, C3TR, [128]]
  - [-1, 1, SPPF, [128, 5]]
head:
  - [-1, 1, nn.ZeroPad2d, [[0, 1, 0, 1]]]
  - [-1, 1, nn.MaxPool2d, [2, 1, 0]]
  - [-1, 1, nn.Upsample, [None, 2, 'nearest']]
  - [[-1, 7], 1, Concat, [1]]
  - [-1, 3, C3, [64, False]]
  - [-1, 1, GhostBottleneck, [64, 3, 2]]
  - [[15, 16], 1, Detect, [nc, anchors]]
"""


@pytest.fixture(scope="session")
def every_layer() -> str:
    """A definition with every layer that a user's file may name."""
    return _EVERY_LAYER


@pytest.fixture
def write_yaml(tmp_path: Path):
    def write(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture(scope="session")
def golden_models(golden_dir: Path) -> dict:
    return json.loads((golden_dir / "models.json").read_text())


@pytest.fixture(scope="session")
def nano() -> DetectionModel:
    """A built yolov5n with weights by the golden rule, in evaluation mode; leave it as it is."""
    return fill_by_golden_rule(build_model(load_definition("yolov5n"))).eval()


@pytest.fixture(scope="session")
def golden_fill():
    return fill_by_golden_rule


def fill_by_golden_rule(model: DetectionModel) -> DetectionModel:
    """Give every state-dict entry the values that tests/golden/README.md defines for forward.npz."""
    for index, (name, value) in enumerate(model.state_dict().items()):
        if name.endswith(("num_batches_tracked", "anchors")):
            continue
        numbers = np.random.RandomState(index).standard_normal(value.numel()).reshape(tuple(value.shape))
        if name.endswith("running_var"):
            numbers = np.exp(0.2 * numbers)
        elif name.endswith(("running_mean", "bias")):
            numbers = 0.1 * numbers
        elif value.ndim >= 2:
            numbers = numbers * math.sqrt(1.4 / np.prod(value.shape[1:]))
        else:
            numbers = 1 + 0.1 * numbers
        value.copy_(torch.from_numpy(numbers))
    return model
