"""Notices that several launchers were started where one is meant: by torchrun, srun, mpirun or an operator's pods.

Each would train by itself, over the same devices and files, and report success.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.protocol import RUN_ID_VARIABLE
from yolo_launch.errors import LaunchError

_INTERACTIVE_SLURM_STEP = 0xFFFFFFFA
"""From this number on steps are no tasks of srun: a shell of salloc, the batch script, what is outside of both."""


def refuse_several_launchers(command: str, environ: Mapping[str, str]) -> None:
    """Raises LaunchError if another launcher started this process as one of several, with what to type instead."""
    for name, count, started_by, instead in (
        _torchrun(command, environ),
        _slurm(command, environ),
        _mpi(command, environ),
        _operator(command, environ),
    ):
        if count > 1:
            raise LaunchError(
                f"{started_by} has started this yolo-launch {command} as one of {count}: each would train by itself.",
                seen=f"{name}={environ.get(name)}",
                expected=f"one yolo-launch {command} on a machine, which starts its workers itself",
                next_command=f"{instead}\nor, if {name} is left over from something else: unset {name}",
            )


def _torchrun(command: str, environ: Mapping[str, str]) -> tuple[str, int, str, str]:
    is_worker = RUN_ID_VARIABLE in environ
    count = _number(environ, "WORLD_SIZE") if is_worker else 0
    return "WORLD_SIZE", count, "torchrun", f"yolo-launch {command} ... without torchrun"


def _slurm(command: str, environ: Mapping[str, str]) -> tuple[str, int, str, str]:
    step = _number(environ, "SLURM_STEP_ID") if environ.get("SLURM_STEP_ID") else _INTERACTIVE_SLURM_STEP
    name = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    count = _number(environ, name) if step < _INTERACTIVE_SLURM_STEP and environ.get("SLURM_PROCID") else 0
    instead = "srun --ntasks-per-node=1 yolo-launch node ..." if command == "train" else "srun --ntasks=1 ..."
    return name, count, "srun", instead


def _mpi(command: str, environ: Mapping[str, str]) -> tuple[str, int, str, str]:
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_SIZE")
    name = max(names, key=lambda one: _number(environ, one))
    return name, _number(environ, name), "mpirun", f"yolo-launch {command} ... without mpirun, or yolo-launch node"


def _operator(command: str, environ: Mapping[str, str]) -> tuple[str, int, str, str]:
    instead = "yolo-launch node ..., which reads these variables"
    if environ.get("PET_NNODES"):
        largest = environ["PET_NNODES"].rpartition(":")[2]
        return "PET_NNODES", int(largest) if largest.isdigit() else 0, "a training operator", instead
    is_pod = environ.get("RANK", "").isdigit() and bool(environ.get("MASTER_ADDR"))
    return "WORLD_SIZE", _number(environ, "WORLD_SIZE") if is_pod else 0, "another launcher", instead


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "").strip()
    return int(text) if text.isdigit() else 0
