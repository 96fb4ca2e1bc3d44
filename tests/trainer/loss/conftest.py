"""YOLOv5n's anchors, a loss with the gains of the recorded cases, and random batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.loss import DetectionLoss, LossGains, scaled_gains

ANCHORS_PX = (
    (10, 13, 16, 30, 33, 23),
    (30, 61, 62, 45, 59, 119),
    (116, 90, 156, 198, 373, 326),
)
STRIDES = (8, 16, 32)


@pytest.fixture(scope="session")
def anchors() -> Tensor:
    """(3, 3, 2) in grid units."""
    pixels = torch.tensor(ANCHORS_PX, dtype=torch.float32).view(3, 3, 2)
    return pixels / torch.tensor(STRIDES).view(3, 1, 1)


@pytest.fixture(scope="session")
def make_loss(anchors: Tensor, golden_dir: Path) -> Callable[..., DetectionLoss]:
    low = json.loads((golden_dir / "hyp.json").read_text())["low"]

    def make(num_classes: int, image_size: int, **changes: float) -> DetectionLoss:
        values = {
            "box": low["box"],
            "obj": low["obj"],
            "cls": low["cls"],
            "obj_pos_weight": low["obj_pw"],
            "cls_pos_weight": low["cls_pw"],
            "focal_gamma": low["fl_gamma"],
            "anchor_threshold": low["anchor_t"],
        }
        published = LossGains(**(values | changes))
        gains = scaled_gains(published, num_classes=num_classes, image_size=image_size, num_levels=3)
        return DetectionLoss(anchors, num_classes, gains)

    return make


@pytest.fixture
def make_batch() -> Callable[..., tuple[list[Tensor], Tensor]]:
    """Raw predictions of three levels, and targets whose last column counts the images."""

    def make(
        num_images: int, num_classes: int, image_size: int, per_image: int, dtype: torch.dtype, seed: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        predictions = [
            torch.randn(
                num_images,
                3,
                image_size // s,
                image_size // s,
                5 + num_classes,
                generator=generator,
                dtype=dtype,
            )
            for s in STRIDES
        ]
        count = num_images * per_image
        image = torch.arange(num_images).repeat_interleave(per_image)[:, None]
        class_index = torch.randint(0, num_classes, (count, 1), generator=generator)
        centers = torch.rand(count, 2, generator=generator)
        sides = torch.rand(count, 2, generator=generator) * 0.4 + 0.05
        return predictions, torch.cat((image, class_index, centers, sides), dim=1)

    return make
