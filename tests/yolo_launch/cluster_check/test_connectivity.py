"""A connection from machine to machine: open, closed, or without an answer."""

from __future__ import annotations

from yolo_launch.cluster_check.connectivity import EchoServer, check_connection


def test_a_bell_is_heard_and_a_closed_port_is_refused():
    with EchoServer("127.0.0.1") as echo_server:
        assert check_connection("127.0.0.1", echo_server.port) == ""
        assert check_connection("127.0.0.1", echo_server.port) == ""
        port = echo_server.port
    assert check_connection("127.0.0.1", port) == "refused"
