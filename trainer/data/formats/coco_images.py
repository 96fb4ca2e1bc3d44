"""Finds the folder that a COCO JSON's file names are relative to."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trainer.data.formats.format import SPLIT_WORDS, names_in
from trainer.errors import DataError
from trainer.reading.text_file import printable

_LOOKED_AT = 16


def find_image_folder(json_path: Path, split: str, names: Sequence[str]) -> str:
    """Returns the folder below which most of some images lie.

    Looked for are the usual layouts: beside the file, and beside or in the folder above it ``images``, the split's
    name as the file has it (``train2017``), and one in the other; then every other folder there. Raises DataError if
    no image lies in any.
    """
    step = max(1, len(names) // _LOOKED_AT)
    sample = names[::step][:_LOOKED_AT]
    tried = _candidates(json_path, split)
    best, found = tried[0], 0
    for folder in tried:
        here = sum(os.path.exists(os.path.join(folder, name)) for name in sample)
        if here > found:
            best, found = folder, here
        if here == len(sample):
            break
    if names and not found:
        raise DataError(
            f"The images of {printable(json_path)} were not found",
            seen=f"{printable(sample[0])}; looked in {', '.join(printable(folder) for folder in tried[:8])}",
            expected="the images in one of these folders",
            next_command="move or link the images there",
        )
    return best


def _candidates(json_path: Path, split: str) -> list[str]:
    own = json_path.parent.absolute()
    words = re.findall(r"[A-Za-z]+[0-9]*", json_path.stem)
    tokens = [word for word in words if re.sub(r"\d", "", word).lower() in SPLIT_WORDS[split]]
    tokens = list(dict.fromkeys([*tokens, *SPLIT_WORDS[split]]))
    inner = ["", "images", *tokens, *(os.path.join("images", token) for token in tokens)]
    inner += [os.path.join(token, "images") for token in tokens] + ["data", "JPEGImages"]
    existing = [os.path.join(base, one).rstrip(os.sep) for base in (own, own.parent) for one in inner]
    for base in (own, own / "images", own.parent, own.parent / "images"):
        existing += [os.path.join(base, name) for name in names_in(base)]  # a name that says no split
    return [folder for folder in dict.fromkeys(existing) if os.path.isdir(folder)]
