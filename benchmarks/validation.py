"""Inference and suppression of ``val`` in time and in mAP, beside the peers on the same machine in one run.

    python benchmarks/validation.py --weights yolov5n.pt --data coco.yaml --imgsz 640 320 --peer-python PYTHON

All get the same threads, images, batch and thresholds, and take turns. ultralytics does not read YOLOv5's weights: its
row is the inference of an untrained model with the same backbone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.linked_data import link_data
from benchmarks.peers import add_options, ask_in_turn, find_programs, introduce, table_head, table_rows

FIGURES = {
    "inference_ms": "inference, ms an image",
    "nms_ms": "NMS",
    "map50": "mAP50",
    "map5095": "mAP50-95",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=os.path.abspath)
    parser.add_argument("--data", required=True, type=os.path.abspath)
    parser.add_argument("--cfg", default="yolov5n", help="the model of a peer that does not read the weights")
    parser.add_argument("--imgsz", type=int, nargs="+", default=[640])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="the first GPU; without it the CPU")
    add_options(parser)
    options = parser.parse_args()
    programs = find_programs(options.peer_python)
    what = f"{Path(options.weights).name} on {Path(options.data).name}, batches of {options.batch}"
    introduce(programs, options.repeats, f"{what}, {'GPU' if options.gpu else f'CPU, {options.threads} thread(s)'}")
    print("\n".join(table_head("pixels", FIGURES)))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data": str(link_data(options.data, Path(folder))), "weights": options.weights, "cfg": options.cfg}
        settings |= {"batch": options.batch, "half": options.half, "device": "cuda" if options.gpu else "cpu"}
        for image_size in options.imgsz:
            asked = {**settings, "imgsz": image_size}
            results = ask_in_turn(programs, "validation", asked, repeats=options.repeats, threads=options.threads)
            print("\n".join(table_rows(results, list(FIGURES), by="inference_ms", first=str(image_size))), flush=True)


if __name__ == "__main__":
    main()
