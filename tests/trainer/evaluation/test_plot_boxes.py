"""Boxes on pictures: drawn where they are, readable, and harmless with odd names, no boxes or many."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from trainer.evaluation.plot_boxes import (
    class_color,
    draw_boxes,
    save_image_mosaic,
    save_labels_and_predictions,
)

COCO_SIZED = [f"class name {index}" for index in range(80)]


def gray_batch(count, height=96, width=128, level=114):
    return np.full((count, 3, height, width), level, np.uint8)


def near(image, color, tolerance=60):
    return np.abs(image.astype(int) - np.array(color)).max(axis=2) <= tolerance


def bccd_batch(folder, count, size=160):
    images, boxes, captions = [], [], []
    for path in sorted((folder / "images" / "val").iterdir())[:count]:
        image = cv2.resize(cv2.imread(str(path)), (size, size))
        images.append(image[:, :, ::-1].transpose(2, 0, 1))
        rows = np.loadtxt(folder / "labels" / "val" / f"{path.stem}.txt", ndmin=2)
        corners = np.hstack([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2]) * size
        boxes.append(np.hstack([rows[:, :1], corners]))
        captions.append(path.name)
    return np.stack(images), boxes, captions


def test_box_lines_lie_on_the_box_in_the_class_color():
    image = np.full((200, 300, 3), 200, np.uint8)
    drawn = draw_boxes(image, np.array([[60, 50, 180, 150]]), np.array([2]), ["a", "b", "c"])
    assert (image == 200).all()  # the caller's picture stays
    for y, x in ((50, 120), (149, 120), (100, 60), (100, 179)):
        assert near(drawn[y : y + 1, x : x + 1], class_color(2), 5).all(), (y, x)
    assert (drawn[60:140, 70:170] == 200).all()
    assert (drawn[160:, :] == 200).all()
    assert (drawn[:, 190:] == 200).all()


def test_name_stands_on_a_bar_inside_the_picture():
    for box in ([0, 0, 40, 40], [280, 190, 300, 200], [250, 0, 300, 200], [-50, -50, 20, 20]):
        image = np.zeros((200, 300, 3), np.uint8)
        plain = draw_boxes(image, np.array([box]), np.array([1]), ["a", "mug"], show_names=False)
        named = draw_boxes(image, np.array([box]), np.array([1]), ["a", "mug"])
        bar = near(named, class_color(1), 5) & ~near(plain, class_color(1), 5)
        assert bar.sum() > 100, box
        assert (near(named, (255, 255, 255)) | near(named, (40, 40, 40), 10)).sum() > 20, box


def test_names_of_boxes_at_one_place_do_not_cover_each_other():
    image = np.zeros((300, 300, 3), np.uint8)
    boxes = np.array([[100, 100, 200, 200], [102, 102, 202, 202]])
    names = ["first", "second", "third", "fourth"]
    both = draw_boxes(image, boxes, np.array([0, 3]), names, np.array([0.9, 0.5]))
    for row, class_id in enumerate((0, 3)):
        alone = draw_boxes(image, boxes[row : row + 1], np.array([class_id]), names, np.array([0.9]))
        visible, whole = near(both, class_color(class_id), 5).sum(), near(alone, class_color(class_id), 5).sum()
        assert visible > 0.7 * whole, class_id


def test_more_confident_box_lies_on_top():
    image = np.zeros((300, 300, 3), np.uint8)
    boxes = np.array([[100, 100, 200, 200], [100, 100, 200, 200]])
    for confidences, on_top in (([0.9, 0.5], 0), ([0.5, 0.9], 1)):
        drawn = draw_boxes(image, boxes, np.array([0, 1]), ["a", "b"], np.array(confidences), show_names=False)
        assert tuple(drawn[150, 100].tolist()) == class_color(on_top)


def test_lines_and_text_grow_with_the_picture():
    bars = []
    for size in (200, 1600):
        image = np.zeros((size, size, 3), np.uint8)
        drawn = draw_boxes(image, np.array([[0.4, 0.4, 0.8, 0.8]]) * size, np.array([0]), ["mug"])
        bars.append(near(drawn, class_color(0), 5).sum())
    assert bars[1] > 20 * bars[0]


def test_odd_boxes_and_names_are_harmless():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[np.nan, 0, 5, 5], [-1e12, -1e12, 1e12, 1e12], [50, 50, 50, 50], [90, 90, 10, 10]])
    drawn = draw_boxes(image, boxes, np.array([0, 1, 2, 99]), ["\u732b", "\u00c4pfel $x^2$", ""], np.full(4, np.nan))
    assert drawn.shape == image.shape
    assert (draw_boxes(image, np.zeros((0, 4)), np.zeros(0), []) == 0).all()


def test_neighboring_classes_have_different_colors():
    colors = [class_color(index) for index in range(30)]
    assert len(set(colors)) == 30
    assert class_color(79) == class_color(19)


def test_mosaic_holds_every_image_and_its_boxes(tmp_path):
    images = gray_batch(5)
    images[:, 0] = np.arange(5)[:, None, None] * 40  # red tells the tiles apart
    boxes = [np.array([[index % 3, 32, 24, 96, 72]]) for index in range(5)]
    path = tmp_path / "mosaic.png"
    save_image_mosaic(path, images, boxes, ["a", "b", "c"], [f"{i}.jpg" for i in range(5)], title="A title")
    picture = cv2.imread(str(path))
    tile_width, tile_height = 480, 360 + 22
    assert picture.shape == (40 + 2 * tile_height, 3 * tile_width, 3)
    for index in range(5):
        y, x = 40 + index // 3 * tile_height, index % 3 * tile_width
        tile = picture[y : y + 360, x : x + tile_width]
        assert tile[180, 240].tolist() == [114, 114, index * 40]
        scale = 480 / 128
        for row, column in ((48, 32), (48, 95.5), (71.5, 64)):
            patch = tile[int(row * scale) - 3 : int(row * scale) + 4, int(column * scale) - 3 : int(column * scale) + 4]
            assert near(patch, class_color(index % 3), 5).any()
    assert (picture[40 + tile_height :, 2 * tile_width :] == 255).all()


def test_mosaic_takes_at_most_so_many_images(tmp_path):
    path = tmp_path / "mosaic.jpg"
    save_image_mosaic(path, gray_batch(9), [np.zeros((0, 5))] * 9, ["a"], [""] * 9, max_images=4)
    assert cv2.imread(str(path)).shape == (40 + 2 * 382, 960, 3)


@pytest.mark.parametrize(("count", "names"), [(0, []), (1, ["\u732b"]), (3, []), (3, COCO_SIZED)])
def test_mosaics_without_boxes_and_with_unknown_classes(tmp_path, count, names):
    boxes = [np.zeros(0), np.zeros((0, 6)), np.array([[79, 1, 2, 30, 40, 0.5]])][:count]
    path = tmp_path / "mosaic.jpg"
    save_image_mosaic(path, gray_batch(count), boxes, names, [])
    assert cv2.imread(str(path)) is not None
    save_labels_and_predictions(path, gray_batch(count), boxes, boxes, names, ["x" * 500] * count)
    assert cv2.imread(str(path)) is not None


def test_labels_stand_left_of_predictions_and_doubtful_ones_are_left_out(tmp_path):
    path = tmp_path / "pair.png"
    labels = [np.array([[0, 10, 10, 60, 60]])]
    predictions = [np.array([[1, 20, 20, 70, 70, 0.9], [2, 30, 30, 80, 80, 0.1]])]
    save_labels_and_predictions(path, gray_batch(1), labels, predictions, ["a", "b", "c"], ["name.jpg"])
    picture = cv2.imread(str(path))
    left, right = picture[40:, :480], picture[40:, 480 + 16 :]
    assert left.shape == right.shape
    for half, present in ((left, 0), (right, 1)):
        for class_id in range(3):
            assert near(half, class_color(class_id), 5).any() == (class_id == present)


def test_real_batch(tmp_path, bccd_yaml):
    images, boxes, captions = bccd_batch(bccd_yaml.parent, 16)
    path = tmp_path / "train.jpg"
    save_image_mosaic(path, images, boxes, ["RBC", "WBC", "Platelets"], captions)
    picture = cv2.imread(str(path))
    assert picture.shape == (40 + 4 * (400 + 22), 1600, 3)
    tile = cv2.resize(picture[40:440, :400], (160, 160), interpolation=cv2.INTER_AREA)
    background = np.ones((160, 160), bool)
    for x1, y1, x2, y2 in boxes[0][:, 1:].round().astype(int).clip(0):
        background[max(0, y1 - 12) : y2 + 3, max(0, x1 - 3) : x2 + 3] = False
    difference = np.abs(tile.astype(int) - images[0].transpose(1, 2, 0)[:, :, ::-1]).max(axis=2)
    assert np.median(difference[background]) < 12  # colors are the right way round


def test_unwritable_path_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="absent"):
        save_image_mosaic(tmp_path / "absent" / "a.jpg", gray_batch(1), [np.zeros((0, 5))], ["a"], [""])
