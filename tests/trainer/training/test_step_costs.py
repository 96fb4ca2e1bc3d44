"""What a training step costs a GPU: no wait of the host, and a bounded number of operations. Shown without one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.trainer.pretend_card import CARD, counted, pretend_card, without_data
from trainer.data.augment.finish import Finish
from trainer.data.collate import Batch, Collate, LoadedSample
from trainer.loss import DetectionLoss, LossGains
from trainer.loss import assign as assign_module
from trainer.loss import terms as terms_module
from trainer.model.graph import DetectionModel, build_model, load_definition
from trainer.optim.ema import ModelEma
from trainer.optim.optimizer import make_optimizer
from trainer.runtime.device_progress import DeviceProgress
from trainer.runtime.distributed import Collectives, DistEnv
from trainer.runtime.sync_batch_norm import SyncBatchNorm2d, _Normalize, synchronize_batch_norm
from trainer.training.loop import train_step
from trainer.training.telemetry import NonFiniteDetector

SIZE, CLASSES = 64, 3
MOST_OPERATIONS = 900


def collate(match=None):
    boxes = np.array([[1, 8, 8, 40, 50], [0, 20, 4, 60, 30]], np.float32)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    samples = [LoadedSample(image, boxes, at, at, finish=Finish()) for at in range(2)]
    return Collate((SIZE, SIZE), match)(samples)


def make_loss(**gains) -> DetectionLoss:
    anchors = torch.tensor(load_definition("yolov5n")["anchors"]).view(3, 3, 2)
    strides = torch.tensor([8, 16, 32]).view(3, 1, 1)
    return DetectionLoss(anchors / strides, CLASSES, LossGains(box=0.05, obj=1.0, cls=0.5, **gains))


@cache
def built() -> DetectionModel:
    return build_model(load_definition("yolov5n"), num_classes=CLASSES).train()


def make_run(model, device, *, optimizer="SGD", amp=None, scaled=False, **gains):
    model = without_data(model, device)
    state = SimpleNamespace(
        model=model,
        ema=ModelEma(model, 0.9999, 2000.0),
        optimizer=make_optimizer(model, optimizer, lr=0.01, momentum=0.9, weight_decay=5e-4),
        scaler=torch.amp.GradScaler(torch.device(device).type, enabled=scaled),
        progress=SimpleNamespace(micro_step=0, epoch=0, batch=0, updates=0),
        loss_sums=torch.zeros(3, dtype=torch.float64, device=device),
    )
    settings = SimpleNamespace(
        strides=(8, 16, 32), multi_scale=False, sync_bn=False, autocast_dtype=amp, save=False, checkpoint_interval_s=1e9
    )
    schedule = SimpleNamespace(
        learning_rate=lambda step: 0.01, bias_learning_rate=lambda step: 0.01, momentum_at=lambda step: 0.9
    )
    return SimpleNamespace(
        collectives=Collectives(DistEnv()),
        device=torch.device(device),
        model=model,
        state=state,
        loss=make_loss(**gains),
        schedule=schedule,
        settings=settings,
        finite=NonFiniteDetector(),
        device_progress=DeviceProgress(None, torch.device(device), interval_s=1e9),
        local_requests=SimpleNamespace(stop_requested=False, checkpointed_at=math.inf),
    )


def match(targets, canvas_hw):
    return make_loss().match(targets, [(canvas_hw[0] // stride, canvas_hw[1] // stride) for stride in (8, 16, 32)])


def waits_of_a_step(monkeypatch, *, plant=None, steps=2, model=None, **options) -> list[str]:
    model = copy.deepcopy(built()) if model is None else model
    with pretend_card(monkeypatch) as card, monkeypatch.context() as patch:
        run = make_run(model, CARD, **options)

        def fill_gradients(total):
            for parameter in run.model.parameters():
                parameter.grad = torch.empty_like(parameter)

        patch.setattr(torch.Tensor, "backward", fill_gradients)
        batch = collate(match).pin_memory()
        if plant is not None:
            plant(patch)
        card.waits.clear()
        for _ in range(steps):
            train_step(run, batch.to(CARD), is_update=True)
        return card.waits


AMP = {"off": {}, "bf16": {"amp": torch.bfloat16}, "fp16": {"amp": torch.float16, "scaled": True}}
GAINS = {"plain": {}, "weighted": {"obj_pos_weight": 2.0, "cls_pos_weight": 0.5, "focal_gamma": 1.5}}


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize("gains", GAINS)
def test_no_step_waits_for_the_card(monkeypatch, amp, gains):
    assert waits_of_a_step(monkeypatch, **AMP[amp], **GAINS[gains]) == []


def test_no_step_of_another_optimizer_waits(monkeypatch):
    assert waits_of_a_step(monkeypatch, optimizer="AdamW", **AMP["fp16"]) == []


@pytest.fixture
def two_ranks(monkeypatch):
    """Collectives of two ranks, as far as shapes go."""
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: [part.copy_(own) for part in parts])
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor)


@pytest.mark.parametrize("amp", AMP)
def test_no_forward_pass_with_statistics_of_all_ranks_waits(monkeypatch, two_ranks, amp):
    norms = 0

    def synchronize(patch):
        original = SyncBatchNorm2d.forward

        def counted(norm, images):
            nonlocal norms
            norms += 1
            return original(norm, images)

        patch.setattr(SyncBatchNorm2d, "forward", counted)

    model = synchronize_batch_norm(copy.deepcopy(built()))
    assert waits_of_a_step(monkeypatch, plant=synchronize, steps=1, model=model, **AMP[amp]) == []
    assert norms == 57


def test_no_backward_pass_with_statistics_of_all_ranks_waits(monkeypatch, two_ranks):
    with pretend_card(monkeypatch) as card:
        images, gradient = (torch.empty(4, 8, 6, 6, device=CARD, dtype=torch.float16) for _ in range(2))
        weight, bias = (torch.empty(8, device=CARD) for _ in range(2))
        context = SimpleNamespace(mark_non_differentiable=lambda *tensors: None)
        context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
        _Normalize.forward(context, images, weight, bias, 1e-3)
        found = _Normalize.backward(context, gradient)
        assert card.waits == []
    assert [(one.dtype, one.shape) for one in found[:2]] == [(torch.float16, images.shape), (torch.float32, (8,))]


def item_in_loss(patch):
    original = terms_module.box_term
    patch.setattr("trainer.loss.detection.box_term", lambda rows, *rest: (rows.sum().item(), original(rows, *rest))[1])


def mask_in_loss(patch):
    original = terms_module.box_term

    def masked(rows, *rest):
        rows[rows[:, 0] > 0]
        return original(rows, *rest)

    patch.setattr("trainer.loss.detection.box_term", masked)


def pageable_copy_in_loss(patch):
    patch.setattr("trainer.loss.detection.to_device", lambda tensor, device: tensor.to(device))


def item_in_matching(patch):
    original = assign_module._level_matches

    def read(integers, reals):
        int(integers[0, 0])
        return original(integers, reals)

    patch.setattr(assign_module, "_level_matches", read)


def mask_in_matching(patch):
    original = assign_module._level_matches

    def masked(integers, reals):
        reals[reals[:, 0] > 0]
        return original(integers, reals)

    patch.setattr(assign_module, "_level_matches", masked)


def pageable_copy_in_matching(patch):
    def copied(matches, device):
        parts = (tensor.clone().to(device) for tensor in (matches.integers, matches.reals))
        return assign_module.Matches(*parts, matches.counts)

    patch.setattr(assign_module.Matches, "to", copied)


def moved_by(patch, change):
    """Plants something where a batch goes to the device."""
    original = Batch.to
    patch.setattr(Batch, "to", lambda batch, device: change(original(batch, device)))


def pageable_copy_in_collate(patch):
    moved_by(patch, lambda batch: replace(batch, images_bchw=torch.zeros(2, 3, SIZE, SIZE).to(CARD)))


def item_in_collate(patch):
    moved_by(patch, lambda batch: (batch.images_bchw.max().item(), batch)[1])


def mask_in_collate(patch):
    moved_by(patch, lambda batch: (batch.images_bchw[batch.images_bchw > 0], batch)[1])


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (item_in_loss, "_local_scalar_dense"),
        (mask_in_loss, "index"),
        (pageable_copy_in_loss, "_to_copy of (4,)"),
        (item_in_matching, "_local_scalar_dense"),
        (mask_in_matching, "index"),
        (pageable_copy_in_matching, "_to_copy of (6, "),
        (item_in_collate, "_local_scalar_dense"),
        (mask_in_collate, "index"),
        (pageable_copy_in_collate, f"_to_copy of (2, 3, {SIZE}, {SIZE})"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_wait_is_found(monkeypatch, plant, found):
    assert any(wait.startswith(found) for wait in waits_of_a_step(monkeypatch, plant=plant, steps=1))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_step_launches_a_bounded_number_of_operations(monkeypatch, optimizer):
    batch, model = collate(match), copy.deepcopy(built())
    # What torch does by itself if the gradients lie on a card.
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", partial(torch.nn.utils.clip_grad_norm_, foreach=True))
    with counted() as counter:
        run = make_run(model, "cpu", optimizer=optimizer)
        train_step(run, batch, is_update=True)  # makes the optimizer's state
        counter.launched.clear()
        train_step(run, batch, is_update=True)
    assert 600 < sum(counter.launched.values()) <= MOST_OPERATIONS, counter.launched.most_common(30)
