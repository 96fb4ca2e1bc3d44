"""Writes one small data set in any format, and the samples that other programs wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

SAMPLES = Path(__file__).resolve().parents[5] / "shared" / "data" / "formats"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "yolo-launch"


@pytest.fixture
def samples() -> Path:
    """Files that other programs wrote."""
    if not SAMPLES.is_dir():
        pytest.skip("../shared/data/formats is not here")
    return SAMPLES


def write_image(path: Path, seed: int = 0, size_hw: tuple[int, int] = (40, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def coco_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes COCO's layout with two training images and one for validation; returns the training file.

    ``change`` gets the training file's content before it is written.
    """

    def make(change: Callable[[dict], object] | None = None, *, val: bool = True) -> Path:
        root = tmp_path / "coco"
        for split, stems in (("train", "ab"), ("val", "c")):
            for seed, stem in enumerate(stems):
                write_image(root / "images" / f"{split}2017" / f"{stem}.jpg", seed + ord(split[0]))
        content = {
            "info": {},
            "images": [{"id": i, "file_name": f"{s}.jpg", "width": 60, "height": 40} for i, s in ((7, "b"), (3, "a"))],
            "categories": [{"id": 90, "name": "dog"}, {"id": 18, "name": "cat"}],
            "annotations": [
                {"id": 11, "image_id": 7, "category_id": 90, "bbox": [6, 4, 12, 8], "iscrowd": 0},
                {"id": 12, "image_id": 3, "category_id": 18, "segmentation": [[6, 4, 30, 4, 30, 24]]},
                {"id": 13, "image_id": 3, "category_id": 18, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            ],
        }
        if change is not None:
            change(content)
        folder = root / "annotations"
        folder.mkdir()
        (folder / "instances_train2017.json").write_text(json.dumps(content))
        held = {**content, "images": [{"id": "c", "file_name": "c.jpg", "width": 60, "height": 40}]}
        held["annotations"] = [{"id": "x", "image_id": "c", "category_id": 18, "bbox": [6, 4, 12, 8]}]
        if val:
            (folder / "instances_val2017.json").write_text(json.dumps(held))
        return folder / "instances_train2017.json"

    return make
