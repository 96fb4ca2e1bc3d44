"""Chooses devices by ``--gpus``: indices, UUIDs, all, idle or cpu, within a mask that is already set."""

from __future__ import annotations

import re

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.torch_versions import is_cpu_build
from yolo_launch.planning.masks import (
    describe_device,
    find_by_uuid,
    hidden_text,
    mask_findings,
    refuse_bad_mask,
    visible_devices,
)
from yolo_launch.request.command_line import retype
from yolo_launch.spec import Device, Finding, Host, LaunchPlan, LaunchRequest

IDLE_USED_BYTES = 1 << 30
"""A GPU with more memory in use may be used from another container; a driver alone takes less than this."""
CPU_WORDS = ("cpu",)
APPLE_GPU = "an Apple GPU, which the trainer does not run on"


def choose_devices(request: LaunchRequest, host: Host) -> tuple[tuple[Device, ...], list[Finding]]:
    """Chooses the device of each local rank, in the order asked for, and returns findings about the choice too.

    Raises LaunchError for a device that is absent, hidden, named twice or unusable by the installed torch.
    """
    wanted = (request.gpus or "").strip()
    if wanted.lower() in CPU_WORDS:
        return _cpu_ranks(request, host), []
    refuse_bad_mask(host)
    # Apple's GPUs are listed, but the trainer does not run on them.
    usable = tuple(device for device in visible_devices(host) if device.kind == "cuda")
    if not wanted:
        return _default_devices(request, host, usable)
    if wanted.lower() == "all":
        chosen = usable
    elif wanted.lower() == "idle":
        chosen = tuple(device for device in usable if is_idle(device))
        if usable and not chosen:
            raise _none_is_idle(usable)
    else:
        chosen = _named_devices(request, wanted, host, usable)
    if not chosen:
        raise _no_gpu(f"--gpus {wanted}", host)
    _refuse_cpu_build(f"--gpus {wanted}", host)
    is_list = wanted.lower() not in ("all", "idle")
    chosen = _limited(chosen, request, is_explicit=is_list)
    _refuse_several_mig(request, chosen)
    return chosen, mask_findings(host, by_index=is_list)


def is_idle(device: Device) -> bool:
    """Returns True if no process uses a device and less than 1 GiB of its memory is in use."""
    return not device.processes and device.memory_total_bytes - device.memory_free_bytes < IDLE_USED_BYTES


def _default_devices(
    request: LaunchRequest, host: Host, usable: tuple[Device, ...]
) -> tuple[tuple[Device, ...], list[Finding]]:
    """Chooses every usable GPU, or the CPU if there is none."""
    if not usable:
        hidden = hidden_text(host) if host.devices else ""
        has_apple_gpu = any(device.kind == "mps" for device in host.devices)
        seen = host.gpu_problem or (APPLE_GPU if has_apple_gpu else hidden)
        findings = [Finding("devices", "warning", f"{seen}; training on the CPU")] if seen else []
        return _cpu_ranks(request, host), findings
    if usable[0].kind == "cuda" and is_cpu_build(host.torch):
        seen = f"torch {host.torch.torch_version} is a CPU build, so the GPUs here stay unused"
        advice = "install a CUDA build of torch; the selector on pytorch.org gives the command"
        return _cpu_ranks(request, host), [Finding("devices", "warning", seen, advice)]
    whole = tuple(device for device in usable if not device.is_mig)
    if not whole:
        count = len(usable)
        note = f"one of {count} MIG instances is used: CUDA gives a process no more than one"
        return usable[:1], [Finding("devices", "warning", note)] if count > 1 else []
    return _limited(whole, request, is_explicit=False), []


def _cpu_ranks(request: LaunchRequest, host: Host) -> tuple[Device, ...]:
    count = request.nproc or 1
    if count < 1:
        raise LaunchError("--nproc must be at least 1.", seen=f"--nproc {request.nproc}")
    return (Device(kind="cpu", name="CPU"),) * count


def _named_devices(request: LaunchRequest, wanted: str, host: Host, usable: tuple[Device, ...]) -> tuple[Device, ...]:
    chosen: list[Device] = []
    for entry in _entries(wanted):
        if not usable:
            raise _no_gpu(f"--gpus {wanted}", host)
        device = _find(entry.removeprefix("cuda:"), usable)
        if device is None:
            raise _absent(request, entry, host, usable)
        if device in chosen:
            raise LaunchError(
                f"--gpus {wanted} names {describe_device(device)} twice; every worker needs a device of its own.",
                seen=entry,
                expected="each device once",
                next_command=retype(request.typed, {"--gpus": _without_repeats(wanted)}),
            )
        chosen.append(device)
    return tuple(chosen)


def _entries(wanted: str) -> list[str]:
    """Returns the single devices of a list such as '0,2-4'."""
    entries: list[str] = []
    for part in (part.strip() for part in wanted.split(",")):
        ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", part)
        entries += [str(index) for index in range(int(ends[1]), int(ends[2]) + 1)] if ends else [part]
    return entries


