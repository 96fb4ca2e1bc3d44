"""Checks a machine's rank and addresses: from options, else from the scheduler; missing values; tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.host import network
from yolo_launch.host.inventory import inspect_host
from yolo_launch.nodes import identity as node_identity
from yolo_launch.nodes.identity import (
    NodeIdentity,
    describe_identity,
    find_identity,
    listening_address,
    make_join_request,
    socket_variables,
    with_scheduled_devices,
)
from yolo_launch.planning.plan import make_plan
from yolo_launch.request.machine_options import ClusterOptions, MachineOptions
from yolo_launch.spec import Device, Host, LaunchRequest

TYPED = ("yolo-launch", "node")
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[01-04]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "0",
}
PET = {"PET_NNODES": "2:4", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "cells-node-0", "PET_MASTER_PORT": "29400"}


def make_host(**addresses: tuple[str, ...]) -> Host:
    found = {"lo": ("127.0.0.1", "::1"), **addresses}
    return Host("gpu-a", "Linux", (), 8, 1 << 34, 1 << 34, 1 << 33, 1 << 33, 65536, addresses=found)


HOST = make_host(eth0=("192.168.1.7", "fd00::7"))


@pytest.fixture(autouse=True)
def addresses(monkeypatch):
    """Sets the names and routes of a small network."""
    names = {"gpu01": "10.0.0.1", "cells-node-0": "10.1.0.1", "gpu-a": "127.0.1.1", "me": "192.168.1.7"}

    def resolve(name):
        if name in names or name[0].isdigit() or ":" in name:
            return names.get(name, name)
        raise LaunchError(f"The machine {name} cannot be found.")

    monkeypatch.setattr(network, "resolve_master", resolve)
    monkeypatch.setattr(
        network, "source_address", lambda master, port: master if master.startswith("127.") else "192.168.1.7"
    )
    monkeypatch.setattr(network, "has_infiniband", lambda: False)


def find(environ=None, host=HOST, said=None, **values) -> NodeIdentity:
    return find_identity(
        ClusterOptions(**values), TYPED, host, environ or {}, (said if said is not None else []).append
    )


def test_options_alone_say_all():
    identity = find(rank=1, master="192.168.1.1")
    assert (identity.rank, identity.nodes, identity.address, identity.port) == (1, None, "192.168.1.1", 1234)
    assert (identity.own_address, identity.interface, identity.token) == ("192.168.1.7", "eth0", None)
    assert (identity.source, identity.job_id) == ("", "")
    assert (identity.endpoint.address, identity.endpoint.port, identity.endpoint.token) == ("192.168.1.1", 1234, None)


def test_slurm_says_all():
    identity = find(SLURM)
    assert (identity.rank, identity.nodes, identity.master, identity.address) == (2, (4, 4), "gpu01", "10.0.0.1")
    assert (identity.port, identity.source, identity.job_id) == (
        15000 + 1234567 % 10_000,
        "Slurm job 1234567",
        "1234567.0",
    )


def test_the_training_operator_says_all():
    identity = find(PET)
    assert (identity.rank, identity.nodes, identity.address, identity.port) == (1, (2, 4), "10.1.0.1", 29400)


def test_options_win_over_the_scheduler():
    identity = find(SLURM, rank=0, nodes="1:3", port=4711)
    assert (identity.rank, identity.nodes, identity.port, identity.master) == (0, (1, 3), 4711, "gpu01")
    named = find(SLURM, rank=1, master="192.168.1.1")
    assert (named.nodes, named.port, named.source, named.job_id) == (None, 1234, "", "")


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({}, "no --rank and no --master, and no scheduler's variables"),
        ({"rank": 1}, "no --master, and no scheduler's variables"),
        ({"master": "192.168.1.1"}, "no --rank, and no scheduler's variables"),
    ],
)
def test_what_is_missing_is_named(values, missing):
    with pytest.raises(LaunchError, match="does not know its place") as caught:
        find(**values)
    assert caught.value.seen == missing
    assert caught.value.next_command.startswith("yolo-launch node --rank 0 --master")


def test_a_batch_script_of_slurm_is_told_the_srun_line():
    with pytest.raises(LaunchError) as caught:
        find({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[01-02]", "SLURM_JOB_NUM_NODES": "2"})
    assert caught.value.next_command == "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 yolo-launch node"


def test_the_master_has_to_know_how_many_take_part():
    with pytest.raises(LaunchError, match="how many machines") as caught:
        find(rank=0, master="192.168.1.7")
    assert caught.value.next_command == "yolo-launch node --nodes 2"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"rank": -1}, "--rank cannot be used"),
        ({"rank": 1, "nodes": "four"}, "--nodes cannot be used"),
        ({"rank": 1, "port": 0}, "--port cannot be used"),
        ({"rank": 1, "port": 65536}, "--port cannot be used"),
        ({"rank": 1, "port": -5}, "--port cannot be used"),
    ],
)
def test_values_that_cannot_be_are_refused(values, what):
    with pytest.raises(LaunchError, match=what):
        find(master="192.168.1.1", **values)


def test_a_typed_name_that_nobody_knows_is_refused_at_once_and_a_schedulers_waited_for(monkeypatch):
    naps = []
    monkeypatch.setattr(node_identity.time, "sleep", naps.append)
    with pytest.raises(LaunchError, match="nobody cannot be found"):
        find(rank=1, master="nobody")
    assert naps == []
    said = []
    monkeypatch.setattr(node_identity.time, "monotonic", iter([0.0, *range(5)]).__next__)
    with pytest.raises(LaunchError, match="pod-0 cannot be found"):
        find({**PET, "PET_MASTER_ADDR": "pod-0"}, said=said, join_timeout=3)
    assert len(naps) == 3
    assert said == ["The machine pod-0 cannot be found. Waiting for the scheduler to give it an address."]


def test_a_master_behind_a_name_of_its_own_listens_everywhere_and_shows_its_real_interface():
    identity = find(rank=0, master="gpu-a", nodes="2")
    assert identity.address == "127.0.1.1"
    assert listening_address(identity, HOST) == ""
    assert identity.interface == "eth0"


@pytest.mark.parametrize(
    ("master", "listens"),
    [
        ("192.168.1.7", "192.168.1.7"),
        ("me", "192.168.1.7"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.9.9.9", ""),
        ("fd00::7", "fd00::7"),
        ("fd00::99", "::"),
    ],
)
def test_the_rendezvous_listens_where_the_others_dial(master, listens):
    said = []
    identity = find(rank=0, master=master, nodes="2", said=said)
    assert listening_address(identity, HOST) == listens
    is_elsewhere = master in ("10.9.9.9", "fd00::99")
    assert any("is not an address of this machine" in text for text in said) == is_elsewhere


def test_loopback_is_told_to_the_workers_only_where_it_was_typed():
    assert find(rank=0, master="127.0.0.1", nodes="2").interface == "lo"
    docker = make_host(docker0=("172.17.0.1",), eth1=("10.0.0.9",))
    assert find(rank=0, master="gpu-a", nodes="2", host=docker).interface == "eth1"


# ---- tokens


def test_a_token_comes_from_file_option_or_environment_in_that_order(tmp_path):
    path = tmp_path / "token"
    path.write_text("  of the file\n")
    environ = {"YOLO_LAUNCH_TOKEN": "of the environment\n"}
    who = {"rank": 1, "master": "192.168.1.1"}
    assert find(environ, **who, token="typed", token_file=str(path)).token == "of the file"
    assert find(environ, **who, token="typed").token == "typed"
    assert find(environ, **who).token == "of the environment"
    assert find(**who).token is None
    assert find({"YOLO_LAUNCH_TOKEN": ""}, **who).token is None


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\xff"])
def test_a_token_file_without_a_token_is_refused(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LaunchError, match=r"The token file (cannot be read|is empty)\.") as caught:
        find(rank=1, master="192.168.1.1", token_file=str(path))
    assert str(path) in caught.value.seen


def test_no_token_is_ever_described():
    identity = find(rank=1, master="192.168.1.1", token="a secret")
    assert "secret" not in describe_identity(identity, socket_variables(identity, {}))


# ---- what it says of itself


def test_the_description_names_everything_that_was_decided():
    identity = find(SLURM)
    text = describe_identity(identity, socket_variables(identity, {}))
    assert text.startswith("Slurm job 1234567: machine 2 on ")
    assert "(192.168.1.7 via eth0), master gpu01:19567; GLOO_SOCKET_IFNAME=eth0, NCCL_SOCKET_IFNAME==eth0" in text


def test_a_variable_of_the_users_own_stays():
    identity = find(SLURM)
    assert socket_variables(identity, {"GLOO_SOCKET_IFNAME": "ib0"}) == {"NCCL_SOCKET_IFNAME": "=eth0"}


@pytest.mark.parametrize(("nodes", "said"), [("2", "2"), ("1:4", "1:4"), (None, "")])
def test_the_claim_tells_the_number_of_machines_as_it_was_typed(nodes, said):
    host = inspect_host()
    plan = make_plan(LaunchRequest(gpus="cpu", nproc=2, nnodes=2, uneven_batch_ok=True), host)
    identity = find(rank=1, master="192.168.1.1", nodes=nodes)
    join_request = make_join_request(identity, plan, host)
    assert (join_request.nodes, join_request.rank, join_request.nproc) == (said, 1, 2)
    assert len(join_request.devices) == 2
    assert join_request.backend == "gloo"
    assert (join_request.cuda, join_request.nccl) == (host.torch.cuda_version, node_identity.nccl_version())
    assert join_request.torch == host.torch.torch_version
    assert join_request.code == node_identity.code_version()
    assert make_join_request(identity, plan, host).session != join_request.session


# ---- devices


@pytest.mark.parametrize(
    ("nproc", "typed", "gpus"),
    [
        (2, {}, "0,1"),
        (2, {"gpus": "3"}, "3"),
        (2, {"nproc": 1}, None),
        (4, {}, None),
        (9, {}, None),
        (None, {}, None),
    ],
)
def test_the_schedulers_number_of_workers_chooses_gpus_if_the_user_has_not(nproc, typed, gpus):
    host = replace(HOST, devices=tuple(Device("cuda", index) for index in range(4)))
    identity = replace(find(rank=1, master="192.168.1.1"), nproc=nproc)
    options = MachineOptions(**typed)
    assert with_scheduled_devices(options, identity, host) == replace(options, gpus=gpus)


@pytest.mark.parametrize(("master", "is_told"), [("gpu-a", True), ("127.0.0.1", False), ("192.168.1.7", False)])
def test_a_master_that_is_this_machine_itself_is_told(master, is_told):
    said = []
    find(rank=1, master=master, said=said)
    assert any(f"--master {master} is this machine itself" in text for text in said) is is_told
