"""A machine's end of the rendezvous: dialing, the claim, signs of life, and the master's words in a queue."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.network import dial_problem
from yolo_launch.rendezvous.framing import (
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    PROTOCOL,
    Channel,
    FramingError,
    MessageAuthenticator,
    is_proof,
    new_nonce,
    proof,
)
from yolo_launch.rendezvous.messages import (
    CoordinatorHeartbeat,
    JoinAccepted,
    JoinRefused,
    JoinRequest,
    Message,
    NodeHeartbeat,
    Seen,
    Stop,
    parse,
)

logger = logging.getLogger(__name__)

DIAL_S = 3.0
"""How long one attempt to connect may take."""
ANSWER_S = 15.0
"""A master may be busy loading torch, or with many machines at once."""
BEAT_S = 1.0
SILENT_S = 7.0
"""A master that says nothing for so long is lost."""
ASLEEP_S = 2.0

Explain = Callable[[str], None]


@dataclass(frozen=True)
class RendezvousEndpoint:
    """Where the rendezvous is, and what opens it."""

    address: str
    port: int
    token: str | None = None


class NoRendezvous(Exception):
    """No rendezvous answered in time; the text is the last problem."""


class MasterGone(Message):
    """Put into the inbox by the member itself: the connection to the master is lost."""

    reason: str


def dial(endpoint: RendezvousEndpoint, timeout_s: float, explain: Explain, *, patient: bool = True) -> Channel:
    """Connect, again and again until the time is up, saying why it did not work yet. Raises NoLobby.

    Not ``patient``, a machine that answers that nobody listens is believed at once.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            return Channel(socket.create_connection((endpoint.address, endpoint.port), min(DIAL_S, max(0.2, left_s))))
        except OSError as error:
            problem = dial_problem(error, endpoint.address, endpoint.port)
            if time.monotonic() >= deadline or (isinstance(error, ConnectionRefusedError) and not patient):
                raise NoRendezvous(problem) from None
        explain(problem)
        time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))


def greet(channel: Channel, endpoint: RendezvousEndpoint, timeout_s: float = ANSWER_S) -> str:
    """Exchange nonces and, where a token is set, proofs; the rendezvous's id.

    Raises LaunchError for another program or token, and NoLobby where the connection ends without a word.
    """
    try:
        greeting = _expect(channel, timeout_s)
        rendezvous_id, theirs = greeting.get("rendezvous"), greeting.get("nonce")
        if greeting.get("protocol") != PROTOCOL or not isinstance(theirs, str):
            raise FramingError(f"protocol {greeting.get('protocol')}, this one speaks {PROTOCOL}")
        wants_token = bool(greeting.get("token"))
        mine = new_nonce()
        shown = proof(endpoint.token, "member", theirs, mine) if endpoint.token and wants_token else ""
        # A hello that cannot open the door is sent too: the master says then who was turned away.
        channel.send({"protocol": PROTOCOL, "nonce": mine, "proof": shown, "token": bool(endpoint.token)})
        if wants_token != bool(endpoint.token):
            raise _refused(endpoint, "a token" if wants_token else "no token", "a token" if endpoint.token else "none")
        answer = _expect(channel, timeout_s)
        if endpoint.token and not is_proof(answer.get("proof"), endpoint.token, "rendezvous", theirs, mine):
            raise _refused(endpoint, "the master's own token", "another one")
    except (EOFError, ConnectionError):
        raise _cut(endpoint) from None
    except (FramingError, OSError) as error:
        raise LaunchError(
            f"What listens on {endpoint.address}:{endpoint.port} is no rendezvous of this yolo-launch.",
            seen=str(error) or type(error).__name__,
            expected="a master of the same version, on its --port",
            exit_code=ExitCode.NOT_JOINED,
        ) from None
    channel.outgoing = MessageAuthenticator.of(endpoint.token, "member", theirs, mine)
    channel.incoming = MessageAuthenticator.of(endpoint.token, "rendezvous", theirs, mine)
    return str(rendezvous_id)


@contextlib.contextmanager
def closing_on_failure(channel: Channel) -> Iterator[None]:
    """Leave the connection where the block does not come to its end."""
    try:
        yield
    except BaseException:
        channel.close()
        raise


def request_rank(
    channel: Channel, endpoint: RendezvousEndpoint, join_request: JoinRequest, timeout_s: float = ANSWER_S
) -> dict[str, Any]:
    """Ask for the rank; the job's description.

    Raises LaunchError with the refusal, and NoRendezvous if the connection is cut, as happens under many connections.
    """
    try:
        channel.send(join_request.pack())
        while True:
            message = parse(_expect(channel, timeout_s, MAX_FRAME_BYTES))
            if isinstance(message, JoinAccepted):
                return message.job
            if isinstance(message, JoinRefused):
                raise refusal_error(message)
    except (EOFError, ConnectionError):
        raise _cut(endpoint) from None
    except (FramingError, OSError) as error:
        raise LaunchError(
            "The rendezvous does not answer.",
            seen=str(error) or type(error).__name__,
            exit_code=ExitCode.NOT_JOINED,
        ) from None


