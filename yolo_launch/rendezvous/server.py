"""Listens on the master in a thread of its own and passes authenticated messages to the Coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.ports import holder_of
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.dispatch import Clock, Dispatcher
from yolo_launch.rendezvous.framing import (
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    PROTOCOL,
    FramingError,
    MessageAuthenticator,
    frame_length,
    is_proof,
    new_nonce,
    proof,
)
from yolo_launch.rendezvous.messages import JoinRefused, JoinRequest, Message, parse
from yolo_launch.spec import Outcome

logger = logging.getLogger(__name__)

HELLO_S = 5.0
"""How long an unauthenticated connection may take to authenticate."""
MOST_UNAUTHENTICATED = 256
"""Connections that are not authenticated yet; one more replaces the oldest, or has to come again."""
YOUNG_S = 2.0
"""Time that an unauthenticated connection is kept: many machines that come at once must not evict one another."""
MOST_UNSENT_BYTES = 4 << 20
TICK_S = 0.1
BACKLOG = 1024
WRONG_TOKEN = "the token is wrong or missing"


class _SocketTransport:
    """Sends over the connections whose ranks were requested; each frame is authenticated if a token is set."""

    def __init__(self) -> None:
        self.writers: dict[int, tuple[asyncio.StreamWriter, MessageAuthenticator]] = {}

    def send(self, connection: int, text: bytes) -> None:
        """Sends a frame, unless the connection has ended or its node takes nothing."""
        writer, authenticator = self.writers.get(connection, (None, None))
        if writer is None or authenticator is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > MOST_UNSENT_BYTES:
            writer.transport.abort()  # it takes nothing: its silence will be noticed
            return
        writer.write(authenticator.pack_text(text))

    def close(self, connection: int) -> None:
        """Closes a connection behind its last frame."""
        writer, _ = self.writers.pop(connection, (None, None))
        if writer is not None:
            writer.close()


class RendezvousServer:
    """A listening rendezvous; ``say`` is called in its thread with lines for the master's console."""

    def __init__(
        self,
        coordinator: Coordinator,
        rendezvous_id: str,
        token: str | None,
        say: Callable[[str], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self.coordinator = coordinator
        self.port = 0
        self.own_address = ""
        """The address at which this machine itself reaches the rendezvous."""
        self._id = rendezvous_id
        self._token = token
        self._say = say
        self._clock = clock
        self._transport = _SocketTransport()
        self._dispatcher = Dispatcher(coordinator, self._transport, say, clock)
        self._loop = asyncio.new_event_loop()
        self._ticking: asyncio.Task[None] | None = None
        self._listening: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)
        self._unauthenticated: dict[int, tuple[asyncio.StreamWriter, float]] = {}
        self._numbered = 0
        self._rejected_said_at = -60.0

    def open(self, address: str, port: int, next_command: str = "") -> None:
        """Starts to listen. Raises LaunchError that names the process that holds the port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port))
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            raise LaunchError(
                f"The rendezvous cannot listen on {address or 'this machine'}:{port}.",
                seen=f"{holder_of(port)} listens on it" if "in use" in str(error) else str(error),
                expected="a free port, the same on every machine",
                next_command=next_command,
                exit_code=ExitCode.ENVIRONMENT,
            ) from None
        listening.setblocking(False)
        self._listening = listening
        self.port = int(listening.getsockname()[1])
        self.own_address = {"": "127.0.0.1", "::": "::1"}.get(address, address)
        self._thread.start()

    def end(self, outcome: Outcome) -> None:
        """Ends the job for every machine, from any thread."""
        with contextlib.suppress(RuntimeError):  # closed already: every node has received it, or none is left
            self._loop.call_soon_threadsafe(self._dispatcher.end, outcome)

    def send(self, message: Message) -> None:
        """Sends a message to every node, from any thread; one that is sent before the end arrives before it."""
        self._loop.call_soon_threadsafe(self._dispatcher.send_all, message)

    def close(self, timeout_s: float = 15.0) -> None:
        """Waits until every node has received the end, then stops listening."""
        if self._thread.is_alive():
            deadline = time.monotonic() + timeout_s
            while not self.coordinator.is_over and time.monotonic() < deadline:
                time.sleep(0.05)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._ticking = self._loop.create_task(self._tick())
            self._loop.run_until_complete(
                asyncio.start_server(self._serve_connection, sock=self._listening, backlog=BACKLOG)
            )
            self._loop.run_forever()
        finally:
            if self._ticking is not None:
                self._ticking.cancel()
            # Conversations end by themselves once their connection has; asyncio complains of canceled ones.
            for writer, _ in [*self._unauthenticated.values(), *self._transport.writers.values()]:
                writer.transport.abort()
            tasks = asyncio.all_tasks(self._loop)
            if tasks:  # a peer that takes nothing must not hold the port
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=2))
            if self._listening is not None:
                self._listening.close()
            self._loop.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._dispatcher.tick()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._numbered += 1
        number, peer = self._numbered, _name_of(writer)
        if not self._has_room():
            writer.transport.abort()
            return
        self._unauthenticated[number] = (writer, self._clock())
        reason = "its connection was closed"
        try:
            join_request, incoming = await asyncio.wait_for(self._authenticate(reader, writer, number), HELLO_S)
            self._dispatcher.on_join_request(number, join_request)
            while number in self._transport.writers:
                self._dispatcher.on_message(number, parse(await _read(reader, incoming, MAX_FRAME_BYTES)))
        except (FramingError, ValueError, asyncio.TimeoutError) as error:
            reason = f"it sent {error}" if str(error) else f"it said nothing for {HELLO_S:g} s"
            self._note_unauthenticated(peer, reason, number)
        except (OSError, EOFError):
            pass
        finally:
            self._unauthenticated.pop(number, None)
            self._transport.writers.pop(number, None)
            self._dispatcher.on_gone(number, reason)
            writer.close()

    def _has_room(self) -> bool:
        if len(self._unauthenticated) < MOST_UNAUTHENTICATED:
            return True
        oldest = next(iter(self._unauthenticated))
        writer, since = self._unauthenticated[oldest]
        if self._clock() - since < YOUNG_S:
            return False
        del self._unauthenticated[oldest]
        writer.transport.abort()
        return True

    async def _authenticate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> tuple[JoinRequest, MessageAuthenticator]:
        """Exchanges nonces and, if a token is set, proofs, then reads the join request."""
        plain, nonce = MessageAuthenticator(), new_nonce()
        greeting = {"rendezvous": self._id, "protocol": PROTOCOL, "nonce": nonce}
        writer.write(plain.pack({**greeting, "token": bool(self._token)}))
        hello = await _read(reader, plain, MAX_HELLO_BYTES)
        theirs = hello.get("nonce")
        if hello.get("protocol") != PROTOCOL or not isinstance(theirs, str) or not theirs.isascii():
            raise FramingError("no greeting of a yolo-launch that this one understands")
        if hello.get("token") and not self._token:
            raise FramingError("a token, and this job has none")
        answer: dict[str, Any] = {"proof": ""}
        if self._token:
            if not is_proof(hello.get("proof"), self._token, "member", nonce, theirs):
                writer.write(plain.pack(JoinRefused(what=WRONG_TOKEN).pack()))
                raise FramingError("a wrong token, or none")
            answer = {"proof": proof(self._token, "rendezvous", nonce, theirs)}
        writer.write(plain.pack(answer))
        incoming = MessageAuthenticator.of(self._token, "member", nonce, theirs)
        message = parse(await _read(reader, incoming, MAX_FRAME_BYTES))
        if not isinstance(message, JoinRequest):
            raise FramingError("something else than a join request")
        self._unauthenticated.pop(number, None)
        self._transport.writers[number] = (writer, MessageAuthenticator.of(self._token, "rendezvous", nonce, theirs))
        return message, incoming

    def _note_unauthenticated(self, peer: str, what: str, number: int) -> None:
        logger.info("the rendezvous dropped %s: %s", peer, what)
        now = self._clock()
        if number not in self._transport.writers and now - self._rejected_said_at > 10:  # a flood of them is one line
            self._rejected_said_at = now
            self._say(f"an unauthenticated connection to the rendezvous port was refused: {peer}, {what}")


async def _read(reader: asyncio.StreamReader, authenticator: MessageAuthenticator, limit: int) -> dict[str, Any]:
    length = frame_length(await reader.readexactly(4), limit)
    return authenticator.unpack(await reader.readexactly(length))


def _name_of(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if peer else "an unknown address"
