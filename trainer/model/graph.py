"""Builds a module from a model definition: layers, connections, strides and head."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.activation import parse_activation, set_activation
from trainer.model.definition import (
    DEFAULT_ANCHORS_PER_LEVEL,
    DEFAULT_NUM_CLASSES,
    LayerRow,
    check_anchors,
    check_definition,
    load_definition,
    parse_rows,
    row_error,
    source_of,
    zoo_names,
)
from trainer.model.detect import Detect
from trainer.model.layer_factory import build_layer, reduction
from trainer.model.layers import Concat, Conv

__all__ = ["DetectionModel", "build_model", "fuse_batch_norm", "load_definition", "zoo_names"]

_INPUT_CHANNELS = 3
_LARGEST_CHECK_PX = 1_024
_SMALLEST_GRID = 32
"""Sizes are multiples of this at least, as YOLOv5's are: anchors and published figures stand on it."""


class DetectionModel(nn.Module):
    """A detector: images_bchw float in 0..1 to raw outputs (training) or decoded predictions (evaluation).

    Training mode returns per level (B, A, gy, gx, 5 + classes). Evaluation mode returns the decoded predictions
    (B, N, 5 + classes), which are cx, cy, w, h in pixels, objectness and class scores, and the list of raw outputs.
    Sides of the images are multiples of ``size_grid``.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        sources: Sequence[tuple[int, ...]],
        definition: Mapping[str, Any],
        size_grid: int,
    ) -> None:
        super().__init__()
        self.size_grid = size_grid
        """Pixels: the largest reduction of any layer, read by the head or not, and at least 32."""
        self.model = nn.Sequential(*layers)
        self.definition: dict[str, Any] = dict(definition)
        self.anchors_given = True
        """False while the anchors are placeholders, because the definition gives only their count."""
        self._sources = tuple(sources)
        # An output that only the next layer reads is not kept.
        self._saved = frozenset(s for index, row in enumerate(sources) for s in row if s != index - 1)

    @property
    def detect(self) -> Detect:
        """The head."""
        head = self.model[-1]
        assert isinstance(head, Detect)
        return head

    @property
    def stride(self) -> Tensor:
        """Pixels per cell, float (levels,)."""
        return self.detect.stride

    @property
    def num_classes(self) -> int:
        return self.detect.num_classes

    def init_head_biases(self) -> None:
        """Draws the head's biases anew with their prior, as ``build_model`` does once."""
        self.detect.init_biases()

    def set_anchors(self, anchors_px: Sequence[Sequence[float]]) -> None:
        """Sets other anchors, per level w, h, w, h... in pixels, in the head and in the definition."""
        anchors = _ordered_anchors(_plain_anchors(anchors_px), self.stride.tolist())
        self.detect.set_anchors(anchors)
        self.definition["anchors"] = anchors
        self.anchors_given = True

    def forward(self, images_bchw: Tensor) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        outputs: dict[int, Tensor] = {}
        current: Any = images_bchw
        for index, layer in enumerate(self.model):
            inputs = [current if source == index - 1 else outputs[source] for source in self._sources[index]]
            current = layer(inputs) if isinstance(layer, (Concat, Detect)) else layer(inputs[0])
            if index in self._saved:
                outputs[index] = current
        return current


def build_model(
    definition: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    anchors: Sequence[Sequence[float]] | None = None,
) -> DetectionModel:
    """Builds the model of a definition, with torch's own initialization and the head's prior.

    ``num_classes`` and ``anchors`` (per level w, h, w, h... in pixels) replace the definition's. If the anchors are a
    count, the model starts with squares around 4 strides and ``anchors_given`` is False. Raises ConfigError with file
    and row.
    """
    resolved = dict(definition)
    if num_classes is not None:
        resolved["nc"] = num_classes
    if anchors is not None:
        resolved["anchors"] = _plain_anchors(anchors)
    resolved.setdefault("nc", DEFAULT_NUM_CLASSES)
    resolved.setdefault("anchors", DEFAULT_ANCHORS_PER_LEVEL)
    check_definition(resolved)

    rows = parse_rows(resolved)
    _check_head_position(rows)
    width = float(resolved.get("width_multiple", 1.0))
    layers: list[nn.Module] = []
    channels: list[int] = []
    strides: list[Fraction] = []
    for row in rows[:-1]:
        inputs = [channels[s] if s >= 0 else _INPUT_CHANNELS for s in row.sources]
        layer, out_channels = build_layer(row, inputs, width)
        layers.append(layer)
        channels.append(out_channels)
        strides.append(_common_stride(row, strides) * reduction(layer, row))

    head = rows[-1]
    _check_with_zero_image(rows, layers, strides)
    level_strides = [float(strides[s]) for s in head.sources]
    anchors_given = not isinstance(resolved["anchors"], int)
    resolved["anchors"] = _head_anchors(head, resolved, level_strides)
    head_channels = [channels[s] for s in head.sources]
    layers.append(Detect(resolved["nc"], resolved["anchors"], head_channels, level_strides))

    model = DetectionModel(layers, [row.sources for row in rows], resolved, _size_grid(strides))
    model.anchors_given = anchors_given
    activation = resolved.get("activation")
    if activation:
        set_activation(model, parse_activation(str(activation), source_of(resolved)))
    model.init_head_biases()
    return model


