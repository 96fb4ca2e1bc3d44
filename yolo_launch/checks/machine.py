"""Checks the machine: Python, torch, GPUs, disk, limits, ports, names."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sysconfig
from collections.abc import Iterable

from packaging.version import Version

from yolo_launch.checks.context import Context
from yolo_launch.host import card_support, cuda_driver, ports
from yolo_launch.host.torch_versions import check_torch, check_torchvision
from yolo_launch.planning.loader_workers import shared_memory_need, size_text
from yolo_launch.spec import Finding, Level
from yolo_launch.workers.environment import (
    LONGEST_TEMPORARY_FOLDER,
    SHORT_TEMPORARY_FOLDER,
    is_too_long_for_sockets,
)

PYTHON_FLOOR, PYTHON_NEWEST = (3, 10), (3, 13)
LOW_DISK_BYTES = 1 << 30
LEAST_OPEN_FILES, FEWEST_OPEN_FILES = 64, 1024


def check_python(context: Context) -> Iterable[Finding]:
    """Compares Python's version with the versions that are tested."""
    version = Version(context.host.python_version).release[:2]
    if version < PYTHON_FLOOR:
        yield Finding(
            "python", "failure", f"Python {context.host.python_version} is too old", "use Python 3.10 to 3.13"
        )
    elif version > PYTHON_NEWEST:
        yield Finding("python", "warning", f"Python {context.host.python_version} is newer than those tested")
    else:
        yield Finding("python", "ok", context.host.python_version)


def check_torch_packages(context: Context) -> Iterable[Finding]:
    """Checks that torch and torchvision are installed, recent enough and made for each other."""
    plan, builtin = context.plan, context.script is None
    count = len(plan.devices) if plan is not None else len(context.host.devices)
    on_gpu = plan.devices[0].kind == "cuda" if plan is not None else bool(context.host.devices)
    is_ddp = plan is not None and plan.mode == "ddp"
    yield from check_torch(context.host.torch, device_count=count, builtin_trainer=builtin, is_ddp=is_ddp)
    yield from check_torchvision(context.host.torch, builtin_trainer=builtin, on_gpu=on_gpu)


def check_gpus(context: Context) -> Iterable[Finding]:
    """Reports a driver that does not answer, which would otherwise look like a machine without GPUs."""
    if context.host.gpu_problem:
        advice = "after a driver upgrade restart the machine; in a container use --gpus all of docker run"
        yield Finding("gpus", "warning", context.host.gpu_problem, advice)


def check_driver(context: Context) -> Iterable[Finding]:
    """Compares the NVIDIA driver with the CUDA that torch was built for; one major version is compatible."""
    host, plan = context.host, context.plan
    if not host.driver_version or (plan is not None and plan.devices[0].kind != "cuda"):
        return
    known, built_for = host.driver_cuda_version, host.torch.cuda_version
    seen = f"NVIDIA {host.driver_version}" + (f", CUDA up to {known}" if known else "")
    if known and built_for and Version(built_for).major > Version(known).major:
        advice = f"a newer driver, or a torch that was built for CUDA {Version(known).major}"
        yield Finding("driver", "warning", f"{seen}; torch was built for CUDA {built_for}", advice)
    else:
        yield Finding("driver", "ok", seen)


def check_cuda_starts(context: Context) -> Iterable[Finding]:
    """Asks the driver whether the planned GPUs start: a worker that got none of them would have to end."""
    plan, facts = context.plan, context.host.torch
    if plan is None or plan.devices[0].kind != "cuda":
        return
    for device in plan.devices:
        missing = card_support.explain_missing_code(facts, device)
        if missing:
            wheel = card_support.fitting_wheel(device)
            advice = f"a torch and torchvision from the wheels for {wheel}" if wheel else "another GPU"
            level: Level = "warning" if card_support.is_own_build(facts) else "failure"
            yield Finding("cuda", level, missing, f"{advice}; --gpus cpu trains without GPUs")
            return
    if facts.hip_version:
        return  # the worker itself says what ROCm does not start
    problem = cuda_driver.find_problem(plan.environment, len({device.uuid or device.index for device in plan.devices}))
    if problem:
        advice = "yolo-launch doctor, nvidia-smi and `dmesg | grep -i nvrm` say more; --gpus cpu trains without GPUs"
        yield Finding("cuda", "failure", f"the planned GPUs do not start: {problem}", advice)


def check_compiler(context: Context) -> Iterable[Finding]:
    """Checks that --compile finds what it makes code with: a compiler, Python's headers and, on a GPU, Triton."""
    config, plan = context.config, context.plan
    if config is None or not config.compile:
        return
    on_gpu = plan is not None and plan.devices[0].kind == "cuda"
    missing = []
    wanted = os.environ.get("CC", "gcc") if on_gpu else os.environ.get("CXX", "g++")
    if not (shutil.which(wanted) or (on_gpu and "CC" not in os.environ and shutil.which("clang"))):
        missing.append(f"the compiler {wanted}")
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        missing.append("Python's headers (Python.h)")
    if on_gpu and importlib.util.find_spec("triton") is None:
        missing.append("the package triton")
    if missing:
        advice = "apt-get install g++ python3-dev, and triton with torch's CUDA wheels; or leave --compile out"
        yield Finding("compiler", "failure", f"--compile needs {' and '.join(missing)}, not found here", advice)


