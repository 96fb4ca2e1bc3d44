"""Reads from package metadata and version files, without importing torch, what the installed torch can do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from yolo_launch.spec import Finding, TorchFacts

LAUNCHER_FLOOR = Version("1.11")
"""The oldest torch whose elastic agent this launcher can run."""
TRAINER_FLOOR = Version("2.4")
"""The oldest torch that the built-in trainer runs on."""
BROKEN_FOR_DDP = Version("1.12.0")
"""This release fixes the visible GPUs during its import, so that a chosen subset is ignored; corrected in 1.12.1."""


def read_torch_facts() -> TorchFacts:
    """Reads versions and builds of the installed torch and torchvision; empty for an absent package."""
    # importlib.util finds the folder without running the package's code.
    torch_file, vision_file = _version_file("torch"), _version_file("torchvision")
    vision_version = _assigned(vision_file, "__version__") or _metadata_version("torchvision")
    return TorchFacts(
        torch_version=_assigned(torch_file, "__version__") or _metadata_version("torch"),
        torchvision_version=vision_version,
        cuda_version=_assigned(torch_file, "cuda"),
        hip_version=_assigned(torch_file, "hip"),
        torchvision_needs=_torchvision_needs(),
        torchvision_build=vision_version.partition("+")[2],
    )


def release_of(version: str) -> Version | None:
    """Returns the release of a version: 2.4.1 for '2.4.1+cu121', 2.5.0 for '2.5.0a0+git1', None for other texts."""
    try:
        return Version(Version(version).base_version)
    except InvalidVersion:
        return None


def is_older(version: str, floor: Version) -> bool:
    """Returns True if a version comes before ``floor``; False if it cannot be read."""
    release = release_of(version)
    return release is not None and release < floor


def is_ddp_broken(facts: TorchFacts) -> bool:
    """Returns True for torch 1.12.0, whose DDP ignores the chosen GPUs."""
    return release_of(facts.torch_version) == BROKEN_FOR_DDP


def is_cpu_build(facts: TorchFacts) -> bool:
    """Returns True if the installed torch can use no NVIDIA or AMD GPU; False if torch is absent."""
    return bool(facts.torch_version) and not facts.cuda_version and not facts.hip_version


def check_torch(facts: TorchFacts, *, device_count: int, builtin_trainer: bool, is_ddp: bool) -> list[Finding]:
    """Returns findings about torch: absent, too old for the trainer or the launcher, or the broken 1.12.0."""
    version = facts.torch_version
    if not version:
        return [Finding("torch", "failure", "torch is not installed", "python -m pip install torch torchvision")]
    if is_ddp_broken(facts):
        if is_ddp:
            return [Finding("torch", "failure", _broken_ddp_text(facts, device_count), _BROKEN_DDP_ADVICE)]
        if not builtin_trainer:
            return [Finding("torch", "warning", f"torch {version} works with one device only", _BROKEN_DDP_ADVICE)]
    if is_older(version, LAUNCHER_FLOOR):
        return [_too_old(version, "the launcher", LAUNCHER_FLOOR, "")]
    if builtin_trainer and is_older(version, TRAINER_FLOOR):
        return [_too_old(version, "the built-in trainer", TRAINER_FLOOR, "; 'yolo-launch run SCRIPT' works with it")]
    build = f"CUDA {facts.cuda_version}" if facts.cuda_version else f"ROCm {facts.hip_version}"
    return [Finding("torch", "ok", f"{version}, built for {'CPU' if is_cpu_build(facts) else build}")]


_BROKEN_DDP_ADVICE = "use another torch, for example: python -m pip install 'torch>=1.12.1'; or use one device"


def _broken_ddp_text(facts: TorchFacts, device_count: int) -> str:
    vision = f" (with torchvision {facts.torchvision_version})" if facts.torchvision_version else ""
    return (
        f"torch {facts.torch_version}{vision} cannot train on {device_count} chosen devices: it fixes the visible "
        "GPUs while it is imported, so a chosen subset is ignored; 1.12.1 corrected it"
    )


def _too_old(version: str, who: str, floor: Version, remark: str) -> Finding:
    return Finding(
        "torch",
        "failure",
        f"torch {version} is too old for {who}, which needs {floor} or newer{remark}",
        f"python -m pip install 'torch>={floor}' torchvision",
    )


def check_torchvision(facts: TorchFacts, *, builtin_trainer: bool, on_gpu: bool) -> list[Finding]:
    """Returns findings about torchvision: absent, made for another torch, or a CPU build beside a CUDA torch."""
    if not facts.torch_version:
        return []
    if not facts.torchvision_version:
        advice = "python -m pip install torchvision"
        return [Finding("torchvision", "failure", "torchvision is not installed", advice)] if builtin_trainer else []
    pair = f"torchvision {facts.torchvision_version} beside torch {facts.torch_version}"
    if not satisfies(facts.torch_version, facts.torchvision_needs):
        advice = "install the pair together: python -m pip install --force-reinstall torch torchvision"
        seen = f"{pair}: it needs torch {facts.torchvision_needs}"
        return [Finding("torchvision", "failure" if builtin_trainer else "warning", seen, advice)]
    if facts.cuda_version and facts.torchvision_build == "cpu":
        advice = "install both from the same index, so that NMS runs on the GPU"
        seen = f"{pair}: a CPU build beside a CUDA build"
        return [Finding("torchvision", "failure" if on_gpu and builtin_trainer else "warning", seen, advice)]
    return [Finding("torchvision", "ok", facts.torchvision_version)]


def satisfies(version: str, requirement: str) -> bool:
    """Returns True if a version meets every specifier of a requirement such as '>=2.14.0' or '==2.4.1'.

    Local versions ('+cu121') do not count. A specifier or version that cannot be read counts as met, because a check
    without an answer must not stop a run.
    """
    release = release_of(version)
    try:
        return release is None or SpecifierSet(requirement).contains(release)
    except InvalidSpecifier:
        return True


def _metadata_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torchvision_needs() -> str:
    from packaging.requirements import InvalidRequirement, Requirement  # slow to import, and needed here alone

    try:
        requirements = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for text in requirements:
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(text)
            if requirement.name == "torch" and (requirement.marker is None or requirement.marker.evaluate()):
                return str(requirement.specifier)
    return ""


def _version_file(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / "version.py"
    return path if path.is_file() else None


def _assigned(path: Path | None, name: str) -> str:
    """Returns the string that a version file assigns to ``name``; empty for no file, None or an absent line."""
    if path is None:
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    match = re.search(rf"^{name}\s*(?::[^=\n]*)?=\s*['\"]([^'\"]*)['\"]", text, re.MULTILINE)
    return match.group(1) if match else ""