def _find(entry: str, devices: tuple[Device, ...]) -> Device | None:
    """Returns the device that a position in ``devices`` or the beginning of a UUID names."""
    if re.fullmatch(r"\d+", entry):
        return devices[int(entry)] if int(entry) < len(devices) else None
    return find_by_uuid(entry, devices)


def _limited(devices: tuple[Device, ...], request: LaunchRequest, *, is_explicit: bool) -> tuple[Device, ...]:
    """Returns the first ``--nproc`` of the devices. Raises LaunchError for fewer devices or another explicit list."""
    count = request.nproc
    if count is None or count == len(devices):
        return devices
    if count < 1 or count > len(devices) or is_explicit:
        chosen = "1 chosen GPU" if len(devices) == 1 else f"{len(devices)} chosen GPUs"
        raise LaunchError(
            f"--nproc {count} does not fit {chosen}.",
            seen=", ".join(f"GPU {device.index}" for device in devices),
            expected="one worker for each GPU; leave --nproc out",
        )
    return devices[:count]


def _absent(request: LaunchRequest, entry: str, host: Host, usable: tuple[Device, ...]) -> LaunchError:
    listing = "; ".join(f"{position}: {describe_device(device)}" for position, device in enumerate(usable))
    elsewhere = _find(entry, host.devices)
    if elsewhere is not None and elsewhere not in usable:
        return LaunchError(
            f"--gpus {entry}: {describe_device(elsewhere)} is hidden by {host.mask_variable}={host.visible_devices}.",
            seen=f"visible here: {listing}",
            expected="indices count inside the mask; a UUID names a GPU wherever it is",
        )
    counting = f" (indices count inside {host.mask_variable})" if host.visible_devices is not None else ""
    return LaunchError(
        f"--gpus {entry or request.gpus}: there is no such GPU here.",
        seen=entry or f"an empty entry in --gpus {request.gpus}",
        expected=f"one of {listing}{counting}; or all, idle, cpu",
        next_command=retype(request.typed, {"--gpus": ",".join(map(str, range(len(usable))))}),
    )


def _no_gpu(option: str, host: Host) -> LaunchError:
    hidden = hidden_text(host) if host.devices else "no GPU was found on this machine"
    has_apple_gpu = any(device.kind == "mps" for device in host.devices)
    seen = host.gpu_problem or (APPLE_GPU if has_apple_gpu else hidden)
    return LaunchError(
        f"{option} asks for a GPU, and there is none to use.",
        seen=seen,
        expected="a GPU, or --gpus cpu",
        next_command="yolo-launch doctor",
        exit_code=ExitCode.ENVIRONMENT,
    )


def _none_is_idle(usable: tuple[Device, ...]) -> LaunchError:
    return LaunchError(
        "--gpus idle found no GPU that nobody uses.",
        seen="\n".join(busy_text(device) for device in usable),
        expected="a GPU without processes and with its memory free",
        next_command="wait, stop those processes, or name the GPUs in spite of them: --gpus 0",
        exit_code=ExitCode.ENVIRONMENT,
    )


def busy_text(device: Device) -> str:
    """Describes the processes on a device, each with PID, user, memory and command."""
    processes = [
        f"PID {process.pid}{f' of {process.user}' if process.user else ''} "
        f"({process.memory_bytes / 2**30:.1f} GB, {process.command})"
        for process in device.processes
    ]
    used = (device.memory_total_bytes - device.memory_free_bytes) / 2**30
    return f"{describe_device(device)}: " + (", ".join(processes) or f"{used:.1f} GB taken by an unseen process")


def _refuse_cpu_build(option: str, host: Host) -> None:
    if is_cpu_build(host.torch) and any(device.kind == "cuda" for device in host.devices):
        raise LaunchError(
            f"{option} asks for a GPU, and the installed torch is a CPU build.",
            seen=f"torch {host.torch.torch_version}",
            expected="a CUDA build of torch, or --gpus cpu",
            next_command="yolo-launch doctor",
            exit_code=ExitCode.ENVIRONMENT,
        )


def _refuse_several_mig(request: LaunchRequest, devices: tuple[Device, ...]) -> None:
    instances = [device for device in devices if device.is_mig]
    if instances and len(devices) > 1:
        raise LaunchError(
            "Several devices were chosen and some are MIG instances; CUDA gives a process one MIG instance, and NCCL "
            "does not connect them.",
            seen=", ".join(describe_device(device) for device in devices),
            expected="one MIG instance, or whole GPUs",
            next_command=retype(request.typed, {"--gpus": instances[0].uuid or str(instances[0].index)}),
        )


def _without_repeats(wanted: str) -> str:
    return ",".join(dict.fromkeys(part.strip() for part in wanted.split(",")))


def device_text(plan: LaunchPlan, local_rank: int) -> str:
    """Describes the devices of a rank of this machine, as in 'GPU 2 (RTX 3090)'."""
    names = []
    for device in plan.devices if plan.mode == "dp" else plan.devices[local_rank : local_rank + 1]:
        if device.kind == "cuda":
            names.append(f"GPU {device.index}" + (f" ({device.name})" if device.name else ""))
        else:
            names.append(device.kind.upper())
    return ", ".join(names)
