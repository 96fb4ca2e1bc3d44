"""What a split has, counted by hand."""

from __future__ import annotations

import numpy as np

from trainer.data.curation.overview import overview_of
from trainer.data.scan.label_cache import LabeledImages

ROWS = [
    np.array([[0, 0.5, 0.5, 0.2, 0.2], [0, 0.5, 0.5, 0.2, 0.202], [1, 0.5, 0.5, 0.2, 0.2]], np.float32),
    np.array([[0, 0.5, 0.5, 0.001, 0.5], [0, 0.1, 0.1, 0.01, 0.02]], np.float32),
    np.zeros((0, 5), np.float32),
]
SHAPES = np.array([[480, 640], [1000, 500], [480, 640]], np.int32)
IMAGES = LabeledImages.of(["/d/a.jpg", "/d/b.jpg", "/d/c.jpg"], SHAPES, ROWS, [[], [], []], "")


def test_objects_and_images_are_counted():
    seen = overview_of(IMAGES, 3, 640)
    assert (seen.images, seen.boxes) == (3, 5)
    assert (seen.boxes_by_class, seen.images_by_class) == ([4, 1, 0], [2, 1, 0])
    assert seen.image_sizes == {"640x480": 2, "500x1000": 1}


def test_sizes_are_those_at_the_training_size():
    """At 640: 128 x 96 (three), 0.3 x 320, and 3.2 x 12.8 pixels."""
    assert overview_of(IMAGES, 3, 640).boxes_by_size == {"vanish": 1, "tiny": 1, "small": 0, "medium": 0, "large": 3}
    assert overview_of(IMAGES, 3, 160).boxes_by_size == {"vanish": 2, "tiny": 0, "small": 3, "medium": 0, "large": 0}


def test_boxes_on_another_of_their_class_are_named():
    copies = overview_of(IMAGES, 3, 640).copies
    assert copies.count == 1
    assert copies.examples == ("/d/a.jpg: boxes 1 and 2 of class 0, IoU 0.99",)
