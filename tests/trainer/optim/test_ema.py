"""The moving average against YOLOv5's recorded decay and a plain computation."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from trainer.optim.ema import ModelEma


def test_decay_is_the_recorded_one(golden_dir):
    golden = json.loads((golden_dir / "ema.json").read_text())
    ema = ModelEma(nn.Linear(1, 1), golden["decay"], golden["tau"])
    for updates, decay in golden["decay_at_update"].items():
        assert ema.decay_at(int(updates)) == pytest.approx(decay, rel=1e-12)


def test_average_follows_weights_and_statistics_and_copies_counters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ema = ModelEma(model, 0.9, 5.0)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in range(1, 4):
        model(torch.rand(2, 3, 4, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.rand_like(parameter))
        ema.update()
        decay = ema.decay_at(update)
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert int(ema.model[1].num_batches_tracked) == 3


def test_state_survives_saving():
    model = nn.Linear(2, 2)
    ema = ModelEma(model, 0.9, 5.0)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update()
    state = {"model": {name: value.clone() for name, value in ema.state_dict()["model"].items()}, "updates": 1}
    other = ModelEma(nn.Linear(2, 2), 0.9, 5.0)
    other.load_state_dict(state)
    assert other.updates == 1
    assert torch.equal(other.model.weight, ema.model.weight)


def test_an_average_without_a_youth_keeps_its_full_decay_from_the_first_update():
    ema = ModelEma(nn.Linear(1, 1), 0.9, 0.0)
    assert [ema.decay_at(updates) for updates in (1, 2, 1000)] == [0.9, 0.9, 0.9]
