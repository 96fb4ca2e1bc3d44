"""How long matching and average precision take, without a model: python benchmarks/metrics.py [--images 5000 ...].

Draws labels and detections as a trained detector gives them (a part near labels, the rest anywhere), then prints
a markdown table. The default size is COCO val2017's.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np

from trainer.evaluation.average_precision import average_precision
from trainer.evaluation.confusion import ConfusionMatrix
from trainer.evaluation.matching import IOU_THRESHOLDS, match_detections


def draw_image(
    rng: np.random.Generator, num_detections: int, num_labels: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Detections (n, 6) by falling confidence and labels (m, 5) of one image of 640 pixels."""
    corner = rng.uniform(0, 540, (num_labels, 2))
    side = rng.uniform(10, 300, (num_labels, 2))
    labels = np.column_stack((rng.integers(0, num_classes, num_labels), corner, (corner + side).clip(max=640)))

    detections = np.empty((num_detections, 6))
    detections[:, :2] = rng.uniform(0, 540, (num_detections, 2))
    detections[:, 2:4] = detections[:, :2] + rng.uniform(10, 300, (num_detections, 2))
    detections[:, 5] = rng.integers(0, num_classes, num_detections)
    near = np.flatnonzero(rng.random(num_detections) < 0.3) if num_labels else np.arange(0)
    of = rng.integers(0, num_labels, len(near)) if num_labels else near
    detections[near, :4] = labels[of, 1:] + rng.normal(0, 8, (len(near), 4))
    detections[near, 5] = labels[of, 0]
    detections[:, 4] = -np.sort(-(rng.random(num_detections) ** 3))
    return detections.astype(np.float32), labels.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=300, help="per image")
    parser.add_argument("--labels", type=int, default=7, help="per image, on average")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    images = [
        draw_image(rng, arguments.detections, int(rng.poisson(arguments.labels)), arguments.classes)
        for _ in range(arguments.images)
    ]
    rows = []
    for _ in range(arguments.repeats):
        started_at = time.perf_counter()
        correct = [match_detections(d, labels, IOU_THRESHOLDS) for d, labels in images]
        matched_at = time.perf_counter()
        detections = np.concatenate([d for d, _ in images])
        label_class = np.concatenate([labels[:, 0] for _, labels in images])
        result = average_precision(
            np.concatenate(correct), detections[:, 4], detections[:, 5], label_class, arguments.classes
        )
        averaged_at = time.perf_counter()
        confusion = ConfusionMatrix(arguments.classes)
        for found, labels in images:
            confusion.add(found, labels)
        ended_at = time.perf_counter()
        rows.append((matched_at - started_at, averaged_at - matched_at, ended_at - averaged_at))

    match_s, average_s, confusion_s = np.min(rows, axis=0)
    print(
        f"{arguments.images} images, {len(detections)} detections, {len(label_class)} labels,"
        f" {arguments.classes} classes; mAP50 {result.map50:.4f}, mAP50-95 {result.map5095:.4f};"
        f" Python {platform.python_version()}, numpy {np.__version__}; best of {arguments.repeats}\n"
    )
    print("| matching, s | average precision, s | both, s | confusion matrix, s |")
    print("|---|---|---|---|")
    print(f"| {match_s:.2f} | {average_s:.2f} | {match_s + average_s:.2f} | {confusion_s:.2f} |")


if __name__ == "__main__":
    main()
