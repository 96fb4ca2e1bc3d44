"""Inference and suppression of ``val`` in time and in mAP, and beside YOLOv5's on the same machine in one run.

    python benchmarks/validation.py --weights yolov5n.pt --data coco.yaml --imgsz 640 320 --peer-python PYTHON

``--peer-python`` is the interpreter of an environment of its own in which the package ``yolov5`` is installed; its own
validation is started as a program and the times that it prints are read. Runs alternate, so that a busy neighbor
hits both alike; of each the fastest counts. Both get the same threads, images, batch and thresholds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import yaml

from trainer.config.fields import write_config
from trainer.config.inference import ValConfig
from trainer.data.dataset import label_path_for, load_dataset_file
from trainer.data.split_files import find_images

PROJECT_DIR = Path(__file__).resolve().parent.parent
SPEED = re.compile(r"([\d.]+)ms pre-process, ([\d.]+)ms inference, ([\d.]+)ms NMS")
ALL_CLASSES = re.compile(r"^\s*all\s+\d+\s+\d+\s+\S+\s+\S+\s+(\S+)\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """One validation: milliseconds an image, and mAP."""

    inference_ms: float
    nms_ms: float
    map50: float
    map5095: float

    @property
    def both_ms(self) -> float:
        return self.inference_ms + self.nms_ms


def link_data(source: str, folder: Path) -> str:
    """A data set of links to the validation images and labels: the peer writes a cache beside the labels."""
    dataset = load_dataset_file(source)
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for image in find_images(dataset, "val"):
        (folder / "images" / "val" / image.name).symlink_to(image.absolute())
        label = label_path_for(image)
        if label.exists():
            (folder / "labels" / "val" / label.name).symlink_to(label.absolute())
    content = {"path": str(folder), "train": "images/val", "val": "images/val", "names": list(dataset.names)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "data.yaml")


def run_ours(arguments: argparse.Namespace, image_size: int, environ: dict[str, str]) -> Result:
    """One run of this project's worker."""
    with tempfile.TemporaryDirectory() as folder:
        config = ValConfig(
            weights=arguments.weights,
            data=arguments.data,
            imgsz=image_size,
            batch=arguments.batch,
            workers=0,
            noplots=True,
        )
        write_config(config, Path(folder) / "val.yaml")
        command = [sys.executable, "-m", "trainer.inference.val", f"{folder}/val.yaml", "--run-dir", folder]
        path = os.pathsep.join(filter(None, (str(PROJECT_DIR), environ.get("PYTHONPATH", ""))))
        subprocess.run(command, check=True, env={**environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
        found = json.loads((Path(folder) / "summary.json").read_text())
    return Result(found["speed_ms"]["inference"], found["speed_ms"]["nms"], found["map50"], found["map5095"])


def run_peer(arguments: argparse.Namespace, image_size: int, environ: dict[str, str]) -> Result:
    """One run of YOLOv5's own validation."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--weights", arguments.weights, "--data", arguments.data, "--imgsz", str(image_size)]
        words += ["--batch-size", str(arguments.batch), "--workers", "0", "--project", folder, "--device"]
        words += ["0" if arguments.gpu else "cpu"]
        command = [arguments.peer_python, "-m", "yolov5.val", *words]
        # Its checkpoints are pickles, which newer torch reads only when told so.
        told = {**environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "YOLOv5_AUTOINSTALL": "false"}
        told["YOLOV5_CONFIG_DIR"] = folder
        # It would fetch this font; any will do.
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", Path(folder) / "Arial.ttf")
        child = subprocess.run(command, env=told, cwd=folder, capture_output=True, text=True, check=False)
    said = child.stdout + child.stderr
    speed, scores = SPEED.search(said), ALL_CLASSES.search(said)
    if child.returncode or speed is None or scores is None:
        sys.exit(f"the peer failed with {child.returncode}:\n{said[-3000:]}")
    return Result(float(speed[2]), float(speed[3]), float(scores[1]), float(scores[2]))


def compare(runners, arguments: argparse.Namespace, image_size: int, environ: dict[str, str]) -> None:
    """Print the rows of one image size."""
    results: dict[str, list[Result]] = {name: [] for name in runners}
    for _ in range(arguments.repeats):
        for name, runner in runners.items():
            results[name].append(runner(arguments, image_size, environ))
    for name, found in results.items():
        best = min(found, key=lambda result: result.both_ms)
        times = f"{best.inference_ms:.1f} | {best.nms_ms:.1f} | {best.both_ms:.1f}"
        print(f"| {image_size} | {name} | {times} | {best.map50:.3f} | {best.map5095:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=os.path.abspath)
    parser.add_argument("--data", required=True, type=os.path.abspath)
    parser.add_argument("--imgsz", type=int, nargs="+", default=[640])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="the first GPU; without it the CPU")
    parser.add_argument("--peer-python", help="interpreter of an environment with the package yolov5")
    arguments = parser.parse_args()
    environ = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
    if not arguments.gpu:
        environ["CUDA_VISIBLE_DEVICES"] = ""
    runners = {"yolo-launch": run_ours} | ({"YOLOv5": run_peer} if arguments.peer_python else {})

    print(
        f"{Path(arguments.weights).name} on {Path(arguments.data).name}, batches of {arguments.batch},"
        f" {'GPU' if arguments.gpu else f'CPU, {arguments.threads} thread(s)'}, Python {platform.python_version()},"
        f" best of {arguments.repeats}, runs alternating\n"
    )
    print("| image size | program | inference, ms | NMS, ms | both, ms an image | mAP50 | mAP50-95 |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        arguments.data = link_data(arguments.data, Path(folder))
        for image_size in arguments.imgsz:
            compare(runners, arguments, image_size, environ)


if __name__ == "__main__":
    main()
