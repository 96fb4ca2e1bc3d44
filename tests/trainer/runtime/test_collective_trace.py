"""What torch's flight recorder says: by two real processes, one of which waits in vain, and in NCCL's form."""

from __future__ import annotations

import json
import os

import pytest
from torch._C import _distributed_c10d

from trainer.runtime import collective_trace
from trainer.runtime.collective_trace import UNKNOWN, CollectiveTrace, parse_trace, record_collectives

SCRIPT = """
import os, threading, time
import torch
import torch.distributed as dist
from trainer.runtime.collective_trace import record_collectives, trace_collectives

record_collectives(os.environ)
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(4))
dist.broadcast(torch.ones(2), 0)

def look():
    time.sleep(1.0)
    print(*trace_collectives("gloo"), sep="|", flush=True)
    if rank == 0:
        store.wait(["seen1"])  # it serves the store, so it leaves last
    else:
        store.set("seen1", "1")
    os._exit(0)

rank, store = dist.get_rank(), dist.distributed_c10d._get_default_store()
threading.Thread(target=look, daemon=True).start()
if rank == 0:
    dist.all_reduce(torch.ones(3, 5))  # the other rank never calls it
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(_distributed_c10d, "_dump_fr_trace_json"), reason="torch records Gloo from 2.10 on")
def test_a_rank_that_waits_in_vain_says_in_what(run_ranks, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    waiting, absent = (
        next(line for line in output.splitlines() if "|" in line) for output in run_ranks([str(script)], 2)
    )
    assert waiting == "4|all_reduce number 3 of sizes [[3, 5]]"
    assert absent == "4|"


def entry(number, state, *, name="nccl:all_reduce", **other):
    """As torch 2.10 to 2.15 write it; keys that are not read are left out."""
    known = {"collective_seq_id": number, "profiling_name": name, "state": state, "input_sizes": [[64, 3]]}
    return {**known, "is_p2p": False, "retired": state == "completed", **other}


def written(*entries) -> bytes:
    return json.dumps({"version": "2.10", "entries": entries}).encode()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([entry(7, "completed"), entry(8, "started")], CollectiveTrace(15, "all_reduce number 8 of sizes [[64, 3]]")),
        (
            [entry(7, "completed"), entry(8, "scheduled"), entry(9, "scheduled")],
            (14, "all_reduce number 8 of sizes [[64, 3]]"),
        ),
        ([entry(7, "completed"), entry(8, "scheduled", retired=True)], (16, "")),
        ([entry(3, "started", is_p2p=True), entry(8, "completed")], (16, "")),
        ([], UNKNOWN),
    ],
    ids=["begun", "not begun", "all over", "sent to one", "nothing"],
)
def test_the_oldest_unfinished_collective_is_told(entries, expected):
    assert parse_trace(written(*entries)) == expected


@pytest.mark.parametrize("recorded", [b"", b"{", b"[]", b'{"entries": [{}]}', b'{"entries": [7]}', b"\xff"])
def test_another_form_is_no_failure(recorded):
    assert parse_trace(recorded) == UNKNOWN


def test_a_torch_without_a_recorder_says_nothing(monkeypatch):
    monkeypatch.setattr(collective_trace, "_distributed_c10d", object())
    assert collective_trace.trace_collectives("nccl") == UNKNOWN
    environment = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}
    record_collectives(environment)
    assert environment == {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    assert "TORCH_NCCL_DUMP_ON_TIMEOUT" not in os.environ
