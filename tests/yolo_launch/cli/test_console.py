"""The only printer: terminal, plain lines, JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_launch.cli.console import Console
from yolo_launch.spec import Finding

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        """Yes."""
        return True


def speak(console):
    console.line("line")
    console.table("Title", ("a", "b"), [["1", "two [x]"], ["three", "4"]])
    console.finding(Finding("shm", "warning", "small", "--ipc=host"))
    console.error("what [y]", seen="this\nand that", expected="other", next_command="type")


def test_without_a_terminal_lines_are_plain_and_columns_aligned(capsys):
    speak(Console())
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "line",
        "Title",
        "  a      b",
        "  1      two [x]",
        "  three  4",
        "warning shm: small",
        "  -> --ipc=host",
    ]
    assert err.splitlines() == [
        "yolo-launch",
        "  what [y]",
        "  Seen:     this",
        "            and that",
        "  Expected: other",
        "  Next:     type",
    ]


def test_json_alone_is_on_stdout(capsys):
    console = Console(json_mode=True)
    speak(console)
    console.json({"a": [1]})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": [1]}
    assert "line" in err


def test_a_terminal_gets_frames_and_brackets_survive(monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    speak(Console())
    assert "two [x]" in out.getvalue()
    assert "what [y]" in err.getvalue()
    assert "───" in err.getvalue()
    assert "\x1b[33m" in out.getvalue()


def test_a_command_in_a_report_can_be_copied_and_prose_is_folded(monkeypatch):
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    command = "yolo-launch run --module yolov5.train --gpus cpu -- --data a.yaml"
    Console().panel("rank 1 failed first", f"Hint:     {'many words ' * 8}\nNext:     {command}")
    rows = err.getvalue().splitlines()
    assert f"Next:     {command}" in rows
    folded = rows[1 : rows.index(f"Next:     {command}")]
    assert len(folded) > 2
    assert all(len(row) <= 40 for row in folded)
    assert all(row.startswith(" " * 10) for row in folded[1:])


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_plain_terminals_stay_plain(monkeypatch, name, value):
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv(name, value)
    Console().error("what")
    assert err.getvalue() == "yolo-launch\n  what\n"


def test_a_reader_that_goes_away_leaves_no_traceback():
    code = "from yolo_launch.cli.console import Console\nc = Console()\nfor i in range(20000): c.line('x' * 50)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(timeout=30) == 0
