"""Finds images whose files are equal byte for byte, within a split and between two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.report import MAX_EXAMPLES, tally
from trainer.errors import DataError
from trainer.reading.text_file import printable


def find_repeats(digests: Iterable[tuple[Path, bytes]]) -> Iterator[str]:
    """Yields a sentence for each image whose content is an earlier one's; equal digests are checked by whole files."""
    by_digest: dict[bytes, list[Path]] = {}
    for path, digest in digests:
        by_digest.setdefault(digest, []).append(path)
    for paths in by_digest.values():
        first_with: dict[bytes, Path] = {}
        for path in paths if len(paths) > 1 else ():
            content = _content_hash(path)
            first = first_with.setdefault(content, path) if content else path
            if first is not path:
                yield f"{printable(path)}: the same image as {printable(first)}"


def find_shared(images: LabeledImages, others: LabeledImages) -> list[str]:
    """Returns a sentence for each image of ``others`` whose content is that of one of ``images``."""
    # Only the few that are alike become paths and bytes of their own: there may be a million images.
    alike_in: dict[bytes, list[Path]] = {digest: [] for digest in map(bytes, others.digests)}
    for index, digest in enumerate(map(bytes, images.digests)):
        if digest in alike_in:
            alike_in[digest].append(images.paths[index])
    hashes: dict[Path, bytes] = {}
    found = []
    for index, digest in enumerate(map(bytes, others.digests)):
        for other in alike_in[digest]:
            path = others.paths[index]
            if other == path or _hash_once(other, hashes) == _hash_once(path, hashes) != b"":
                found.append(f"{printable(path)}: the same image as {printable(other)}")
                break
    return found


def refuse_leakage(images: LabeledImages, others: LabeledImages, split: str, *, allowed: bool) -> str:
    """Returns a warning about images of ``split`` that are trained on as well, '' without any.

    Raises DataError for such images unless ``allowed``.
    """
    shared = tally(find_shared(images, others))
    if not shared.count:
        return ""
    what = f"{shared.count} of the {len(others)} '{split}' images are training images too"
    if not allowed:
        raise DataError(
            f"{what}, so that its figures say nothing about new images",
            seen="; ".join(shared.examples[:MAX_EXAMPLES]),
            expected="splits without a file in common",
            next_command="move the copies out of one split, or measure on known images with --allow-leakage",
        )
    return f"{what}: its figures say nothing about new images (--allow-leakage)"


def _hash_once(path: Path, hashes: dict[Path, bytes]) -> bytes:
    if path not in hashes:
        hashes[path] = _content_hash(path)
    return hashes[path]


def _content_hash(path: Path) -> bytes:
    """Returns a hash of a file's bytes; b'' for a file that cannot be read any more."""
    try:
        return hashlib.blake2b(path.read_bytes()).digest()
    except OSError:
        return b""