def check_run_dir(context: Context) -> Iterable[Finding]:
    """Checks that the run directory, or its nearest parent that exists, is writable and has space for checkpoints."""
    if context.run_dir is None:
        return
    folder = context.run_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        yield Finding("run directory", "failure", f"{folder} is a file, not a folder", "--project DIR")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = "choose a folder of your own: --project DIR"
        yield Finding("run directory", "failure", f"{folder} cannot be written by this user", advice)
        return
    free = shutil.disk_usage(folder).free
    seen = f"{folder} has {free / 2**30:.1f} GB free"
    if free == 0:
        yield Finding("run directory", "failure", seen, "free some space, or choose another disk: --project DIR")
    elif free < LOW_DISK_BYTES:
        yield Finding("run directory", "warning", seen, "checkpoints of large models may not fit: --project DIR")
    else:
        yield Finding("run directory", "ok", seen)


def check_temporary_folder(context: Context) -> Iterable[Finding]:
    """Checks that TMPDIR is short enough for the sockets of loader processes, which would hang without them."""
    folder = os.environ.get("TMPDIR", "")
    if not is_too_long_for_sockets(folder):
        return
    seen = f"TMPDIR has {len(os.fsencode(folder))} characters, and sockets below it at most {LONGEST_TEMPORARY_FOLDER}"
    advice = f"TMPDIR={SHORT_TEMPORARY_FOLDER} before the command"
    if context.script is None and os.access(SHORT_TEMPORARY_FOLDER, os.W_OK):
        yield Finding("tmpdir", "warning", f"{seen}; the workers use {SHORT_TEMPORARY_FOLDER}", advice)
    else:
        yield Finding("tmpdir", "warning", f"{seen}: a script with loader processes hangs", advice)


def check_open_files(context: Context) -> Iterable[Finding]:
    """Checks the limit of open files, which loader processes use to share tensors."""
    limit = context.host.open_file_limit
    if limit < LEAST_OPEN_FILES:
        seen = f"at most {limit} open files are allowed, too few to start a worker"
        yield Finding("open files", "failure", seen, "ulimit -n 4096")
    elif limit < FEWEST_OPEN_FILES:
        yield Finding("open files", "warning", f"at most {limit} open files are allowed", "ulimit -n 4096")


def check_shared_memory(context: Context) -> Iterable[Finding]:
    """Compares /dev/shm with what this run needs of it: our loaders nothing, those of scripts much, and NCCL."""
    total, free, plan = context.host.shm_total_bytes, context.host.shm_free_bytes, context.plan
    advice = "in a container: --ipc=host, or --shm-size=1g"
    if not total:
        return
    if plan is None or context.script is not None:
        if total <= 64 << 20:
            yield Finding("shm", "warning", f"/dev/shm has {total >> 20} MB, the default of Docker", advice)
        return
    seen, need = f"/dev/shm has {size_text(free)} free", shared_memory_need(plan)
    if need > free:
        text = (
            f"{seen}; NCCL may need {size_text(need)} for {plan.nproc_per_node} GPUs without a direct way between them"
        )
        yield Finding("shm", "warning", text, advice)
    elif need:
        yield Finding("shm", "ok", f"{seen}; NCCL may need {size_text(need)}")
    else:
        yield Finding("shm", "ok", f"{seen}; this run needs none")


def check_port(context: Context) -> Iterable[Finding]:
    """Checks that an explicit port is free, and names the process that listens on a busy port."""
    port = context.plan.port if context.plan is not None else None
    if port is not None and not ports.is_free(port):
        text = f"port {port} is busy: {ports.holder_of(port)} listens on it"
        yield Finding("port", "failure", text, "leave --port out, and a free one is chosen")


def check_host_name(context: Context) -> Iterable[Finding]:
    """Checks that this machine's name resolves to an address beyond loopback, as jobs of several machines need."""
    if context.plan is not None and context.plan.nnodes == 1:
        return
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(context.host.name, None)})
    except (OSError, UnicodeError):
        yield Finding("host name", "warning", f"{context.host.name} resolves to no address; addresses are used instead")
        return
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        own = [a for name, found in context.host.addresses.items() if name != "lo" for a in found if ":" not in a]
        instead = f"; {own[0]} is used instead" if own else ""
        yield Finding("host name", "warning", f"{context.host.name} resolves to {addresses[0]}{instead}")
    else:
        yield Finding("host name", "ok", f"{context.host.name} is {', '.join(addresses)}")
