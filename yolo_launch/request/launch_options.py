"""Holds what a user asked of every job: its devices, and how it is watched and restarted."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_launch import defaults
from yolo_launch.request.options import DEVICES, option

JSON_TEXT = "one JSON object on stdout, everything else on stderr"
DETACH_TEXT = "go on without this terminal once the job is checked and its run directory made"
DEBUG_TEXT = "show the traceback of an error"


@dataclass(frozen=True)
class LaunchOptions:
    """The devices of a job, and how it is watched and restarted; None if nothing was typed."""

    gpus: str | None = option(
        None,
        *("--gpus", "--device"),
        text="indices or UUIDs, such as 0,1; or all, idle, cpu",
        panel=DEVICES,
        default_text="every usable GPU, else the CPU",
    )
    nproc: int | None = option(
        None, "--nproc", text="workers; on a CPU any number of cores", panel=DEVICES, default_text="one a device"
    )
    parallel: str | None = option(
        None, "--parallel", text="ddp, or dp for DataParallel in one process", panel=DEVICES, default_text="ddp"
    )
    port: int | None = option(None, "--port", text="port where workers meet", default_text="a free one")
    max_restarts: int = option(defaults.MAX_RESTARTS, "--max-restarts", text="restarts of a job after a failure")
    stall_timeout: float = option(
        defaults.STALL_TIMEOUT_S,
        "--stall-timeout",
        text="seconds without progress after which a job is stopped",
    )
