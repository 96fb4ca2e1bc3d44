"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT_DIR = Path(__file__).resolve().parent.parent

# A neighbour on a shared core slows spinning threads fourfold; sleeping ones wait their turn.
os.environ.setdefault("GOMP_SPINCOUNT", "0")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data sets and weights beside the project; tests skip where it is absent."""
    folder = PROJECT_DIR.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the data sets in {folder}, which is not here")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded inputs and outputs of YOLOv5 7.0."""
    return PROJECT_DIR / "tests" / "golden"
