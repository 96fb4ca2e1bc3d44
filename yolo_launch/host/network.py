"""Finds addresses and interfaces between machines, and the likely cause of a failed connection."""

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
    """Returns the literal address of a machine: IPv4 before IPv6, and loopback last of its kind; a literal as it is.

    Raises LaunchError with the name if the name cannot be resolved.
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
    """Returns this machine's address that the kernel uses toward the literal address ``master``; sends nothing.

    Returns "" if there is no route.
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
    """Returns the network interface that has ``address``, of those in ``Host.addresses``; "" if none has."""
    wanted = _parse(address)
    for name, own in addresses.items():
        if wanted and any(_parse(each) == wanted for each in own):
            return name
    if _is_loopback(address):
        # Loopback addresses such as 127.0.1.1 work without being listed.
        return next((name for name, own in addresses.items() if any(_is_loopback(each) for each in own)), "")
    return ""


def is_local_address(address: str, addresses: Mapping[str, tuple[str, ...]]) -> bool:
    """Returns True if ``address`` is this machine's own."""
    return _is_loopback(address) or bool(interface_of(address, addresses))


def socket_environment(interface: str, environ: Mapping[str, str], *, has_infiniband: bool) -> dict[str, str]:
    """Returns variables that keep gloo and NCCL on ``interface``, without those that the user set.

    With InfiniBand NCCL chooses by itself. NCCL reads a name as a prefix unless '=' stands before the name.
    """
    if not interface:
        return {}
    wanted = {GLOO_INTERFACE: interface}
    if not has_infiniband:
        wanted[NCCL_INTERFACE] = f"={interface}"
    return {name: value for name, value in wanted.items() if not environ.get(name)}


def has_infiniband(root: Path = Path("/")) -> bool:
    """Returns True if a port of an InfiniBand or RoCE adapter is active."""
    for state in sorted(root.glob("sys/class/infiniband/*/ports/*/state")):
        try:
            if state.read_text(encoding="utf-8").startswith("4:"):  # "4: ACTIVE"; a port without a link is "1: DOWN"
                return True
        except (OSError, UnicodeError):
            continue
    return False


def dial_problem(error: OSError, address: str, port: int) -> str:
    """Describes a failed connection and its likely cause in one sentence."""
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
    """Parses a literal address without its zone, IPv4 also in its IPv6 form; returns None for other texts."""
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
