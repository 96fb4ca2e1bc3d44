"""Writes detections in the format of COCO's results, and computes COCO's own numbers with a library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.scan.label_cache import LabeledImages
from trainer.errors import ConfigError
from trainer.protocol import replace_text

_COCO_UNUSED_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""Of COCO's ids 1 to 90, those that no annotation of the 80 classes uses."""
_COCO_LANDMARKS = {0: "person", 11: "stop sign", 79: "toothbrush"}


def category_ids(names: Sequence[str]) -> list[int]:
    """Returns the category id of every class: COCO's own for its 80 classes, else the class index."""
    is_coco = len(names) == 80 and all(names[index] == name for index, name in _COCO_LANDMARKS.items())
    return [i for i in range(1, 91) if i not in _COCO_UNUSED_IDS] if is_coco else list(range(len(names)))


def image_id(path: Path) -> int | str:
    """Returns the number that a file's name is, such as 139 for 000000000139.jpg, else the name without suffix."""
    return int(path.stem) if path.stem.isascii() and path.stem.isdigit() else path.stem


def result_rows(
    detections: Mapping[int, np.ndarray], ids: Sequence[int | str], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns COCO results, a row a detection.

    ``detections``: (n, 6) xyxy in pixels, confidence, class, by position in ``ids``, which are the images'.
    """
    rows = []
    for position, found in detections.items():
        for x1, y1, x2, y2, score, class_index in np.asarray(found, np.float64).tolist():
            rows.append(
                {
                    "image_id": ids[position],
                    "category_id": categories[int(class_index)],
                    "bbox": [round(x1, 3), round(y1, 3), round(x2 - x1, 3), round(y2 - y1, 3)],
                    "score": round(score, 5),
                }
            )
    return rows


def write_coco_json(
    path: Path, detections: Mapping[int, np.ndarray], images: LabeledImages, names: Sequence[str]
) -> int:
    """Writes COCO results and returns how many detections they hold. Raises ConfigError for a path that fails."""
    rows = result_rows(detections, [image_id(image) for image in images.paths], category_ids(names))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(rows))
    except OSError as error:
        raise ConfigError("--coco-json cannot be written", seen=f"{path}: {error}", expected="a file path") from None
    return len(rows)


def coco_numbers(
    detections: Mapping[int, np.ndarray], images: LabeledImages, names: Sequence[str]
) -> dict[str, float] | None:
    """Returns COCO's own metrics against the data set's labels; None if the evaluator is not installed.

    The metrics follow COCO's definitions: matching that may fall back to a second-best label, the mean of precision at
    101 recalls, 100 detections an image. The labels know no crowds and no masks, so areas are those of boxes.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        return None
    # Files may share a stem, so images are numbered here.
    ids = list(range(1, len(images) + 1))
    categories = list(range(1, len(names) + 1))
    truth = COCO(_ground_truth(images, names))
    rows = result_rows(detections, ids, categories)
    if not rows or not truth.anns:
        return {"map5095": 0.0, "map50": 0.0}
    evaluation = COCOeval_faster(truth, truth.loadRes(rows), iouType="bbox", print_function=_say_nothing)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    order = ("map5095", "map50", "map75", "map_small", "map_medium", "map_large", "ar1", "ar10", "ar100")
    return {name: float(value) for name, value in zip(order, evaluation.stats, strict=False)}


def _ground_truth(images: LabeledImages, names: Sequence[str]) -> dict[str, Any]:
    """Returns the labels as a COCO data set with image and category ids from 1."""
    annotations: list[dict[str, Any]] = []
    shapes = images.shapes_hw.tolist()
    for number, (boxes, (height, width)) in enumerate(zip(images.boxes, shapes, strict=True), start=1):
        for class_index, cx, cy, w, h in boxes.astype(np.float64).tolist():
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(class_index) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    return {
        "info": {},
        "images": [{"id": n, "width": w, "height": h} for n, (h, w) in enumerate(shapes, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
        "annotations": annotations,
    }


def _say_nothing(*_: object) -> None:
    """Does nothing, in place of the library's printing: this project has a table of its own."""
