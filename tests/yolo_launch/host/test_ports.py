"""Free and busy ports."""

from __future__ import annotations

import os
import socket

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.ports import free_port, is_free, require_free


def test_a_chosen_port_is_free():
    port = free_port()
    assert is_free(port)
    require_free(port)


def test_a_busy_port_is_refused_with_its_holder():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(LaunchError) as refused:
            require_free(port, "yolo-launch train --port 29501")
    assert refused.value.exit_code == ExitCode.ENVIRONMENT
    assert f"PID {os.getpid()} (" in refused.value.seen
    assert "python" in refused.value.seen
    assert refused.value.next_command == "yolo-launch train --port 29501"
    assert is_free(port)
