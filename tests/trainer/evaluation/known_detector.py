"""A validation set and a detector whose answers are known; also run as one rank of several, by a test.

``python known_detector.py`` joins the ranks named in the environment and prints the digest of its metrics.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.collate import Batch, ImageGeometry
from trainer.evaluation.evaluator import EvaluationSettings, Evaluator, Metrics
from trainer.loss import DetectionLoss, LossGains, scaled_gains
from trainer.runtime.distributed import Collectives, DistEnv, process_group

NUM_CLASSES = 4
SIDE = 64
STRIDES = (8, 16, 32)


class KnownDetector(nn.Module):
    """Recognizes an image by its first pixel and answers what is written for it."""

    def __init__(self, decoded: Tensor, raw: Sequence[Tensor]) -> None:
        super().__init__()
        self.decoded = decoded
        self.raw = raw

    def forward(self, images_bchw: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert not self.training
        assert images_bchw.dtype == torch.float32
        assert 0 <= images_bchw.min() <= images_bchw.max() <= 1
        number = (images_bchw[:, 0, 0, 0] * 255).round().long()
        return self.decoded[number], [level[number] for level in self.raw]


@dataclasses.dataclass(frozen=True)
class Case:
    """Images in batches, what the detector sees in each, and both in pixels of the files."""

    detector: KnownDetector
    batches: list[Batch]
    loss: DetectionLoss
    labels: list[np.ndarray]
    """(m, 5) per image: class, xyxy."""


def make_case(num_images: int = 11, batch_size: int = 3, *, noise: float = 3.0, positions_seed: int = 5) -> Case:
    """``noise``: pixels by which boxes are off; with 0, every label is found and nothing else."""
    rng = np.random.default_rng(0)
    # A data set's order is not that of its batches.
    positions = np.random.default_rng(positions_seed).permutation(num_images)
    labels, targets, geometry = [], [], []
    decoded = np.zeros((num_images, 24, 5 + NUM_CLASSES), np.float32)
    for number in range(num_images):
        place = ImageGeometry((30 + number, 90), (0.5, 0.5 + number / 100), (3, 10))
        count = 0 if number == 4 else int(rng.integers(1, 5))
        classes = rng.integers(0, NUM_CLASSES - 1, count)  # the last class has no labels
        # One label to a column, so that exact ones never overlap.
        left = np.arange(count) * 20 + rng.uniform(1, 4, count)
        top = rng.uniform(1, 8, count)
        boxes = np.stack((left, top, left + rng.uniform(8, 15, count), top + rng.uniform(8, 20, count)), axis=1)
        labels.append(np.column_stack((classes, boxes)).astype(np.float32))
        inside = boxes * np.tile(place.ratio_hw[::-1], 2) + np.tile(place.pad_xy, 2)
        inside = np.concatenate(((inside[:, :2] + inside[:, 2:]) / 2, inside[:, 2:] - inside[:, :2]), axis=1)
        targets.append(np.column_stack((classes, inside / SIDE)))
        geometry.append(place)

        rows = decoded[number]
        rows[:count, :4] = inside
        rows[:count, 4] = rng.uniform(0.6, 0.99, count)
        rows[np.arange(count), 5 + classes] = 0.95
        if noise:
            rows[:count, :4] += rng.normal(0, noise / 2, (count, 4))
            rows[count:, :4] = rng.uniform(8, 56, (len(rows) - count, 4))
            rows[count:, 4:] = rng.random((len(rows) - count, 1 + NUM_CLASSES)) * 0.7
    raw = [torch.from_numpy(rng.standard_normal((num_images, 3, SIDE // s, SIDE // s, 9))) for s in STRIDES]
    batches = []
    for start in range(0, num_images, batch_size):
        numbers = range(start, min(start + batch_size, num_images))
        images = torch.zeros(len(numbers), 3, SIDE, SIDE, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.tensor(numbers)
        rows = [np.column_stack((np.full(len(targets[n]), i), targets[n])) for i, n in enumerate(numbers)]
        batches.append(
            Batch(
                images_bchw=images,
                targets=torch.from_numpy(np.concatenate(rows).astype(np.float32)),
                positions=torch.from_numpy(positions[numbers]),
                indices=torch.from_numpy(positions[numbers] + 100),
                geometry=tuple(geometry[n] for n in numbers),
            )
        )
    published = LossGains(box=0.05, obj=1.0, cls=0.5)
    gains = scaled_gains(published, num_classes=NUM_CLASSES, image_size=SIDE, num_levels=3)
    anchors = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [1.0, 3.0]]] * 3)
    detector = KnownDetector(torch.from_numpy(decoded), [level.float() for level in raw])
    return Case(detector, batches, DetectionLoss(anchors, NUM_CLASSES, gains), labels)


def evaluator_for(case: Case, **options: object) -> Evaluator:
    """Returns the case's evaluator, with its loss; options that the evaluator has not itself are settings."""
    own = {"num_classes": NUM_CLASSES, "names": ("ant", "bee", "cat", "dog"), "loss": case.loss}
    settings = {name: value for name, value in options.items() if name not in own}
    own.update((name, value) for name, value in options.items() if name in own)
    return Evaluator(**own, settings=EvaluationSettings(**settings))


def fingerprint(metrics: Metrics) -> str:
    """A digest of every number to the last bit, times excepted."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                if field.name != "speed_ms":
                    digest.update(field.name.encode())
                    add(getattr(value, field.name))
        elif isinstance(value, np.ndarray):
            digest.update(str((value.dtype, value.shape)).encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, tuple):
            for item in value:
                add(item)
        else:
            assert value is None or isinstance(value, (int, float, str)), type(value)
            digest.update(repr(value).encode())

    add(metrics)
    return digest.hexdigest()


def main() -> None:
    env = DistEnv.from_environ()
    case = make_case()
    mine = case.batches[env.rank :: env.world_size]
    with process_group(env, torch.device("cpu")):
        metrics = evaluator_for(case, keep_detections=True).evaluate(
            case.detector, mine, device=torch.device("cpu"), gather=Collectives(env).gather
        )
    print(fingerprint(metrics))


if __name__ == "__main__":
    main()
