"""Decides a node's rank and addresses in a job of several: from options, else from the scheduler's environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from yolo_launch.defaults import RENDEZVOUS_PORT
from yolo_launch.errors import LaunchError
from yolo_launch.host import network
from yolo_launch.nodes.cluster_environment import ClusterFacts, read_cluster, srun_line
from yolo_launch.planning.masks import visible_devices
from yolo_launch.rendezvous.admission import parse_nodes
from yolo_launch.rendezvous.dialing import RendezvousEndpoint
from yolo_launch.rendezvous.messages import MOST_DEVICES, JoinRequest
from yolo_launch.request.command_line import retype
from yolo_launch.request.machine_options import ClusterOptions, MachineOptions
from yolo_launch.spec import Host, LaunchPlan

Asked = TypeVar("Asked", bound=MachineOptions)
QUIET_VARIABLE = "TORCH_CPP_LOG_LEVEL"
TOKEN_VARIABLE = "YOLO_LAUNCH_TOKEN"
_NCCL_PACKAGES = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")


@dataclass(frozen=True)
class NodeIdentity:
    """Rank and addresses of one node."""

    rank: int
    nodes: tuple[int, int] | None
    """Fewest and most machines; None if only the master knows."""
    master: str
    """As typed or as the scheduler names it."""
    address: str
    """The master's literal address."""
    port: int
    own_address: str
    """This machine's, on the route to the master."""
    interface: str
    token: str | None = None
    source: str = ""
    """The scheduler whose variables were used, or nothing."""
    job_id: str = ""
    nproc: int | None = None
    """Workers that the scheduler wants here."""

    @property
    def endpoint(self) -> RendezvousEndpoint:
        """Returns the master's address, port and token, for dialing."""
        return RendezvousEndpoint(self.address, self.port, self.token)


