"""Each augmentation moves boxes with the pixels they are around: a bright rectangle is drawn, moved, found again."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from trainer.data.augment.basic import (
    AugmentationSettings,
    Sample,
    fit_letterbox,
    letterbox,
    mixup,
)
from trainer.data.augment.canvas import Canvas, Tile, letterboxed, place
from trainer.data.augment.finish import draw_finish
from trainer.data.augment.mosaic import copy_paste, mosaic
from trainer.data.augment.polygons import bounds_xyxy, clip_polygon
from trainer.data.augment.warp import draw_matrix, random_warp

COLORS = ((0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 0))
BRIGHT = 110
"""Gray is 114 in every channel; an object's own channel is 255, at least one other 0."""


def sample_of(*boxes: tuple[int, int, int, int], height: int = 120, width: int = 160, polygons: bool = False) -> Sample:
    """Black, with a rectangle in a color of its own for each box; polygons are lozenges within them."""
    image = np.zeros((height, width, 3), np.uint8)
    segments = []
    for color, (x1, y1, x2, y2) in zip(COLORS, boxes, strict=False):
        if polygons:
            xm, ym = (x1 + x2) / 2, (y1 + y2) / 2
            lozenge = np.array([(xm, y1), (x2, ym), (xm, y2), (x1, ym)], np.float32)
            yy, xx = np.mgrid[:height, :width] + 0.5
            inside = abs(xx - xm) / (x2 - x1) + abs(yy - ym) / (y2 - y1) <= 0.5
            image[inside] = color
            segments.append(lozenge)
        else:
            image[y1:y2, x1:x2] = color
    rows = [(index, *box) for index, box in enumerate(boxes)]
    return Sample(image, np.array(rows, np.float32).reshape(-1, 5), segments)


def find(image: np.ndarray, class_index: int) -> np.ndarray | None:
    """The bounds of the pixels in a class's color."""
    wanted = np.array(COLORS[class_index])
    away = np.abs(image.astype(int) - wanted).max(axis=2)
    rows, columns = np.nonzero(away < BRIGHT)
    if not len(rows):
        return None
    return np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


def assert_boxes_follow_pixels(sample: Sample, tolerance: float = 1.0) -> None:
    for row in sample.boxes:
        found = find(sample.image, int(row[0]))
        assert found is not None
        np.testing.assert_allclose(row[1:], found, atol=tolerance)


def settings_with(**values: float) -> AugmentationSettings:
    return AugmentationSettings(**values)


def _painted(canvas):
    """The whole canvas as a sample."""
    return Sample(canvas.paint(0, 0, canvas.canvas_hw[1], canvas.canvas_hw[0]), canvas.boxes, canvas.segments)


def test_letterbox_is_the_published_one(golden_dir):
    for case in json.loads((golden_dir / "letterbox.json").read_text()):
        size = (case["new"], case["new"])
        fit = fit_letterbox((case["h"], case["w"]), size, auto=case["auto"], scaleup=case["scaleup"])
        image = letterbox(np.zeros((case["h"], case["w"], 3), np.uint8), fit)
        assert list(image.shape[:2]) == case["out"] == list(fit.canvas_hw)
        assert [fit.ratio] * 2 == pytest.approx(case["ratio"])
        assert list(fit.padding_wh) == case["pad"]
        left, top = fit.left_top
        assert (left, top) == tuple(int(half) for half in case["pad"])
        assert (image[:top] == 114).all()
        assert (image[:, :left] == 114).all()
        assert not image[top, left].any()


def test_mixup_blends_and_keeps_all_objects():
    one, two = sample_of((10, 20, 40, 90), polygons=True), sample_of((60, 20, 90, 90))
    shares = []
    for seed in range(200):
        mixed = mixup(one, two, np.random.default_rng(seed))
        np.testing.assert_array_equal(mixed.boxes, np.concatenate((one.boxes, two.boxes)))
        assert [len(polygon) for polygon in mixed.segments] == [4, 0]
        share = mixed.image[55, 25, 2] / 255
        assert mixed.image[55, 75, 2] / 255 == pytest.approx(1 - share, abs=0.01)
        shares.append(share)
    # Beta(32, 32): mean 1/2, standard deviation 1 / (2 sqrt(65)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.015)
    assert np.std(shares) == pytest.approx(0.062, abs=0.01)


