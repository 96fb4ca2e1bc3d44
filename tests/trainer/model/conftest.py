"""Golden records and models that this folder's tests share."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.model.graph import DetectionModel, build_model, load_definition


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
