"""The images and labels that a model is measured on."""

from __future__ import annotations

from trainer.data.dataset import DatasetFile, load_dataset_file
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.shared_scan import scan_together
from trainer.errors import DataError
from trainer.inference.detector import Detector
from trainer.runtime.session import Session


def load_split(session: Session, data: str, split: str, detector: Detector) -> tuple[DatasetFile, LabeledImages]:
    """One split of a data set, scanned once per machine.

    Raises DataError, also where the data set's classes are not those that the detector knows.
    """
    dataset = load_dataset_file(data)
    _check_classes(session, dataset, detector)

    images, _ = scan_together(
        dataset, split, collectives=session.collectives, reporter=session.reporter, heartbeat=session.heartbeat
    )
    return dataset, images


def _check_classes(session: Session, dataset: DatasetFile, detector: Detector) -> None:
    if len(dataset.names) != len(detector.names):
        raise DataError(
            f"{detector.path.name} detects other classes than {dataset.path} has",
            seen=f"{len(detector.names)} classes in the weights, {len(dataset.names)} in the data set",
            expected="the data set that the model was trained for",
        )
    pairs = zip(detector.names, dataset.names, strict=True)
    other = [f"{index}: {own} and {named}" for index, (own, named) in enumerate(pairs) if own != named]
    if other:
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        session.reporter.warn(f"weights and data set name classes differently ({shown}); indices decide")
