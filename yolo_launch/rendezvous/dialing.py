"""Connects a node to the rendezvous: dials, greets, and requests its rank."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    JoinAccepted,
    JoinRefused,
    JoinRequest,
    parse,
)

DIAL_S = 3.0
"""How long one attempt to connect may take."""
ANSWER_S = 15.0
"""A master may be busy loading torch, or with many machines at once."""
Explain = Callable[[str], None]


@dataclass(frozen=True)
class RendezvousEndpoint:
    """The address of the rendezvous, and the token that it takes."""

    address: str
    port: int
    token: str | None = None


class NoRendezvous(Exception):
    """No rendezvous answered in time; the text is the last problem."""


def dial(endpoint: RendezvousEndpoint, timeout_s: float, explain: Explain, *, retry_refused: bool = True) -> Channel:
    """Connects, again and again until the time is up, and explains each failure. Raises NoRendezvous.

    Unless ``retry_refused``, a connection that the machine refuses ends this at once.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            return Channel(socket.create_connection((endpoint.address, endpoint.port), min(DIAL_S, max(0.2, left_s))))
        except OSError as error:
            problem = dial_problem(error, endpoint.address, endpoint.port)
            if time.monotonic() >= deadline or (isinstance(error, ConnectionRefusedError) and not retry_refused):
                raise NoRendezvous(problem) from None
        explain(problem)
        time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))


class Handshake:
    """The node's side of a greeting: nonces and, if a token is set, proofs. It reads and sends nothing itself."""

    def __init__(self, endpoint: RendezvousEndpoint) -> None:
        self.rendezvous_id = ""
        self._endpoint = endpoint
        self._mine, self._theirs = new_nonce(), ""
        self._wants_token = False

    def hello(self, greeting: dict[str, Any]) -> dict[str, Any]:
        """Returns the frame that answers the master's first one. Raises FramingError for another program."""
        theirs, token = greeting.get("nonce"), self._endpoint.token
        if greeting.get("protocol") != PROTOCOL or not isinstance(theirs, str):
            raise FramingError(f"protocol {greeting.get('protocol')}, this one speaks {PROTOCOL}")
        self.rendezvous_id, self._theirs = str(greeting.get("rendezvous")), theirs
        self._wants_token = bool(greeting.get("token"))
        shown = proof(token, "member", theirs, self._mine) if token and self._wants_token else ""
        return {"protocol": PROTOCOL, "nonce": self._mine, "proof": shown, "token": bool(token)}

    def raise_for_token(self) -> None:
        """Raises LaunchError if one side has a token and the other has none.

        It is called once the hello is sent: the master shows then whom it refused.
        """
        wants, has = self._wants_token, bool(self._endpoint.token)
        if wants != has:
            raise _refused(self._endpoint, "a token" if wants else "no token", "a token" if has else "none")

    def check(self, answer: dict[str, Any]) -> None:
        """Checks the frame that answers the hello. Raises LaunchError for another token."""
        token = self._endpoint.token
        if token and not is_proof(answer.get("proof"), token, "rendezvous", self._theirs, self._mine):
            raise _refused(self._endpoint, "the master's own token", "another one")

    def authenticators(self) -> tuple[MessageAuthenticator, MessageAuthenticator]:
        """Returns those of the frames that follow: to the master, and from it."""
        of, token = MessageAuthenticator.of, self._endpoint.token
        return of(token, "member", self._theirs, self._mine), of(token, "rendezvous", self._theirs, self._mine)


def greet(channel: Channel, endpoint: RendezvousEndpoint, timeout_s: float = ANSWER_S) -> str:
    """Exchanges nonces and, if a token is set, proofs; returns the rendezvous's id.

    Raises LaunchError for another program or token, and NoRendezvous if the connection ends without an answer.
    """
    handshake = Handshake(endpoint)
    try:
        channel.send(handshake.hello(_expect(channel, timeout_s)))
        handshake.raise_for_token()
        handshake.check(_expect(channel, timeout_s))
    except (EOFError, ConnectionError):
        raise _cut(endpoint) from None
    except (FramingError, OSError) as error:
        raise LaunchError(
            f"What listens on {endpoint.address}:{endpoint.port} is no rendezvous of this yolo-launch.",
            seen=str(error) or type(error).__name__,
            expected="a master of the same version, on its --port",
            exit_code=ExitCode.NOT_JOINED,
        ) from None
    channel.outgoing, channel.incoming = handshake.authenticators()
    return handshake.rendezvous_id


@contextlib.contextmanager
def closing_on_failure(channel: Channel) -> Iterator[None]:
    """Closes the connection if the block raises."""
    try:
        yield
    except BaseException:
        channel.close()
        raise


def request_rank(
    channel: Channel, endpoint: RendezvousEndpoint, join_request: JoinRequest, timeout_s: float = ANSWER_S
) -> dict[str, Any]:
    """Requests the rank; returns the job's description.

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
    """Returns a refusal as an error of this machine."""
    return LaunchError(
        message.what,
        seen=message.seen,
        expected=message.expected,
        next_command=message.next_command,
        exit_code=ExitCode(message.exit_code),
    )


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
