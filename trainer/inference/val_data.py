"""Reads the data that a trained detector is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.dataset import DatasetFile
from trainer.data.formats.load import load_dataset
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.report import ScanReport
from trainer.data.shared_scan import scan_together
from trainer.errors import DataError
from trainer.inference.detector import Detector
from trainer.protocol import MAX_BAD_SHARE
from trainer.runtime.session import Session

ONE_CLASS = ("item",)
"""The names of a model that was trained with --single-cls on several classes."""


@dataclass(frozen=True)
class SplitToMeasure:
    """One split as a detector is measured on it."""

    images: LabeledImages
    names: tuple[str, ...]
    """The detector's, which are those of the data set in its order."""
    report: ScanReport


def load_split(
    session: Session,
    data: str,
    split: str,
    detector: Detector,
    *,
    leave_out: Sequence[str] = (),
    max_bad_share: float = MAX_BAD_SHARE,
) -> SplitToMeasure:
    """Returns one split of a data set, scanned once per machine.

    A model of --single-cls is measured on any data set, all of whose classes count as its one; classes in another
    order are matched by name. Raises DataError, also if the data set has another number of classes than the detector.
    """
    dataset = load_dataset(data, leave_out=leave_out)
    is_single = detector.names == ONE_CLASS and len(dataset.names) > 1
    if is_single:
        session.reporter.say(f"{detector.path.name} was trained with --single-cls: every class counts as 'item'")
    else:
        _check_classes(session, dataset, detector)
    images, report = scan_together(
        dataset,
        split,
        single_cls=is_single,
        max_bad_share=max_bad_share,
        collectives=session.collectives,
        reporter=session.reporter,
        heartbeat=session.heartbeat,
    )
    if not is_single and is_reordered(detector.names, dataset.names):
        to_model = np.array([detector.names.index(name) for name in dataset.names], np.float32)
        classes = images.boxes.rows[:, 0]
        classes[...] = to_model[classes.astype(int)]
        session.reporter.warn("weights and data set have the same classes in another order; names decide")
        return SplitToMeasure(images, detector.names, report)
    return SplitToMeasure(images, detector.names if is_single else dataset.names, report)


def is_reordered(names: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether two lists hold the same names, each once, in another order."""
    return tuple(names) != tuple(others) and len(set(names)) == len(names) and sorted(names) == sorted(others)


def _check_classes(session: Session, dataset: DatasetFile, detector: Detector) -> None:
    if len(dataset.names) != len(detector.names):
        raise DataError(
            f"{detector.path.name} detects other classes than {dataset.path} has",
            seen=f"{len(detector.names)} classes in the weights, {len(dataset.names)} in the data set",
            expected="the data set that the model was trained for",
            next_command="yolo-launch weights FILE shows the names in the weights",
        )
    pairs = zip(detector.names, dataset.names, strict=True)
    other = [f"{index}: {own} and {named}" for index, (own, named) in enumerate(pairs) if own != named]
    if other and not is_reordered(detector.names, dataset.names):
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        session.reporter.warn(f"weights and data set name classes differently ({shown}); indices decide")
