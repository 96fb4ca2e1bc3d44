"""Speed of real training, loader and step together, beside the peers.

    python benchmarks/training.py --data bccd.yaml [--cfg yolov5n] [--imgsz 320] [--workers 0 2] [--peer-python PYTHON]

Every program trains from scratch with its own command, in turn; the figure of a run is the median of its epochs after
the first. ultralytics trains the same backbone with a newer head.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.linked_data import describe, link_data
from benchmarks.peers import add_options, ask_in_turn, find_programs, introduce, table_head, table_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--paths", type=int, default=0, help="at least so many training paths, by links to its pictures"
    )
    parser.add_argument("--cfg", default="yolov5n")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="loader processes, one table row each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument(
        "--recipe",
        choices=("auto", "yolov5"),
        default="auto",
        help="ours; auto ends without mosaics from 6 epochs on",
    )
    parser.add_argument("--gpu", action="store_true", help="the first GPU; without it the CPU")
    add_options(parser)
    options = parser.parse_args()
    programs = find_programs(options.peer_python)
    what = f"{options.cfg}, {options.imgsz} pixels, batch {options.batch}, {options.epochs} epochs, amp {options.amp}"
    figures = {"images_per_second": "images/s"}
    with tempfile.TemporaryDirectory() as folder:
        data = link_data(options.data, Path(folder), train_paths=options.paths)
        introduce(programs, options.repeats, f"{what}, {options.threads} threads; {describe(data, options.data)}")
        print("\n".join(table_head("loader processes", figures)))
        settings = {"data": str(data), "cfg": options.cfg, "imgsz": options.imgsz, "batch": options.batch}
        settings |= {"epochs": options.epochs, "amp": options.amp, "recipe": options.recipe}
        settings["device"] = "cuda" if options.gpu else "cpu"
        for workers in options.workers:
            asked = {**settings, "workers": workers}
            results = ask_in_turn(programs, "training", asked, repeats=options.repeats, threads=options.threads)
            rows = table_rows(results, list(figures), by="images_per_second", higher_is_better=True, first=str(workers))
            print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
