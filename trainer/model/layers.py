"""Holds the layers that a model definition names.

Attribute names (``conv``, ``bn``, ``cv1``, ``m``...) and the order of positional arguments follow YOLOv5's published
definitions and weights, so that files of both kinds can be used unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03


class Conv(nn.Module):
    """Convolution without bias, batch norm, activation; padded so that stride 1 keeps the size."""

    def __init__(  # noqa: PLR0913 (the positions of YOLOv5's definitions)
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = (dilation * (kernel - 1) + 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
        # Not in place: autograd would clone the input first.
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(features)))


class DWConv(Conv):
    """Depth-wise convolution: as many groups as both channel counts allow."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> None:
        groups = math.gcd(in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel, stride, None, groups, dilation, act)


class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution, added to the input if ``shortcut`` is set and the channel counts are equal."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden, 1)
        self.cv2 = Conv(hidden, out_channels, 3, groups=groups)
        self.add = shortcut and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        refined = self.cv2(self.cv1(features))
        return features + refined if self.add else refined


class _CrossStage(nn.Module):
    """Cross-stage block: ``m`` on one half of the channels, then a 1x1 convolution (CSPNet, Wang et al. 2020)."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, make_inner: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = make_inner()

    def forward(self, features: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(features)), self.cv2(features)), dim=1))


class C3(_CrossStage):
    """Cross-stage block of ``repeats`` bottlenecks; its name counts its three convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        hidden = int(out_channels * expansion)

        def make_inner() -> nn.Module:
            return nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, groups, 1.0) for _ in range(repeats)))

        super().__init__(in_channels, out_channels, hidden, make_inner)


class C3Ghost(_CrossStage):
    """Cross-stage block of ghost bottlenecks. ``shortcut`` and ``groups`` are accepted and unused."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        hidden = int(out_channels * expansion)

        def make_inner() -> nn.Module:
            return nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(repeats)))

        super().__init__(in_channels, out_channels, hidden, make_inner)


class C3TR(_CrossStage):
    """Cross-stage block around transformer layers. ``shortcut`` and ``groups`` are accepted and unused."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        hidden = int(out_channels * expansion)
        super().__init__(in_channels, out_channels, hidden, lambda: TransformerBlock(hidden, hidden, 4, repeats))


class GhostConv(nn.Module):
    """Half the output from a convolution, half from a cheap 5x5 depth-wise one on top (GhostNet, Han et al. 2020)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = Conv(in_channels, half, kernel, stride, None, groups, act=act)
        self.cv2 = Conv(half, half, 5, 1, None, half, act=act)

    def forward(self, features: Tensor) -> Tensor:
        primary = self.cv1(features)
        return torch.cat((primary, self.cv2(primary)), dim=1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions, a depth-wise one between them at stride 2, and a shortcut (GhostNet, figure 3)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        half = out_channels // 2
        narrow: nn.Module = nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            narrow = DWConv(half, half, kernel, stride, act=False)
            self.shortcut = nn.Sequential(
                DWConv(in_channels, in_channels, kernel, stride, act=False),
                Conv(in_channels, out_channels, 1, 1, act=False),
            )
        self.conv = nn.Sequential(
            GhostConv(in_channels, half, 1, 1), narrow, GhostConv(half, out_channels, 1, 1, act=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features) + self.shortcut(features)


class TransformerLayer(nn.Module):
    """Self-attention and a two-layer map, each with a residual and without layer norm."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.ma = nn.MultiheadAttention(embed_dim=channels, num_heads=num_heads)
        self.fc1 = nn.Linear(channels, channels, bias=False)
        self.fc2 = nn.Linear(channels, channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        attended, _ = self.ma(self.q(tokens), self.k(tokens), self.v(tokens), need_weights=False)
        tokens = attended + tokens
        return self.fc2(self.fc1(tokens)) + tokens


class TransformerBlock(nn.Module):
    """Transformer layers over the cells of a feature map, (B, C, H, W) to the same shape."""

    def __init__(self, in_channels: int, out_channels: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.conv: nn.Module | None = None
        if in_channels != out_channels:
            self.conv = Conv(in_channels, out_channels)
        self.linear = nn.Linear(out_channels, out_channels)  # a learned embedding of position
        self.tr = nn.Sequential(*(TransformerLayer(out_channels, num_heads) for _ in range(num_layers)))

    def forward(self, features: Tensor) -> Tensor:
        if self.conv is not None:
            features = self.conv(features)
        tokens = features.flatten(2).permute(2, 0, 1)  # (cells, B, C)
        return self.tr(tokens + self.linear(tokens)).permute(1, 2, 0).reshape(features.shape)


class SPP(nn.Module):
    """Max pooling at several sizes side by side (He et al. 2015)."""

    def __init__(self, in_channels: int, out_channels: int, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(hidden * (len(kernels) + 1), out_channels)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in kernels)

    def forward(self, features: Tensor) -> Tensor:
        reduced = self.cv1(features)
        return self.cv2(torch.cat([reduced, *(pool(reduced) for pool in self.m)], dim=1))


class SPPF(nn.Module):
    """One small max pooling applied three times: with kernel 5 equal to SPP with 5, 9 and 13, and cheaper."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(hidden * 4, out_channels)
        self.m = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)

    def forward(self, features: Tensor) -> Tensor:
        once = self.cv1(features)
        twice = self.m(once)
        thrice = self.m(twice)
        return self.cv2(torch.cat((once, twice, thrice, self.m(thrice)), dim=1))


class Focus(nn.Module):
    """Space to depth: four neighboring pixels to channels, (B, C, H, W) to (B, 4C, H/2, W/2), then a convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = Conv(in_channels * 4, out_channels, kernel, stride, padding, groups, act=act)

    def forward(self, features: Tensor) -> Tensor:
        even, odd = features[..., ::2, :], features[..., 1::2, :]
        quarters = (even[..., ::2], odd[..., ::2], even[..., 1::2], odd[..., 1::2])
        return self.conv(torch.cat(quarters, dim=1))


class Concat(nn.Module):
    """Concatenation of several layers' outputs, by default in channels."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(features), dim=self.dimension)
