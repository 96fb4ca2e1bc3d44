"""The head: shapes, decoding, its prior, and what it keeps out of the state dict."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.model.detect import Detect
from trainer.model.graph import build_model, load_definition

ANCHORS = [[10, 13, 16, 30], [116, 90, 156, 198]]


def _head(num_classes: int = 3) -> Detect:
    torch.manual_seed(0)
    return Detect(num_classes, ANCHORS, channels=[4, 6], stride=[8, 32])


def _features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 8, 12), (2, 6, 2, 3))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_training_mode_returns_raw_levels():
    raw = _head()(_features())
    assert [tuple(output.shape) for output in raw] == [(2, 2, 8, 12, 8), (2, 2, 2, 3, 8)]


def test_raw_channels_belong_to_their_anchor_and_cell():
    head, features = _head(), _features()
    raw = head(features)[0]
    plain = head.m[0](features[0])  # (2, 16, 8, 12): anchor 0's eight channels, then anchor 1's
    assert torch.equal(raw[1, 1, 5, 7], plain[1, 8:, 5, 7])


def test_decoding_follows_the_formula_cell_by_cell():
    head, features = _head().eval(), _features()
    with torch.no_grad():
        decoded, raw = head(features)
    assert decoded.shape == (2, 2 * 96 + 2 * 6, 8)
    level, anchor, row, column = 1, 1, 1, 2
    values = raw[level][0, anchor, row, column].sigmoid().tolist()
    got = decoded[0, 2 * 96 + anchor * 6 + row * 3 + column].tolist()
    expected = [
        (values[0] * 2 - 0.5 + column) * 32,
        (values[1] * 2 - 0.5 + row) * 32,
        (values[2] * 2) ** 2 * 156,
        (values[3] * 2) ** 2 * 198,
        *values[4:],
    ]
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_writing_in_place_and_recording_a_graph_decode_alike(memory_format):
    head = _head().eval()
    raw = head([feature.contiguous(memory_format=memory_format) for feature in _features()])[1]
    recorded = head.decode(raw)
    assert recorded.requires_grad
    kept = [output.clone() for output in raw]
    with torch.no_grad():
        assert torch.equal(head.decode(raw), recorded)
    assert all(torch.equal(before, after) for before, after in zip(kept, raw, strict=True))


def test_gradients_pass_through_decoded_boxes():
    head, features = _head().eval(), _features()
    features[0].requires_grad_()
    decoded, _ = head(features)
    decoded.sum().backward()
    assert features[0].grad.abs().sum() > 0


def test_half_precision_is_decoded_in_float32():
    head = _head().eval()
    raw = [torch.randn(1, 2, 80, 80, 8), torch.randn(1, 2, 20, 20, 8)]
    halves = [output.bfloat16() for output in raw]
    with torch.no_grad():
        exact, rounded = head.decode([half.float() for half in halves]), head.decode(halves)
    assert rounded.dtype == torch.float32
    assert torch.equal(exact, rounded)


def test_double_precision_stays():
    head = _head().double().eval()
    with torch.no_grad():
        decoded, raw = head([feature.double() for feature in _features()])
    assert decoded.dtype == raw[0].dtype == torch.float64


def test_state_dict_holds_anchors_in_grid_units_and_no_cache():
    head = _head().eval()
    with torch.no_grad():
        head(_features())
    assert list(head.state_dict()) == ["anchors", "m.0.weight", "m.0.bias", "m.1.weight", "m.1.bias"]
    assert head.anchors[1, 0].tolist() == [116 / 32, 90 / 32]


def test_prior_expects_eight_objects_an_image():
    model = build_model(load_definition("yolov5n"), num_classes=20)
    for convolution, stride in zip(model.detect.m, (8, 16, 32), strict=True):
        bias = convolution.bias.view(3, 25)
        noise = 1 / math.sqrt(convolution.in_channels)
        assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() <= noise
        assert (bias[:, 5:] - math.log(0.6 / (20 - 0.99999))).abs().max() <= noise
        assert bias[:, :4].abs().max() <= noise
        assert bias.std() > 0


def test_initializing_the_prior_twice_does_not_add_it_twice():
    model = build_model(load_definition("yolov5n"))
    before = model.detect.m[0].bias.view(3, 85)[:, 4].mean()
    model.init_head_biases()
    after = model.detect.m[0].bias.view(3, 85)[:, 4].mean()
    assert abs(before - after) < 0.3  # adding it again would move it by -6.7
