"""Runs many members in one event loop, and measures how long they take to join and to receive a round."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import threading
import time
from typing import Any

from tests.yolo_launch.rendezvous.simulation import DATA, make_join_request
from yolo_launch.rendezvous.client import HEARTBEAT_S, LOOK_S, RendezvousClient
from yolo_launch.rendezvous.dialing import Handshake, RendezvousEndpoint
from yolo_launch.rendezvous.framing import MAX_FRAME_BYTES, MessageAuthenticator, frame_length
from yolo_launch.rendezvous.messages import End, JoinAccepted, Message, Ready, Round, parse

JOIN_S = 60.0
Times = dict[int, tuple[float, float]]
"""Rank -> when its rank was accepted and when it received the round, monotonic seconds."""


class StreamChannel:
    """Carries a RendezvousClient's frames over a connection of an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.outgoing, self.incoming = MessageAuthenticator(), MessageAuthenticator()

    def send(self, message: dict[str, Any]) -> None:
        """Queues a frame."""
        self.writer.write(self.outgoing.pack(message))

    def close(self) -> None:
        """Ends the connection."""
        self.writer.close()

    async def frame(self) -> dict[str, Any]:
        """Returns the next frame."""
        length = frame_length(await self.reader.readexactly(4), MAX_FRAME_BYTES)
        return self.incoming.unpack(await self.reader.readexactly(length))


async def join(endpoint: RendezvousEndpoint, rank: int) -> StreamChannel:
    """Dials, greets and requests a rank, again if the connection is cut without an answer."""
    deadline = time.monotonic() + JOIN_S
    while True:
        try:
            return await _join_once(endpoint, rank)
        except (OSError, EOFError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(random.uniform(0.2, 1.0))


async def _join_once(endpoint: RendezvousEndpoint, rank: int) -> StreamChannel:
    channel = StreamChannel(*await asyncio.open_connection(endpoint.address, endpoint.port))
    try:
        handshake = Handshake(endpoint)
        channel.send(handshake.hello(await channel.frame()))
        handshake.raise_for_token()
        handshake.check(await channel.frame())
        channel.outgoing, channel.incoming = handshake.authenticators()
        channel.send(make_join_request(rank).pack())
        answer = parse(await channel.frame())
        assert isinstance(answer, JoinAccepted), answer
    except BaseException:
        channel.close()
        raise
    return channel


async def take_part(endpoint: RendezvousEndpoint, rank: int, found: Times) -> None:
    """Joins, becomes ready, receives the round and leaves at the end."""
    channel = await join(endpoint, rank)
    joined_at = time.monotonic()
    client = RendezvousClient(channel)  # it is not started: this loop drives it
    client.send(Ready(fingerprint=DATA))
    beating = asyncio.create_task(_beat(client))
    try:
        while not client.gone:
            client.take(await _next(channel))
            while not client.inbox.empty():
                message = client.inbox.get()
                if isinstance(message, Round):
                    found[rank] = (joined_at, time.monotonic())
                if isinstance(message, End):
                    return
    except (OSError, EOFError):
        client.end_of_connection("the master closed the connection")
    finally:
        beating.cancel()
        client.close()


async def _next(channel: StreamChannel) -> Message:
    return parse(await channel.frame())


async def _beat(client: RendezvousClient) -> None:
    while not client.gone:
        for _ in range(round(HEARTBEAT_S / LOOK_S)):
            await asyncio.sleep(LOOK_S)
            client.look()
        client.beat()


def run_members(endpoint: RendezvousEndpoint, ranks: range, found: Times) -> None:
    """Runs members in one event loop until all have left; ``found`` gets their times."""

    async def all_of_them() -> None:
        await asyncio.gather(*(take_part(endpoint, rank, found) for rank in ranks))

    asyncio.run(all_of_them())


def main(port: int, first: int, count: int) -> None:
    """Runs members ``first`` to ``first + count - 1``; prints one JSON line when all have the round."""
    allow_open_files(count + 100)
    found: Times = {}
    ranks = range(first, first + count)
    crowd = threading.Thread(
        target=run_members, args=(RendezvousEndpoint("127.0.0.1", port), ranks, found), daemon=True
    )
    sys.stdin.readline()  # it begins when it is told to
    crowd.start()
    while len(found) < count and crowd.is_alive():
        time.sleep(0.02)
    print(json.dumps(found), flush=True)
    crowd.join(30)


def allow_open_files(number: int) -> None:
    """Raises this process's own limit of open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:]))
