"""Batch norm over ranks is batch norm of the whole batch: against torch's own on one rank, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.runtime import sync_batch_norm

WORKER = str(Path(__file__).parents[2] / "rank_scripts" / "sync_batch_norm.py")


def whole_batch(given):
    """What torch's batch norm makes of all images at once, in float64."""
    norm = nn.BatchNorm2d(given["images"].shape[1], dtype=torch.float64)
    norm.load_state_dict({name[2:]: value for name, value in given["state"].items()})
    images = given["images"].double().requires_grad_()
    output = norm(images)
    output.backward(given["gradient"].double())
    gradients = {"images": images.grad, "0.weight": norm.weight.grad, "0.bias": norm.bias.grad}
    return {"output": output.detach(), **gradients}, norm


def make_case(images_count, images_dtype, weights_dtype):
    """A batch whose images differ much from one another, the gradient of its outputs, and a batch norm in use."""
    shape = (images_count, 3, 4, 5)
    state = {"0.weight": torch.rand(3) + 0.5, "0.bias": torch.randn(3)}
    state |= {"0.running_mean": torch.randn(3), "0.running_var": torch.rand(3)}
    state |= {"0.num_batches_tracked": torch.tensor(7)}
    images = (torch.randn(shape) * 2 + torch.arange(images_count).view(-1, 1, 1, 1)).to(images_dtype)
    return {"images": images, "gradient": torch.randn(shape).to(images_dtype), "state": state, "weights": weights_dtype}


DTYPES = (  # of images and of weights, and the tolerance
    (torch.float64, torch.float64, 1e-12),
    (torch.float32, torch.float32, 1e-5),
    (torch.bfloat16, torch.float32, 2e-2),  # under autocast
)


@pytest.mark.parametrize("shares", [(5, 2), (3, 0, 4), (0, 1, 0)], ids=str)
def test_ranks_with_parts_of_a_batch_normalize_it_as_one_rank(run_ranks, tmp_path, shares):
    torch.manual_seed(0)
    cases = [make_case(sum(shares), images_dtype, weights_dtype) for images_dtype, weights_dtype, _ in DTYPES]
    torch.save(cases, tmp_path / "given.pt")
    run_ranks([WORKER, str(tmp_path / "given.pt"), str(tmp_path / "out"), *map(str, shares)], len(shares))
    by_rank = [torch.load(tmp_path / f"out.{rank}") for rank in range(len(shares))]
    for given, (images_dtype, _, tolerance), ranks in zip(cases, DTYPES, zip(*by_rank, strict=True), strict=True):
        check(given, ranks, images_dtype, tolerance)


def check(given, ranks, images_dtype, tolerance):
    expected, norm = whole_batch(given)
    found = {name: torch.cat([rank[name] for rank in ranks]) for name in ("output", "images")}
    found |= {name: sum(rank[name] for rank in ranks) for name in ("0.weight", "0.bias")}
    assert found["output"].dtype == images_dtype
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=tolerance, atol=tolerance)
    for name, value in norm.state_dict().items():
        for rank in ranks:
            assert torch.equal(rank["state"][f"0.{name}"], ranks[0]["state"][f"0.{name}"])
            torch.testing.assert_close(rank["state"][f"0.{name}"].double(), value.double(), rtol=tolerance, atol=0)
    evaluated = norm.eval()(given["images"].double()).detach()
    torch.testing.assert_close(ranks[0]["evaluated"].double(), evaluated, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_a_gpus_sums_are_those_of_a_cpu(dtype, tolerance):
    torch.manual_seed(0)
    images = torch.randn(5, 7, 4, 6, dtype=dtype) * 3 + torch.arange(7).view(1, -1, 1, 1) * 10
    at_once, by_image = sync_batch_norm._sums_at_once(images), sync_batch_norm._sums_by_image(images)
    for found, expected in zip(at_once, by_image, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    assert at_once[1].dtype == torch.float64
    gradient = torch.randn_like(images)
    products = sync_batch_norm._products(gradient, images, at_once[0])
    by_kernel = sync_batch_norm._products_by_kernel(gradient, images, at_once[0])
    torch.testing.assert_close(products, by_kernel, rtol=10 * tolerance, atol=100 * tolerance)
