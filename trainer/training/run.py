"""Defines what a fit works with; build.py gathers all of it once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainer.data.epoch_loader import EpochLoader
from trainer.evaluation.validator import Validator
from trainer.loss import DetectionLoss
from trainer.optim.schedule import Schedule
from trainer.runtime.device_progress import DeviceProgress
from trainer.runtime.distributed import Collectives
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter
from trainer.training.state import TrainState
from trainer.training.telemetry import NonFiniteDetector, ResultsWriter, ThroughputMeter
from trainer.weights.checkpoint import CheckpointWriter


@dataclass(frozen=True)
class LoopSettings:
    """Plain numbers and switches of the loop."""

    epochs: int
    seed: int
    image_size: int
    strides: tuple[int, ...]
    """Pixels to a cell of each level."""
    size_grid: int
    """Sides of images are multiples of this."""
    multi_scale: bool = False
    patience: int = 100
    validate_each_epoch: bool = True
    can_measure: bool = True
    """Whether the validation split has a label; without one there is no number to go by."""
    measures_start: bool = False
    """Whether the weights are measured before anything is learned, as epoch 0."""
    save: bool = True
    save_period: int = -1
    checkpoint_interval_s: float = 60.0
    autocast_dtype: torch.dtype | None = None
    sync_bn: bool = False
    """Batch norm takes the statistics of all ranks, so that a rank may come with an empty batch."""


@dataclass
class LocalRequests:
    """What this rank asks of all ranks, and how long it waited for checkpoints."""

    stop_requested: bool = False
    checkpointed_at: float = field(default_factory=time.monotonic)
    checkpoint_wait_s: float = 0.0
    """Time that steps waited for checkpoints, since the last row of results."""


@dataclass
class Run:
    """The parts of one rank's training run."""

    collectives: Collectives
    device: torch.device
    model: nn.Module
    """The model as it is called in training: bare or wrapped."""
    state: TrainState
    loss: DetectionLoss
    schedule: Schedule
    epoch_loader: EpochLoader
    validator: Validator
    reporter: Reporter
    heartbeat: HeartbeatWriter
    results: ResultsWriter
    checkpoints: CheckpointWriter
    checkpoint_header: dict[str, Any]
    """What every weights file says of itself: configuration, model, versions."""
    settings: LoopSettings
    finite: NonFiniteDetector
    device_progress: DeviceProgress
    speed: ThroughputMeter = field(default_factory=ThroughputMeter)
    local_requests: LocalRequests = field(default_factory=LocalRequests)
