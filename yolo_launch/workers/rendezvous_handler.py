"""Answers the elastic agent's rendezvous at once: each agent runs the workers of one machine and meets no other.

Ranks are assigned by the launcher, on several machines by the coordinator, so the agent's store lives in memory.
torch's own c10d handler would open a server on every interface, and unpickle what any client writes into it.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.distributed.elastic import rendezvous
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.utils.distributed import get_free_port

BACKEND = "yolo-launch"


class OneNode(RendezvousHandler):
    """Answers at once: one agent, rank 0 of 1. ``address`` is that at which rank 0 serves the workers' store."""

    def __init__(self, run_id: str, address: str, port: int | None) -> None:
        self._run_id = run_id
        self._address = address
        self._port = port
        self._closed = False

    def get_backend(self) -> str:
        """Returns the name under which torch finds the handler."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Returns False: the agent's store is in memory, so workers cannot share it."""
        return False

    def next_rendezvous(self) -> Any:
        """Returns the store, rank 0 and size 1; from torch 2.4 on with the address at which workers meet."""
        store = dist.HashStore()
        if not hasattr(rendezvous, "RendezvousInfo"):
            return store, 0, 1
        meeting = rendezvous.RendezvousStoreInfo(self._address, self._port or get_free_port())  # type: ignore[no-untyped-call]
        return rendezvous.RendezvousInfo(store, 0, 1, meeting)

    def is_closed(self) -> bool:
        """Returns whether the agent has ended."""
        return self._closed

    def set_closed(self) -> None:
        """Marks the agent as ended."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Returns 0: no other agent ever joins."""
        return 0

    def get_run_id(self) -> str:
        """Returns the name of the attempt."""
        return self._run_id

    def shutdown(self) -> bool:
        """Returns True: nothing has to be shut down."""
        return True


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    port = parameters.get_as_int("port")
    return OneNode(parameters.run_id, str(parameters.get("address")), port)


def register() -> None:
    """Registers the handler with torch, once."""
    if BACKEND not in rendezvous_handler_registry._registry:
        rendezvous_handler_registry.register(BACKEND, _create)
