"""Equality to the bit, and where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.weights.checkpoint import newest_good

TIME_COLUMNS = ("seconds", "images_per_second", "data_wait", "checkpoint_wait")
"""What metrics.jsonl measures with a clock."""


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested results are not equal to the bit."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys"]
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} entries"]
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [f"{path}: {a} and {b}"]


def newest_step(run_dir: Path) -> int:
    """The step that a resume would go on from; -1 before the first checkpoint. A damaged file is an error."""
    content, passed_over = newest_good(run_dir / "weights")
    assert not passed_over, passed_over
    return -1 if content is None else int(content["progress"]["micro_step"])


def result_of(run_dir: Path) -> dict[str, Any]:
    """Everything of a finished run that must be equal to the bit."""
    content = torch.load(run_dir / "weights" / "last.pt", weights_only=True)
    best = torch.load(run_dir / "weights" / "best.pt", weights_only=True)
    history = [
        {name: value for name, value in row.items() if name not in TIME_COLUMNS}
        for row in content["progress"]["history"]
    ]
    return {
        "model": content["model"],
        "ema": content["ema"],
        "optimizer": content["optimizer"],
        "history": history,
        "updates": content["progress"]["updates"],
        "best": {"ema": best["ema"], "epoch": best["epoch"]},
        "results": (run_dir / "results.csv").read_text(),
    }
