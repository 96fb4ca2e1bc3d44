"""Draws the embedded data set, which a small detector learns in minutes, so that `train` works without other data.

The set depends on its version alone. It is written once into a cache folder, in one step, and read from there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from trainer.data.demo.shapes import CANVAS_SIZE, SHAPES, Pen, draw_clutter, draw_surface
from trainer.data.demo.spare import spare_root
from trainer.errors import DataError

VERSION = 1
"""Increased when the pictures change, so that an older cached set stays as it is and a new set is drawn."""
IMAGE_SIZE = 192
SPLIT_COUNTS = {"train": 320, "val": 80}
CLASS_NAMES = tuple(SHAPES)

_SEED = 20_240_501
_MIN_VISIBLE_SHARE = 0.5
_MIN_SIDE_PX = 6
_STALE_AFTER_S = 3600.0  # a writer takes seconds, so a folder that is an hour old belongs to a killed writer
_MANIFEST_NAME = "manifest.txt"
_YAML_NAME = "demo.yaml"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """One drawn picture and its objects.

    ``image`` is uint8 BGR (size, size, 3). ``boxes`` is int64 (n, 5): class and xyxy pixels, the extent of each
    object's visible pixels, right and bottom edges exclusive. ``owner`` is int16 (size, size): the row in ``boxes``
    of the object visible at a pixel, -1 for background.
    """

    image: np.ndarray
    boxes: np.ndarray
    owner: np.ndarray


def default_cache_dir() -> Path:
    """Returns the user's cache folder for this program: $XDG_CACHE_HOME or ~/.cache, then "yolo-launch".

    A user without a home, as a container's that no passwd entry knows, has a folder in the system's temporary folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG base directory specification says that relative values are ignored
        return Path(base) / "yolo-launch"
    if os.path.isabs(home := os.path.expanduser("~")):
        return Path(home) / ".cache" / "yolo-launch"
    # Without HOME and without an entry, "~" stays "~": a folder of that name would lie where the user happens to be.
    try:
        return spare_root()
    except OSError:
        return Path("/nonexistent/.cache/yolo-launch")  # a home that Debian's passwd has for such users: not written


def ensure_demo_dataset(cache_dir: Path) -> Path:
    """Returns the path of the embedded set's YAML file, below ``cache_dir``; draws an absent or incomplete set.

    Several processes may call this function at once. If ``cache_dir`` cannot be written, the set goes to a folder of
    this user in the system's temporary folder. Raises DataError if that folder cannot be written either.
    """
    target = Path(cache_dir) / f"demo-v{VERSION}"
    try:
        return _ensure_at(target)
    except OSError as error:
        first = error
    try:
        yaml_path = _ensure_at(spare_root() / target.name)
    except OSError as second:
        raise DataError(
            "The embedded data set could not be written.",
            seen=f"{first}; then {second}",
            expected="a folder that can be written, with 10 MB free",
            next_command="XDG_CACHE_HOME=/a/folder/with/space yolo-launch train",
        ) from second
    logger.warning("%s cannot be written (%s); the embedded data set is in %s", cache_dir, first, yaml_path.parent)
    return yaml_path


def draw_picture(generator: np.random.Generator, size: int = IMAGE_SIZE) -> Picture:
    """Draws one picture: a textured surface with clutter and up to seven objects, some overlapping or at the border."""
    surface = draw_surface(generator, size)
    draw_clutter(generator, surface)
    pixels = surface.astype(np.float32)
    owner = np.full((size, size), -1, np.int16)
    classes: list[int] = []
    areas: list[int] = []
    # One picture in 25 is background only, which teaches the detector to detect nothing there.
    wanted = 0 if generator.random() < 0.04 else int(generator.integers(2, 8))
    for _ in range(wanted * 3):
        if len(classes) == wanted:
            break
        class_index = int(generator.integers(len(CLASS_NAMES)))
        side = int(size * np.exp(generator.uniform(np.log(0.22), np.log(0.6))))
        sprite = _draw_sprite(class_index, side, generator)
        left, top = generator.uniform(-0.35 * side, size - 0.65 * side, 2).round().astype(int).tolist()
        covered = _on_picture(sprite[..., 3], left, top, size) > 0.5
        area = int((sprite[..., 3] > 0.5).sum())
        if not _fits(covered, area, owner, areas):
            continue
        _composite(pixels, sprite, left, top, generator)
        owner[covered] = len(classes)
        classes.append(class_index)
        areas.append(area)
    boxes = np.array([[c, *_extent(owner == row)] for row, c in enumerate(classes)], np.int64).reshape(-1, 5)
    return Picture(_add_camera_effects(pixels, generator), boxes, owner)


