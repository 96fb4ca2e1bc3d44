"""Images per second of the training loader, and where a sample's time goes.

    python benchmarks/loader.py --data bccd.yaml
    python benchmarks/loader.py --hires           # 100 drawn JPEGs of 1920 x 1080 instead

Prints two Markdown tables. Stage times are CPU time of one thread, so they hold on a busy machine too; images per
second are wall-clock time and count only side by side with another loader in the same minute.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch

from trainer.data import images as images_module
from trainer.data import loader as loader_module
from trainer.data.augment import finish as finish_module
from trainer.data.augment.basic import AugmentationSettings
from trainer.data.dataset import load_dataset_file
from trainer.data.image_cache import open_image_cache
from trainer.data.loader import TrainingData, make_training_loader
from trainer.data.sampler import EpochBatches
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.scan import scan_split

LOW = AugmentationSettings(hsv_h=0.015, hsv_s=0.7, hsv_v=0.4, translate=0.1, scale=0.5, fliplr=0.5, mosaic=1.0)

STAGES: tuple[tuple[str, ModuleType | type, str], ...] = (
    ("decode and resize (4)", images_module, "load_resized"),
    ("labels to pixels (4)", loader_module, "_to_pixels"),
    ("mosaic: placing", loader_module, "mosaic"),
    ("warp: painting, pixels, boxes", loader_module, "random_warp"),
    ("color, flips, channels", finish_module.Finish, "write"),
)


def make_hires(folder: Path, count: int = 100) -> Path:
    """A data set of smooth noise at 1920 x 1080, as JPEGs of some 300 kB."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    for at in range(count):
        image = cv2.resize(rng.integers(0, 256, (135, 240, 3), np.uint8), (1920, 1080), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / "train" / f"{at:04}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        rows = rng.uniform(0.3, 0.6, (14, 4)) * (1, 1, 0.3, 0.3)
        text = "".join(f"0 {' '.join(f'{value:.6f}' for value in row)}\n" for row in rows)
        (folder / "labels" / "train" / f"{at:04}.txt").write_text(text)
    (folder / "hires.yaml").write_text("train: images/train\nnames: [thing]\n")
    return folder / "hires.yaml"


def run_epochs(data: TrainingData, batch_size: int, workers: int, epochs: int) -> tuple[float, float, int]:
    """Wall-clock seconds, CPU seconds of this thread and images of some epochs after one that is not counted."""
    sampler = EpochBatches(0, len(data), batch_size, 0, 1)
    loader = make_training_loader(data, sampler, num_workers=workers)
    wall, cpu, images = 0.0, 0.0, 0
    for epoch in range(epochs + 1):
        sampler.set_epoch(epoch)
        wall_start, cpu_start = time.perf_counter(), time.thread_time()
        count = sum(len(batch) for batch in loader)
        if epoch:
            wall, cpu = wall + time.perf_counter() - wall_start, cpu + time.thread_time() - cpu_start
            images += count
    return wall, cpu, images


def timed_stages(run: Callable[[], object]) -> dict[str, float]:
    """CPU seconds spent in each stage while ``run`` runs in this thread."""
    seconds: dict[str, float] = defaultdict(float)
    originals = [(module, name, getattr(module, name)) for _, module, name in STAGES]

    def watched(stage: str, function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            start = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                seconds[stage] += time.thread_time() - start

        return call

    for (stage, module, name), (_, _, function) in zip(STAGES, originals, strict=True):
        setattr(module, name, watched(stage, function))
    try:
        run()
    finally:
        for module, name, function in originals:
            setattr(module, name, function)
    return seconds


def print_rates(images: LabeledImages, options: argparse.Namespace, cache_dir: Path) -> None:
    print("\n| images from | loader processes | images/s |\n|---|---|---|")
    cache = open_image_cache(images, image_size=options.imgsz, training=True, kind="ram", cache_dir=cache_dir)
    for name, source in (("files", None), ("RAM cache", cache)):
        if name == "RAM cache" and cache is None:
            continue
        data = TrainingData(images, image_size=options.imgsz, settings=LOW, seed=0, source=source)
        for workers in options.workers:
            wall, _, count = run_epochs(data, options.batch, workers, options.epochs)
            print(f"| {name} | {workers} | {count / wall:.0f} |", flush=True)


def print_stages(images: LabeledImages, options: argparse.Namespace) -> None:
    data = TrainingData(images, image_size=options.imgsz, settings=LOW, seed=0)
    totals: list[tuple[float, float, int]] = []
    seconds = timed_stages(lambda: totals.append(run_epochs(data, options.batch, 0, options.epochs)))
    _, cpu, count = totals[0]
    # The warm-up epoch's stages were timed too.
    watched = count + count // options.epochs
    print("\n| stage | CPU ms per sample |\n|---|---|")
    for stage, value in seconds.items():
        print(f"| {stage} | {value / watched * 1e3:.2f} |")
    rest = cpu / count - sum(seconds.values()) / watched
    print(f"| collate and the rest | {rest * 1e3:.2f} |\n| all | {cpu / count * 1e3:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a data set's YAML file")
    source.add_argument("--hires", action="store_true", help="drawn images of 1920 x 1080")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset_file(options.data or make_hires(Path(folder) / "hires"))
        start = time.perf_counter()
        images, report = scan_split(dataset, "train", num_classes=dataset.num_classes, cache_dir=Path(folder))
        elapsed_us = (time.perf_counter() - start) / report.images * 1e6
        print(f"{dataset.path.name}: {report.lines()[0]}; scanned in {elapsed_us:.0f} us an image")
        print(
            f"imgsz {options.imgsz}, batch {options.batch}, mosaic on, {os.cpu_count()} cores, OpenCV {cv2.__version__}"
        )
        print_rates(images, options, Path(folder))
        print_stages(images, options)


if __name__ == "__main__":
    main()
