"""Holds what a user asked of one node of a training run on several."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_launch import defaults
from yolo_launch.request.launch_options import DEBUG_TEXT
from yolo_launch.request.machine_options import RendezvousOptions
from yolo_launch.request.options import MACHINES, option
from yolo_launch.request.train_options import JobOptions


@dataclass(frozen=True)
class NodeOptions(JobOptions, RendezvousOptions):
    """What ``node`` was asked."""

    port: int | None = option(
        None,
        "--port",
        text="the rendezvous port on the master",
        panel=MACHINES,
        default_text=f"{defaults.RENDEZVOUS_PORT}, or the scheduler's",
    )
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)
