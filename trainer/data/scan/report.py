"""Reports what a scan of a split found: each reason why a file was not used as it is, in counts and examples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

MAX_EXAMPLES = 5

Level = Literal["skipped", "warning", "note"]
"""skipped: images that are not trained on; warning: something left out or changed; note: as it may well be meant."""


@dataclass(frozen=True)
class Tally:
    """How often something was met, and the first few places."""

    count: int = 0
    examples: tuple[str, ...] = ()
    """At most 5, each ``file:line: why`` or ``file: why``."""


REASONS: dict[str, tuple[Level, str]] = {
    "unreadable": ("skipped", "images or labels that cannot be read, skipped"),
    "undecodable": ("skipped", "images that cannot be decoded, skipped"),
    "saturated": ("skipped", "images that decode to one value or beyond their range, skipped"),
    "malformed": ("skipped", "images with malformed labels, skipped"),
    "out_of_range": ("skipped", "images with labels out of range, skipped"),
    "clipped": ("warning", "boxes a little out of range, cut at the border"),
    "empty_boxes": ("warning", "boxes without width or height, left out"),
    "duplicate_rows": ("warning", "repeated label rows, left out"),
    "keypoint_rows": ("warning", "rows read as polygons that look like keypoints (kpt_shape is not given)"),
    "duplicate_images": ("warning", "images that repeat another, kept"),
    "incomplete": ("warning", "images that lack their end and no pixel, used"),
    "further_frames": ("warning", "files of several frames or pages, of which the first is used"),
    "unreadable_folders": ("warning", "folders that cannot be read, skipped"),
    "unknown_suffix": ("warning", "files whose suffix is not an image's, left out"),
    "unused_labels": ("warning", "label files that belong to no image, left out"),
    "backslashes": ("warning", "lines of image lists with backslashes, read as slashes"),
    "too_small": ("warning", "boxes too small to learn at this size"),
    "missing_labels": ("note", "images without a label file, used as backgrounds"),
    "empty_labels": ("note", "images with an empty label file, used as backgrounds"),
    "hidden": ("note", "hidden images and folders, left out"),
}
"""By its name, the level of each reason and its text; docs/data.md explains each."""

_NONE = Tally()


@dataclass(frozen=True)
class ScanReport:
    """What a scan of a split found: three counts, and a field for each of REASONS."""

    images: int
    """Files found, the skipped ones included."""
    backgrounds: int
    """Images without boxes; they are trained on."""
    boxes: int
    unreadable: Tally = _NONE
    undecodable: Tally = _NONE
    saturated: Tally = _NONE
    malformed: Tally = _NONE
    out_of_range: Tally = _NONE
    clipped: Tally = _NONE
    empty_boxes: Tally = _NONE
    duplicate_rows: Tally = _NONE
    keypoint_rows: Tally = _NONE
    duplicate_images: Tally = _NONE
    incomplete: Tally = _NONE
    further_frames: Tally = _NONE
    unreadable_folders: Tally = _NONE
    unknown_suffix: Tally = _NONE
    unused_labels: Tally = _NONE
    backslashes: Tally = _NONE
    too_small: Tally = _NONE
    missing_labels: Tally = _NONE
    empty_labels: Tally = _NONE
    hidden: Tally = _NONE

    @property
    def skipped(self) -> int:
        """Returns the number of images that are left out."""
        return sum(tally.count for _, level, tally in self._reasons() if level == "skipped")

    def _reasons(self) -> list[tuple[str, Level, Tally]]:
        """Returns (text, level, tally) of every reason that was met."""
        met: list[tuple[str, Level, Tally]] = []
        for name, (level, text) in REASONS.items():
            is_suspicious = name == "missing_labels" and self._is_missing_too_much()
            if getattr(self, name).count:
                met.append((text, "warning" if is_suspicious else level, getattr(self, name)))
        return met

    def _is_missing_too_much(self) -> bool:
        """Returns whether labels seem to lie elsewhere: some belong to no image, or most images have none."""
        return self.unused_labels.count > 0 or 2 * self.missing_labels.count > self.images

    def problems(self) -> list[tuple[str, Tally]]:
        """Returns (what is wrong, tally) for each kind of problem that was met; notes are no problems."""
        return [(text, tally) for text, level, tally in self._reasons() if level != "note"]

    def notes(self) -> list[tuple[str, Tally]]:
        """Returns (what there is, tally) for what may well be meant."""
        return [(text, tally) for text, level, tally in self._reasons() if level == "note"]

    def lines(self, *, with_examples: bool = False) -> list[str]:
        """Returns the report as text: one line of counts, then one a problem, then its examples if wanted."""
        text = [self.headline()]
        for what, tally in self.problems():
            text.append(f"{tally.count} {what}" + ("" if with_examples else f", such as {tally.examples[0]}"))
            text += [f"  {example}" for example in tally.examples if with_examples]
        return text

    def headline(self) -> str:
        """Returns one line of counts."""
        notes = [f"{tally.count} {what}" for what, tally in self.notes()]
        counts = f"{self.images} images, {self.boxes} boxes, {self.backgrounds} backgrounds"
        return counts + (f" ({'; '.join(notes)})" if notes else "")

    def to_json(self) -> str:
        """Returns the report as JSON; ``from_json`` reads it back."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values: three counts, and each reason with its count and examples."""
        return asdict(self)

    @staticmethod
    def from_json(text: str) -> ScanReport:
        """Returns the report that ``to_json`` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        values: dict[str, Any] = {
            name: Tally(value["count"], tuple(value["examples"])) if isinstance(value, dict) else value
            for name, value in json.loads(text).items()
        }
        return ScanReport(**values)


def tally(examples: Iterable[str]) -> Tally:
    """Returns the count of some examples, and the first few."""
    listed = list(examples)
    return Tally(len(listed), tuple(listed[:MAX_EXAMPLES]))
