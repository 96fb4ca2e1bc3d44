"""Retypes a command with options changed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

ALIASES = (
    ("--gpus", "--device"),
    ("--batch", "--batch-size"),
    ("--imgsz", "--img", "--img-size"),
)


def retype(typed: Sequence[str], changes: Mapping[str, str], without: Sequence[str] = ()) -> str:
    """Returns the typed command with options set anew, ready to paste; an option that is absent is added at the end."""
    end = typed.index("--") if "--" in typed else len(typed)
    words = _without_option(list(typed[:end]), without)
    for flag, value in changes.items():
        spellings = next((names for names in ALIASES if flag in names), (flag,))
        words = [*_without_option(words, spellings), flag, value]
    return shlex.join([*words, *typed[end:]])


def without_value(typed: Sequence[str], flag: str) -> tuple[str, ...]:
    """Returns the typed command with the values of secret options left out, for everything that is ever printed."""
    if not any(word.partition("=")[0] == flag for word in typed):
        return tuple(typed)
    return (*_without_option(list(typed), (flag,)), flag, "...")


def _without_option(words: list[str], spellings: Sequence[str]) -> list[str]:
    kept: list[str] = []
    position = 0
    while position < len(words):
        flag, equals, _ = words[position].partition("=")
        if flag in spellings:
            position += 1 if equals else 2
            continue
        kept.append(words[position])
        position += 1
    return kept
