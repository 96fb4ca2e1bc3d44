"""Prints for the launcher: with rich on a terminal, as plain lines elsewhere, as one JSON object with ``--json``.

Data goes to stdout; warnings and errors go to stderr, and so does everything but that object when JSON was asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from yolo_launch.spec import Finding, Level

LABEL_WIDTH = 10
LABELLED = re.compile(r"[A-Z][a-z]+: +")
_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_WORDS: dict[Level, str] = {"ok": "ok", "warning": "warning", "failure": "FAILURE"}


class Console:
    """Prints lines, tables, panels and findings in the way that suits the terminal, file or pipe they go to."""

    def __init__(self, *, json_mode: bool = False) -> None:
        self.json_mode = json_mode

    def line(self, text: str = "") -> None:
        """Prints one line of ordinary output."""
        self._write(self._data_stream(), text)

    def note(self, text: str) -> None:
        """Prints one line that is not part of the result, such as a warning."""
        self._write(sys.stderr, text)

    def json(self, value: Mapping[str, Any]) -> None:
        """Prints the one JSON object of a command, always on stdout."""
        self._write(sys.stdout, json.dumps(value, indent=2))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table: drawn on a terminal, aligned columns elsewhere. Without names of columns, no heading."""
        stream = self._data_stream()
        if _is_terminal(stream):
            from rich import box
            from rich.table import Table

            drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE, show_header=bool(columns))
            width = len(columns) or max((len(row) for row in rows), default=0)
            for index in range(width):
                drawn.add_column(columns[index] if columns else "", overflow="fold")
            for row in rows:
                drawn.add_row(*[_escaped(cell) for cell in row])
            self._rich(stream, drawn)
            return
        if title:
            self._write(stream, title)
        heading = [list(columns)] if columns else []
        for text in _aligned([*heading, *(list(row) for row in rows)]):
            self._write(stream, "  " + text)

    def panel(self, title: str, text: str, level: Level = "failure") -> None:
        """Prints a message between two rules on stderr; without a terminal, the title and the lines below it.

        No frame at the sides and no folding of commands: what to type next has to survive being copied.
        """
        if _is_terminal(sys.stderr):
            from rich.rule import Rule

            self._rich(sys.stderr, Rule(_escaped(title), align="left", style=_STYLES[level]))
            for line in text.splitlines():
                self._write(sys.stderr, "\n".join(_folded(line, shutil.get_terminal_size().columns)))
            self._rich(sys.stderr, Rule(style=_STYLES[level]))
            return
        self._write(sys.stderr, title)
        for line in text.splitlines():
            self._write(sys.stderr, f"  {line}")

    def finding(self, finding: Finding) -> None:
        """Prints one finding with its advice; warnings and failures are colored on a terminal."""
        stream = self._data_stream()
        seen = finding.seen.replace("\n", "\n  ")
        if _is_terminal(stream):
            word = f"[{_STYLES[finding.level]}]{_WORDS[finding.level]}[/]"
            self._rich(stream, f"{word} {_escaped(finding.check)}: {_escaped(seen)}")
        else:
            self._write(stream, f"{_WORDS[finding.level]} {finding.check}: {seen}")
        if finding.advice:
            self._write(stream, f"  -> {finding.advice}")

    def error(
        self, what: str, *, seen: str = "", expected: str = "", next_command: str = "", title: str = "yolo-launch"
    ) -> None:
        """Prints a mistake of the user's: what failed, what was seen and expected, and what to type."""
        lines = [what]
        for word, value in (("Seen:", seen), ("Expected:", expected), ("Next:", next_command)):
            if value:
                lines.append(f"{word:<10}{_indented(value)}")
        self.panel(title, "\n".join(lines))

    def _data_stream(self) -> TextIO:
        return sys.stderr if self.json_mode else sys.stdout

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        with _unwritable_is_dropped(stream):
            stream.write(text + "\n")
            stream.flush()

    @staticmethod
    def _rich(stream: TextIO, renderable: Any) -> None:
        from rich.console import Console as RichConsole

        with _unwritable_is_dropped(stream):
            RichConsole(file=stream, highlight=False).print(renderable)


@contextlib.contextmanager
def _unwritable_is_dropped(stream: TextIO) -> Iterator[None]:
    """Drops what a stream does not take: its reader or terminal has gone, or its disk is full.

    The exit code says how a command ended, whoever reads its output.
    """
    try:
        yield
    except (OSError, SystemExit):  # rich makes an exit of a closed pipe
        # A second failure, while Python flushes at exit, would print a traceback and change the exit code.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _folded(line: str, width: int) -> list[str]:
    """Returns a line of a message in rows below one another; a command stays whole, and the terminal wraps it."""
    indent = len(line) - len(line.lstrip())
    hang = LABEL_WIDTH if LABELLED.match(line) or indent >= LABEL_WIDTH else indent + 2
    if line.startswith("Next:") or len(line) <= width or width < 2 * hang:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False)


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 10)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths: list[int] = []
    for row in rows:
        for index, cell in enumerate(row):
            if index == len(widths):
                widths.append(0)
            widths[index] = max(widths[index], len(cell))
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