def fuse_batch_norm(model: DetectionModel) -> DetectionModel:
    """Returns a copy in evaluation mode whose convolutions contain their batch norms: same outputs, fewer passes."""
    fused = copy.deepcopy(model).eval()
    for module in fused.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = _fold(module.conv, module.bn)
            module.bn = nn.Identity()
    return fused


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Folds a norm: w' = w g / sqrt(var + eps), b' = beta - mean g / sqrt(var + eps), in float64 against rounding."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = convolution.weight.double() * factor.view(-1, 1, 1, 1)
    bias = norm.bias.double() - norm.running_mean.double() * factor
    dtype = convolution.weight.dtype
    convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=convolution.weight.requires_grad)
    convolution.bias = nn.Parameter(bias.to(dtype), requires_grad=convolution.weight.requires_grad)
    return convolution


def _common_stride(row: LayerRow, strides: Sequence[Fraction]) -> Fraction:
    found = {strides[s] if s >= 0 else Fraction(1) for s in row.sources}
    if len(found) > 1:
        seen = ", ".join(f"layer {s}: {float(strides[s]):g}" for s in row.sources)
        raise row_error(row.where, f"inputs of different strides ({seen})", "layers of one stride")
    return found.pop()


def _size_grid(strides: Sequence[Fraction]) -> int:
    """The smallest side, 32 at least, that every layer's stride divides: halves of a cell cannot be joined again."""
    common = math.lcm(*(stride.numerator for stride in strides))
    return -(-_SMALLEST_GRID // common) * common


@torch.no_grad()
def _check_with_zero_image(rows: Sequence[LayerRow], layers: Sequence[nn.Module], strides: Sequence[Fraction]) -> None:
    """Runs a small image through the layers, so that a row that fails only in use is named before training."""
    side = 2 * math.lcm(*(stride.numerator for stride in strides))
    if side > _LARGEST_CHECK_PX:
        return
    outputs: list[Tensor] = []
    for row, layer, stride in zip(rows[:-1], layers, strides, strict=True):
        inputs = [outputs[s] if s >= 0 else torch.zeros(1, _INPUT_CHANNELS, side, side) for s in row.sources]
        layer.eval()
        try:
            output = layer(inputs) if isinstance(layer, Concat) else layer(inputs[0])
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            raise row_error(row.where, f"it fails on an image of {side} pixels: {error}", "") from error
        finally:
            layer.train()
        # Other layers may differ in size (padding rows do); those that the head reads may not.
        if row.index in rows[-1].sources and (output.shape[2] * stride != side or output.shape[3] * stride != side):
            sizes = f"{output.shape[3]} x {output.shape[2]} cells from {side} pixels at stride {float(stride):g}"
            raise row_error(row.where, sizes, f"{float(side / stride):g} a side: fix its padding or the layers before")
        outputs.append(output)


def _check_head_position(rows: Sequence[LayerRow]) -> None:
    heads = [row for row in rows if row.name == "Detect"]
    if len(heads) != 1 or rows[-1].name != "Detect":
        where = heads[0].where if heads else rows[-1].where
        raise row_error(where, f"{len(heads)} Detect rows", "one Detect, as the last row of the head")
    if min(rows[-1].sources) < 0:
        raise row_error(rows[-1].where, "the head reads the image", "layers before it")


def _head_anchors(row: LayerRow, resolved: Mapping[str, Any], strides: Sequence[float]) -> list[list[float]]:
    """Returns the head's anchors per level in pixels, from the row [nc, anchors] and the definition."""
    names = {"nc": resolved["nc"], "anchors": resolved["anchors"]}
    arguments = [names.get(a, a) if isinstance(a, str) else a for a in row.arguments]
    if len(arguments) != 2 or arguments[0] != resolved["nc"]:
        raise row_error(row.where, f"its arguments mean {arguments} for {resolved['nc']} classes", "[nc, anchors]")
    anchors = arguments[1]
    check_anchors(anchors, source_of(resolved))
    if isinstance(anchors, int):
        middle = 2 - (anchors - 1) / 2
        return [[stride * 2 ** (middle + i) for i in range(anchors) for _ in "wh"] for stride in strides]
    if len(anchors) != len(strides):
        raise row_error(row.where, f"{len(anchors)} rows of anchors for {len(strides)} levels", "one row per level")
    return _ordered_anchors(_plain_anchors(anchors), strides)


def _plain_anchors(anchors: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(side) for side in row] for row in anchors]


def _ordered_anchors(anchors: list[list[float]], strides: Sequence[float]) -> list[list[float]]:
    """Reverses the levels if small anchors stand at the large stride, as in YOLOv3's own order."""
    first, last = (
        math.fsum(w * h for w, h in zip(row[::2], row[1::2], strict=True)) for row in (anchors[0], anchors[-1])
    )
    return anchors[::-1] if (last - first) * (strides[-1] - strides[0]) < 0 else anchors
