"""Keeps torch from loading its compiler where nothing is compiled, which takes 1.5 to 2 s of every start.

Torch imports ``torch._dynamo`` only to tell it what it must not trace: the optimizers, DistributedDataParallel and a
setting of the compiler's own. Where no function is compiled nothing is traced, so there is nobody to tell.
Another torch, in which one of these places looks different, loads the compiler and is otherwise the same.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer

_LAZY_WRAPPERS = "torch._compile"
"""The module of the functions that import the compiler when they are first called."""


def is_loaded() -> bool:
    """Returns whether this process has torch's compiler."""
    return "torch._dynamo" in sys.modules


def leave_compiler_unloaded() -> None:
    """Takes the compiler's import out of optimizers and DistributedDataParallel; call it before either is made."""
    if is_loaded():
        return
    for cls in (Optimizer, DistributedDataParallel):
        for function in vars(cls).values():
            _mark_untraced(function)
    for optimizer in (SGD, Adam, AdamW):
        # Around the update itself torch asks the compiler for breaks in its graph, and switches gradients off.
        update = getattr(optimizer.step, "__wrapped__", None)
        if update is not None:
            optimizer.step = torch.no_grad()(update)  # type: ignore[method-assign]


def use_deterministic_algorithms() -> None:
    """Has torch sum in a fixed order where it can, as ``torch.use_deterministic_algorithms`` with warnings only."""
    set_here = getattr(torch._C, "_set_deterministic_algorithms", None)
    if is_loaded() or set_here is None:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        set_here(True, warn_only=True)


@contextmanager
def compiler_not_asked() -> Iterator[None]:
    """Answers for the compiler, within the block, that it does not optimize DistributedDataParallel."""
    if is_loaded():
        yield
        return
    answers = _Answers(
        "torch._dynamo",
        utils=_Answers("torch._dynamo.utils", get_optimize_ddp_mode=_no_optimization),
        config=_Answers("torch._dynamo.config", _get_optimize_ddp_mode=_no_optimization),  # before torch 2.5
    )
    vars(torch)["_dynamo"] = answers
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is answers:
            del vars(torch)["_dynamo"]


class _Answers:
    """A module of the compiler with the answers that are given for it; what else is asked for, it answers itself."""

    def __init__(self, module: str, **known: object) -> None:
        self._module = module
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


def _no_optimization() -> str:
    return "no_optimization"


def _mark_untraced(function: Any) -> None:
    """Notes for a wrapper around ``function`` that its own function is to be called as it is."""
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        if getattr(function, "__globals__", {}).get("__name__") == _LAZY_WRAPPERS:
            vars(inner).setdefault("__dynamo_disable", inner)
        function = inner
