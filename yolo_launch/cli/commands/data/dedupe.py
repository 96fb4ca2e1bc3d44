"""Runs ``yolo-launch data dedupe DATA``: writes lists without the images that repeat others; no file is deleted."""

from __future__ import annotations

from pathlib import Path

import typer

from trainer.data.curation.write_lists import write_splits
from trainer.data.dataset import relative_name
from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.progress import counting
from yolo_launch.data_sets.options import DedupeOptions
from yolo_launch.data_sets.scanned import default_folder, grouped_by_text, joined, pool_of, scan_all
from yolo_launch.errors import ExitCode

_KEPT_FIRST = ("test", "val", "train")
"""Of copies in several splits the one that figures are measured on stays, and is not trained on."""


def dedupe(ctx: typer.Context, options: DedupeOptions) -> None:
    """Keeps one image of each group, and writes lists of those that are kept."""
    console = Console(json_mode=options.json)
    with counting("images read") as progress:
        dataset, scanned = scan_all(options.data, progress)
    pool = pool_of(scanned)
    same = [grouped_by_text([digest.hex() for digest in pool.digests]), grouped_by_text(pool.paths)]
    if options.near:
        with counting("images compared") as progress:
            same.append(pool.near(progress))
    paths, names = pool.paths, pool.names
    kept: dict[int, int] = {}
    groups = joined(*same).tolist()
    for index in sorted(range(len(paths)), key=lambda at: (_KEPT_FIRST.index(names[at]), at)):
        kept.setdefault(groups[index], index)
    left_out = [
        {"image": paths[at], "split": names[at], "of": paths[kept[group]], "of_split": names[kept[group]]}
        for at, group in enumerate(groups)
        if kept[group] != at
    ]
    splits = {split: sorted(paths[at] for at in kept.values() if names[at] == split) for split in pool.splits}
    file = None
    if left_out:
        folder = Path(options.out) if options.out else default_folder(dataset, "dedupe")
        file = write_splits(dataset, {split: images for split, images in splits.items() if images}, folder)

    def show() -> None:
        for each in left_out:
            image, other = relative_name(dataset, each["image"]), relative_name(dataset, each["of"])
            console.line(f"{each['split']}: {image} repeats {each['of_split']}: {other}")
        counted = ", ".join(f"{len(images)} {split}" for split, images in splits.items())
        console.line(f"{len(left_out)} of {len(paths)} images left out; {counted}")
        if file is not None:
            console.line(f"yolo-launch train --data {file}")

    result = {"file": str(file) if file else None, "left_out": left_out}
    conclude(console, ExitCode.DONE, result=result, show=show)