def find_identity(
    options: ClusterOptions,
    typed: tuple[str, ...],
    host: Host,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> NodeIdentity:
    """Returns the node that options, else the environment name. Raises LaunchError for what is missing or wrong."""
    named = options.rank is not None and options.master is not None
    facts = ClusterFacts() if named else read_cluster(environ, typed)
    rank = facts.node_rank if options.rank is None else options.rank
    master = options.master or facts.master
    if rank is None or not master:
        raise _incomplete(rank, master, environ, typed)
    if rank < 0:
        raise LaunchError("--rank cannot be used.", seen=f"--rank {rank}", expected="0 on the master, then 1, 2, ...")
    nodes = parse_nodes(options.nodes) if options.nodes else None
    if nodes is None and facts.max_nodes is not None:
        nodes = (facts.min_nodes or facts.max_nodes, facts.max_nodes)
    if rank == 0 and nodes is None:
        raise LaunchError(
            "The master has to know how many machines take part.",
            expected="--nodes 2, or --nodes 1:4 for a job that may run with fewer",
            next_command=retype(typed, {"--nodes": "2"}),
        )
    port = (facts.port or RENDEZVOUS_PORT) if options.port is None else options.port
    if not 0 < port < 65536:
        raise LaunchError("--port cannot be used.", seen=f"--port {port}", expected="a port from 1 to 65535")
    address = _resolved(master, options.join_timeout if facts.source else 0.0, say)
    own = network.source_address(address, port)
    if rank == 0 and not network.is_local_address(address, host.addresses):
        say(f"{master} ({address}) is not an address of this machine: the rendezvous listens on all of them")
    elif rank == 0 and network.is_local_address(address, host.addresses) and not master.startswith("127."):
        own = address
    if address.startswith("127.") and not master.startswith("127."):
        say(f"--master {master} is this machine itself ({address}); rank 0 has another address, seen from elsewhere")
    return NodeIdentity(
        rank,
        nodes,
        master,
        address,
        port,
        own,
        _interface(own, master, host),
        token=_token(options, environ),
        source=facts.source,
        job_id=facts.job_id,
        nproc=facts.nproc_per_node,
    )


def names_machines(options: ClusterOptions, typed: tuple[str, ...], environ: Mapping[str, str]) -> bool:
    """Returns whether several machines are meant: by the options, else by the environment of a scheduler.

    Raises LaunchError for variables that cannot be read, and for several launchers on one machine.
    """
    if any(value is not None for value in (options.rank, options.master, options.nodes)):
        return True
    return (read_cluster(environ, typed).max_nodes or 1) > 1


def with_scheduled_devices(options: Asked, identity: NodeIdentity, host: Host) -> Asked:
    """Returns the options with the scheduler's number of GPUs, if the user chose none and there are more.

    On a machine without GPUs the scheduler's number is that of its cores, which is no number of workers.
    """
    usable = visible_devices(host)
    chosen = options.gpus is not None or options.nproc is not None
    if chosen or identity.nproc is None or not 0 < identity.nproc < len(usable):
        return options
    return replace(options, gpus=",".join(str(index) for index in range(identity.nproc)))


def listening_address(identity: NodeIdentity, host: Host) -> str:
    """Returns the address to listen at: the one that others dial if it is the master's own, else all addresses."""
    is_own = network.is_local_address(identity.address, host.addresses)
    # A name of one's own that leads to loopback is no address for others.
    is_misled = identity.address.startswith("127.") and identity.master != identity.address
    if is_own and not is_misled:
        return identity.address
    return "::" if ":" in identity.address else ""


def make_join_request(identity: NodeIdentity, plan: LaunchPlan, host: Host) -> JoinRequest:
    """Describes this machine for the rendezvous."""
    low, high = identity.nodes or (0, 0)
    nodes = "" if identity.nodes is None else str(high) if low == high else f"{low}:{high}"
    return JoinRequest(
        session=uuid.uuid4().hex,
        rank=identity.rank,
        host=host.name,
        address=identity.own_address,
        interface=identity.interface,
        devices=tuple(device.name or device.kind.upper() for device in plan.devices)[:MOST_DEVICES],
        nproc=plan.nproc_per_node,
        backend=plan.backend,
        torch=host.torch.torch_version,
        cuda=host.torch.cuda_version,
        nccl=nccl_version(),
        code=code_version(),
        nodes=nodes,
        job_id=identity.job_id,
        clock=time.time(),
    )


def nccl_version() -> str:
    """Returns the version of the NCCL package beside torch; empty if there is none."""
    for name in _NCCL_PACKAGES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def code_version() -> str:
    """Returns a hash of this program's own source, which has to be the same on every machine."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in ("trainer", "yolo_launch"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def socket_variables(identity: NodeIdentity, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns variables for gloo and NCCL to use the interface toward the master, except those the user has set."""
    return network.socket_environment(identity.interface, environ, has_infiniband=network.has_infiniband())


def quiet_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns a variable against torch's warnings about names it cannot look up, on which nobody can act."""
    return {} if QUIET_VARIABLE in environ else {QUIET_VARIABLE: "ERROR"}


def _incomplete(rank: int | None, master: str, environ: Mapping[str, str], typed: tuple[str, ...]) -> LaunchError:
    missing = [flag for flag, value in (("--rank", rank), ("--master", master or None)) if value is None]
    return LaunchError(
        "This machine does not know its place in the job.",
        seen=f"no {' and no '.join(missing)}, and no scheduler's variables",
        expected="--rank 0 --master ADDRESS --nodes N on the master, --rank R --master ADDRESS on the others",
        next_command=srun_line(environ, typed)
        or retype(typed, {"--rank": "0", "--master": "192.168.1.1", "--nodes": "2"}),
    )


def _resolved(master: str, timeout_s: float, say: Callable[[str], None]) -> str:
    """Returns the master's address; waits ``timeout_s`` for it: a scheduler may name a master that has none yet."""
    deadline = time.monotonic() + timeout_s
    said = False
    while True:
        try:
            return network.resolve_master(master)
        except LaunchError as error:
            if time.monotonic() >= deadline:
                raise
            if not said:
                say(f"{error.what} Waiting for the scheduler to give it an address.")
                said = True
            time.sleep(1.0)


def _interface(own: str, master: str, host: Host) -> str:
    """Returns the interface of the route to the master; for a name that leads to loopback, the first real one."""
    found = network.interface_of(own, host.addresses)
    if own.startswith("127.") and master != own:
        real = [name for name, each in host.addresses.items() if any(not one.startswith("127.") for one in each)]
        real = [name for name in real if name != "lo" and not name.startswith(("docker", "br-", "veth", "virbr"))]
        return real[0] if real else found
    return found


def _token(options: ClusterOptions, environ: Mapping[str, str]) -> str | None:
    if options.token_file:
        path = Path(options.token_file)
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LaunchError("The token file cannot be read.", seen=f"{path}: {error}") from None
        if not token:
            raise LaunchError("The token file is empty.", seen=str(path), next_command=f"openssl rand -hex 32 > {path}")
        return token
    return (options.token or environ.get(TOKEN_VARIABLE) or "").strip() or None


def describe_identity(identity: NodeIdentity, variables: Mapping[str, str]) -> str:
    """Returns one line with rank, addresses and the variables of the workers' networks."""
    shown = ", ".join(f"{name}={value}" for name, value in variables.items())
    source = f"{identity.source}: " if identity.source else ""
    via = f" via {identity.interface}" if identity.interface else ""
    return (
        f"{source}machine {identity.rank} on {socket.gethostname()} ({identity.own_address or 'no route'}{via}), "
        f"master {identity.master}:{identity.port}" + (f"; {shown}" if shown else "")
    )
