"""Mixed precision: overflows, skipped updates, waits, and gradients, on a CPU where that shows it, else on a card."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from torch import nn

import trainer.training.loop as loop
from trainer.config.train import make_config
from trainer.loss import DetectionLoss, LossGains
from trainer.model.graph import build_model, load_definition
from trainer.optim.optimizer import clip_gradients, make_optimizer
from trainer.protocol import RunFiles
from trainer.runtime.distributed import AutocastModel, DistEnv
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter
from trainer.training.build import build_run
from trainer.training.components import FIRST_LOSS_SCALE
from trainer.training.telemetry import MOST_SKIPPED, NonFiniteDetector

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def make_run(bccd_yaml, tmp_path):
    """Builds the run of a small configuration on a device."""

    def make(device, **options):
        folder = tmp_path / "run"
        RunFiles(folder).make_folders()
        values = {"data": str(bccd_yaml), "cfg": "yolov5n", "imgsz": 64, "batch_size": 8, "epochs": 3, "workers": 0}
        config = make_config({**values, "amp": "off", "plots": False, **options})
        heartbeat = HeartbeatWriter(RunFiles(folder).logs, 0)
        run = build_run(config, DistEnv(), torch.device(device), folder, Reporter(enabled=False), heartbeat)[0]
        run.model.train()
        return run

    return make


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_an_overflow_in_the_first_update_leaves_nothing_behind(device, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3)).to(device)
    optimizer = make_optimizer(model, name, lr=0.01, momentum=0.937, weight_decay=5e-4)
    junk = [torch.full_like(parameter, 7e8) for parameter in model.parameters() for _ in range(4)]
    del junk  # what the next allocations find
    scaler = torch.amp.GradScaler(device, init_scale=FIRST_LOSS_SCALE, enabled=True)
    for is_bad in (True, False, False):
        scaler.scale(model(torch.rand(4, 3, 8, 8, device=device)).square().mean()).backward()
        if is_bad:
            model[2].weight.grad[0, 0, 0, 0] = float("inf")
        scaler.unscale_(optimizer)
        clip_gradients(model, 10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    assert all(bool(parameter.detach().abs().max() < 10) for parameter in model.parameters())


def test_momentum_that_begins_at_zero_learns_as_momentum_that_begins_with_the_gradient():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    other = copy.deepcopy(model)
    ours = make_optimizer(model, "SGD", lr=0.1, momentum=0.9, weight_decay=0.0)
    plain = make_optimizer(other, "SGD", lr=0.1, momentum=0.9, weight_decay=0.0)
    plain.state.clear()
    for _ in range(5):
        x = torch.rand(8, 4)
        for one, optimizer in ((model, ours), (other, plain)):
            optimizer.zero_grad()
            one(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("device", DEVICES)
def test_updates_that_are_skipped_again_and_again_are_a_bad_step(device):
    detector = NonFiniteDetector()
    bad, good = (torch.tensor(value, device=device) for value in (float("inf"), 1.0))
    for step in range(MOST_SKIPPED):
        detector.note_skipped(step, bad)
    detector.note_skipped(MOST_SKIPPED, good)  # the scale was found
    for step in range(100, 100 + MOST_SKIPPED):
        detector.note_skipped(step, bad)
    detector.settle()
    assert detector.bad_step is None
    detector.note_skipped(200, bad)
    detector.settle()
    assert detector.bad_step == 200


def test_a_replica_computes_in_the_type_that_was_agreed_on():
    seen = []
    inner = nn.Linear(2, 2)
    inner.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    AutocastModel(inner, torch.bfloat16)(torch.zeros(1, 2))
    AutocastModel(inner, None)(torch.zeros(1, 2))
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize(
    "options", [{}, {"hyperparameters": {"obj_pw": 1.5, "cls_pw": 1.5}}], ids=["plain", "weighted"]
)
def test_a_step_asks_the_device_nothing(make_run, amp, options):
    run = make_run("cuda", amp=amp, **options)
    batches = list(run.epoch_loader.epoch(0, 0, ()))[:3]
    batches = [batch.pin_memory() for batch in batches]
    for batch in batches * 2:
        loop.train_step(run, batch, is_update=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            loop.train_step(run, batch, is_update=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gradients_of_the_gpu_are_those_of_the_cpu(bccd_yaml):
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        torch.manual_seed(0)
        model = build_model(load_definition("yolov5n"), num_classes=3).train()
        loss = DetectionLoss(model.detect.anchors, 3, LossGains(box=0.05, obj=1.0, cls=0.5))
        images, targets = torch.rand(4, 3, 128, 128), torch.rand(40, 6) * 0.3 + 0.2
        targets[:, 0], targets[:, 1] = torch.randint(0, 4, (40,)), torch.randint(0, 3, (40,))
        gradients = {}
        for device in ("cpu", "cuda"):
            one = copy.deepcopy(model).to(device)
            matches = loss.match(targets, [(16, 16), (8, 8), (4, 4)]).to(device)
            loss(one(images.to(device)), matches, loss.counts(matches, 4)).total.backward()
            gradients[device] = torch.cat([parameter.grad.flatten().cpu() for parameter in one.parameters()])
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed
    difference = (gradients["cuda"] - gradients["cpu"]).norm() / gradients["cpu"].norm()
    assert float(difference) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_forty_steps_in_mixed_precision_learn_as_in_float32(make_run, amp):
    losses = {}
    for kind in ("off", amp):
        run = make_run("cuda", amp=kind, epochs=10, deterministic=True)
        total = torch.zeros(3, dtype=torch.float64, device="cuda")
        steps = 0
        for epoch in range(9):
            for batch in run.epoch_loader.epoch(epoch, 0, ()):
                run.state.loss_sums.zero_()
                loop.train_step(run, batch, is_update=True)
                run.state.progress.micro_step += 1
                steps += 1
                if steps > 30:
                    total += run.state.loss_sums
        losses[kind] = float(total.sum())
        assert steps >= 40
    assert losses[amp] == pytest.approx(losses["off"], rel=0.05)


@pytest.mark.gpu
def test_sixty_nan_gradients_are_told(make_run):
    run = make_run("cuda", amp="fp16")
    batch = next(run.epoch_loader.epoch(0, 0, ()))
    for parameter in run.state.model.parameters():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
        break
    for _ in range(60):
        loop.train_step(run, batch, is_update=True)
        run.state.progress.micro_step += 1
    run.finite.settle()
    assert run.finite.bad_step == MOST_SKIPPED


@pytest.mark.gpu
def test_a_compiled_model_learns_the_same_on_a_card(make_run, tmp_path):
    definition = {
        "nc": 3,
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": [[10, 13, 30, 30]],
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 4]]],
        "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(definition))
    losses = []
    for compiles in (False, True):
        run = make_run("cuda", compile=compiles, cfg=str(tmp_path / "tiny.yaml"))
        for batch in run.epoch_loader.epoch(0, 0, ()):
            loop.train_step(run, batch, is_update=True)
            run.state.progress.micro_step += 1
        losses.append(run.state.loss_sums.cpu())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)
