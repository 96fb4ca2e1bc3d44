"""Holds what a user asked about machines and scripts: run, plan and doctor, and the place of a machine in a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trainer.protocol import DEFAULT_BATCH_SIZE, DEFAULT_IMAGE_SIZE
from yolo_launch import defaults
from yolo_launch.request.launch_options import DEBUG_TEXT, DETACH_TEXT, JSON_TEXT, LaunchOptions
from yolo_launch.request.options import DEVICES, LAUNCH, MACHINES, argument, arguments, option


def batch_option() -> Any:
    """Returns a field for the total batch as typed; ``option_values.parse_batch`` reads it."""
    shown = str(DEFAULT_BATCH_SIZE)
    return option(None, "--batch", "--batch-size", text="total batch over all workers, or auto", default_text=shown)


def image_size_option() -> Any:
    """Returns a field for the side of the images."""
    return option(DEFAULT_IMAGE_SIZE, "--imgsz", "--img", "--img-size", text="image side in pixels")


def loader_workers_option() -> Any:
    """Returns a field for the loader processes of each worker."""
    return option(None, "--workers", text="loader processes of each worker", default_text="what the cores allow")


@dataclass(frozen=True)
class ClusterOptions:
    """The place of one machine in a job of several; None if it is left to the scheduler."""

    rank: int | None = option(
        None, "--rank", text="0 on the master, then 1, 2, ...", panel=MACHINES, default_text="the scheduler's"
    )
    master: str | None = option(
        None, "--master", text="address of the machine with rank 0", panel=MACHINES, default_text="the scheduler's"
    )
    nodes: str | None = option(
        None,
        "--nodes",
        text="machines, or MIN:MAX for a job that may run with fewer",
        panel=MACHINES,
        default_text="the master's",
    )
    port: int | None = None
    join_timeout: float = option(
        defaults.JOIN_TIMEOUT_S,
        "--join-timeout",
        text="seconds that machines wait for one another",
        panel=MACHINES,
    )
    token: str | None = option(
        None,
        "--token",
        text="a secret that every machine must know",
        panel=MACHINES,
        default_text="YOLO_LAUNCH_TOKEN",
    )
    token_file: str | None = option(
        None, "--token-file", text="a file with that secret", panel=MACHINES, metavar="FILE"
    )


@dataclass(frozen=True)
class MachineOptions(LaunchOptions, ClusterOptions):
    """What a machine of a job of several is asked: its devices and its place."""


@dataclass(frozen=True)
class RendezvousOptions(MachineOptions):
    """How the machines of a job wait for one another."""

    rejoin_timeout: float = option(
        defaults.REJOIN_TIMEOUT_S, "--rejoin-timeout", text="seconds that a lost machine is waited for", panel=MACHINES
    )
    join_grace: float = option(
        defaults.JOIN_GRACE_S,
        "--join-grace",
        text="seconds that a job of MIN:MAX machines waits for more than MIN",
        panel=MACHINES,
    )


@dataclass(frozen=True)
class ScriptOptions:
    """A torchrun-style script and its own arguments."""

    script: str = argument(text="a torchrun-style script, or a module with --module")
    arguments: tuple[str, ...] = arguments(text="the script's own arguments")


@dataclass(frozen=True)
class RunOptions(RendezvousOptions, ScriptOptions):
    """What ``run`` was asked, on one machine or as one of several."""

    PANELS: ClassVar[tuple[str, ...]] = (LAUNCH, DEVICES, MACHINES)

    parallel: str | None = None
    port: int | None = option(
        None,
        "--port",
        text="port where workers, or machines on the master, meet",
        panel=MACHINES,
        default_text=f"a free one; of several machines {defaults.RENDEZVOUS_PORT}, or the scheduler's",
    )
    # A script that does not resume by itself would start from nothing, so a restart has to be asked for.
    max_restarts: int = option(0, "--max-restarts", text="restarts of the job after a failure")
    module: bool = option(False, "--module", text="the script is a module, as with python -m")
    project: str = option("runs/run", "--project", text="folder of the logs")
    name: str = option("exp", "--name", text="name of the logs' folder; a number is added if it exists")
    dry_run: bool = option(False, "--dry-run", text="show the plan and start nothing")
    detach: bool = option(False, "--detach", text=DETACH_TEXT)
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class RunsOptions:
    """What ``runs`` was asked."""

    folders: tuple[str, ...] = arguments(text="folders of runs; runs, if none is given", metavar="[FOLDER]...")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class AttachOptions:
    """What ``attach`` was asked."""

    run: str = argument(text="a run's folder, or its name", metavar="RUN")
    project: str = option("runs/train", "--project", text="folder of runs that are given by name")
    lines: int = option(20, "--lines", text="lines of the log to show first")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class StopOptions:
    """What ``stop`` was asked."""

    run: str = argument(text="a run's folder, or its name", metavar="RUN")
    project: str = option("runs/train", "--project", text="folder of runs that are given by name")
    wait: float = option(120.0, "--wait", text="seconds in which it has to save and end")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class PlanOptions(LaunchOptions):
    """What ``plan`` was asked."""

    batch_size: str | None = batch_option()
    imgsz: int = image_size_option()
    workers: int | None = loader_workers_option()
    sync_bn: bool = option(False, "--sync-bn", text="batch norm over all workers (DDP)")
    host: str | None = option(
        None, "--host", text="a machine that 'doctor --json' described", default_text="this one", metavar="FILE"
    )
    nnodes: int = option(1, "--nnodes", text="machines, all like this one")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class DoctorOptions(MachineOptions):
    """What ``doctor`` was asked."""

    PANELS: ClassVar[tuple[str, ...]] = (LAUNCH, DEVICES, MACHINES)

    parallel: str | None = None
    max_restarts: int = 0
    stall_timeout: float = defaults.STALL_TIMEOUT_S
    data: str | None = option(None, "--data", text="a data-set YAML to check as well", metavar="FILE")
    batch_size: str | None = batch_option()
    imgsz: int = image_size_option()
    workers: int | None = loader_workers_option()
    port: int | None = option(
        None,
        "--port",
        text="a port to check; with --master, the rendezvous port",
        default_text=f"none; with --master {defaults.RENDEZVOUS_PORT}",
    )
    project: str = option("runs/train", "--project", text="folder of runs, whose disk is checked")
    join_timeout: float = option(
        defaults.CHECK_JOIN_TIMEOUT_S,
        "--join-timeout",
        text="seconds that machines wait for one another",
        panel=MACHINES,
    )
    deep: bool = option(False, "--deep", text="the slower checks too, which start processes: GPUs, links, disk, data")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)
