"""Holds what a user asked of one node of a training run on several."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_launch import defaults
from yolo_launch.request.launch_options import DEBUG_TEXT
from yolo_launch.request.machine_options import MachineOptions
from yolo_launch.request.options import MACHINES, option
from yolo_launch.request.train_options import JobOptions


@dataclass(frozen=True)
class NodeOptions(JobOptions, MachineOptions):
    """What ``node`` was asked."""

    port: int | None = option(
        None,
        "--port",
        text="the rendezvous port on the master",
        panel=MACHINES,
        default_text=f"{defaults.RENDEZVOUS_PORT}, or the scheduler's",
    )
    rejoin_timeout: float = option(
        defaults.REJOIN_TIMEOUT_S, "--rejoin-timeout", text="seconds that a lost machine is waited for", panel=MACHINES
    )
    join_grace: float = option(
        defaults.JOIN_GRACE_S,
        "--join-grace",
        text="seconds that a job of MIN:MAX machines waits for more than MIN",
        panel=MACHINES,
    )
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)
