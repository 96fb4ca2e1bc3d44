"""Small data sets and images made in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings

from trainer.data.dataset import load_dataset_file
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.scan import scan_split

# A busy machine is no failure of a property.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes a data set of noise images with given label texts (None: no label file); returns its YAML file."""

    def make(labels: list[str | None], *, split: str = "train", suffix: str = ".jpg", names: str = "[a, b, c]") -> Path:
        rng = np.random.default_rng(7)
        root = tmp_path / "set"
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for at, text in enumerate(labels):
            image = rng.integers(0, 255, (40, 60, 3), np.uint8)
            assert cv2.imwrite(str(root / "images" / split / f"{at:04}{suffix}"), image)
            if text is not None:
                (root / "labels" / split / f"{at:04}.txt").write_text(text)
        yaml_path = root / "data.yaml"
        yaml_path.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
        return yaml_path

    return make


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., tuple]:
    """Scans a split of a YAML file with a cache of its own."""

    def run(yaml_path: Path, split: str = "train", **options):
        dataset = load_dataset_file(yaml_path)
        options.setdefault("num_classes", dataset.num_classes)
        options.setdefault("cache_dir", tmp_path / "cache")
        return scan_split(dataset, split, **options)

    return run


@pytest.fixture(scope="session")
def bccd(bccd_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> LabeledImages:
    """The training images of the blood-cell data set."""
    cache_dir = tmp_path_factory.mktemp("cache")
    return scan_split(load_dataset_file(bccd_yaml), "train", num_classes=3, cache_dir=cache_dir)[0]


@pytest.fixture(scope="session")
def many_shapes(many_shapes_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> LabeledImages:
    """Images of many shapes: parts of the pictures of blood cells."""
    cache_dir = tmp_path_factory.mktemp("cache")
    return scan_split(load_dataset_file(many_shapes_yaml), "val", num_classes=3, cache_dir=cache_dir)[0]
