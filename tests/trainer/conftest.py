"""Small real data and real ranks for the trainer's tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

PROJECT_DIR = Path(__file__).resolve().parents[2]
PART_SHAPES_HW = ((480, 640), (480, 360), (240, 320), (427, 640), (96, 72), (128, 320), (333, 333), (480, 181))


@pytest.fixture(scope="session")
def small_bccd(copy_bccd: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-set YAML with the first 22 training and 10 validation images of bccd."""
    return copy_bccd(tmp_path_factory.mktemp("small_bccd"), 22, 10)


@pytest.fixture(scope="session")
def many_shapes_yaml(bccd_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-set YAML whose 52 validation images have many shapes: parts of the pictures of blood cells.

    The labels are the parts of the boxes that lie inside.
    """
    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("many_shapes")
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    sources = [path for split in ("train", "val") for path in sorted((bccd_yaml.parent / "images" / split).iterdir())]
    for number, source in enumerate(sources[:52]):
        image = cv2.imread(str(source))
        size_hw = np.array(image.shape[:2])
        part_hw = np.array(PART_SHAPES_HW[number % len(PART_SHAPES_HW)])
        top, left = rng.integers(0, size_hw - part_hw + 1)
        corner, part_wh = np.array([left, top]), part_hw[::-1]
        part = image[top : top + part_hw[0], left : left + part_hw[1]]
        assert cv2.imwrite(str(folder / "images" / "val" / f"{number:04}.jpg"), part)
        rows = np.loadtxt(str(source).replace("images", "labels").replace(".jpg", ".txt"), ndmin=2)
        first = ((rows[:, 1:3] - rows[:, 3:] / 2) * size_hw[::-1] - corner).clip(0, part_wh)
        last = ((rows[:, 1:3] + rows[:, 3:] / 2) * size_hw[::-1] - corner).clip(0, part_wh)
        inside = ((last - first) > 8).all(1)  # slices of a cell are no cells
        boxes = np.hstack((rows[:, :1], (first + last) / 2 / part_wh, (last - first) / part_wh))[inside]
        np.savetxt(folder / "labels" / "val" / f"{number:04}.txt", boxes, "%g")
    path = folder / "many_shapes.yaml"
    content = {"path": ".", "train": "images/val", "val": "images/val", "names": ["RBC", "WBC", "Platelets"]}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def run_config(small_bccd: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration for a tiny, fast run; keywords replace options."""

    def write(**options: object) -> Path:
        values = {
            "data": str(small_bccd),
            "cfg": "yolov5n",
            "imgsz": 64,
            "epochs": 2,
            "batch_size": 8,
            "workers": 0,
            "plots": False,
            **options,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def start_ranks(arguments: Sequence[str], world_size: int, **extra: str) -> list[subprocess.Popen[str]]:
    """One process a rank of ``python ARGUMENTS``, with the environment that a launcher gives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world_size):
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_DIR), **extra}
        if world_size > 1:
            environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    return processes


@pytest.fixture
def run_ranks() -> Callable[..., list[str]]:
    """Runs a script in every rank to its end; returns what each printed, and fails when one fails."""

    def run(arguments: Sequence[str], world_size: int, expected: int = 0, **extra: str) -> list[str]:
        processes = start_ranks(arguments, world_size, **extra)
        outputs = [process.communicate(timeout=240)[0] for process in processes]
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == expected, output
        return outputs

    return run
