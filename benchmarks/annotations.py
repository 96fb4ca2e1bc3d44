"""Time and memory of reading a COCO-sized JSON, beside msgspec's own typed decoding of the same file.

The file is made: by default 118,000 images and 860,000 polygons, as many as COCO's training split has. Each reading is
a process of its own, in turn; the one that decodes takes boxes only.

    python benchmarks/annotations.py
    python benchmarks/annotations.py --images 1000 --repeats 1
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROWS_PER_IMAGE = 7.29
POINTS = (8, 36)
"""Points of a polygon, from and to."""


def make_file(path: Path, images: int) -> int:
    """Writes the file, and the first of its images; returns the number of annotations."""
    rng = random.Random(0)
    outlines = [[round(rng.random() * 300, 2) for _ in range(2 * rng.randint(*POINTS))] for _ in range(500)]
    count = round(images * ROWS_PER_IMAGE)
    with path.open("w") as file:
        file.write('{"info": {}, "images": [')
        for at in range(images):
            file.write(", " * bool(at) + f'{{"id": {at}, "file_name": "{at:012}.jpg", "width": 640, "height": 480}}')
        file.write('], "annotations": [')
        for at in range(count):
            left, top = rng.randint(0, 300), rng.randint(0, 150)
            outline = outlines[at % len(outlines)]
            file.write(
                ", "
                * bool(at)
                + f'{{"segmentation": [{outline}], "area": 702.1, "iscrowd": 0, "image_id": {rng.randrange(images)}, '
                f'"bbox": [{left}.25, {top}.5, 120.75, 90.5], "category_id": {1 + at % 80}, "id": {at}}}'
            )
        file.write('], "categories": [' + ", ".join(f'{{"id": {i}, "name": "c{i}"}}' for i in range(1, 81)) + "]}")
    (path.parent / f"{0:012}.jpg").touch()
    return count


def decode(path: str) -> None:
    """Decodes the file into typed objects with msgspec, boxes only."""
    import msgspec

    image = msgspec.defstruct("Image", [("id", int), ("file_name", str), ("width", int), ("height", int)], gc=False)
    row = msgspec.defstruct(
        "Row", [("id", int), ("image_id", int), ("category_id", int), ("bbox", tuple[float, ...])], gc=False
    )
    whole = msgspec.defstruct("Whole", [("images", list[image]), ("annotations", list[row])])
    msgspec.json.decode(Path(path).read_bytes(), type=whole)


def read(path: str) -> None:
    """Reads the file as a start of training does, the cache included."""
    from trainer.data.formats.load import load_dataset

    load_dataset(path)


def main() -> None:
    """Makes the file and prints a row for each way of reading it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, path = options.one
        # Libraries that any start loads are not what is measured.
        for library in (
            "msgspec",
            "trainer.data.annotations.cache",
            "trainer.data.demo.dataset",
            "trainer.data.formats.load",
        ):
            importlib.import_module(library)
        began_at, began_cpu = time.perf_counter(), time.process_time()
        {"decode": decode, "read": read}[way](path)
        seconds, cpu = time.perf_counter() - began_at, time.process_time() - began_cpu
        print(seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances_train.json"
        count = make_file(path, options.images)
        size_mb = path.stat().st_size / 2**20
        print(f"{options.images} images, {count} polygons, {size_mb:.0f} MB; medians of {options.repeats}", flush=True)
        found: dict[str, list[tuple[float, ...]]] = {
            "msgspec, boxes only": [],
            "read, no cache yet": [],
            "from the cache": [],
        }
        for repeat in range(options.repeats):
            cache = os.path.join(folder, f"cache{repeat}")
            for name, way in zip(found, ("decode", "read", "read"), strict=True):
                command = [sys.executable, __file__, "--one", way, str(path)]
                environ = {**os.environ, "XDG_CACHE_HOME": cache}
                end = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
                found[name].append(tuple(map(float, end.stdout.split())))
        for name, values in found.items():
            seconds, cpu, memory = (statistics.median(one) for one in zip(*values, strict=True))
            print(f"{name:20} {seconds:6.2f} s, {cpu:6.2f} s of CPU  {memory:5.2f} GB at most")


if __name__ == "__main__":
    main()
