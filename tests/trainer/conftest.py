"""Small real data and real ranks for the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tests import forked_ranks
from tests.forked_ranks import ForkedRank

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


@pytest.fixture
def start_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[ForkedRank]]]:
    """Starts a script in every rank; all of them are ended with the test."""
    started: list[ForkedRank] = []

    def start(arguments: Sequence[str], world_size: int, **extra: str) -> list[ForkedRank]:
        ranks = forked_ranks.start_ranks(arguments, world_size, tmp_path_factory.mktemp("ranks"), **extra)
        started.extend(ranks)
        return ranks

    yield start
    for rank in started:
        rank.end()


@pytest.fixture
def run_ranks(start_ranks: Callable[..., list[ForkedRank]]) -> Callable[..., list[str]]:
    """Runs a script in every rank to its end; returns what each printed, and fails if one fails."""

    def run(arguments: Sequence[str], world_size: int, expected: int = 0, **extra: str) -> list[str]:
        ranks = start_ranks(arguments, world_size, **extra)
        outputs = [rank.wait(240) for rank in ranks]
        for rank, output in zip(ranks, outputs, strict=True):
            assert rank.returncode == expected, output
        return outputs

    return run