def _draw_sprite(class_index: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """Draws one object, rotated, tilted and shaded: float32 (side, side, 4), BGR times alpha, then alpha in 0..1."""
    name = CLASS_NAMES[class_index]
    pen = Pen()
    SHAPES[name](pen, generator)
    # Stars are rotated by any angle; the other shapes stay nearly upright.
    limit = np.pi if name == "star" else 0.45
    turn = generator.uniform(-limit, limit)
    flip = -1.0 if name != "sign" and generator.random() < 0.5 else 1.0
    stretch = np.diag([flip, generator.uniform(0.75, 1.0)])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = np.eye(3)
    matrix[:2, :2] = rotation @ stretch * 0.97
    matrix[2, :2] = generator.uniform(-0.12, 0.12, 2)
    to_pixels = np.array([[CANVAS_SIZE / 2, 0, CANVAS_SIZE / 2], [0, CANVAS_SIZE / 2, CANVAS_SIZE / 2], [0, 0, 1]])
    matrix = to_pixels @ matrix @ np.linalg.inv(to_pixels)
    turned = cv2.warpPerspective(pen.pixels, matrix, (CANVAS_SIZE, CANVAS_SIZE), flags=cv2.INTER_LINEAR)
    sprite = cv2.resize(turned, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    sprite[..., :3] *= _light(side, generator, (0.8, 1.1))
    sprite[..., 3] /= 255
    return sprite


def _light(size: int, generator: np.random.Generator, level: tuple[float, float]) -> np.ndarray:
    """Draws brightness that changes linearly across a square in a random direction, float32 (size, size, 1)."""
    direction = generator.uniform(-math.pi, math.pi)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope = axis[None, :] * math.cos(direction) + axis[:, None] * math.sin(direction)
    return (generator.uniform(*level) + generator.uniform(0, 0.3) * slope)[..., None]


def _on_picture(patch: np.ndarray, left: int, top: int, size: int) -> np.ndarray:
    """Puts a square ``patch`` on an empty picture (size, size), its corner at left, top, cut at the borders."""
    picture = np.zeros((size, size), patch.dtype)
    seen, part = _windows(patch.shape[0], left, top, size)
    picture[seen] = patch[part]
    return picture


def _windows(side: int, left: int, top: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns the slices of the picture that a patch with its corner at left, top covers, and those of the patch."""
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def _fits(covered: np.ndarray, area: int, owner: np.ndarray, areas: list[int]) -> bool:
    """Returns True if enough of a new object, and of every earlier object below it, is visible."""
    if covered.sum() < _MIN_VISIBLE_SHARE * area:
        return False
    left, top, right, bottom = _extent(covered)
    if min(right - left, bottom - top) < _MIN_SIDE_PX:
        return False
    return all(((owner == row) & ~covered).sum() >= _MIN_VISIBLE_SHARE * earlier for row, earlier in enumerate(areas))


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a mask's true pixels, the last two exclusive; zeros if there are none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _composite(pixels: np.ndarray, sprite: np.ndarray, left: int, top: int, generator: np.random.Generator) -> None:
    """Draws ``sprite`` and its soft shadow over ``pixels`` in place."""
    margin = 12
    layer = cv2.copyMakeBorder(sprite, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    side = layer.shape[0]
    move = np.array([[1, 0, generator.uniform(-4, 4)], [0, 1, generator.uniform(-4, 4)]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(layer[..., 3], move, (side, side)), (0, 0), 2.5)
    keep = (1 - generator.uniform(0.15, 0.5) * shadow) * (1 - layer[..., 3])
    seen, part = _windows(side, left - margin, top - margin, pixels.shape[0])
    pixels[seen] = pixels[seen] * keep[part][..., None] + layer[part][..., :3]


def _add_camera_effects(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Adds the effects of a camera to a picture: uneven light, a little blur, noise. Returns uint8."""
    lit = pixels * _light(pixels.shape[0], generator, (0.7, 1.15))
    noise = generator.standard_normal(pixels.shape, np.float32) * generator.uniform(1, 7)
    pixels = cv2.GaussianBlur(lit, (0, 0), generator.uniform(0.3, 1.0)) + noise
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _ensure_at(target: Path) -> Path:
    yaml_path = target / _YAML_NAME
    if _is_complete(target):
        return yaml_path
    target.parent.mkdir(parents=True, exist_ok=True)
    with _staging_folder(target) as staging:
        _write_dataset(staging)
        _publish(staging, target)
    return yaml_path


@contextlib.contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """Makes a new folder beside ``target`` and removes it at the end if it still exists; removes stale ones first."""
    for stale in target.parent.glob(f".{target.name}-*"):
        with contextlib.suppress(FileNotFoundError):  # another writer ended, or removed the folder first
            if time.time() - stale.stat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        staging.chmod(0o755)  # with mkdtemp's 0700 other users of a shared cache could not read the set
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_dataset(folder: Path) -> None:
    """Writes pictures, labels, the manifest of file sizes and the YAML file into ``folder``."""
    names: list[str] = []
    for split_index, (split, count) in enumerate(SPLIT_COUNTS.items()):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for index in range(count):
            generator = np.random.Generator(np.random.Philox(key=[_SEED + VERSION, (split_index << 32) | index]))
            picture = draw_picture(generator)
            _, encoded = cv2.imencode(".jpg", picture.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            for name, content in (
                (f"images/{split}/{index:04d}.jpg", encoded.tobytes()),
                (f"labels/{split}/{index:04d}.txt", _label_rows(picture).encode()),
            ):
                (folder / name).write_bytes(content)
                names.append(name)
    class_lines = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASS_NAMES))
    (folder / _YAML_NAME).write_text(
        f"# Embedded data set, version {VERSION}, drawn by yolo-launch\n"
        f"path: .  # relative to this file\ntrain: images/train\nval: images/val\nnames:\n{class_lines}"
    )
    names.append(_YAML_NAME)
    sizes = "".join(f"{(folder / name).stat().st_size} {name}\n" for name in names)
    (folder / _MANIFEST_NAME).write_text(sizes)


def _label_rows(picture: Picture) -> str:
    """Returns YOLO label rows: class, center x, center y, width, height as shares of the picture."""
    size = picture.image.shape[0]
    rows = []
    for class_index, left, top, right, bottom in picture.boxes.tolist():
        values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        rows.append(f"{class_index} " + " ".join(f"{value / size:.6f}" for value in values) + "\n")
    return "".join(rows)


def _is_complete(folder: Path) -> bool:
    """Returns True if every file of the manifest has its size, which is not so after a crash or with a full disk."""
    try:
        lines = (folder / _MANIFEST_NAME).read_text().splitlines()
        if len(lines) != 2 * sum(SPLIT_COUNTS.values()) + 1:
            return False
        return all((folder / name).stat().st_size == int(size) for size, name in (line.split() for line in lines))
    except (OSError, ValueError):
        return False


def _publish(staging: Path, target: Path) -> None:
    """Moves the finished set to ``target`` in one step; repairs an incomplete set that is already there.

    Raises OSError.
    """
    try:
        staging.rename(target)
        return
    except OSError:
        if not target.is_dir():
            raise
    if _is_complete(target):
        return
    # Each file is replaced in one step and the manifest comes last, so a reader finds an old or a new file, never none.
    for source in sorted(staging.rglob("*"), key=lambda path: path.name == _MANIFEST_NAME):
        if source.is_file():
            destination = target / source.relative_to(staging)
            destination.parent.mkdir(parents=True, exist_ok=True)
            source.replace(destination)
