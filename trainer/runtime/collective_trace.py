"""Reads torch's flight recorder: which collective a GPU has not finished, while the host waits for it."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import NamedTuple

from torch._C import _distributed_c10d


class CollectiveTrace(NamedTuple):
    """How far one rank's device has come among its collectives."""

    marks: int
    """2 n after n collectives, one more once the next has begun; -1 if nothing is known."""
    unfinished: str
    """The oldest that is not finished, by name, number and shape; empty if there is none."""


_RECORDED = "64"
"""Collectives that are remembered: more than a step has."""
UNKNOWN = CollectiveTrace(-1, "")


def record_collectives(environment: MutableMapping[str, str]) -> None:
    """Asks for a record, before a process group is made; what the user set stays.

    Torch shall write no files of its own beside it when a collective takes too long.
    """
    prefix = "TORCH_FR" if hasattr(_distributed_c10d, "_dump_fr_trace_json") else "TORCH_NCCL"
    size = "BUFFER_SIZE" if prefix == "TORCH_FR" else "TRACE_BUFFER_SIZE"
    environment.setdefault(f"{prefix}_{size}", _RECORDED)
    environment.setdefault(f"{prefix}_DUMP_ON_TIMEOUT", "0")


def trace_collectives(backend: str) -> CollectiveTrace:
    """Asks the recorder of NCCL, or of Gloo where torch has one (2.10); it records only if the environment asks for it.

    Source: torch's flight recorder, ``TORCH_FR_BUFFER_SIZE`` (before torch 2.9 ``TORCH_NCCL_TRACE_BUFFER_SIZE``).
    """
    dump = getattr(_distributed_c10d, "_dump_nccl_trace_json" if backend == "nccl" else "_dump_fr_trace_json", None)
    return UNKNOWN if dump is None else parse_trace(dump())


def parse_trace(recorded: bytes) -> CollectiveTrace:
    """Reads a recorder's JSON; unknown if it holds no collective, or is of a form that is not known."""
    try:
        entries = [one for one in json.loads(recorded)["entries"] if not one["is_p2p"]]
        for entry in entries:
            if not (entry["retired"] or entry["state"] == "completed"):
                return _unfinished(entry)
        return CollectiveTrace(2 * int(entries[-1]["collective_seq_id"]), "") if entries else UNKNOWN
    except (ValueError, KeyError, TypeError):
        return UNKNOWN


def _unfinished(entry: dict[str, object]) -> CollectiveTrace:
    number = int(str(entry["collective_seq_id"]))
    name = str(entry["profiling_name"]).partition(":")[2]
    has_begun = entry["state"] == "started"
    return CollectiveTrace(2 * (number - 1) + has_begun, f"{name} number {number} of sizes {entry['input_sizes']}")
