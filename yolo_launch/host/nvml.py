"""Reads NVIDIA GPUs from the driver's library NVML, without importing torch."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from yolo_launch.spec import Device, GpuProcess

logger = logging.getLogger(__name__)

_LINK_NAMES = {
    "NVML_TOPOLOGY_INTERNAL": "same board",
    "NVML_TOPOLOGY_SINGLE": "PCIe, same switch",
    "NVML_TOPOLOGY_MULTIPLE": "PCIe, several switches",
    "NVML_TOPOLOGY_HOSTBRIDGE": "PCIe, same host bridge",
    "NVML_TOPOLOGY_NODE": "PCIe, same NUMA node",
    "NVML_TOPOLOGY_SYSTEM": "PCIe, across CPUs",
}
_THROTTLE_NAMES = {
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "too hot (hardware)",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "too hot",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
    "nvmlClocksThrottleReasonSwPowerCap": "power cap",
}
LARGE_GRAPHICS_BYTES = 1 << 29


@dataclass(frozen=True)
class NvmlReport:
    """The answer of NVML: the GPUs in PCI order, and the reason if there are none."""

    devices: tuple[Device, ...] = ()
    driver_version: str = ""
    driver_cuda_version: str = ""
    """The newest CUDA that the driver supports."""
    present: bool = False
    """True if the library answered, even without a GPU."""
    problem: str = ""
    """Why a driver does not answer, for example after an upgrade without a restart; else empty."""


def read_gpus(library: Any = None) -> NvmlReport:
    """Reads every GPU of the machine from NVML; a failing driver gives no GPUs and a problem, never an exception.

    ``library`` replaces the module ``pynvml``.
    """
    try:
        nvml = importlib.import_module("pynvml") if library is None else library
    except ImportError:
        return NvmlReport(problem="the package nvidia-ml-py is missing, so GPUs cannot be listed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        absent = type(error).__name__ in ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
        return NvmlReport(problem="" if absent else f"NVML cannot start: {error}")
    try:
        return _read_all(nvml)
    except nvml.NVMLError as error:
        return NvmlReport(present=True, problem=f"NVML failed: {error}")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read_all(nvml: Any) -> NvmlReport:
    handles, problems = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handles.append(nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            # A card that does not answer must not hide the others.
            problems.append(f"GPU {index} does not answer: {error}")
    devices: list[Device] = []
    whole_gpus: list[Any] = []
    for card, handle in enumerate(handles):
        for part, is_mig in _parts(nvml, handle):
            device = replace(_read_device(nvml, part, handle, len(devices), is_mig), card_index=card)
            devices.append(device)
            whole_gpus.append(None if is_mig else handle)
    linked = tuple(_with_links(nvml, index, devices, whole_gpus) for index in range(len(devices)))
    driver = _ask(nvml, lambda: _text(nvml.nvmlSystemGetDriverVersion()), "")
    return NvmlReport(linked, driver, _driver_cuda(nvml), present=True, problem="; ".join(problems))


def _driver_cuda(nvml: Any) -> str:
    """Reads the newest CUDA of the driver, '12.4' for the driver's number 12040; "" if it is unknown."""
    number = _ask(nvml, lambda: int(nvml.nvmlSystemGetCudaDriverVersion()), 0)
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _parts(nvml: Any, handle: Any) -> Iterator[tuple[Any, bool]]:
    """Yields the whole GPU, or the MIG instances of a card in MIG mode, which cannot be used as a whole."""
    mode = _ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0], 0)
    if not mode:
        yield handle, False
        return
    for slot in range(_ask(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle), 0)):
        instance = _ask(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot), None)
        if instance is not None:
            yield instance, True


