"""A training step on a real card under torch's own watch for operations that make the host wait."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.trainer.training import test_step_costs as costs
from trainer.training.loop import train_step

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("amp", costs.AMP)
@pytest.mark.parametrize("gains", costs.GAINS)
def test_no_step_makes_the_host_wait(monkeypatch, amp, gains):
    monkeypatch.setattr(costs, "without_data", lambda model, device: model.to(device))
    run = costs.make_run(copy.deepcopy(costs.built()), costs.CARD, **costs.AMP[amp], **costs.GAINS[gains])
    batch = costs.collate(costs.match).pin_memory()
    train_step(run, batch.to(costs.CARD), is_update=True)  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step(run, batch.to(costs.CARD), is_update=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.finite.settle()
    assert run.finite.bad_step is None