def test_mosaic_places_four_around_a_center():
    # Objects touch the corner that comes to lie at the center.
    sizes = [(60, 80), (80, 50), (80, 80), (30, 80)]
    corners = [(1, 1), (0, 1), (1, 0), (0, 0)]
    samples = []
    for at, ((height, width), (right, bottom)) in enumerate(zip(sizes, corners, strict=True)):
        x, y = (width - 20 if right else 0), (height - 20 if bottom else 0)
        sample = sample_of((x, y, x + 20, y + 20), height=height, width=width)
        sample.boxes[:, 0] = at
        sample.image[sample.image[..., 2] == 255] = COLORS[at]
        samples.append(sample)
    centers = []
    for seed in range(50):
        canvas = mosaic(samples, 80, np.random.default_rng(seed))
        whole = _painted(canvas)
        assert whole.image.shape == (160, 160, 3)
        assert len(whole.boxes) == 4
        assert_boxes_follow_pixels(whole, 0)
        x, y = whole.boxes[0, 3:]
        assert whole.boxes[:, 1:].tolist() == [
            [x - 20, y - 20, x, y],
            [x, y - 20, x + 20, y],
            [x - 20, y, x, y + 20],
            [x, y, x + 20, y + 20],
        ]
        centers.append((x, y))
        gray = np.full((160, 160), True)
        for tile in canvas.tiles:
            height, width = tile.image.shape[:2]
            gray[max(tile.top, 0) : tile.top + height, max(tile.left, 0) : tile.left + width] = False
        assert ((whole.image == 114).all(axis=2) == gray).all()
    assert np.min(centers) >= 40
    assert np.max(centers) < 120
    assert np.ptp(centers) > 60


def test_windows_of_a_scene_are_parts_of_the_whole():
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(0, 256, (70, 80, 3), np.uint8), np.zeros((0, 5), np.float32)) for _ in range(4)]
    canvas = mosaic(samples, 80, rng)
    padded = cv2.copyMakeBorder(_painted(canvas).image, 50, 50, 50, 50, cv2.BORDER_CONSTANT, value=(114,) * 3)
    for _ in range(100):
        (left, right), (top, bottom) = np.sort(rng.integers(-50, 210, (2, 2)), axis=1) + np.array((0, 1))
        window = canvas.paint(left, top, right, bottom)
        np.testing.assert_array_equal(window, padded[top + 50 : bottom + 50, left + 50 : right + 50])
    single = letterboxed(samples[0], (96, 96))
    assert np.shares_memory(single.paint(10, 20, 80, 80), samples[0].image)
    np.testing.assert_array_equal(
        _painted(single).image, letterbox(samples[0].image, fit_letterbox((70, 80), (96, 96), scaleup=False))
    )


def test_what_reaches_beyond_the_canvas_is_cut_with_its_objects():
    sample = sample_of((10, 10, 150, 110), polygons=True)
    canvas = place([sample], [(-60, -40)], (60, 70))
    whole = _painted(canvas)
    found = find(whole.image, 0)
    # The box is cut as a box; the polygon's own bounds are those of what is left of the lozenge.
    np.testing.assert_allclose(bounds_xyxy(canvas.segments[0]), found, atol=1)
    np.testing.assert_array_equal(whole.boxes[0, 1:], [0, 0, 70, 60])


SPACES = {
    "scale and shift": {"scale": 0.5, "translate": 0.1},
    "rotation": {"degrees": 90.0},
    "shear": {"shear": 20.0},
    "perspective": {"perspective": 0.001},
    "all": {"scale": 0.4, "translate": 0.2, "degrees": 45.0, "shear": 10.0, "perspective": 0.0005},
}


@pytest.mark.parametrize("space", SPACES)
def test_warped_polygons_bound_their_pixels(space):
    sample = sample_of((70, 50, 130, 100), (20, 20, 60, 50), polygons=True)
    kept = 0
    for seed in range(60):
        canvas = letterboxed(sample, (160, 160))
        warped = random_warp(canvas, settings_with(**SPACES[space]), np.random.default_rng(seed), (160, 160))
        assert warped.image.shape == (160, 160, 3)
        assert warped.segments == []
        assert_boxes_follow_pixels(warped, 2.5)
        kept += len(warped.boxes)
    assert kept > 60


