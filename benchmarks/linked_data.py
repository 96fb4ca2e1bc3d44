"""Data sets of links to the pictures of another: as many paths as a benchmark needs, and caches go beside the links."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.data.dataset import label_path_for, load_dataset_file
from trainer.data.split_files import find_images

PROJECT_DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "bccd" / "bccd.yaml"
"""The repository's own small set, of three classes."""


def link_data(source: str | Path, folder: Path, *, train_paths: int = 0) -> Path:
    """Returns the YAML file of a set of links to both splits of ``source``, made in ``folder``.

    With ``train_paths`` the training split has that many paths, each picture several times if need be.
    """
    dataset = load_dataset_file(str(source))
    for split in ("train", "val"):
        images = find_images(dataset, split)
        count = train_paths if split == "train" and train_paths else len(images)
        _link(images, count, folder, split)
    content = {"path": str(folder), "train": "images/train", "val": "images/val", "names": list(dataset.names)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def describe(data: Path, source: str | Path) -> str:
    """Returns how many paths lead to how many pictures."""
    count = sum(1 for _ in (data.parent / "images" / "train").iterdir())
    pictures = len(find_images(load_dataset_file(str(source)), "train"))
    return f"{Path(source).stem}: {count} links to {pictures} training pictures"


def _link(images: list[Path], count: int, folder: Path, split: str) -> None:
    image_folder, label_folder = folder / "images" / split, folder / "labels" / split
    for each in (image_folder, label_folder):
        each.mkdir(parents=True)
    sources = [(image.absolute(), label_path_for(image).absolute()) for image in images]
    labeled = [label.exists() for _, label in sources]
    for index in range(count):
        image, label = sources[index % len(sources)]
        stem = f"{index:07}-{image.stem}"
        (image_folder / f"{stem}{image.suffix}").symlink_to(image)
        if labeled[index % len(sources)]:
            (label_folder / f"{stem}.txt").symlink_to(label)
