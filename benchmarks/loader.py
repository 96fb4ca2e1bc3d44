"""CPU time and decodes of a training sample, beside those of the peers.

    python benchmarks/loader.py --data bccd.yaml coco.yaml [--paths 5000] [--workers 0] [--peer-python PYTHON]
    python benchmarks/loader.py --hires           # 100 drawn JPEGs of 1920 x 1080 instead

Each program makes the batches of its own training, with mosaics, in a process of its own. Its CPU time is that of the
process and its children, so that it holds on a busy machine too; images a second are by the clock and compare only
side by side.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.linked_data import describe, link_data
from benchmarks.peers import add_options, ask_in_turn, find_programs, introduce, table_head, table_rows

FIGURES = {
    "cpu_ms": "CPU ms a sample",
    "decodes": "decodes a sample",
    "images_per_second": "images/s by the clock",
}


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
    (folder / "hires.yaml").write_text("train: images/train\nval: images/train\nnames: [thing]\n")
    return folder / "hires.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", help="data sets' YAML files")
    source.add_argument("--hires", action="store_true", help="drawn images of 1920 x 1080")
    parser.add_argument(
        "--paths", type=int, default=0, help="at least so many training paths, by links to its pictures"
    )
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0 is the process itself")
    parser.add_argument("--warm", type=int, default=32, help="batches before those that are measured")
    parser.add_argument("--batches", type=int, default=60, help="batches that are measured")
    add_options(parser)
    options = parser.parse_args()
    programs = find_programs(options.peer_python)
    introduce(
        programs,
        options.repeats,
        f"{options.imgsz} pixels, mosaics, batch {options.batch}, {options.workers} loader processes, one thread,"
        f" {options.batches} batches after {options.warm}; OpenCV {cv2.__version__}",
    )
    with tempfile.TemporaryDirectory() as folder:
        sources = options.data or [make_hires(Path(folder) / "hires")]
        print("\n".join(table_head("data", FIGURES)))
        for number, each in enumerate(sources):
            data = link_data(each, Path(folder) / str(number), train_paths=options.paths)
            settings = {"data": str(data), "imgsz": options.imgsz, "batch": options.batch, "device": "cpu"}
            settings |= {"workers": options.workers, "warm": options.warm, "batches": options.batches}
            results = ask_in_turn(programs, "loader", settings, repeats=options.repeats, threads=1)
            print("\n".join(table_rows(results, list(FIGURES), by="cpu_ms", first=describe(data, each))), flush=True)


if __name__ == "__main__":
    main()
