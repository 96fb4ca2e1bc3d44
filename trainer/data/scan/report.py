"""What a scan of a split found, in counts and examples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Tally:
    """How often something was met, and the first few places."""

    count: int = 0
    examples: tuple[str, ...] = ()
    """At most 5, each ``file:line: why`` or ``file: why``."""


@dataclass(frozen=True)
class ScanReport:
    """What a scan of a split found."""

    images: int
    """Files found, the skipped ones included."""
    backgrounds: int
    """Images without a label file, or with an empty one; they are trained on."""
    boxes: int
    corrupt: Tally
    """Image files that are missing, truncated or no images; skipped."""
    malformed: Tally
    """Images skipped for a label file with letters, NaN or a wrong number of columns."""
    out_of_range: Tally
    """Images skipped for a label outside 0..1."""
    empty_boxes: Tally
    """Rows without width or height; the rows are left out."""
    duplicate_rows: Tally
    """Rows that repeat another of the same file; the repeats are left out."""
    duplicate_images: Tally
    """Images with the same content as another; kept."""

    @property
    def skipped(self) -> int:
        """Images that are left out."""
        return self.corrupt.count + self.malformed.count + self.out_of_range.count

    def problems(self) -> list[tuple[str, Tally]]:
        """(what is wrong, tally) for each kind of problem that was met."""
        kinds = (
            ("unreadable images, skipped", self.corrupt),
            ("images with malformed labels, skipped", self.malformed),
            ("images with labels out of range, skipped", self.out_of_range),
            ("boxes without width or height, left out", self.empty_boxes),
            ("repeated label rows, left out", self.duplicate_rows),
            ("images that repeat another, kept", self.duplicate_images),
        )
        return [(what, tally) for what, tally in kinds if tally.count]

    def lines(self, *, with_examples: bool = False) -> list[str]:
        """The report as text: one line of counts, then one a problem, then its examples if wanted."""
        text = [f"{self.images} images, {self.boxes} boxes, {self.backgrounds} backgrounds"]
        for what, tally in self.problems():
            text.append(f"{tally.count} {what}" + ("" if with_examples else f", such as {tally.examples[0]}"))
            text += [f"  {example}" for example in tally.examples if with_examples]
        return text

    def to_json(self) -> str:
        """The report as JSON; ``from_json`` reads it back."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ScanReport:
        """The report that ``to_json`` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        values: dict[str, Any] = {
            name: Tally(value["count"], tuple(value["examples"])) if isinstance(value, dict) else value
            for name, value in json.loads(text).items()
        }
        return ScanReport(**values)


def tally(examples: Iterable[str]) -> Tally:
    """The count of some examples, and the first few."""
    listed = list(examples)
    return Tally(len(listed), tuple(listed[:MAX_EXAMPLES]))
