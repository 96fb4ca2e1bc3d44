"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

PROJECT_DIR = Path(__file__).resolve().parents[1]

# A neighbor on a shared core slows spinning threads fourfold; sleeping ones wait their turn.
os.environ.setdefault("GOMP_SPINCOUNT", "0")


@pytest.fixture(autouse=True)
def _usual_signals() -> None:
    """Gives signals their usual effect, here and in all that a test starts.

    A background shell has some of them ignored, and so has a process in which xdist runs tests.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of YOLOv5's weights and of COCO's images beside the project; tests skip if it is absent."""
    folder = PROJECT_DIR.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the files in {folder}, which is not here")
    return folder


@pytest.fixture(scope="session")
def bccd_yaml() -> Path:
    """The data-set YAML of 40 training and 20 validation images of blood cells, which the repository holds."""
    return PROJECT_DIR / "tests" / "data" / "bccd" / "bccd.yaml"


@pytest.fixture(scope="session")
def detector() -> Path:
    """Weights that find blood cells in pictures of 160 pixels, white ones best; the repository holds them."""
    return PROJECT_DIR / "tests" / "data" / "detector.pt"


@pytest.fixture(scope="session")
def copy_bccd(bccd_yaml: Path) -> Callable[[Path, int, int], Path]:
    """Copies the first training and validation images of bccd into a folder; gives the path of their data-set YAML."""
    source = bccd_yaml.parent

    def copy(folder: Path, train: int, val: int) -> Path:
        for split, count in (("train", train), ("val", val)):
            for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
                target = folder / kind / split
                target.mkdir(parents=True)
                for image in sorted((source / "images" / split).iterdir())[:count]:
                    shutil.copy(source / kind / split / f"{image.stem}{suffix}", target)
        content = {"path": ".", "train": "images/train", "val": "images/val", "names": ["RBC", "WBC", "Platelets"]}
        path = folder / "data.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return copy


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """yolov5n with a quarter of its channels, whose checkpoints are quickly written."""
    definition = yaml.safe_load((PROJECT_DIR / "trainer" / "model" / "zoo" / "yolov5n.yaml").read_text())
    path = tmp_path_factory.mktemp("model") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**definition, "width_multiple": 0.0625}))
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded inputs and outputs of YOLOv5 7.0."""
    return PROJECT_DIR / "tests" / "golden"
