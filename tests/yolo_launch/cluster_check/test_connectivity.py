"""Checks whether a free port of another node answers."""

from __future__ import annotations

import socket
import threading

import pytest

from yolo_launch.cluster_check.connectivity import GREETING, NO_ANSWER, EchoServer, check_connection


def test_a_port_that_answers_is_reached_and_a_closed_one_refuses():
    with EchoServer("127.0.0.1") as echo_server:
        assert check_connection("127.0.0.1", echo_server.port) == ""
        assert check_connection("127.0.0.1", echo_server.port) == ""
        port = echo_server.port
    assert check_connection("127.0.0.1", port) == "refused"


@pytest.mark.parametrize(
    ("answer", "problem"), [(GREETING[:100], NO_ANSWER), (b"SSH-2.0" * 4000, "another program answers")]
)
def test_half_an_answer_and_another_programs_are_told_apart(answer, problem):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stopped = threading.Event()

        def serve():
            caller, _ = listening.accept()
            with caller:
                caller.sendall(answer)
                stopped.wait(5)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert check_connection("127.0.0.1", listening.getsockname()[1], timeout_s=0.3) == problem
        stopped.set()
        thread.join()
