"""Describes this machine: accelerators, cores, memory, limits and addresses, without importing torch."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.protocol import affinity_cores
from yolo_launch.errors import LaunchError
from yolo_launch.host import cgroup
from yolo_launch.host.nvml import read_gpus
from yolo_launch.host.torch_versions import read_torch_facts
from yolo_launch.spec import Device, GpuProcess, Host, TorchFacts

logger = logging.getLogger(__name__)

RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "ROLE_WORLD_SIZE",
)
"""Variables that another launcher sets for its own workers; this launcher's workers must not read them."""
RANK_PREFIXES = ("MASTER_", "PET_", "TORCHELASTIC_", "TORCH_ELASTIC_")
_MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Masks of one level, by which a probe that counts every device must not be bound; ROCR_VISIBLE_DEVICES lies below."""
_KEPT_VARIABLES = (*_MASKS, "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")
_DRIVER_FILES = ("/dev/kfd", "/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
"""Of ROCm, CUDA on a server, on two kinds of Jetson and under Windows: where they are, there may be a GPU."""
_KEPT_PREFIXES = ("NCCL_", "GLOO_", "OMP_", "TORCH_NCCL_")

INSTALLED_ONLY = {"PYTHONSAFEPATH": "1"}
"""Keeps a child from importing from the working directory, such as a trainer/ or torch.py (Python 3.11 and later)."""

_PROBE_TIMEOUT_S = 120
_PROBE = """
import json, torch
found = []
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(dict(kind="cuda", index=index, name=facts.name, memory_total_bytes=total, memory_free_bytes=free,
                          compute_capability=[facts.major, facts.minor]))
elif getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    found.append(dict(kind="mps", index=0, name="Apple GPU"))
print("DEVICES " + json.dumps(found))
"""


def inspect_host(environ: Mapping[str, str] | None = None) -> Host:
    """Describes this machine as this process may use it; a part that cannot be read is left empty."""
    import psutil

    environ = os.environ if environ is None else environ
    report, torch_facts = read_gpus(), read_torch_facts()
    devices = report.devices
    is_rocm = bool(torch_facts.hip_version)
    mask_variable = "HIP_VISIBLE_DEVICES" if is_rocm and "HIP_VISIBLE_DEVICES" in environ else "CUDA_VISIBLE_DEVICES"
    if (is_rocm or not report.present) and _may_have_other_accelerator():
        # A torch for ROCm does not run on what NVML lists; containers and Jetsons may lack NVML.
        devices = _probe_with_torch()
    memory = psutil.virtual_memory()
    limit, left = cgroup.memory_limit(), cgroup.memory_left()
    shm_total, shm_free = _shared_memory()
    return Host(
        name=socket.gethostname(),
        platform=f"{platform.system()} {platform.machine()}",
        devices=devices,
        cpu_cores=cgroup.usable_cores(affinity_cores(), cgroup.cpu_quota()),
        memory_total_bytes=memory.total if limit is None else min(memory.total, limit),
        memory_available_bytes=memory.available if left is None else min(memory.available, left),
        shm_total_bytes=shm_total,
        shm_free_bytes=shm_free,
        open_file_limit=_open_file_limit(),
        driver_version=report.driver_version,
        driver_cuda_version=report.driver_cuda_version,
        visible_devices=environ.get(mask_variable),
        mask_variable=mask_variable,
        addresses=_addresses(),
        torch=torch_facts,
        python_version=platform.python_version(),
        environment=relevant_environment(environ),
        gpu_problem=report.problem,
    )


def relevant_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the inherited variables that a plan reads, and no others, which may be secrets."""
    return {name: value for name, value in sorted(environ.items()) if is_rank_variable(name) or _is_kept(name)}


def is_rank_variable(name: str) -> bool:
    """Returns True for a variable that a launcher sets for its own workers."""
    return name in RANK_VARIABLES or name.startswith(RANK_PREFIXES)


def read_host_file(path: Path) -> Host:
    """Reads the host in a file that ``doctor --json`` wrote, on this machine or another. Raises LaunchError."""
    command = "yolo-launch doctor --json > host.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LaunchError("The host file is missing.", seen=f"--host {path}", next_command=command) from None
    except (OSError, ValueError) as error:
        raise LaunchError("The host file cannot be read.", seen=f"{path}: {error}", next_command=command) from None
    try:
        return host_from_dict(content.get("host", content))
    except (KeyError, TypeError, AttributeError) as error:
        raise LaunchError(
            "The host file does not describe a machine.",
            seen=f"{path}: {type(error).__name__}: {error}",
            expected="what 'yolo-launch doctor --json' writes",
            next_command=command,
        ) from None


def host_from_dict(values: Mapping[str, Any]) -> Host:
    """Makes a host from the plain values of ``dataclasses.asdict``. Raises KeyError or TypeError."""
    fields = dict(values)
    fields["devices"] = tuple(device_from_dict(device) for device in fields["devices"])
    fields["torch"] = TorchFacts(**fields.get("torch", {}))
    fields["addresses"] = {name: tuple(found) for name, found in fields.get("addresses", {}).items()}
    return Host(**fields)


def device_from_dict(values: Mapping[str, Any]) -> Device:
    """Makes a device from plain values. Raises TypeError for unknown names."""
    fields = dict(values)
    capability = fields.get("compute_capability")
    fields["compute_capability"] = tuple(capability) if capability else None
    fields["processes"] = tuple(GpuProcess(**process) for process in fields.get("processes", ()))
    return Device(**fields)


def _is_kept(name: str) -> bool:
    return name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)


def _may_have_other_accelerator() -> bool:
    return any(map(os.path.exists, _DRIVER_FILES)) or (platform.system() == "Darwin" and platform.machine() == "arm64")


def _probe_with_torch() -> tuple[Device, ...]:
    """Lists accelerators as torch sees them, in a child process so that this one does not load torch."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={name: value for name, value in os.environ.items() if name not in _MASKS}
            | {**INSTALLED_ONLY, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("the torch probe for accelerators failed: %s", error)
        return ()
    for line in run.stdout.splitlines():
        if line.startswith("DEVICES "):
            return tuple(device_from_dict(values) for values in json.loads(line.removeprefix("DEVICES ")))
    logger.warning("the torch probe for accelerators ended with %d: %s", run.returncode, run.stderr.strip()[-300:])
    return ()


def _shared_memory() -> tuple[int, int]:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return 0, 0
    return usage.total, usage.free


def _open_file_limit() -> int:
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def _addresses() -> dict[str, tuple[str, ...]]:
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        kept = tuple(entry.address.split("%")[0] for entry in entries if entry.family in families)
        if kept:
            found[name] = kept
    return found
