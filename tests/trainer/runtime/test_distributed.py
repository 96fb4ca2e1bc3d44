"""How a rank joins its peers and leaves them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from trainer.runtime.distributed import DistEnv, process_group

GLOO, NCCL = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def calls(monkeypatch):
    """What is asked of torch.distributed, in order; nothing of it happens."""
    made = []
    for name in ("init_process_group", "monitored_barrier", "barrier", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *arguments, name=name, **options: made.append(name))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return made


def fail(*arguments, **options):
    raise RuntimeError("a peer is gone")


@pytest.mark.parametrize(("device", "barrier"), [(GLOO, "monitored_barrier"), (NCCL, "barrier")])
def test_a_block_that_succeeds_ends_with_a_barrier(calls, device, barrier):
    with process_group(DistEnv(world_size=2), device):
        calls.append("work")
    assert calls == ["init_process_group", "work", barrier, "destroy_process_group"]


# Taking NCCL apart may wait for peers, and the failure is told after the block.
@pytest.mark.parametrize(("device", "ends"), [(GLOO, ["destroy_process_group"]), (NCCL, [])])
def test_a_failure_comes_out_of_the_block_without_waiting_for_peers(calls, device, ends):
    with pytest.raises(RuntimeError, match="a peer is gone"):
        with process_group(DistEnv(world_size=2), device):
            fail()
    assert calls == ["init_process_group", *ends]


@pytest.mark.parametrize(("device", "ends"), [(GLOO, ["destroy_process_group"]), (NCCL, [])])
def test_a_barrier_that_fails_is_a_failure_of_the_block(calls, monkeypatch, device, ends):
    for name in ("monitored_barrier", "barrier"):
        monkeypatch.setattr(dist, name, fail)
    with pytest.raises(RuntimeError, match="a peer is gone"):
        with process_group(DistEnv(world_size=2), device):
            pass
    assert calls == ["init_process_group", *ends]


def test_a_lone_rank_joins_nobody(calls):
    with process_group(DistEnv(), NCCL):
        pass
    assert calls == []
