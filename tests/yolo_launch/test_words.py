"""Numbers with their nouns."""

from __future__ import annotations

from yolo_launch.words import counted


def test_nouns_follow_their_numbers():
    assert [counted(count, "thread") for count in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
    assert counted(3, "loader process") == "3 loader processes"
