"""Reads the values of options that are more than a number or a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from yolo_launch.errors import LaunchError


def parse_batch(text: str) -> int | None:
    """Returns the total batch; None for ``auto``. Raises LaunchError for anything else."""
    if text.strip().lower() in ("auto", "-1"):
        return None
    if not text.strip().isdigit() or int(text) < 1:
        raise LaunchError("--batch cannot be used.", seen=f"--batch {text}", expected="a number above 0, or auto")
    return int(text)


def parse_freeze(text: str) -> tuple[int, ...]:
    """Reads numbers of layers, separated by commas or spaces. Raises LaunchError for anything else."""
    parts = text.replace(",", " ").split()
    if not all(part.isdigit() for part in parts):
        raise LaunchError(
            "--freeze cannot be used.", seen=f"--freeze {text}", expected="--freeze 10, or --freeze 0 1 2"
        )
    return tuple(int(part) for part in parts)


def parse_overrides(pairs: Iterable[str] | None) -> dict[str, Any]:
    """Reads hyperparameters from ``--set name=value``. Raises LaunchError for a pair without its sign or its name."""
    overrides: dict[str, Any] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise LaunchError("--set cannot be used.", seen=f"--set {pair}", expected="--set name=value")
        overrides[name.strip()] = value.strip()
    return overrides


SPECIAL: dict[str, Callable[[str], Any]] = {"batch_size": parse_batch, "freeze": parse_freeze}
"""Fields of a configuration whose options are read by a function."""
