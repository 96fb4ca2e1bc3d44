"""Layers against plain arithmetic or against each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.model.layers import (
    C3,
    C3TR,
    SPP,
    SPPF,
    Bottleneck,
    C3Ghost,
    Conv,
    DWConv,
    Focus,
    GhostBottleneck,
    GhostConv,
)


def _features(channels: int = 8, side: int = 12) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_batch_norm_has_the_published_constants():
    norm = Conv(3, 8).bn
    assert (norm.eps, norm.momentum) == (1e-3, 0.03)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2])
def test_conv_keeps_the_size_at_stride_one_and_halves_it_at_two(kernel, dilation):
    assert Conv(8, 4, kernel, 1, dilation=dilation)(_features()).shape == (2, 4, 12, 12)
    assert Conv(8, 4, kernel, 2, dilation=dilation)(_features()).shape == (2, 4, 6, 6)


def test_conv_without_activation_is_affine():
    conv = Conv(8, 4, 3, act=False).eval()
    features = _features()
    with torch.no_grad():
        assert torch.allclose(conv(2 * features) - conv(features), conv(features) - conv(0 * features), atol=1e-5)


def test_sppf_equals_spp_of_the_three_sizes_it_stands_for():
    slow, fast = SPP(8, 8).eval(), SPPF(8, 8).eval()
    fast.load_state_dict(slow.state_dict())
    with torch.no_grad():
        assert torch.equal(slow(_features()), fast(_features()))


def test_focus_sorts_pixels_by_row_then_column_parity():
    focus = Focus(1, 4)
    focus.conv = nn.Identity()
    image = torch.arange(16.0).view(1, 1, 4, 4)
    quarters = focus(image)[0, :, 0, 0].tolist()
    assert quarters == [0, 4, 1, 5]  # even-even, odd row, odd column, both odd


def test_bottleneck_adds_its_input_only_where_it_can():
    assert Bottleneck(8, 8).add
    assert not Bottleneck(8, 8, shortcut=False).add
    assert not Bottleneck(8, 16).add
    block = Bottleneck(8, 8).eval()
    with torch.no_grad():
        features = _features()
        assert torch.equal(block(features), features + block.cv2(block.cv1(features)))


def test_depthwise_groups_are_the_common_divisor():
    assert DWConv(8, 12, 3).conv.groups == 4


def test_ghost_conv_makes_half_its_output_from_the_other_half():
    conv = GhostConv(8, 6, 3, 2).eval()
    with torch.no_grad():
        output = conv(_features())
        assert output.shape == (2, 6, 6, 6)
        assert torch.equal(output[:, 3:], conv.cv2(output[:, :3].contiguous()))


@pytest.mark.parametrize("stride", [1, 2])
def test_ghost_bottleneck_shrinks_by_its_stride(stride):
    assert GhostBottleneck(8, 8, 3, stride)(_features()).shape == (2, 8, 12 // stride, 12 // stride)


@pytest.mark.parametrize("block", [C3, C3TR, C3Ghost])
def test_cross_stage_blocks_keep_the_size_and_pass_gradients_to_every_weight(block):
    layer = block(8, 16, 2)
    features = _features()
    output = layer(features)
    assert output.shape == (2, 16, 12, 12)
    (output * torch.randn_like(output)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_transformer_keys_are_the_published_ones():
    keys = set(C3TR(8, 16, 1).state_dict())
    inner = {"linear.weight", "linear.bias", "tr.0.q.weight", "tr.0.k.weight", "tr.0.v.weight", "tr.0.fc1.weight"}
    inner |= {"tr.0.fc2.weight", "tr.0.ma.in_proj_weight", "tr.0.ma.in_proj_bias", "tr.0.ma.out_proj.weight"}
    inner |= {"tr.0.ma.out_proj.bias"}
    assert {key.removeprefix("m.") for key in keys if key.startswith("m.")} == inner


def test_ghost_keys_are_the_published_ones():
    keys = {key for key in GhostBottleneck(8, 8, 3, 2).state_dict() if key.endswith("conv.weight")}
    prefixes = ("conv.0.cv1", "conv.0.cv2", "conv.1", "conv.2.cv1", "conv.2.cv2", "shortcut.0", "shortcut.1")
    assert keys == {f"{prefix}.conv.weight" for prefix in prefixes}


def test_transformer_block_does_not_mix_images():
    layer = C3TR(8, 16, 1).eval()
    features = _features()
    with torch.no_grad():
        assert torch.allclose(layer(features)[1:], layer(features[1:]), atol=1e-6)
