"""Whose words are whose, in torchrun's order and in this program's own."""

from __future__ import annotations

import pytest

from yolo_launch.request.command_line import with_script_apart, without_value


@pytest.mark.parametrize(
    ("typed", "apart"),
    [
        ("a.py", "a.py"),
        ("--x 1 a.py", "--x 1 a.py"),
        ("--x 1 a.py b c", "--x 1 a.py -- b c"),
        ("--x=1 --flag a.py --x 2", "--x=1 --flag a.py -- --x 2"),
        ("a.py --help", "a.py -- --help"),
        ("-m a --help", "-m a -- --help"),
        ("a.py --x 1 -- --x 2", "a.py --x 1 -- --x 2"),
        ("--x 1 -- a.py --x 2", "--x 1 -- a.py --x 2"),
        ("--x a.py", "--x a.py"),
        ("--flag", "--flag"),
        ("", ""),
    ],
)
def test_all_behind_the_script_is_the_scripts_unless_dashes_follow(typed, apart):
    words = typed.split()
    found = with_script_apart(words, lambda flag: flag == "--x")
    assert found == apart.split()
    assert with_script_apart(found, lambda flag: flag == "--x") == found


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("yolo-launch node --token s3 --rank 0", "yolo-launch node --rank 0 --token ..."),
        ("yolo-launch run --rank 0 --token s3 a.py", "yolo-launch run --token ... --rank 0 a.py"),
        ("yolo-launch run --token=s3 --rank 0 a.py -- --x", "yolo-launch run --token ... --rank 0 a.py -- --x"),
        ("yolo-launch run --rank 0 a.py -- --token own", "yolo-launch run --rank 0 a.py -- --token own"),
    ],
)
def test_a_secret_is_left_out_where_it_was_typed_for_the_launcher(typed, shown):
    assert without_value(typed.split(), "--token") == tuple(shown.split())
