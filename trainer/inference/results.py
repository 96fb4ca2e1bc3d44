"""Keeps what was found: drawn pictures and films, label files, crops, and lines of JSON."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trainer.boxes import cxcywh_from_xyxy_numpy
from trainer.errors import ConfigError
from trainer.evaluation.plot_boxes import class_name, draw_boxes
from trainer.inference.sources import Frame
from trainer.reading.plain_path import is_plain, plain_path

WRITABLE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Wanted:
    """Which results are kept."""

    pictures: bool = True
    labels: bool = False
    confidences: bool = False
    """In the label files, as a sixth column."""
    crops: bool = False


class ResultWriter:
    """Writes below a run directory; frames come in order, from one thread. Raises ConfigError for a full disk."""

    def __init__(self, run_dir: Path, names: tuple[str, ...], wanted: Wanted) -> None:
        self.run_dir = run_dir
        self.names = names
        self.wanted = wanted
        self._stems: dict[Path, str] = {}
        self._taken: set[str] = set()
        self._film: cv2.VideoWriter | None = None
        self._film_path: Path | None = None

    def save(self, frame: Frame, detections: np.ndarray) -> None:
        """Keeps a frame's detections, (n, 6) xyxy in pixels of the file, confidence, class."""
        stem = self._stem(frame.path)
        picture = stem if frame.index is None else f"{stem}_{frame.index + 1}"
        try:
            if self.wanted.labels and len(detections):
                self._save_labels(frame, detections, picture)
            if self.wanted.crops:
                self._save_crops(frame, detections, picture)
            if self.wanted.pictures:
                self._save_picture(frame, draw(frame, detections, self.names), stem)
        except OSError as error:
            raise ConfigError(
                f"results cannot be written to {self.run_dir}",
                seen=str(error),
                expected="a folder with space",
                next_command="--project DIR",
            ) from None

    def close(self) -> None:
        """Finishes the film that is being written."""
        if self._film is not None:
            self._film.release()
        self._film = self._film_path = None

    def _stem(self, path: Path) -> str:
        """Returns the file's name without suffix, or with a number if another file of this run has it."""
        if path not in self._stems:
            stem, number = path.stem, 1
            while stem.lower() in self._taken:
                number += 1
                stem = f"{path.stem}_{number}"
            self._taken.add(stem.lower())
            self._stems[path] = stem
        return self._stems[path]

    def _save_labels(self, frame: Frame, detections: np.ndarray, name: str) -> None:
        """Writes YOLO's format: class, then center and size as parts of the picture."""
        height, width = frame.pixels.shape[:2]
        boxes = cxcywh_from_xyxy_numpy(detections[:, :4].astype(np.float64)) / (width, height, width, height)
        lines = []
        for (confidence, class_index), box in zip(detections[:, 4:6].tolist(), boxes.tolist(), strict=True):
            cells = [str(int(class_index)), *(f"{value:.6f}" for value in box)]
            if self.wanted.confidences:
                cells.append(f"{confidence:.6f}")
            lines.append(" ".join(cells) + "\n")
        folder = self.run_dir / "labels"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text("".join(lines), encoding="ascii")

    def _save_crops(self, frame: Frame, detections: np.ndarray, name: str) -> None:
        for number, row in enumerate(detections, start=1):
            left, top = np.floor(row[:2]).astype(int).tolist()
            right, bottom = np.ceil(row[2:4]).astype(int).tolist()
            crop = frame.pixels[top:bottom, left:right]
            if crop.size == 0:
                continue
            folder = self.run_dir / "crops" / _folder_name(class_name(self.names, int(row[5])))
            folder.mkdir(parents=True, exist_ok=True)
            _write_picture(folder / f"{name}_{number}.jpg", crop)

    def _save_picture(self, frame: Frame, picture: np.ndarray, stem: str) -> None:
        if frame.film is None:
            suffix = frame.path.suffix.lower()
            _write_picture(self.run_dir / (stem + (suffix if suffix in WRITABLE_SUFFIXES else ".jpg")), picture)
            return
        if self._film_path != frame.path:
            self.close()
            name = _UNSAFE.sub("_", stem) if not is_plain(stem) else stem
            path, size = self.run_dir / f"{name}.mp4", (picture.shape[1], picture.shape[0])
            with plain_path(self.run_dir) as folder:
                # Its file stays open: the link to the folder is needed to open it alone.
                target = os.path.join(folder, path.name)
                self._film = cv2.VideoWriter(target, cv2.VideoWriter.fourcc(*"mp4v"), frame.film.fps, size)
            self._film_path = frame.path
            if not self._film.isOpened():
                raise ConfigError(
                    f"{path} cannot be written",
                    seen="OpenCV opens no MPEG-4 writer",
                    expected="an OpenCV with FFmpeg, and space on the disk",
                    next_command="--nosave",
                )
        assert self._film is not None
        self._film.write(picture)


def draw(frame: Frame, detections: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Returns the frame's picture with its detections drawn on it."""
    return draw_boxes(frame.pixels, detections[:, :4], detections[:, 5], names, detections[:, 4])


def as_json(frame: Frame, detections: np.ndarray, names: tuple[str, ...]) -> str:
    """Returns one line: the file, the frame of a film, the picture's size, and the boxes in their order."""
    height, width = frame.pixels.shape[:2]
    row: dict[str, Any] = {"file": str(frame.path)}
    if frame.index is not None:
        row["frame"] = frame.index + 1
    row |= {"width": width, "height": height}
    row["boxes"] = [
        {
            "class": int(class_index),
            "name": class_name(names, int(class_index)),
            "confidence": round(confidence, 5),
            "xyxy": [round(value, 2) for value in box],
        }
        for *box, confidence, class_index in detections.astype(np.float64).tolist()
    ]
    return json.dumps(row)


def describe(detections: np.ndarray, names: tuple[str, ...]) -> str:
    """Returns '2 person, 1 bus', the classes in their order, or 'nothing' if there are no detections."""
    counts = np.bincount(detections[:, 5].astype(int), minlength=1) if len(detections) else np.zeros(0, int)
    found = [f"{count} {class_name(names, index)}" for index, count in enumerate(counts.tolist()) if count]
    return ", ".join(found) or "nothing"


def _folder_name(name: str) -> str:
    """Returns a class name as the name of a folder: no separators, never a step upwards."""
    return _UNSAFE.sub("_", name).strip(".") or "class"


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    """Encodes and writes a picture; as PNG if it is too large for the format that its name asks for."""
    # OpenCV's own writer returns False if a write fails; Python's raises with the reason.
    encoded = _encoded(path.suffix, pixels)
    if encoded is None:
        path = path.with_name(path.name + ".png")
        encoded = _encoded(".png", pixels)
    if encoded is None:
        raise OSError(f"a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels fits no format")
    path.write_bytes(encoded)


def _encoded(suffix: str, pixels: np.ndarray) -> bytes | None:
    """Returns the bytes of a picture in a format; None if the picture has more pixels than the format takes."""
    try:
        is_encoded, encoded = cv2.imencode(suffix, pixels)
    except cv2.error:
        return None
    return encoded.tobytes() if is_encoded else None
