"""Reads the limits that the kernel's control groups, version 1 or 2, set on this process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

UNLIMITED_BYTES = 1 << 60
"""Version 1 writes a number near 2**63 if there is no limit."""


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Reads the CPUs that the quota allows, the smallest of this group and its parents; None without a quota."""
    quotas = []
    for folder in _group_folders(root, "cpu"):
        version_2 = _read(folder / "cpu.max").split()
        if len(version_2) == 2 and version_2[0] != "max":
            quotas.append(int(version_2[0]) / int(version_2[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Reads the bytes that the groups allow, the smallest of this group and its parents; None without a limit."""
    limits = []
    for folder in _group_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None and limit < UNLIMITED_BYTES:
                limits.append(limit)
    return min(limits, default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Reads the bytes left before the nearest limit; droppable file cache counts as free. None without a limit."""
    left = []
    for folder in _group_folders(root, "memory"):
        for limit_name, used_name, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None and limit < UNLIMITED_BYTES:
                left.append(max(0, limit - used + _statistic(folder / "memory.stat", cache_key)))
    return min(left, default=None)


def usable_cores(affinity: int, quota: float | None) -> int:
    """Returns the whole cores to plan with: the affinity's, or fewer if the quota is smaller (1.5 CPUs count as 1)."""
    return max(1, affinity if quota is None else min(affinity, math.floor(quota + 1e-6)))


def _group_folders(root: Path, controller: str, process: int | str = "self") -> Iterator[Path]:
    """Yields a process's group and all its parents, in the hierarchy that holds ``controller``."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / f"proc/{process}/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, group = parts
        if controllers == "":
            bases = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            bases = [mount / controller, mount / controllers]
        else:
            continue
        for base in bases:
            if not base.is_dir():
                continue
            # In a container the path may be the host's and not mounted; the path's parents are mounted still.
            folder = base / group.lstrip("/")
            for candidate in (folder, *folder.parents):
                yield candidate
                if candidate == base:
                    break


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _statistic(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


class OomKillCounter:
    """Counts the processes that the kernel killed for memory, in the groups of the processes that it was shown.

    Version 1 counts a kill in the victim's own group alone, version 2 in its parents' too. Without a counter in any
    group the host's is read.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before: dict[Path, int] = {}
        self._groups: dict[int | str, str] = {}
        self.look_at("self")

    def look_at(self, process: int | str) -> None:
        """Counts in the process's group from now on; it may have moved since it was last looked at."""
        text = _read(self._root / f"proc/{process}/cgroup")
        if text == self._groups.get(process):
            return
        self._groups[process] = text
        files = [
            file
            for folder in _group_folders(self._root, "memory", process)
            for file in (folder / "memory.events", folder / "memory.oom_control")
            if file.exists()
        ]
        for file in files[:1] or [self._root / "proc/vmstat"]:
            self._before.setdefault(file, _statistic(file, "oom_kill"))

    def count(self) -> int:
        """Returns the kills since each group was first looked at."""
        return sum(max(0, _statistic(file, "oom_kill") - before) for file, before in self._before.items())
