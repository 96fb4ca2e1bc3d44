"""Compiled code gives the plain model's numbers, and runs for one shape in training alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.compilers import nop

from trainer.config.train import make_config
from trainer.errors import ConfigError
from trainer.loss import DetectionLoss, LossGains
from trainer.model.compiled import FixedShapeCompiled
from trainer.model.graph import build_model, load_definition

SCRIPTS = Path(__file__).parents[2] / "rank_scripts"
TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 30, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 4]]],
    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
}


@pytest.fixture
def tiny(tmp_path):
    """A definition of two convolutions and a head."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def counted():
    """A compiler that leaves the operators as they are, and the number of graphs that it was given."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return nop(graph, inputs)

    torch._dynamo.reset()
    yield aot_autograd(fw_compiler=keep, bw_compiler=keep), graphs
    torch._dynamo.reset()


def make_batch(seed, count, size=(2, 3, 64, 64)):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 6, generator=generator)
    targets[:, :2] = torch.randint(0, 2, (count, 2), generator=generator)
    targets[:, 4:] = targets[:, 4:] * 0.3 + 0.1
    return torch.rand(size, generator=generator), targets


def learn(model, loss, batch):
    """Loss items and gradients of one pass."""
    images, targets = batch
    model.zero_grad()
    matches = loss.match(targets, [(images.shape[2] // 8, images.shape[3] // 8)])
    terms = loss(model(images), matches, loss.counts(matches, len(images)))
    terms.total.backward()
    return terms.items, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_loss_and_gradient_are_those_of_the_plain_model_to_the_bit(tiny, counted):
    backend, graphs = counted
    model = build_model(load_definition(str(tiny))).train()
    anchors, gains = model.detect.anchors, LossGains(box=0.05, obj=1.0, cls=0.5)
    plain, compiled = DetectionLoss(anchors, 2, gains), DetectionLoss(anchors, 2, gains)
    compiled.compile(backend)
    fixed = FixedShapeCompiled(model, (2, 3, 64, 64), backend)
    for seed, count in enumerate((9, 21, 14)):
        batch = make_batch(seed, count)
        for seen, expected in zip(learn(fixed, compiled, batch), learn(model, plain, batch), strict=True):
            assert torch.equal(seen, expected)
    assert len(graphs) >= 4, "forward and backward, of model and loss"


def test_other_shapes_evaluation_and_few_matches_compile_nothing(tiny, counted):
    backend, graphs = counted
    model = build_model(load_definition(str(tiny))).train()
    loss = DetectionLoss(model.detect.anchors, 2, LossGains(box=0.05, obj=1.0, cls=0.5))
    loss.compile(backend)
    fixed = FixedShapeCompiled(model, (2, 3, 64, 64), backend)
    learn(fixed, loss, make_batch(0, 0, (1, 3, 64, 64)))
    learn(fixed, loss, make_batch(0, 0, (2, 3, 64, 96)))
    images, targets = make_batch(1, 9)
    with torch.no_grad():
        decoded, raw = fixed.eval()(images)
        matches = loss.match(targets, [(8, 8)])
        loss(raw, matches, loss.counts(matches, 2))
    assert graphs == []
    assert decoded.shape[0] == 2


@pytest.mark.slow
def test_a_compiled_training_of_two_ranks_takes_the_path_of_a_plain_one(run_ranks, run_config, tiny, tmp_path):
    """Some steps of the real loop, the small last batches among them."""
    paths = {}
    for script, compiles in (("trajectory.py", False), ("compiled.py", True)):
        config = run_config(cfg=str(tiny), compile=compiles)
        out = tmp_path / script
        arguments = [str(config), str(tmp_path / f"run-{script}"), str(out), "float32", "6", "trained"]
        run_ranks([str(SCRIPTS / script), *arguments], 2)
        paths[script] = torch.load(f"{out}.0")
    for name in ("losses", "weights", "buffers"):
        assert torch.equal(paths["compiled.py"][name], paths["trajectory.py"][name]), name


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_loss(tiny):
    """Inductor, which fuses and so rounds elsewhere, on a net of two convolutions."""
    model = build_model(load_definition(str(tiny))).train()
    anchors, gains = model.detect.anchors, LossGains(box=0.05, obj=1.0, cls=0.5)
    plain, compiled = DetectionLoss(anchors, 2, gains), DetectionLoss(anchors, 2, gains)
    compiled.compile()
    fixed = FixedShapeCompiled(model, (2, 3, 64, 64))
    for seed in range(2):
        batch = make_batch(seed, 9)
        for seen, expected in zip(learn(fixed, compiled, batch), learn(model, plain, batch), strict=True):
            torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "other"), [({"sync_bn": True}, "--sync-bn"), ({"parallel": "dp"}, "--parallel dp")]
)
def test_what_cannot_be_compiled_is_refused(options, other):
    with pytest.raises(ConfigError, match=f"--compile does not work with {other}"):
        make_config({"compile": True, **options})
