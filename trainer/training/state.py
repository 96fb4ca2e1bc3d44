"""Holds the state of a run between two updates: all that a resume needs, with the same or another number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.optim.ema import ModelEma

_OWN = ("weight_decay", "fused", "foreach")
LOSS_NAMES = ("box_loss", "obj_loss", "cls_loss")
"""The entries of ``loss_sums``, in order."""


@dataclass
class Progress:
    """Where a run stands. Plain values only, so that a checkpoint holds them as they are."""

    epoch: int = 0
    """The epoch in progress, 0-based; equal to the number of epochs when the run has finished."""
    batch: int = 0
    """Global batches of that epoch already learned from; all of them while the epoch's validation is due."""
    micro_step: int = 0
    """Global batches learned from since the start."""
    updates: int = 0
    """Optimizer steps since the start."""
    best_fitness: float = -1.0
    """Of ``best_epoch``; below 0 until something was measured."""
    best_epoch: int = -1
    """0-based; -1 stands for the weights that the run started from."""
    start: dict[str, float] = field(default_factory=dict)
    """The metrics of the weights that the run started from, if they were measured."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of results for each finished epoch."""
    class_map: list[float] = field(default_factory=list)
    """mAP50-95 of each class at the last validation; decides the draw of --image-weights."""
    skipped_steps: list[int] = field(default_factory=list)
    """Micro steps left out after a loss that was not finite."""
    rollbacks: int = 0

    @property
    def is_judged(self) -> bool:
        """Returns whether any epoch, or the start, was measured."""
        return self.best_fitness >= 0

    def consider(self, epoch: int, fitness: float) -> bool:
        """Makes ``epoch`` the best one if it is; of epochs that found nothing the last counts as the best.

        So a start that takes some epochs to find anything does not use up patience.
        """
        is_best = fitness > self.best_fitness or fitness == self.best_fitness == 0
        if is_best:
            self.best_fitness, self.best_epoch = fitness, epoch
        return is_best


@dataclass
class TrainState:
    """The parts of a run that change: weights, average, optimizer, scaler and progress."""

    model: nn.Module
    """The bare model, not its wrapper."""
    ema: ModelEma
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    loss_sums: Tensor
    """This rank's share of the loss items summed over the epoch's batches: (3,) float64 on the device."""

    def is_finite(self) -> bool:
        """Returns whether no weight, average or running statistic is NaN or infinite."""
        tensors = [*self.model.state_dict().values(), *self.ema.model.state_dict().values()]
        norms = torch._foreach_norm([tensor for tensor in tensors if tensor.is_floating_point()])
        return bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())

    def state_dict(self, loss_sums_by_rank: Tensor) -> dict[str, Any]:
        """Returns references to everything a resume needs; ``loss_sums_by_rank`` is (world size, 3)."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": type(self.optimizer).__name__,
            "scaler": self.scaler.state_dict(),
            "progress": dict(vars(self.progress)),
            "loss_sums_by_rank": loss_sums_by_rank,
        }

    def load_state_dict(self, state: dict[str, Any], rank: int, world_size: int) -> bool:
        """Restores in place what ``state_dict`` returned, at the same world size or another.

        Returns False if the saved optimizer is of another kind, and then leaves the optimizer's state out.
        """
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        name = type(self.optimizer).__name__
        takes_optimizer = bool(state.get("optimizer_name", name) == name)
        if takes_optimizer:
            # This run, not the checkpoint, decides how much weights decay and which kernel is used.
            own = [{key: group[key] for key in _OWN if key in group} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, values in zip(self.optimizer.param_groups, own, strict=True):
                group.update(values)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        known = {field.name for field in fields(Progress)}
        self.progress = Progress(**{name: value for name, value in state["progress"].items() if name in known})
        by_rank = state["loss_sums_by_rank"]
        if len(by_rank) == world_size:
            self.loss_sums.copy_(by_rank[rank])
        else:
            # Another world size: rank 0 takes over the sums of all, so that the epoch's mean stays right.
            self.loss_sums.copy_(by_rank.sum(0) if rank == 0 else torch.zeros_like(by_rank[0]))
        return takes_optimizer
