"""Builds the module of one row of a model definition, by a table of the layer names that a row may use."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from torch import nn

from trainer.model.definition import LayerRow, row_error, scaled_width
from trainer.model.layers import (
    C3,
    C3TR,
    SPP,
    SPPF,
    Bottleneck,
    C3Ghost,
    Concat,
    Conv,
    DWConv,
    Focus,
    GhostBottleneck,
    GhostConv,
)

# Layers called as (in_channels, out_channels, *further arguments of the row). Layers of the second table take the
# row's number as an argument, after the channels, instead of being repeated.
_SCALED: dict[str, Callable[..., nn.Module]] = {
    "Conv": Conv,
    "DWConv": DWConv,
    "GhostConv": GhostConv,
    "Bottleneck": Bottleneck,
    "GhostBottleneck": GhostBottleneck,
    "SPP": SPP,
    "SPPF": SPPF,
    "Focus": Focus,
}
_SCALED_WITH_REPEATS: dict[str, Callable[..., nn.Module]] = {"C3": C3, "C3TR": C3TR, "C3Ghost": C3Ghost}
# Layers that keep the channels and are called with the row's arguments alone.
_PLAIN: dict[str, Callable[..., nn.Module]] = {
    "Upsample": nn.Upsample,
    "MaxPool2d": nn.MaxPool2d,
    "ZeroPad2d": nn.ZeroPad2d,
    "Identity": nn.Identity,
}
_ALIASES = {"MaxPool": "MaxPool2d", "ZeroPad": "ZeroPad2d"}
_LAYER_NAMES = [*_SCALED, *_SCALED_WITH_REPEATS, *_PLAIN, "Concat", "Detect"]


def build_layer(row: LayerRow, in_channels: list[int], width: float) -> tuple[nn.Module, int]:
    """Builds the module of one row other than the head's and returns the module and its output channels.

    Raises ConfigError with file and row.
    """
    name = _ALIASES.get(row.name, row.name)
    if name not in _LAYER_NAMES:
        nearest = difflib.get_close_matches(name, _LAYER_NAMES, n=1)
        known = f"{nearest[0]}, or another of " if nearest else "one of "
        raise row_error(row.where, f"unknown layer {row.name!r}", known + ", ".join(_LAYER_NAMES))
    if name == "Concat":
        if row.arguments not in ((), (1,)):
            raise row_error(row.where, f"it joins along {list(row.arguments)}", "[1], the channels")
        return Concat(1), sum(in_channels)
    if len(in_channels) != 1:
        raise row_error(row.where, f"{name} takes one input and has {len(in_channels)}", "one layer's number")
    if name in _PLAIN:
        return _repeated(row, lambda: _PLAIN[name](*row.arguments)), in_channels[0]

    if not row.arguments or not isinstance(row.arguments[0], int) or row.arguments[0] < 1:
        raise row_error(row.where, f"its arguments are {list(row.arguments)}", "output channels first")
    out_channels = scaled_width(row.arguments[0], width)
    further = row.arguments[1:]
    if name in _SCALED_WITH_REPEATS:
        make_block = _SCALED_WITH_REPEATS[name]
        once = replace(row, repeats=1)
        layer = _repeated(once, lambda: make_block(in_channels[0], out_channels, row.repeats, *further))
        return layer, out_channels
    widths = iter([in_channels[0]] + [out_channels] * row.repeats)
    return _repeated(row, lambda: _SCALED[name](next(widths), out_channels, *further)), out_channels


def _repeated(row: LayerRow, make: Callable[[], nn.Module]) -> nn.Module:
    """Makes the layer ``row.repeats`` times; an error of the constructor becomes a ConfigError about the row."""
    try:
        made = [make() for _ in range(row.repeats)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise row_error(row.where, f"{row.name} does not take {list(row.arguments)}: {error}", "") from error
    return made[0] if len(made) == 1 else nn.Sequential(*made)


def reduction(layer: nn.Module, row: LayerRow) -> Fraction:
    """By how much a layer divides the size of its input, 1/2 for one that doubles it. Raises ConfigError for 0."""
    found = _reduction(layer, row)
    if found <= 0:
        raise row_error(row.where, "it has a stride of 0", "a stride from 1")
    return found


def _reduction(layer: nn.Module, row: LayerRow) -> Fraction:
    if isinstance(layer, nn.Sequential):
        return Fraction(math.prod(_reduction(inner, row) for inner in layer))
    if isinstance(layer, Conv):
        return Fraction(layer.conv.stride[0])
    if isinstance(layer, GhostConv):
        return _reduction(layer.cv1, row)
    if isinstance(layer, GhostBottleneck):
        return _reduction(layer.conv, row)
    if isinstance(layer, Focus):
        return 2 * _reduction(layer.conv, row)
    if isinstance(layer, nn.MaxPool2d):
        stride = layer.stride
        return Fraction(stride if isinstance(stride, int) else stride[0])
    if isinstance(layer, nn.Upsample):
        if not isinstance(layer.scale_factor, (int, float)) or layer.scale_factor <= 0:
            raise row_error(row.where, "Upsample without a factor", "[None, 2, 'nearest']")
        return 1 / Fraction(layer.scale_factor).limit_denominator(64)
    return Fraction(1)
