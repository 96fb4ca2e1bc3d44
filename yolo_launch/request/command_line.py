"""Reads and retypes whole commands: whose words are whose, and a command with options changed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

ALIASES = (
    ("--gpus", "--device"),
    ("--batch", "--batch-size"),
    ("--imgsz", "--img", "--img-size"),
)


BETWEEN = "--"
"""Stands between the launcher's words and a script's."""


def with_script_apart(arguments: Sequence[str], takes_value: Callable[[str], bool]) -> list[str]:
    """Returns the words of ``run`` as ``[OPTIONS] SCRIPT -- [ITS WORDS]``.

    As under torchrun, everything after the script is the script's. Only if ``--`` follows it are the words up to there
    the launcher's. ``takes_value`` tells whether the word after one of the launcher's options is its value.
    """
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        if arguments[position] == BETWEEN:
            return list(arguments)
        flag, equals, _ = arguments[position].partition("=")
        position += 1 if equals or not takes_value(flag) else 2
    script_and_rest = list(arguments[position:])
    if len(script_and_rest) < 2 or BETWEEN in script_and_rest:
        return list(arguments)
    return [*arguments[:position], script_and_rest[0], BETWEEN, *script_and_rest[1:]]


def retype(typed: Sequence[str], changes: Mapping[str, str], without: Sequence[str] = ()) -> str:
    """Returns the typed command with options set anew, ready to paste; an option that is absent is added.

    It comes last of the launcher's own words, but before a script that has no words of its own.
    """
    end = typed.index(BETWEEN) if BETWEEN in typed else len(typed)
    words = _without_option(list(typed[:end]), without)
    added: list[str] = []
    for flag, value in changes.items():
        spellings = next((names for names in ALIASES if flag in names), (flag,))
        words = _without_option(words, spellings)
        added += [flag, value]
    # A script without words of its own has no ``--`` behind it, and what follows it would be its own.
    at = 2 if words[1:2] == ["run"] and end == len(typed) else len(words)
    return shlex.join([*words[:at], *added, *words[at:], *typed[end:]])


def without_value(typed: Sequence[str], flag: str) -> tuple[str, ...]:
    """Returns the typed command with the values of secret options left out, for everything that is ever printed."""
    end = typed.index(BETWEEN) if BETWEEN in typed else len(typed)  # a script's words are its own
    if not any(word.partition("=")[0] == flag for word in typed[:end]):
        return tuple(typed)
    words = _without_option(list(typed[:end]), (flag,))
    at = 2 if words[1:2] == ["run"] else len(words)  # what follows a script is the script's
    return (*words[:at], flag, "...", *words[at:], *typed[end:])


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