@pytest.mark.parametrize("space", SPACES)
def test_warped_boxes_bound_their_pixels(space):
    sample = sample_of((70, 50, 130, 100), (20, 20, 60, 50))
    for seed in range(60):
        canvas = letterboxed(sample, (160, 160))
        warped = random_warp(canvas, settings_with(**SPACES[space]), np.random.default_rng(seed), (160, 160))
        if space == "scale and shift":
            assert_boxes_follow_pixels(warped, 1.0)
        for row in warped.boxes:
            # A turned rectangle's corners are cut off by the border before its box is; never the other way round.
            found = find(warped.image, int(row[0]))
            assert (row[1:3] <= found[:2] + 2.5).all()
            assert (row[3:] >= found[2:] - 2.5).all()


def test_upright_and_general_warp_agree():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (320, 320, 3), np.uint8), (0, 0), 4)
    canvas = letterboxed(Sample(image, np.array([[0, 60, 60, 260, 260]], np.float32)), (320, 320))
    for seed in range(20):
        settings = settings_with(scale=0.3, translate=0.1)
        upright = random_warp(canvas, settings, np.random.default_rng(seed), (320, 320))
        # A millionth of a degree takes the other way.
        turned = random_warp(
            canvas, settings_with(scale=0.3, translate=0.1, degrees=1e-6), np.random.default_rng(seed), (320, 320)
        )
        inner = (slice(60, -60), slice(60, -60))
        difference = np.abs(upright.image[inner].astype(int) - turned.image[inner].astype(int))
        assert difference.mean() < 1.0
        np.testing.assert_allclose(upright.boxes, turned.boxes, atol=1.0)


def test_matrix_has_the_range_of_the_settings_and_keeps_the_center():
    settings = settings_with(scale=0.5, degrees=30, translate=0.1)
    scales, turns, shifts = [], [], []
    for seed in range(500):
        matrix, scale = draw_matrix(settings, np.random.default_rng(seed), (1280, 1280), (640, 640))
        np.testing.assert_allclose(np.linalg.det(matrix[:2, :2]), scale**2)
        scales.append(scale)
        turns.append(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])))
        center = matrix @ (640, 640, 1)
        shifts.append(center[:2] / 640 - 0.5)
    for values, limit in ((np.array(scales) - 1, 0.5), (turns, 30), (shifts, 0.1)):
        assert np.abs(values).max() <= limit
        assert np.abs(values).max() > 0.95 * limit
        assert abs(np.mean(values)) < 0.1 * limit
    same, scale = draw_matrix(settings_with(), np.random.default_rng(0), (1280, 1280), (640, 640))
    np.testing.assert_array_equal(same, [[1, 0, -320], [0, 1, -320], [0, 0, 1]])
    assert scale == 1


def test_without_settings_nothing_is_touched():
    sample = sample_of((10, 20, 40, 90))
    warped = random_warp(letterboxed(sample, (120, 160)), settings_with(), np.random.default_rng(0), (120, 160))
    np.testing.assert_array_equal(warped.image, sample.image)
    np.testing.assert_array_equal(warped.boxes, sample.boxes)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((50, 50, 90, 90), True),
        ((50, 50, 52, 90), False),  # two pixels wide
        ((50, 50, 53, 90), True),
        ((-37, 50, 3, 90), False),  # less than a tenth of it is left
        ((-30, 50, 10, 90), True),
        ((0, 50, 120, 52), False),  # two pixels high
        ((0, 50, 120, 53), True),
        ((50, -80, 90, -1), False),
    ],
)
def test_only_objects_that_can_be_seen_are_kept(box, kept):
    tile = Tile(np.zeros((120, 160, 3), np.uint8), 0, 0)
    canvas = Canvas((tile,), (120, 160), np.array([[0, *box]], np.float32), [])
    warped = random_warp(canvas, settings_with(), np.random.default_rng(0), (120, 160))
    assert len(warped.boxes) == kept
    if kept:
        assert (warped.boxes[:, 1:] >= 0).all()


def test_objects_are_measured_against_themselves_at_their_new_size():
    canvas = letterboxed(sample_of((60, 60, 100, 100), height=160), (160, 160))
    for seed in range(50):
        assert len(random_warp(canvas, settings_with(scale=0.9), np.random.default_rng(seed), (160, 160)).boxes) == 1


