"""Images that look the same: real pictures changed in the ways that copies are, and what must not be taken for one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from trainer.data.curation import near_repeats
from trainer.data.curation.near_repeats import HASHES, hash_images, hashes_of, near_groups, near_pairs


def pictures(folder):
    return [path for path in sorted(folder.rglob("*.jpg")) if cv2.imread(str(path)) is not None]


@pytest.fixture(scope="module")
def originals(shared_dir):
    paths = pictures(shared_dir / "data" / "bccd") + pictures(shared_dir / "data" / "coco_permissive")
    assert len(paths) > 400
    return paths


def shapes_of(paths):
    return np.array([cv2.imread(str(path)).shape[:2] for path in paths])


@pytest.fixture(scope="module")
def hashes(originals):
    return hash_images(originals, shapes_of(originals), 2)


def cropped(image, top, left):
    height, width = image.shape[:2]
    kept_h, kept_w = round(0.95 * height), round(0.95 * width)
    y, x = round((height - kept_h) * top), round((width - kept_w) * left)
    return image[y : y + kept_h, x : x + kept_w]


def brighter(image):
    return np.clip(image * 1.2, 0, 255).astype(np.uint8)


def halved(image):
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


CHANGES = {
    "quality": lambda image: image,
    "half": halved,
    "brighter": brighter,
    "middle": lambda image: cropped(image, 0.5, 0.5),
    "corner": lambda image: cropped(image, 0.0, 1.0),
    "off the middle": lambda image: cropped(image, 0.3, 0.7),
    "all": lambda image: halved(brighter(cropped(image, 0.5, 0.5))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found(originals, hashes, tmp_path, change):
    """At least 95 in 100 of one in four real pictures, saved at JPEG quality 40."""
    chosen = range(0, len(originals), 4)
    copies = []
    for index in chosen:
        copies.append(tmp_path / f"{index}.jpg")
        image = CHANGES[change](cv2.imread(str(originals[index])))
        cv2.imwrite(str(copies[-1]), image, [cv2.IMWRITE_JPEG_QUALITY, 40])
    pairs = near_pairs(np.concatenate([hashes, hash_images(copies, shapes_of(copies), 2)]))
    found = {tuple(pair) for pair in pairs.tolist()}
    hits = sum((index, len(originals) + number) in found for number, index in enumerate(chosen))
    assert hits >= 0.95 * len(chosen)


def test_of_real_pictures_only_those_of_the_same_place_are_near(originals, hashes):
    """Three pairs of fields of view that overlap, seen by eye; no other pair of 400 pictures."""
    names = {tuple(sorted(originals[at].stem[-3:] for at in pair)) for pair in near_pairs(hashes)}
    assert names == {("229", "258"), ("386", "391"), ("037", "038")}


def test_pairs_are_those_that_all_comparisons_find():
    generator = np.random.default_rng(3)
    hashes = generator.integers(1, 2**63, (400, HASHES), dtype=np.uint64)
    for index in range(200):  # each near to another, in any of its hashes, by up to 10 bits
        flips = generator.choice(64, generator.integers(0, 11), replace=False)
        mask = np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64)) if len(flips) else np.uint64(0)
        hashes[200 + index, 0] = hashes[index, generator.integers(HASHES)] ^ mask
    every, most = hashes.tolist(), near_repeats.MAX_BITS
    near = np.array([[any((own[0] ^ each).bit_count() <= most for each in other) for other in every] for own in every])
    np.fill_diagonal(near, False)
    expected = sorted({tuple(sorted(pair)) for pair in zip(*np.nonzero(near), strict=True)})
    assert len(expected) > 100
    assert [tuple(pair) for pair in near_pairs(hashes).tolist()] == expected


def test_groups_go_through_others_and_blank_images_have_none():
    base = 0x0123456789ABCDEF
    chain = [base, base ^ 0x3F, base ^ 0x3F ^ (0x3F << 20), 0, 0, ~base & (2**64 - 1)]
    groups = near_groups(np.array([[value] * HASHES for value in chain], np.uint64))
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups.tolist())) == 4


def test_a_blank_image_shows_nothing():
    assert hashes_of(np.full((64, 64), 200, np.uint8)) == [0] * HASHES


def test_what_cannot_be_read_is_like_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    paths = [tmp_path / "a.jpg", tmp_path / "absent.jpg"]
    assert not hash_images(paths, np.array([[9, 9], [9, 9]]), 1).any()
