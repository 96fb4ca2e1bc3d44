"""Addresses and interfaces between machines, and what a failed connection most likely means. Standard library alone."""

from __future__ import annotations

import errno
import ipaddress
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

from yolo_launch.errors import LaunchError

GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def resolve_master(name: str) -> str:
    """The literal address of a machine: IPv4 before IPv6, and loopback last of its kind; a literal is itself.

    Raises LaunchError that names it where it cannot be resolved.
    """
    plain = name.strip().removeprefix("[").removesuffix("]")
    if _parse(plain):
        return plain
    try:
        found = socket.getaddrinfo(plain, None, type=socket.SOCK_STREAM) if plain else []
    except (OSError, UnicodeError) as error:
        raise _unresolved(name, getattr(error, "strerror", None) or str(error)) from None
    addresses = [str(entry[4][0]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]
    if not addresses:
        raise _unresolved(name, "no address")
    return min(addresses, key=lambda address: (":" in address, _is_loopback(address)))


def source_address(master: str, port: int) -> str:
    """The address of this machine that the kernel uses toward the literal address ``master``; nothing is sent.

    Empty where there is no route.
    """
    if not _parse(master):
        return ""
    family = socket.AF_INET6 if ":" in master else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((master, port))
            return str(probe.getsockname()[0]).split("%")[0]
    except OSError:
        return ""


def interface_of(address: str, addresses: Mapping[str, tuple[str, ...]]) -> str:
    """The network interface that has ``address``, of those in ``Host.addresses``; empty where none has."""
    wanted = _parse(address)
    for name, own in addresses.items():
        if wanted and any(_parse(each) == wanted for each in own):
            return name
    if _is_loopback(address):
        # 127.0.1.1 and the like work without being listed.
        return next((name for name, own in addresses.items() if any(_is_loopback(each) for each in own)), "")
    return ""


def is_local_address(address: str, addresses: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether ``address`` is this machine's own."""
    return _is_loopback(address) or bool(interface_of(address, addresses))


def socket_environment(interface: str, environ: Mapping[str, str], *, has_infiniband: bool) -> dict[str, str]:
    """Variables that keep gloo and NCCL on ``interface``. One that the user set stays; with InfiniBand NCCL chooses.

    NCCL takes a name as a prefix unless '=' stands before it.
    """
    if not interface:
        return {}
    wanted = {GLOO_INTERFACE: interface}
    if not has_infiniband:
        wanted[NCCL_INTERFACE] = f"={interface}"
    return {name: value for name, value in wanted.items() if not environ.get(name)}


def has_infiniband(root: Path = Path("/")) -> bool:
    """Whether a port of an InfiniBand or RoCE adapter is active."""
    for state in sorted(root.glob("sys/class/infiniband/*/ports/*/state")):
        try:
            if state.read_text(encoding="utf-8").startswith("4:"):  # "4: ACTIVE"; a port without a link is "1: DOWN"
                return True
        except (OSError, UnicodeError):
            continue
    return False


def dial_problem(error: OSError, address: str, port: int) -> str:
    """One sentence for a connection that failed, with its likely cause."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on {where} yet: is the master started, with this --port?"
    if isinstance(error, TimeoutError):
        return f"no answer from {where}: a firewall, or a wrong address"
    if isinstance(error, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)):
        return f"{where} cut the connection: the master has just ended, or another program listens there"
    if error.errno in (errno.EHOSTUNREACH, errno.EHOSTDOWN):
        return f"{address} cannot be reached: the machine is off, a firewall rejects it, or the address is wrong"
    if error.errno == errno.ENETUNREACH:
        return f"this machine has no route to {address}: its network is down, or the address is wrong"
    if isinstance(error, PermissionError):
        return f"this machine does not allow a connection to {where}: its own firewall"
    return f"no connection to {where}: {error.strerror or error}"


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A literal address without its zone, and IPv4 out of its IPv6 form; None for anything else."""
    try:
        parsed = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _is_loopback(address: str) -> bool:
    parsed = _parse(address)
    return parsed is not None and parsed.is_loopback


def _unresolved(name: str, reason: str) -> LaunchError:
    return LaunchError(
        f"The machine {name or '(no name)'} cannot be found.",
        seen=f"{name}: {reason}",
        expected="--master with an address, such as 192.168.1.1, or a name that this machine can resolve",
        next_command=f"getent hosts {shlex.quote(name)}" if name.strip() else "",
    )