def test_slivers_are_dropped():
    tile = Tile(np.zeros((500, 500, 3), np.uint8), 0, 0)
    boxes = np.array([[0, 0, 50, 400, 53.9], [1, 0, 50, 290, 53]], np.float32)
    warped = random_warp(Canvas((tile,), (500, 500), boxes, []), settings_with(), np.random.default_rng(0), (500, 500))
    assert warped.boxes[:, 0].tolist() == [1]


def test_copy_paste_pastes_mirrored_objects_where_there_is_room():
    sample = sample_of((10, 20, 50, 80), (20, 85, 60, 115), polygons=True)
    canvas = place([sample], [(0, 0)], sample.shape_hw)
    pasted = _painted(copy_paste(canvas, 1.0, np.random.default_rng(0)))
    assert sorted(pasted.boxes[2:].tolist()) == [[0, 110, 20, 150, 80], [1, 100, 85, 140, 115]]
    mirrored = Sample(pasted.image[:, 80:], pasted.boxes[2:] - np.array((0, 80, 0, 80, 0)))
    assert_boxes_follow_pixels(mirrored, 1.5)
    np.testing.assert_array_equal(pasted.image[:, :80], sample.image[:, :80])
    both = np.abs(pasted.image.astype(int) - pasted.image[:, ::-1].astype(int)).max(axis=2) > 0
    assert both.mean() < 0.02
    for polygon, row in zip(pasted.segments, pasted.boxes, strict=True):
        np.testing.assert_allclose(bounds_xyxy(polygon), row[1:])
    assert len(copy_paste(canvas, 0.5, np.random.default_rng(0)).boxes) == 3


def test_pasted_pixels_are_the_mirror_image():
    sample = sample_of((10, 20, 50, 80))
    sample.segments = [np.array([(10, 20), (50, 20), (10, 80)], np.float32)]
    pasted = _painted(copy_paste(place([sample], [(0, 0)], (120, 160)), 1.0, np.random.default_rng(0)))
    mirrored = pasted.image[20:80, 110:150, 2] == 255
    expected = np.add.outer(np.arange(60) / 60, np.arange(40)[::-1] / 40) < 1
    assert (mirrored != expected).mean() < 0.03


def test_copy_paste_hides_nothing_and_needs_polygons():
    middle = sample_of((60, 20, 100, 80), polygons=True)
    canvas = place([middle], [(0, 0)], middle.shape_hw)
    assert len(copy_paste(canvas, 1.0, np.random.default_rng(0)).boxes) == 1
    plain = place([sample_of((10, 20, 50, 80))], [(0, 0)], (120, 160))
    assert copy_paste(plain, 1.0, np.random.default_rng(0)) is plain


def test_polygons_are_cut_exactly():
    rng = np.random.default_rng(0)
    for _ in range(50):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radii = rng.uniform(5, 60, 12)
        polygon = np.stack((radii * np.cos(angles), radii * np.sin(angles)), 1) + rng.uniform(0, 80, 2)
        mask = np.zeros((400, 400), np.uint8)
        cv2.fillPoly(mask, [np.round((polygon + 100) * 1 - 0.5).astype(np.int32)], 1)
        rows, columns = np.nonzero(mask[100:160, 100:180])
        clipped = clip_polygon(polygon, (60, 80))
        if not len(rows):
            continue
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(bounds_xyxy(clipped), found, atol=2.5)
    assert len(clip_polygon(np.array([(-5.0, -5), (-1, -5), (-1, -1)]), (60, 80))) == 0
    assert bounds_xyxy(np.zeros((0, 2))).tolist() == [0, 0, 0, 0]


def test_inputs_are_never_changed():
    sample = sample_of((10, 20, 50, 80), (20, 85, 60, 115), height=160, polygons=True)
    for array in (sample.image, sample.boxes, *sample.segments):
        array.flags.writeable = False
    generator = np.random.default_rng(0)
    everything = settings_with(**SPACES["all"], hsv_h=0.1, hsv_s=0.5, hsv_v=0.5, flipud=1, fliplr=1)
    canvas = copy_paste(mosaic([sample] * 4, 160, generator), 1.0, generator)
    warped = random_warp(canvas, everything, generator, (160, 160))
    random_warp(letterboxed(sample, (160, 160)), everything, generator, (160, 160))
    mixup(sample, warped, generator)
    finish = draw_finish(everything, generator)
    finish.write(sample.image, np.empty((3, 160, 160), np.uint8))
    finish.boxes(sample.boxes, (160, 160))
