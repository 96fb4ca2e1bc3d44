"""The commands are known by name and help before any of them is loaded."""

from __future__ import annotations

import importlib
import inspect

import pytest
import typer

from yolo_launch.cli.command_table import COMMANDS, GROUPS, load_command
from yolo_launch.cli.main import app, run_program


def test_the_program_lists_its_commands_in_order(capsys):
    assert run_program(["--help"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and line[2].isalpha()]
    assert names == [*(entry.name for entry in COMMANDS if not entry.group), *GROUPS]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_lists_its_commands_in_order(capsys, group):
    assert run_program([group, "--help"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and line[2].isalpha()]
    assert names == [entry.name for entry in COMMANDS if entry.group == group]
    assert run_program([group, "fly"]) == 2
    assert "fly" in capsys.readouterr().err


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_each_command_is_a_function_of_its_options(entry):
    function = getattr(importlib.import_module(entry.module), entry.name)
    _, options = inspect.signature(function).parameters.values()
    assert options.annotation == entry.options.rpartition(".")[2]
    command = load_command(entry)
    assert (command.name, command.help) == (entry.name, entry.text)
    assert "debug" in {parameter.name for parameter in command.params}


def test_shells_complete_commands_and_their_options(monkeypatch, capsys):
    monkeypatch.setenv("_YOLO_LAUNCH_COMPLETE", "complete_bash")
    for typed, position, expected in (
        ("yolo-launch pr", 1, ["predict"]),
        ("yolo-launch train --nproc", 2, ["--nproc"]),
    ):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(position))
        with pytest.raises(SystemExit) as caught:
            app(args=[], prog_name="yolo-launch")
        assert caught.value.code == 0
        assert capsys.readouterr().out.split() == expected


def test_a_mistyped_command_is_named_with_the_nearest(capsys):
    assert run_program(["trian"]) == 2
    assert "train" in capsys.readouterr().err
    assert set(typer.main.get_command(app).commands) == {entry.group or entry.name for entry in COMMANDS}
