"""Runs ``yolo-launch data split DATA``: writes lists of images to train, validate and test on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer

from trainer.data.curation.split_choice import choose_splits, class_counts, largest_shift
from trainer.data.curation.write_lists import write_splits
from trainer.data.dataset import DatasetFile
from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.progress import counting
from yolo_launch.data_sets.options import SplitOptions
from yolo_launch.data_sets.scanned import (
    Pool,
    default_folder,
    grouped_by_pattern,
    grouped_by_text,
    joined,
    pool_of,
    scan_all,
)
from yolo_launch.errors import ExitCode, LaunchError

DEFAULT_VAL = 0.2
_MOST_FOLDS = 100


def split(ctx: typer.Context, options: SplitOptions) -> None:
    """Pools the images of all splits and shares them out anew; equal and alike images stay together."""
    console = Console(json_mode=options.json)
    shares = shares_of(options)
    with counting("images read") as progress:
        dataset, scanned = scan_all(options.data, progress)
    pool = pool_of(scanned)
    with counting("images compared") as progress:
        groups = _groups(dataset, pool, options, pool.near(progress))
    counts = np.concatenate([class_counts(images, dataset.num_classes) for images in pool.splits.values()])
    part = choose_splits(counts, groups, list(shares.values()), options.seed)
    folder = Path(options.out) if options.out else default_folder(dataset, "split")
    files = _write(dataset, pool, part, list(shares), folder, folds=options.folds)
    shift = largest_shift(counts, part)
    rows = [[name, str(int((part == at).sum())), str(int(counts[part == at].sum()))] for at, name in enumerate(shares)]
    conclude(
        console,
        ExitCode.DONE,
        result={
            "files": [str(file) for file in files],
            "images": {name: int(row[1]) for name, row in zip(shares, rows, strict=True)},
            "groups": int(groups.max(initial=-1)) + 1,
            "largest_shift": shift,
        },
        show=lambda: _show(rows, shift, files, console),
    )


def shares_of(options: SplitOptions) -> dict[str, float]:
    """Returns the share of each part by its name. Raises LaunchError for shares that leave nothing to train on."""
    if options.folds:
        if options.val is not None or options.test:
            raise LaunchError(
                "--folds makes equal parts.", seen="--folds with --val or --test", expected="--folds alone"
            )
        if not 2 <= options.folds <= _MOST_FOLDS:
            raise LaunchError("--folds cannot be used.", seen=f"{options.folds}", expected=f"2 to {_MOST_FOLDS}")
        return {f"fold{number + 1}": 1 / options.folds for number in range(options.folds)}
    val = DEFAULT_VAL if options.val is None else options.val
    if not (0 < val < 1 and 0 <= options.test < 1 and val + options.test < 1):
        raise LaunchError(
            "These shares leave nothing to train or validate on.",
            seen=f"--val {val:g} --test {options.test:g}",
            expected="shares above 0 that add up to less than 1, such as --val 0.2 --test 0.1",
        )
    shares = {"train": 1 - val - options.test, "val": val, "test": options.test}
    return {name: share for name, share in shares.items() if share}


def _groups(dataset: DatasetFile, pool: Pool, options: SplitOptions, near: np.ndarray) -> np.ndarray:
    same = [near, grouped_by_text([digest.hex() for digest in pool.digests]), grouped_by_text(pool.paths)]
    if options.group_by is not None:
        same.append(grouped_by_pattern(dataset, pool.paths, options.group_by))
    return joined(*same)


def _write(
    dataset: DatasetFile, pool: Pool, part: np.ndarray, names: list[str], folder: Path, *, folds: int
) -> list[Path]:
    paths = pool.paths
    parts = [sorted({paths[at] for at in np.flatnonzero(part == index).tolist()}) for index in range(len(names))]
    empty = [name for name, images in zip(names, parts, strict=True) if not images]
    if empty:
        raise LaunchError(
            f"Nothing is left for {', '.join(empty)}.",
            seen=f"{len(set(paths))} images, of which those that are alike stay together",
            expected="more images, or larger shares",
        )
    if not folds:
        return [write_splits(dataset, dict(zip(names, parts, strict=True)), folder)]
    files = []
    for index, name in enumerate(names):
        train = sorted(image for other, images in enumerate(parts) if other != index for image in images)
        files.append(write_splits(dataset, {"train": train, "val": parts[index]}, folder, f"{name}.yaml"))
    return files


def _show(rows: list[list[str]], shift: float, files: list[Path], console: Console) -> None:
    console.table("", ("part", "images", "boxes"), rows)
    console.line(f"the share of a class differs by {100 * shift:.1f} points at most")
    for file in files:
        console.line(f"yolo-launch train --data {file}")
