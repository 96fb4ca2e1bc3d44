"""Holds the anchor-based head: one 1x1 convolution per level, and the decoding of the outputs into boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BOX_AND_OBJECTNESS = 5
"""Channels per anchor before the class scores: x, y, w, h, objectness."""


class Detect(nn.Module):
    """The head: raw predictions per level in training mode, decoded and raw predictions in evaluation mode.

    ``anchors`` (levels, A, 2) are in grid units, pixels divided by the level's stride, as in YOLOv5's files.
    ``stride`` (levels,) is in pixels and known from the graph, so the state dict has no entry for ``stride``.
    """

    anchors: Tensor
    stride: Tensor

    def __init__(
        self, num_classes: int, anchors_px: Sequence[Sequence[float]], channels: Sequence[int], stride: Sequence[float]
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_outputs = num_classes + BOX_AND_OBJECTNESS
        self.num_anchors = len(anchors_px[0]) // 2
        self.register_buffer("stride", torch.tensor(stride, dtype=torch.float32), persistent=False)
        self.register_buffer("anchors", torch.empty(len(channels), self.num_anchors, 2))
        self.set_anchors(anchors_px)
        self.m = nn.ModuleList(nn.Conv2d(width, self.num_outputs * self.num_anchors, 1) for width in channels)

    def set_anchors(self, anchors_px: Sequence[Sequence[float]]) -> None:
        """Replaces the anchors by ``anchors_px``, per level w, h, w, h... in pixels."""
        pixels = torch.tensor(anchors_px, dtype=torch.float32).view(len(anchors_px), self.num_anchors, 2)
        self.anchors.copy_(pixels.to(self.anchors.device) / self.stride.view(-1, 1, 1))

    def init_biases(self) -> None:
        """Draws the biases anew and adds the prior: 8 objects in 640 x 640 pixels, classes at 0.6 of an even share.

        The prior follows Lin et al., "Focal Loss for Dense Object Detection" (2017), section 3.3.
        """
        for convolution, stride in zip(self.m, self.stride.tolist(), strict=True):
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            bound = 1 / math.sqrt(convolution.in_channels)  # torch's own initialization of a 1x1 convolution
            with torch.no_grad():
                bias = convolution.bias.uniform_(-bound, bound).view(self.num_anchors, self.num_outputs)
                bias[:, 4] += math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] += math.log(0.6 / (self.num_classes - 0.99999))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps per level (B, C, gy, gx) to raw (B, A, gy, gx, 5 + classes); see ``decode`` for the evaluation mode."""
        raw = []
        for level, convolution in enumerate(self.m):
            output = convolution(features[level])
            batch, _, grid_y, grid_x = output.shape
            # A view costs nothing, whichever memory format the convolution left.
            output = output.view(batch, self.num_anchors, self.num_outputs, grid_y, grid_x)
            raw.append(output.permute(0, 1, 3, 4, 2))
        if self.training:
            return raw
        return self.decode(raw), raw

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """Decodes raw outputs of all levels to (B, N, 5 + classes): cx, cy, w, h in pixels, objectness, class scores.

        xy = (2 sigmoid - 0.5 + cell) stride and wh = (2 sigmoid)^2 anchor. Half precision is converted to float32
        first: bfloat16 would put a box at x = 600 at the nearest multiple of 4 pixels.
        """
        if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self._decode_without_writes(raw)
        # Writing one buffer in place takes, with 80 classes, a quarter of the time of joining intermediate tensors.
        dtype = _decoded_dtype(raw[0])
        sizes = [math.prod(output.shape[1:4]) for output in raw]
        decoded = raw[0].new_empty(raw[0].shape[0], sum(sizes), self.num_outputs, dtype=dtype)
        parts = [part.view(output.shape) for part, output in zip(decoded.split(sizes, dim=1), raw, strict=True)]
        for part, output in zip(parts, raw, strict=True):
            part.copy_(output)
        decoded.sigmoid_()
        for level, part in enumerate(parts):
            part[..., :4] = self._boxes(part[..., :4], level)
        return decoded

    def _decode_without_writes(self, raw: Sequence[Tensor]) -> Tensor:
        """Does what ``decode`` does, for graphs that are recorded: autograd, tracing, compilation, export."""
        decoded = []
        for level, output in enumerate(raw):
            scores = output.to(_decoded_dtype(output)).sigmoid()
            joined = torch.cat((self._boxes(scores[..., :4], level), scores[..., 4:]), dim=-1)
            decoded.append(joined.flatten(1, 3))
        return torch.cat(decoded, dim=1)

    def _boxes(self, scores: Tensor, level: int) -> Tensor:
        """Decodes sigmoid outputs (B, A, gy, gx, 4) of one level to cx, cy, w, h in pixels."""
        stride = self.stride[level].to(scores.dtype)
        anchors = (self.anchors[level].to(scores.dtype) * stride).view(1, self.num_anchors, 1, 1, 2)
        centers = (scores[..., 0:2] * 2 - 0.5 + _cell_indices(scores)) * stride
        return torch.cat((centers, (scores[..., 2:4] * 2) ** 2 * anchors), dim=-1)


def _decoded_dtype(output: Tensor) -> torch.dtype:
    return torch.float64 if output.dtype == torch.float64 else torch.float32


def _cell_indices(scores: Tensor) -> Tensor:
    """Returns column and row of every cell, (1, 1, gy, gx, 2); made anew each time, so that no cache is outdated."""
    grid_y, grid_x = scores.shape[2], scores.shape[3]
    rows = torch.arange(grid_y, device=scores.device, dtype=scores.dtype)
    columns = torch.arange(grid_x, device=scores.device, dtype=scores.dtype)
    row_of, column_of = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((column_of, row_of), dim=-1).view(1, 1, grid_y, grid_x, 2)
