from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.loss import DetectionLoss, LossGains, scaled_gains


def run(loss, predictions, targets, counts=None):
    """Totals, items and gradients of one rank."""
    predictions = [level.detach().clone().requires_grad_() for level in predictions]
    matches = loss.match(targets, [level.shape[2:4] for level in predictions])
    counts = loss.counts(matches, len(predictions[0])) if counts is None else counts
    terms = loss(predictions, matches, counts)
    terms.total.backward()
    return terms.total.detach(), terms.items, [level.grad for level in predictions]


@pytest.mark.parametrize("case", ["nc3", "nc80", "nc1", "smooth", "empty"])
def test_recorded_losses_and_gradients(case, golden_dir, make_loss):
    golden = np.load(golden_dir / "loss.npz")
    loss = make_loss(
        int(golden[f"{case}/nc"]),
        int(golden[f"{case}/imgsz"]),
        label_smoothing=float(golden[f"{case}/label_smoothing"]),
    )
    predictions = [torch.from_numpy(golden[f"{case}/pred{level}"]) for level in range(3)]
    total, items, gradients = run(loss, predictions, torch.from_numpy(golden[f"{case}/targets"]))
    assert total.item() == pytest.approx(float(golden[f"{case}/loss"]), rel=1e-6)
    np.testing.assert_allclose(items.numpy(), golden[f"{case}/items"], rtol=1e-6, atol=1e-7)
    for level, gradient in enumerate(gradients):
        expected = golden[f"{case}/grad{level}"]
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-6 * abs(expected).max())


def shards_of(predictions, targets, sizes):
    """The batch cut into consecutive ranks, images renumbered from 0 in each."""
    start = 0
    for size in sizes:
        mine = targets[(targets[:, 0] >= start) & (targets[:, 0] < start + size)].clone()
        mine[:, 0] -= start
        yield [level[start : start + size] for level in predictions], mine
        start += size


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("sizes", [(3, 4), (2, 4, 1), (1, 0, 4, 2), (7,)], ids=str)
@pytest.mark.parametrize("focal_gamma", [0.0, 1.5])
def test_shares_of_ranks_add_up_to_one_rank(sizes, dtype, tolerance, focal_gamma, make_loss, make_batch):
    loss = make_loss(5, 64, focal_gamma=focal_gamma, label_smoothing=0.1, obj_pos_weight=1.3)
    predictions, targets = make_batch(7, 5, 64, 6, dtype)
    targets = targets[targets[:, 0] != 0]  # the first image, in one case a rank's only one, has no targets
    total, items, gradients = run(loss, predictions, targets)

    shards = list(shards_of(predictions, targets, sizes))
    grid_sizes = [level.shape[2:4] for level in predictions]
    counts = sum(loss.counts(loss.match(t, grid_sizes), len(p[0])) for p, t in shards)
    assert counts.dtype == torch.float64
    shares = [run(loss, p, t, counts) for p, t in shards]

    torch.testing.assert_close(sum(s[0] for s in shares), total, rtol=tolerance, atol=0)
    torch.testing.assert_close(sum(s[1] for s in shares), items, rtol=tolerance, atol=0)
    for level, whole in enumerate(gradients):
        joined = torch.cat([s[2][level] for s in shares])
        assert (joined - whole).abs().max() <= tolerance * whole.abs().max()


def test_gradients_match_finite_differences(make_loss, make_batch):
    """The backward that is written by hand, with colliding cells."""
    loss = make_loss(2, 32)
    predictions, targets = make_batch(2, 2, 32, 12, torch.float64, seed=4)
    matches = loss.match(targets, [level.shape[2:4] for level in predictions])
    assert any((found.last_row != torch.arange(len(found))).any() for found in matches)
    counts = loss.counts(matches, 2)
    _, _, gradients = run(loss, predictions, targets)

    # Objectness targets are detached, so what moves them is left out: one direction per kind of column.
    generator = torch.Generator().manual_seed(0)
    columns = [4, 5, 6]
    directions = [torch.zeros_like(level) for level in predictions]
    for direction in directions:
        direction[..., columns] = torch.randn(direction[..., columns].shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    high, low = (
        loss([p + s * step * d for p, d in zip(predictions, directions, strict=True)], matches, counts).total
        for s in (1, -1)
    )
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    torch.testing.assert_close((high - low) / (2 * step), slope, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, make_loss, make_batch):
    loss = make_loss(3, 64)
    predictions, targets = make_batch(3, 3, 64, 5, torch.float32)
    predictions = [level.to(dtype) for level in predictions]
    total, items, gradients = run(loss, predictions, targets)
    expected, expected_items, expected_gradients = run(loss, [p.float() for p in predictions], targets)
    assert total.dtype == items.dtype == torch.float32
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(total, expected, rtol=0, atol=0)
    torch.testing.assert_close(items, expected_items, rtol=0, atol=0)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted.to(dtype), rtol=0, atol=0)


