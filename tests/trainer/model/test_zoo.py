"""The built-in models are the published ones: every key, shape and count, and what they compute."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from trainer.model.definition import zoo_names
from trainer.model.graph import build_model, load_definition

TOLERANCE = 5e-5  # of each array's largest magnitude, from tests/golden/README.md
QUICK = ["yolov5n", "yolov5s", "yolov5m", "yolov5n6", "yolov5s6", "yolov3-tiny"]
LARGE = ["yolov5l", "yolov5x", "yolov5m6", "yolov5l6", "yolov5x6", "yolov3", "yolov3-spp"]


def test_zoo_holds_the_published_models(golden_models):
    assert set(zoo_names()) == set(golden_models) == {*QUICK, *LARGE}


@pytest.mark.parametrize("name", QUICK + LARGE)
def test_keys_shapes_and_counts_are_the_published_ones(name, golden_dir, golden_models, monkeypatch):
    # The shapes are compared, not the values: leave out drawing 140 million of them.
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_: nn.init.zeros_(tensor))
    model = build_model(load_definition(name))
    state = model.state_dict()
    expected = json.loads((golden_dir / "state_dict_shapes.json").read_text())[name]

    assert [(key, list(value.shape)) for key, value in state.items()] == list(expected.items())
    published = golden_models[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == published["parameters"]
    assert len(state) == published["state_dict_entries"]
    assert model.stride.tolist() == published["stride"]
    assert [next(iter(state)), list(state)[-1]] == published["first_last_keys"]
    assert sorted(_optimizer_group_sizes(model)) == sorted(published["optimizer_groups"])


def _optimizer_group_sizes(model: nn.Module) -> list[int]:
    """Weights of convolutions and linear layers, weights of norms, biases."""
    sizes = [0, 0, 0]
    for module in model.modules():
        for name, _ in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.BatchNorm2d)
            sizes[2 if name.endswith("bias") else 1 if is_norm else 0] += 1
    return sizes


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_forward_equals_the_recorded_one(name, golden_dir, golden_fill):
    model = golden_fill(build_model(load_definition(name))).eval()
    images = torch.from_numpy(np.random.RandomState(0).random_sample((2, 3, 128, 128)).astype(np.float32))
    with torch.no_grad():
        decoded, raw = model(images)

    recorded = np.load(golden_dir / "forward.npz")
    results = {"decoded_sample": decoded[:, ::37, ::5], "decoded_mean": decoded.mean(dim=1)}
    results |= {f"raw{level}_sample": output.reshape(-1)[::101] for level, output in enumerate(raw)}
    for key, value in results.items():
        expected = recorded[f"{name}/{key}"]
        np.testing.assert_allclose(
            value.numpy(), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=key
        )
