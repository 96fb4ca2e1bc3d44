"""Makes the optimizer with its three parameter groups, and sets its rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

GROUPS = ("bias", "decay", "norm")
"""Names of the parameter groups in the optimizer's order, the order of lr0, lr1 and lr2 in results.csv."""


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Returns trainable parameters by group: biases; weights that decay; the scales of normalization layers."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name.endswith("bias"):
                groups["bias"].append(parameter)
            elif isinstance(module, norms):
                groups["norm"].append(parameter)
            else:
                groups["decay"].append(parameter)
    return groups


def make_optimizer(model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """Makes SGD with Nesterov momentum, Adam or AdamW over the three groups; only the group ``decay`` decays.

    ``momentum`` is Adam's first beta. The fused kernel is used if this torch has one for the optimizer and the device.
    """
    groups = parameter_groups(model)
    settings: list[dict[str, Any]] = [
        {"params": groups[group], "name": group, "weight_decay": weight_decay if group == "decay" else 0.0}
        for group in GROUPS
        if groups[group]
    ]
    makers: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
        "SGD": (SGD, {"lr": lr, "momentum": momentum, "nesterov": True}),
        "Adam": (Adam, {"lr": lr, "betas": (momentum, 0.999)}),
        "AdamW": (AdamW, {"lr": lr, "betas": (momentum, 0.999)}),
    }
    maker, options = makers[name]
    try:
        optimizer = maker(settings, **options, fused=True)
    except (TypeError, RuntimeError):  # this torch has no fused kernel for this optimizer or device
        optimizer = maker([{**group} for group in settings], **options)
    if name == "SGD":
        # The fused kernel leaves at once if a scaled gradient overflowed, and a buffer that it was to fill holds what
        # the memory held. From zero the first update is the same: momentum times zero, plus the gradient.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_rates(optimizer: Optimizer, *, lr: float, bias_lr: float, momentum: float) -> None:
    """Sets the rates of the next update in place."""
    for group in optimizer.param_groups:
        group["lr"] = bias_lr if group["name"] == "bias" else lr
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])


def clip_gradients(model: nn.Module, limit: float) -> torch.Tensor:
    """Scales the gradients down to a total norm of at most ``limit``; returns the norm before, on the device."""
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm=limit)
