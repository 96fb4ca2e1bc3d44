"""Turns observations of nodes that are checked together into findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from yolo_launch.cluster_check.connectivity import NO_ANSWER
from yolo_launch.rendezvous.messages import JoinRequest
from yolo_launch.spec import Finding, LaunchPlan, Outcome
from yolo_launch.words import counted

CHECK = "machines"
CLOCKS_APART_S = 2.0
OPEN_PORTS = "open TCP 1024-65535 between the machines, or use --network=host in containers"
SAME_MTU = "large packets do not pass: compare the MTU of both machines in ip link, and that of a tunnel between them"

Seen = Sequence[tuple[int, Finding]]
"""Findings with the rank of the machine that made them."""


def to_master(own: JoinRequest, host: str, address: str, port: int, rendezvous_port: int, problem: str) -> Finding:
    """Returns whether this machine reaches a free port of the master, whose rendezvous it has reached already."""
    if problem:
        return _blocked(own.host, host, port, rendezvous_port, problem)
    return Finding(CHECK, "ok", f"node {own.rank} {own.host} ({own.address}) -> master {_at(address, port)}")


def from_master(own: JoinRequest, other: JoinRequest, rendezvous_port: int, problem: str) -> Finding:
    """Returns whether the master reaches a free port of another machine."""
    port = other.check_port
    if problem:
        return _blocked(own.host, other.host, port, rendezvous_port, problem)
    where = f"node {other.rank} {other.host} {_at(other.address, port)}"
    return Finding(CHECK, "ok", f"master {own.host} ({own.address}) -> {where}")


def versions_and_environments(join_requests: Mapping[int, JoinRequest]) -> list[Finding]:
    """Returns the versions of all machines, since others are refused, and one finding for each machine."""
    one = join_requests[min(join_requests)]
    packages = (("torch", one.torch), ("CUDA", one.cuda), ("NCCL", one.nccl))
    versions = [f"{name} {version}" for name, version in packages if version or name == "torch"]
    found = [
        Finding(CHECK, "ok", f"{', '.join(versions)} and yolo-launch {one.code} on all {len(join_requests)} machines")
    ]
    for rank in sorted(join_requests):
        join_request = join_requests[rank]
        via = f" on {join_request.interface}" if join_request.interface else ""
        devices = ", ".join(dict.fromkeys(join_request.devices))
        workers = f"{counted(join_request.nproc, 'worker')} ({devices})"
        found.append(Finding(CHECK, "ok", f"node {rank} {join_request.host} is {join_request.address}{via}, {workers}"))
    return found


def clocks(join_requests: Mapping[int, JoinRequest], ahead_s: Mapping[int, float]) -> list[Finding]:
    """Returns a warning for each machine whose clock is not the master's."""
    found = []
    for rank, seconds in sorted(ahead_s.items()):
        if abs(seconds) > CLOCKS_APART_S:
            way = "ahead of" if seconds > 0 else "behind"
            text = (
                f"the clock of {join_requests[rank].host} is {abs(seconds):.1f} s {way} that of {join_requests[0].host}"
            )
            found.append(Finding("clock", "warning", text, "chronyc makestep, or timedatectl set-ntp true"))
    return found


def backends(own: JoinRequest, plan: LaunchPlan, host: str, backend: str) -> list[Finding]:
    """Returns a failure for a machine that would train on other devices than the master."""
    if plan.backend == backend:
        return []
    kinds = {"gloo": "the CPU", "nccl": "GPUs"}
    text = f"{own.host} uses {kinds[plan.backend]} and {host} {kinds.get(backend, backend)}: they cannot train together"
    return [Finding(CHECK, "failure", text, "GPUs everywhere, or --gpus cpu everywhere")]


def for_others(findings: Iterable[Finding], host: str) -> list[Finding]:
    """Returns what a machine found on itself and the others should know."""
    by = f"{host}: "
    return [
        found if found.seen.startswith(f"{host} ") else replace(found, seen=by + found.seen)
        for found in findings
        if found.level != "ok"
    ]


def for_reader(seen: Seen, rank: int) -> list[Finding]:
    """Returns the findings of all, without those on one machine itself, which its screen shows already."""
    return [found for by, found in seen if by != rank or found.check in (CHECK, "clock")]


def has_failed(seen: Seen) -> bool:
    """Returns whether some machine is not reached, or cannot take part."""
    return any(found.level == "failure" and found.check == CHECK for _, found in seen)


def of_workers(
    plan: LaunchPlan, outcome: Outcome, answer: Mapping[str, Any] | None, rendezvous_port: int
) -> list[Finding]:
    """Returns the workers' findings: whether machines other than the master reach one another, and the sum over all."""
    blocked = answer["blocked"] if answer is not None else []
    if blocked:
        rows = [_blocked(host, other, port, rendezvous_port, problem) for host, other, port, problem in blocked]
        return [*rows, not_tried()]
    found = [all_reduced(plan, outcome, answer)]
    if answer is not None and plan.nnodes > 2:
        pairs = (plan.nnodes - 1) * (plan.nnodes - 2)
        found.insert(0, Finding(CHECK, "ok", f"the machines other than the master reach one another ({pairs} ways)"))
    return found


def all_reduced(plan: LaunchPlan, outcome: Outcome, answer: Mapping[str, Any] | None) -> Finding:
    """Returns the result of the sum over all workers."""
    who = f"{plan.world_size} workers on {plan.nnodes} machines over {plan.backend}"
    if outcome.kind == "done" and answer is not None:
        speed = answer["bytes"] / answer["seconds"] / 1e6
        text = f"{answer['bytes'] / 1e6:.0f} MB summed in {answer['seconds'] * 1e3:.1f} ms ({speed:.0f} MB/s)"
        return Finding("all-reduce", "ok", f"{who}: {text}, one number in {answer['small_s'] * 1e3:.2f} ms")
    failure = outcome.failure
    cause = outcome.detail or "the workers ended without an answer"
    if failure is not None:
        where = f" on {failure.host}" if failure.host else ""
        cause = f"rank {failure.rank}{where}: {failure.message.strip() or cause}"
    advice = f"{OPEN_PORTS}; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the interface"
    return Finding("all-reduce", "failure", f"{who}: {cause}", advice)


def not_tried() -> Finding:
    """Returns the finding for a sum that was not tried because some machine is not reached."""
    return Finding("all-reduce", "warning", "not tried, because of the failures above")


def _blocked(host: str, other: str, port: int, rendezvous_port: int, problem: str) -> Finding:
    text = f"master port {rendezvous_port} OK, but {host} -> {other}:{port} blocked ({problem})"
    return Finding(CHECK, "failure", text, SAME_MTU if problem == NO_ANSWER else OPEN_PORTS)


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
