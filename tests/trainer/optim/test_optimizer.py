"""Parameter groups against YOLOv5's counts, and rates that reach the optimizer."""

from __future__ import annotations

import json

import pytest
import torch

from trainer.model.graph import build_model, load_definition
from trainer.optim.optimizer import clip_gradients, make_optimizer, parameter_groups, set_rates


def test_groups_have_the_recorded_sizes(golden_dir):
    golden = json.loads((golden_dir / "models.json").read_text())
    for name in ("yolov5n", "yolov3-tiny"):
        groups = parameter_groups(build_model(load_definition(name)))
        counts = [len(groups["norm"]), len(groups["decay"]), len(groups["bias"])]
        assert sorted(counts) == golden[name]["optimizer_groups"]


def test_only_weights_decay_and_frozen_parameters_are_left_out():
    model = build_model(load_definition("yolov5n"))
    model.model[0].requires_grad_(False)
    optimizer = make_optimizer(model, "SGD", lr=0.01, momentum=0.9, weight_decay=0.5)
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {
        "bias": 0.0,
        "decay": 0.5,
        "norm": 0.0,
    }
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in model.model[0].parameters()}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_rates_reach_every_group_and_a_step_moves_the_weights(name):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    optimizer = make_optimizer(model, name, lr=0.01, momentum=0.9, weight_decay=0.0)
    set_rates(optimizer, lr=0.5, bias_lr=0.25, momentum=0.8)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"bias": 0.25, "decay": 0.5, "norm": 0.5}
    for group in optimizer.param_groups:
        assert group.get("momentum", group.get("betas", (0,))[0]) == 0.8
    before = model[0].weight.detach().clone()
    model(torch.rand(2, 1, 3, 3)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[0].weight)


def test_clipping_limits_the_total_norm():
    model = torch.nn.Linear(3, 1)
    model(torch.full((1, 3), 100.0)).backward()
    norm = clip_gradients(model, 10.0)
    assert float(norm) > 100
    total = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert float(total) == pytest.approx(10, rel=1e-4)
