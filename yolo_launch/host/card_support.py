"""Tells from torch's build and a card's compute capability whether the wheel holds code for that card.

The ranges are those of torch's own wheels, as its release notes give them: CUDA 13 dropped Volta and what came before,
CUDA 12.8 Maxwell and Pascal and brought Blackwell, CUDA 11.8 brought Ada and Hopper.
"""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

from yolo_launch.spec import Device, TorchFacts

_RANGES = (
    (Version("13.0"), (7, 5), 12, "cu130"),
    (Version("12.8"), (7, 0), 12, "cu128"),
    (Version("11.8"), (5, 0), 9, "cu126"),
    (Version("11.0"), (3, 7), 8, "cu113"),
)
"""From this CUDA on: the lowest capability with code, the highest major number, and a wheel's name."""


def explain_missing_code(facts: TorchFacts, device: Device) -> str:
    """Returns why this torch has no code for a card; empty if it has, or if nothing is known about the build."""
    capability = device.compute_capability
    if device.kind != "cuda" or capability is None or not facts.cuda_version:
        return ""
    try:
        built_for = Version(facts.cuda_version)
    except InvalidVersion:
        return ""
    for since, lowest, highest_major, _ in _RANGES:
        if built_for >= since:
            if lowest <= capability and capability[0] <= highest_major:
                return ""
            span = f"{_text(lowest)} to {highest_major}.x"
            return (
                f"GPU {device.index} ({device.name}) has compute capability {_text(capability)}; torch "
                f"{facts.torch_version} was built for CUDA {facts.cuda_version}, whose wheels hold code for {span}"
            )
    return ""


def is_own_build(facts: TorchFacts) -> bool:
    """Returns True for a torch that is none of the published wheels, which may hold code for other cards."""
    try:
        version = Version(facts.torch_version)
    except InvalidVersion:
        return True
    return version.is_prerelease or not (version.local or "cu").startswith("cu")


def fitting_wheel(device: Device) -> str:
    """Returns the newest CUDA whose wheels hold code for a card, as wheel names have it; empty if none does."""
    capability = device.compute_capability or (0, 0)
    for _, lowest, highest_major, wheel in _RANGES:
        if lowest <= capability and capability[0] <= highest_major:
            return wheel
    return ""


def _text(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
