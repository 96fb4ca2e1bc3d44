"""Addresses, interfaces, and what a failed connection means."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host import network
from yolo_launch.host.inventory import inspect_host
from yolo_launch.host.network import (
    dial_problem,
    has_infiniband,
    interface_of,
    is_local_address,
    resolve_master,
    socket_environment,
    source_address,
)

ADDRESSES = {
    "lo": ("127.0.0.1", "::1"),
    "eth0": ("192.168.1.7", "fe80::a00:27ff:fe4e:66a1", "fd00::7"),
    "docker0": ("172.17.0.1",),
}


@contextlib.contextmanager
def listener(backlog=1):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        yield server, server.getsockname()[1]


@pytest.mark.parametrize("literal", ["192.168.1.1", "fd00::1", "::1", "fe80::1%eth0"])
def test_a_literal_address_is_itself(literal, monkeypatch):
    monkeypatch.setattr(network.socket, "getaddrinfo", None)
    assert resolve_master(literal) == literal


def test_brackets_of_an_ipv6_address_are_taken_off():
    assert resolve_master("[fd00::1]") == "fd00::1"


def test_a_name_is_resolved():
    assert resolve_master("localhost") in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["fd00::1", "10.0.0.1"], "10.0.0.1"),
        (["fd00::1"], "fd00::1"),
        (["127.0.1.1", "10.0.0.1"], "10.0.0.1"),  # Debian lists a machine's own name as 127.0.1.1
        (["127.0.1.1"], "127.0.1.1"),
    ],
)
def test_ipv4_and_real_addresses_come_first(found, expected, monkeypatch):
    def answer(name, port, **options):
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(families[":" in each], socket.SOCK_STREAM, 6, "", (each, 0)) for each in found]

    monkeypatch.setattr(network.socket, "getaddrinfo", answer)
    assert resolve_master("gpu-a") == expected


@pytest.mark.parametrize("name", ["gpu-a", "a..b", "x" * 300, "", "$(reboot)"])
def test_a_name_that_nobody_knows_is_refused_by_name(name, monkeypatch):
    real = socket.getaddrinfo

    def answer(asked, port, **options):
        if asked == "gpu-a":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(asked, port, **options)

    monkeypatch.setattr(network.socket, "getaddrinfo", answer)
    with pytest.raises(LaunchError) as refused:
        resolve_master(name)
    assert refused.value.exit_code == ExitCode.USAGE
    assert (name or "(no name)") in refused.value.what
    assert "192.168.1.1" in refused.value.expected
    if name == "gpu-a":
        assert refused.value.seen == "gpu-a: Name or service not known"
        assert refused.value.next_command == "getent hosts gpu-a"
    if name.startswith("$"):
        assert refused.value.next_command == "getent hosts '$(reboot)'"


def test_the_source_address_is_the_kernels_choice():
    assert source_address("127.0.0.1", 1234) == "127.0.0.1"
    assert source_address("127.0.0.9", 1234).startswith("127.")


def test_the_source_address_toward_this_machine_is_its_own():
    for found in inspect_host({}).addresses.values():
        for address in found:
            if ":" not in address:
                assert source_address(address, 1234) == address


@pytest.mark.parametrize("master", ["255.255.255.255", "gpu-a", "", "fe80::1%nowhere", "x" * 300])
def test_without_a_route_the_source_address_is_empty(master):
    assert source_address(master, 1234) == ""


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("192.168.1.7", "eth0"),
        ("fd00::7", "eth0"),
        ("FD00:0::7", "eth0"),
        ("fe80::a00:27ff:fe4e:66a1%eth0", "eth0"),
        ("::ffff:192.168.1.7", "eth0"),
        ("127.0.0.1", "lo"),
        ("127.0.1.1", "lo"),
        ("192.168.1.8", ""),
        ("gpu-a", ""),
        ("", ""),
    ],
)
def test_the_interface_of_an_address(address, interface):
    assert interface_of(address, ADDRESSES) == interface
    assert is_local_address(address, ADDRESSES) == bool(interface)


def test_loopback_is_local_where_no_interface_is_known():
    assert interface_of("127.0.0.1", {}) == ""
    assert is_local_address("127.0.0.1", {})
    assert is_local_address("::1", {})


@pytest.mark.parametrize("interface", ["eth0", "lo"])
def test_gloo_and_nccl_are_told_the_interface(interface):
    expected = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}
    assert socket_environment(interface, {}, has_infiniband=False) == expected


def test_nccl_chooses_by_itself_where_infiniband_is():
    assert socket_environment("eth0", {}, has_infiniband=True) == {"GLOO_SOCKET_IFNAME": "eth0"}


def test_what_the_user_set_stays():
    own = {"GLOO_SOCKET_IFNAME": "eth1"}
    assert socket_environment("eth0", own, has_infiniband=False) == {"NCCL_SOCKET_IFNAME": "=eth0"}
    own = {"NCCL_SOCKET_IFNAME": "^docker"}
    assert socket_environment("eth0", own, has_infiniband=False) == {"GLOO_SOCKET_IFNAME": "eth0"}
    own = {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "eth1"}
    assert socket_environment("eth0", own, has_infiniband=False) == {}


def test_an_unknown_interface_sets_nothing():
    assert socket_environment("", {}, has_infiniband=False) == {}


def test_an_active_port_is_infiniband(tmp_path):
    assert not has_infiniband(tmp_path)
    for adapter, state in (("mlx5_0", "1: DOWN\n"), ("mlx5_1", "2: INIT\n")):
        folder = tmp_path / "sys/class/infiniband" / adapter / "ports/1"
        folder.mkdir(parents=True)
        (folder / "state").write_text(state)
    assert not has_infiniband(tmp_path)
    (tmp_path / "sys/class/infiniband/mlx5_0/ports/1/state").write_text("4: ACTIVE\n")
    assert has_infiniband(tmp_path)


def test_a_state_that_cannot_be_read_is_no_port(tmp_path):
    (tmp_path / "sys/class/infiniband/mlx5_0/ports/1/state").mkdir(parents=True)
    assert not has_infiniband(tmp_path)


def dial(port, timeout_s=0.3):
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(b"hello")
        connection.recv(1)


def test_a_port_where_nobody_listens():
    with listener() as (_, port):
        pass
    with pytest.raises(OSError, match="refused") as failed:
        dial(port)
    expected = f"nothing listens on 127.0.0.1:{port} yet: is the master started, with this --port?"
    assert dial_problem(failed.value, "127.0.0.1", port) == expected


def test_a_port_that_does_not_answer():
    def fill_queue(port, waiting):
        for _ in range(5):  # nobody accepts, and the kernel drops what the queue cannot hold
            waiting.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.3))

    with listener(backlog=0) as (_, port), contextlib.ExitStack() as waiting:
        with pytest.raises(TimeoutError) as failed:
            fill_queue(port, waiting)
    expected = f"no answer from 127.0.0.1:{port}: a firewall, or a wrong address"
    assert dial_problem(failed.value, "127.0.0.1", port) == expected


def test_a_connection_that_is_cut():
    with listener() as (server, port), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        accepted, _ = server.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        with pytest.raises(ConnectionResetError) as failed:
            connection.recv(1)
    assert dial_problem(failed.value, "127.0.0.1", port).startswith(f"127.0.0.1:{port} cut the connection: ")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EHOSTUNREACH, "10.0.0.1 cannot be reached: the machine is off"),
        (errno.EHOSTDOWN, "10.0.0.1 cannot be reached: the machine is off"),
        (errno.ENETUNREACH, "this machine has no route to 10.0.0.1"),
        (errno.ETIMEDOUT, "no answer from 10.0.0.1:1234: a firewall"),
        (errno.EPIPE, "10.0.0.1:1234 cut the connection"),
        (errno.EPERM, "this machine does not allow a connection to 10.0.0.1:1234"),
        (errno.EADDRNOTAVAIL, "no connection to 10.0.0.1:1234: Cannot assign requested address"),
    ],
)
def test_other_causes(number, expected):
    assert dial_problem(OSError(number, os.strerror(number)), "10.0.0.1", 1234).startswith(expected)


def test_an_ipv6_address_is_shown_so_that_its_port_stands_apart():
    assert "[fd00::1]:1234" in dial_problem(ConnectionRefusedError(), "fd00::1", 1234)