def refusal_error(message: JoinRefused) -> LaunchError:
    """A refusal as an error of this machine."""
    return LaunchError(
        message.what,
        seen=message.seen,
        expected=message.expected,
        next_command=message.next_command,
        exit_code=ExitCode(message.exit_code),
    )


@dataclass
class RendezvousClient:
    """A connection whose rank was accepted. One thread receives, one sends heartbeats.

    ``on_stop`` is called from the receiving thread as soon as a round is to end, while the main thread may be in C++;
    ``on_seen``, from the same thread, gets what all nodes have found in a cluster check. ``beat`` gives the progress of
    this node's first rank.
    """

    channel: Channel
    beat: Callable[[], NodeHeartbeat] = NodeHeartbeat
    on_stop: Callable[[Stop | MasterGone], None] = lambda message: None
    on_seen: Callable[[Seen], None] = lambda message: None
    inbox: queue.Queue[Message] = field(default_factory=queue.Queue)
    gone: str = ""
    stop: Stop | None = None
    """The last one heard: a round may end before the main thread has begun it."""
    heard_at: float = field(default_factory=time.monotonic)
    _pulse: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), 0.0))
    _closed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to hear and to beat."""
        for target in (self._receive, self._live):
            threading.Thread(target=target, name=f"member{target.__name__}", daemon=True).start()

    def send(self, message: Message) -> None:
        """Say something; a connection that is gone is noticed by the hearing thread."""
        with contextlib.suppress(OSError):
            self.channel.send(message.pack())

    def next(self, timeout_s: float) -> Message | None:
        """The master's next word that is more than a pulse."""
        with contextlib.suppress(queue.Empty):
            return self.inbox.get(timeout=timeout_s)
        return None

    def idle_s(self) -> float:
        """For how long no rank of the job has moved, as far as the master knows."""
        heard_at, idle_s = self._pulse
        return idle_s + time.monotonic() - heard_at

    def close(self) -> None:
        """Leave the connection."""
        self._closed.set()
        self.channel.close()

    def _live(self) -> None:
        while not self._closed.wait(BEAT_S):
            try:
                self.send(self.beat())
            except Exception:  # a machine that cannot say where it is still lives
                logger.exception("no sign of life could be made")
                self.send(NodeHeartbeat())

    def _receive(self) -> None:
        try:
            self._follow()
        except Exception as error:  # nobody else would notice that the master is gone
            logger.exception("the master's word could not be followed")
            self._lose(f"the master's word could not be followed: {error}")

    def _follow(self) -> None:
        looked_at = self.heard_at = time.monotonic()
        while not self._closed.is_set():
            try:
                frame = self.channel.receive(0.5)
                message = parse(frame) if frame is not None else None
            except EOFError:
                return self._break("the master closed the connection")
            except (OSError, FramingError) as error:
                return self._break(f"the connection to the master broke: {error}")
            now = time.monotonic()
            if now - looked_at > ASLEEP_S:  # this process slept; the master is not to blame
                self.heard_at += now - looked_at
            looked_at = now
            if message is not None:
                self.heard_at = now
                if isinstance(message, Stop):
                    self.stop = message
                    self.on_stop(message)
                elif isinstance(message, Seen):
                    self.on_seen(message)
                elif isinstance(message, CoordinatorHeartbeat):
                    self._pulse = (now, message.idle_s)
                else:
                    self.inbox.put(message)
            elif now - self.heard_at > SILENT_S:
                return self._lose(f"no word from the master for {SILENT_S:g} s")
        return None

    def _break(self, reason: str) -> None:
        # The end of the connection is the master's last word, however long this process slept before it heard it.
        self.heard_at = time.monotonic()
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if self._closed.is_set():
            return
        self.gone = reason
        gone = MasterGone(reason=reason)
        try:
            self.on_stop(gone)
        finally:
            self.inbox.put(gone)


def _expect(channel: Channel, timeout_s: float, limit: int = MAX_HELLO_BYTES) -> dict[str, Any]:
    frame = channel.receive(timeout_s, limit)
    if frame is None:
        raise FramingError(f"nothing within {timeout_s:.1f} s")
    return frame


def _cut(endpoint: RendezvousEndpoint) -> NoRendezvous:
    return NoRendezvous(dial_problem(ConnectionResetError(), endpoint.address, endpoint.port))


def _refused(endpoint: RendezvousEndpoint, expected: str, seen: str) -> LaunchError:
    return LaunchError(
        f"The master at {endpoint.address}:{endpoint.port} does not take this machine's token.",
        seen=seen,
        expected=expected,
        next_command="--token-file FILE with the master's token, or YOLO_LAUNCH_TOKEN",
        exit_code=ExitCode.NOT_JOINED,
    )
