"""Color and flips, written straight into a batch: the formula's pixels, and boxes that follow them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from trainer.data.augment.basic import AugmentationSettings
from trainer.data.augment.finish import Finish, draw_finish

NO_BOXES = np.zeros((0, 5), np.float32)


def finished(finish: Finish, image: np.ndarray) -> np.ndarray:
    """BGR, as the image was."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    finish.write(image, planes)
    return planes[::-1].transpose(1, 2, 0)


@pytest.fixture(params=[(150, 90), (64, 64), (1, 7), (65, 640)])
def image(request):
    noise = np.random.default_rng(3).integers(0, 256, (*request.param, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def test_color_is_that_of_the_formula(image):
    settings = AugmentationSettings(hsv_h=0.4, hsv_s=0.7, hsv_v=0.4)
    result = finished(draw_finish(settings, np.random.default_rng(5)), image)
    hue, saturation, value = np.random.default_rng(5).uniform(-1, 1, 3) * (0.4, 0.7, 0.4) + 1
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(float)
    hsv *= (hue, saturation, value)
    hsv[..., 0] %= 180
    expected = cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)
    np.testing.assert_array_equal(result, expected)
    assert (result != image).mean() > 0.5


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("left_right", [False, True])
def test_flips_move_pixels_and_boxes_alike(image, upside_down, left_right):
    image = np.zeros_like(image)
    height, width = image.shape[:2]
    top, bottom, left, right = 0, -(-height // 3), width // 2, width - 1
    image[top:bottom, left:right] = (255, 128, 7)
    finish = Finish(upside_down=upside_down, left_right=left_right)
    result = finished(finish, image)
    ((_, x1, y1, x2, y2),) = finish.boxes(np.array([(2, left, top, right, bottom)], np.float32), (height, width))
    rows, columns = np.nonzero(result.any(axis=2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x1, y1, x2, y2)
    assert np.unique(result[rows, columns], axis=0).tolist() == [[255, 128, 7]]
    np.testing.assert_array_equal(finished(finish, result), image)


def test_color_is_changed_before_it_is_flipped_and_changes_no_place(image):
    settings = AugmentationSettings(hsv_h=0.1, hsv_s=0.5, hsv_v=0.5, flipud=1, fliplr=1)
    upright = AugmentationSettings(hsv_h=0.1, hsv_s=0.5, hsv_v=0.5)
    turned = finished(draw_finish(settings, np.random.default_rng(2)), image)
    np.testing.assert_array_equal(turned[::-1, ::-1], finished(draw_finish(upright, np.random.default_rng(2)), image))


def test_flips_come_as_often_as_asked():
    generator = np.random.default_rng(0)
    settings = AugmentationSettings(fliplr=0.5, flipud=0.1)
    drawn = [draw_finish(settings, generator) for _ in range(2000)]
    assert np.mean([finish.left_right for finish in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([finish.upside_down for finish in drawn]) == pytest.approx(0.1, abs=0.03)


def test_nothing_to_do_changes_nothing(image):
    finish = draw_finish(AugmentationSettings(), np.random.default_rng(5))
    assert finish.tables is None
    np.testing.assert_array_equal(finished(finish, image), image)
    assert finish.boxes(NO_BOXES, (4, 4)).shape == (0, 5)