def _read_device(nvml: Any, part: Any, gpu: Any, index: int, is_mig: bool) -> Device:
    memory_total, memory_free = _memory(nvml, part)
    name = _ask(nvml, lambda: _text(nvml.nvmlDeviceGetName(part)), "") or _ask(
        nvml, lambda: _text(nvml.nvmlDeviceGetName(gpu)), "NVIDIA GPU"
    )
    capability = _ask(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(gpu), None)
    return Device(
        kind="cuda",
        index=index,
        uuid=_ask(nvml, lambda: _text(nvml.nvmlDeviceGetUUID(part)), ""),
        name=short_name(name),
        memory_total_bytes=memory_total,
        memory_free_bytes=memory_free,
        compute_capability=(int(capability[0]), int(capability[1])) if capability else None,
        processes=_processes(nvml, part),
        throttled=_throttle_reasons(nvml, gpu),
        is_mig=is_mig,
    )


def _memory(nvml: Any, part: Any) -> tuple[int, int]:
    """Returns the bytes that programs can use and those that are free.

    The second version of the answer tells apart what the driver reserves, hundreds of megabytes on a large card, which
    the first one counts as in use.
    """
    memory = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(part, version=nvml.nvmlMemory_v2), None)
    if memory is None:
        memory = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(part), None)
    reserved = getattr(memory, "reserved", None)  # some drivers and stand-ins answer as of old, whatever was asked for
    if memory is not None and reserved is not None:
        return int(memory.total) - int(reserved), int(memory.free)
    return (int(memory.total), int(memory.free)) if memory is not None else (0, 0)


def _processes(nvml: Any, part: Any) -> tuple[GpuProcess, ...]:
    memory_of: dict[int, int] = {}
    for entry in _ask(nvml, lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(part), ()):
        # A desktop's server and windows use a little memory on most workstations' cards, which stay usable.
        if (entry.usedGpuMemory or 0) >= LARGE_GRAPHICS_BYTES:
            memory_of[int(entry.pid)] = int(entry.usedGpuMemory)
    for entry in _ask(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(part), ()):
        memory_of[int(entry.pid)] = max(memory_of.get(int(entry.pid), 0), int(entry.usedGpuMemory or 0))
    return tuple(_describe_process(pid, used) for pid, used in sorted(memory_of.items()))


def _describe_process(pid: int, memory_bytes: int) -> GpuProcess:
    import psutil

    user, command = "", "a process of another container or user"
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        command = " ".join(process.cmdline())[:120] or process.name()
        user = process.username()
    return GpuProcess(pid, user, command, memory_bytes)


def _throttle_reasons(nvml: Any, gpu: Any) -> str:
    mask = _ask(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu), 0)
    return ", ".join(word for name, word in _THROTTLE_NAMES.items() if mask & getattr(nvml, name, 0))


def _with_links(nvml: Any, index: int, devices: list[Device], whole_gpus: list[Any]) -> Device:
    """Adds the links to other devices; ``whole_gpus`` are NVML's handles, None for a MIG instance."""
    links = {}
    for other, device in enumerate(devices):
        if other != index and whole_gpus[index] is not None and whole_gpus[other] is not None:
            link = _link(nvml, whole_gpus[index], whole_gpus[other])
            if link and device.uuid:
                links[device.uuid] = link
    return replace(devices[index], links=links)


def _link(nvml: Any, one: Any, other: Any) -> str:
    status = _ask(nvml, lambda: nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK), None)
    if status is not None and status == getattr(nvml, "NVML_P2P_STATUS_OK", 0):
        return "NVLink"
    level = _ask(nvml, lambda: nvml.nvmlDeviceGetTopologyCommonAncestor(one, other), None)
    for name, word in _LINK_NAMES.items():
        if level is not None and level == getattr(nvml, name, None):
            return word
    return ""


def _ask(nvml: Any, question: Callable[[], Any], otherwise: Any) -> Any:
    """Returns the answer, or ``otherwise`` if this card, driver or package version does not support the question."""
    try:
        return question()
    except (nvml.NVMLError, AttributeError) as error:
        logger.debug("NVML gives no answer: %s", error)
        return otherwise


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def short_name(name: str) -> str:
    """Removes the maker from a GPU's name: 'NVIDIA GeForce RTX 3090' becomes 'RTX 3090'."""
    for prefix in ("NVIDIA ", "GeForce ", "Tesla "):
        name = name.removeprefix(prefix)
    return name
