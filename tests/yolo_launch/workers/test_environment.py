"""The environment of workers is this process's own for a while."""

from __future__ import annotations

import os

import pytest

from yolo_launch.workers.environment import applied


def fail_with(environment):
    with applied(environment):
        assert dict(os.environ) == environment
        raise RuntimeError("inside")


def test_an_environment_is_applied_whole_and_taken_back_after_an_error(monkeypatch):
    monkeypatch.setenv("YOLO_TEST_KEPT", "before")
    before = dict(os.environ)
    with pytest.raises(RuntimeError, match="inside"):
        fail_with({"YOLO_TEST_NEW": "1"})
    assert dict(os.environ) == before
