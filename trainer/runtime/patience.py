"""Waits for ranks that work before a collective, for as long as they need: a collective gives up after its timeout.

A waiting rank writes no heartbeats, so that a launcher still sees when the one that works stands still.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import torch.distributed as dist

_LONGEST_PAUSE_S = 0.5
_numbers = itertools.count()


def wait_for_ranks(ranks: Sequence[int], own_rank: int, *, is_done: bool) -> None:
    """Returns once each of ``ranks`` has called this with ``is_done``; every rank calls it, in the same order.

    Raises RuntimeError if the group's store is gone.
    """
    store = dist.distributed_c10d._get_default_store()
    number = next(_numbers)
    if is_done:
        store.set(f"done/{number}/{own_rank}", "1")
    keys, pause_s = [f"done/{number}/{rank}" for rank in ranks], 0.001
    while not store.check(keys):
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
