"""Reads the mask of devices that this process inherited, as CUDA and ROCm read theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.spec import Device, Finding, Host

HIDES_ALL = ("", "-1", "NoDevFiles", "none", "void")
"""Masks that hide every GPU on purpose; containers without GPUs have the last three."""


def visible_devices(host: Host) -> tuple[Device, ...]:
    """Returns the devices that the inherited mask names, in its order.

    Reads it as CUDA does: entries are indices of cards or beginnings of UUIDs, the first entry that names no device
    ends the list, and a card that is split into MIG instances gives its first one.
    """
    if host.visible_devices is None:
        return host.devices
    found: list[Device] = []
    for entry in host.visible_devices.split(","):
        device = _find_in_mask(entry.strip(), host.devices)
        if device is None:
            break
        if device not in found:
            found.append(device)
    return tuple(found)


def refuse_bad_mask(host: Host) -> None:
    """Raises LaunchError for an inherited mask that names what is not there, where CUDA silently ends the list."""
    mask = host.visible_devices
    if mask is None or mask.strip() in HIDES_ALL or not any(device.kind == "cuda" for device in host.devices):
        return
    for entry in (part.strip() for part in mask.split(",")):
        if entry == "-1":
            return
        if _find_in_mask(entry, host.devices) is None:
            there = "; ".join(f"{device.card}: {describe_device(device)}" for device in host.devices)
            raise LaunchError(
                f"{host.mask_variable} names '{entry}', which is no GPU of this machine.",
                seen=f"{host.mask_variable}={mask}",
                expected=f"indices or UUIDs of {there}",
                next_command=f"unset {host.mask_variable}, and choose with --gpus",
                exit_code=ExitCode.ENVIRONMENT,
            )


def find_by_uuid(entry: str, devices: tuple[Device, ...]) -> Device | None:
    """Returns the device that the beginning of a UUID names; None for an ambiguous one or another word."""
    if len(entry) < len("GPU-") or not entry[:4].upper().startswith(("GPU-", "MIG-")):
        return None
    matches = [device for device in devices if device.uuid.lower().startswith(entry.lower())]
    return matches[0] if len(matches) == 1 else None


def mask_findings(host: Host, *, by_index: bool) -> list[Finding]:
    """Warns of an inherited mask of indices on mixed cards, which is ambiguous: CUDA's default is fastest first."""
    mask = host.visible_devices
    names = {device.name for device in host.devices}
    is_pci = host.environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if not by_index or mask is None or is_pci or len(names) < 2 or not re.search(r"(^|,)\s*\d", mask):
        return []
    seen = f"{host.mask_variable}={mask} on mixed cards is read in PCI bus order, as nvidia-smi counts"
    return [Finding("devices", "warning", seen, "name GPUs by UUID to be sure")]


def hidden_text(host: Host) -> str:
    """Says which mask hides the devices of this machine."""
    hidden = "the one GPU" if len(host.devices) == 1 else f"all {len(host.devices)} GPUs"
    return f"{host.mask_variable}='{host.visible_devices}' hides {hidden}"


def describe_device(device: Device) -> str:
    """Describes a device, as in 'GPU 2 (RTX 3090, GPU-ab12…, 23.5 GB free)' or 'CPU'."""
    if device.kind == "cpu":
        return "CPU"
    facts = [device.name] if device.name else []
    if device.uuid:
        facts.append(f"{device.uuid[:8]}…")
    if device.memory_total_bytes:
        facts.append(f"{device.memory_free_bytes / 2**30:.1f} GB free")
    return f"GPU {device.index}" + (f" ({', '.join(facts)})" if facts else "")


def mask_environment(devices: Sequence[Device], host: Host, *, by_index: bool) -> dict[str, str]:
    """Returns the variables that show a worker these devices alone; ``by_index`` for scripts, which may read numbers.

    ROCm reads an empty mask as none, and its own variable before CUDA's.
    """
    is_rocm = bool(host.torch.hip_version)
    if devices[0].kind == "cpu":
        # A worker that sees no GPU starts no context on one, which it would not use.
        hides = "-1" if is_rocm else ""
        return {"CUDA_VISIBLE_DEVICES": hides} | ({"HIP_VISIBLE_DEVICES": hides} if is_rocm else {})
    if devices[0].kind != "cuda":
        return {}
    mask = ",".join(_mask_entry(device, by_index=by_index) for device in devices)
    if is_rocm:
        return {"CUDA_VISIBLE_DEVICES": mask, "HIP_VISIBLE_DEVICES": mask}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": mask}


def _mask_entry(device: Device, *, by_index: bool) -> str:
    needs_uuid = not by_index or device.is_mig
    return device.uuid if device.uuid and needs_uuid else str(device.card)


def _find_in_mask(entry: str, devices: tuple[Device, ...]) -> Device | None:
    if re.fullmatch(r"\d+", entry):
        return next((device for device in devices if device.card == int(entry)), None)
    return find_by_uuid(entry, devices)