def test_any_memory_layout_gives_the_same_gradient_in_that_layout(make_loss, make_batch):
    loss = make_loss(3, 64)
    predictions, targets = make_batch(2, 3, 64, 5, torch.float32)
    _, _, expected = run(loss, predictions, targets)
    permuted = [p.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2).requires_grad_() for p in predictions]
    matches = loss.match(targets, [level.shape[2:4] for level in permuted])
    loss(permuted, matches, loss.counts(matches, 2)).total.backward()
    for level, gradient in zip(permuted, expected, strict=True):
        assert level.grad.stride() == level.stride()
        torch.testing.assert_close(level.grad, gradient, rtol=1e-6, atol=1e-9)


def test_two_runs_with_many_collisions_are_bit_identical_on_threads(make_loss, make_batch):
    loss = make_loss(80, 64)
    predictions, targets = make_batch(4, 80, 64, 200, torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first, *others = (run(loss, predictions, targets) for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert torch.equal(first[0], other[0])
        assert all(map(torch.equal, first[2], other[2]))


def test_the_order_in_which_colliding_rows_are_written_cannot_matter(make_loss, make_batch):
    """A device may write colliding rows in any order; the test reverses the rows."""
    loss = make_loss(3, 64)
    predictions, targets = make_batch(2, 3, 64, 50, torch.float64)
    matches = loss.match(targets, [level.shape[2:4] for level in predictions])
    counts = loss.counts(matches, 2)
    backward = []
    for found in matches:
        fields = {name: value.flip(0) for name, value in vars(found).items()}
        fields["last_row"] = len(found) - 1 - fields["last_row"]
        backward.append(type(found)(**fields))
    expected, actual = loss(predictions, matches, counts), loss(predictions, backward, counts)
    torch.testing.assert_close(actual.items, expected.items, rtol=1e-13, atol=0)


def test_the_last_of_colliding_rows_sets_the_objectness_target(anchors):
    """Two boxes on one center: the objectness gradient there is sigmoid - CIoU of the second."""
    gains = LossGains(box=0.0, obj=1.0, cls=0.0)
    loss = DetectionLoss(anchors[:1], 1, gains, balance=[1.0])
    near, far = [0, 0, 0.45, 0.45, 0.2, 0.2], [0, 0, 0.45, 0.45, 0.3, 0.3]
    predictions = [torch.zeros(1, 3, 8, 8, 6)]

    def gradient(rows):
        return run(loss, predictions, torch.tensor(rows))[2][0][..., 4]

    assert torch.equal(gradient([near, far]), gradient([far]))
    assert torch.equal(gradient([far, near]), gradient([near]))
    assert not torch.equal(gradient([far]), gradient([near]))


def test_gains_scale_with_levels_classes_and_size():
    gains = scaled_gains(LossGains(box=0.05, obj=1.0, cls=0.5), num_classes=20, image_size=1280, num_levels=4)
    assert gains.box == pytest.approx(0.0375)
    assert gains.obj == pytest.approx(3.0)
    assert gains.cls == pytest.approx(0.09375)


@pytest.mark.parametrize(
    ("levels", "balance"),
    [(3, (4.0, 1.0, 0.4)), (4, (4.0, 1.0, 0.25, 0.06)), (2, (4.0, 1.0)), (5, (4.0, 1.0, 0.25, 0.06, 0.02))],
)
def test_balance_follows_the_number_of_levels(levels, balance):
    gains = LossGains(box=1.0, obj=1.0, cls=1.0)
    assert DetectionLoss(torch.ones(levels, 3, 2), 2, gains).balance == balance
    with pytest.raises(ValueError, match="1 weights"):
        DetectionLoss(torch.ones(levels, 3, 2), 2, gains, balance=[1.0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_loss_of_the_cpu_from_targets_on_either(make_loss, make_batch):
    loss = make_loss(80, 64)
    predictions, targets = make_batch(4, 80, 64, 30, torch.float32)
    total, items, gradients = run(loss, predictions, targets)
    for place in ("cpu", "cuda"):
        on_gpu = [level.cuda().requires_grad_() for level in predictions]
        matches = loss.match(targets.to(place), [level.shape[2:4] for level in on_gpu]).to("cuda")
        terms = loss(on_gpu, matches, loss.counts(matches, 4))
        terms.total.backward()
        torch.testing.assert_close(terms.total.detach().cpu(), total, rtol=1e-5, atol=0)
        torch.testing.assert_close(terms.items.cpu(), items, rtol=1e-5, atol=0)
        for level, gradient in zip(on_gpu, gradients, strict=True):
            assert (level.grad.cpu() - gradient).abs().max() <= 1e-5 * gradient.abs().max()
