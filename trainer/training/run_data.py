"""Reads and scans the data set of a run."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.dataset import DatasetFile, label_path_for, load_dataset_file
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.shared_scan import scan_together
from trainer.errors import ConfigError
from trainer.runtime.distributed import Collectives
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter


@dataclass(frozen=True)
class Data:
    """A data set as this run sees it."""

    dataset: DatasetFile
    names: tuple[str, ...]
    train: LabeledImages
    val: LabeledImages

    @property
    def can_measure(self) -> bool:
        """Whether a validation image has a label; without one there is nothing to compare detections with."""
        return any(len(boxes) for boxes in self.val.boxes)


def load_data(
    path: str, *, single_cls: bool, collectives: Collectives, reporter: Reporter, heartbeat: HeartbeatWriter
) -> Data:
    """Read the data-set file and scan both splits, once per machine. Raises DataError or ConfigError."""
    if not path:
        raise ConfigError("no data set was given", seen="data: ''", expected="the path of a data-set YAML in --data")
    dataset = load_dataset_file(path)
    names = ("item",) if single_cls and len(dataset.names) > 1 else dataset.names

    def scan(split: str) -> LabeledImages:
        return scan_together(
            dataset, split, single_cls=single_cls, collectives=collectives, reporter=reporter, heartbeat=heartbeat
        )

    data = Data(dataset, names, scan("train"), scan("val"))
    if not data.can_measure:
        reporter.warn(
            f"no validation image has a label (looked for {label_path_for(data.val.paths[0])}): this run cannot be "
            "judged. No epoch will be the best one, and none will end it early"
        )
    return data
