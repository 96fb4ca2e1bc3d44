"""Runs the node with rank 0, which offers the job, opens the rendezvous, and takes part like any other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from trainer.errors import UserError
from yolo_launch.diagnosis.outcome import refused_outcome
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.network import is_local_address
from yolo_launch.nodes.agent import NodeAgent
from yolo_launch.nodes.context import NodeContext
from yolo_launch.nodes.events import NodeEvents
from yolo_launch.nodes.identity import NodeIdentity, listening_address
from yolo_launch.nodes.session import NodeSession, refuse_second_master
from yolo_launch.nodes.work import JobEnded, MasterWork
from yolo_launch.rendezvous.admission import JobOffer, RendezvousSettings
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.messages import JoinRequest
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.spec import Host, Outcome, Ready, nobody_waits

OWN_RENDEZVOUS_S = 10.0
"""How long a master may take to reach the rendezvous that it has opened itself."""


class NodeMaster:
    """The master of a job."""

    def __init__(self, context: NodeContext, join_request: JoinRequest, settings: RendezvousSettings) -> None:
        self._context = context
        self._join_request = join_request
        self._settings = settings

    def refuse_second(self) -> None:
        """Raises LaunchError if another master answers at the address that the others dial."""
        identity = self._context.identity
        if not is_local_address(identity.address, self._context.host.addresses):
            refuse_second_master(self._join_request, identity.endpoint)

    def run(self, work: MasterWork, ready: Ready = nobody_waits) -> Outcome:
        """Offers the job and takes part to its end. Call it in the main thread.

        Raises LaunchError for a busy port, and what this node's own part raises.
        """
        context = self._context
        settings = replace(self._settings, foreign=work.foreign)
        offer = work.offer(self._join_request)
        with open_rendezvous(offer, context.identity, context.host, settings, context.status_line.over) as server:
            events = NodeEvents(context.status_line, work.receive_findings)
            endpoint = replace(context.identity.endpoint, address=server.own_address)
            session = NodeSession(self._join_request, endpoint, events)
            session.join(OWN_RENDEZVOUS_S)
            session.introduce(work.introduce(server))
            ready(work.run_dir)
            try:
                return NodeAgent(context, work, session, events).run()
            except UserError as error:
                server.end(refused_outcome(error))
                raise
            except JobEnded as ended:
                server.end(ended.outcome)
                return ended.outcome


def make_settings(
    identity: NodeIdentity,
    *,
    max_restarts: int,
    join_timeout: float,
    rejoin_timeout: float = RendezvousSettings.rejoin_timeout_s,
    join_grace: float = RendezvousSettings.join_grace_s,
) -> RendezvousSettings:
    """Returns settings from the options, with times in seconds. Raises LaunchError for a time below zero."""
    for flag, value in (
        ("--join-timeout", join_timeout),
        ("--rejoin-timeout", rejoin_timeout),
        ("--join-grace", join_grace),
    ):
        if value < 0:
            raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {value:g}", expected="seconds, 0 or more")
    low, high = identity.nodes or (1, 1)
    return RendezvousSettings(
        low,
        high,
        max_restarts=max_restarts,
        join_timeout_s=join_timeout,
        rejoin_timeout_s=rejoin_timeout,
        join_grace_s=join_grace,
    )


@contextmanager
def open_rendezvous(
    offer: JobOffer, identity: NodeIdentity, host: Host, settings: RendezvousSettings, say: Callable[[str], None]
) -> Iterator[RendezvousServer]:
    """Opens a rendezvous, closed when all nodes have received the end. Raises LaunchError for a busy port."""
    coordinator = Coordinator(settings, offer, time.monotonic())
    server = RendezvousServer(coordinator, uuid.uuid4().hex, identity.token, say)
    address = listening_address(identity, host)
    server.open(address, identity.port, "the same command with another --port, on every machine")
    if not identity.token:
        say(
            f"whoever reaches port {identity.port} of this machine can join: "
            "--token-file FILE refuses unauthenticated connections"
        )
    try:
        yield server
    finally:
        server.end(Outcome("master_lost", ExitCode.MASTER_LOST, detail="the master has left"))
        server.close()
