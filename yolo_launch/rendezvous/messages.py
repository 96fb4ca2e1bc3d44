"""Holds the messages between nodes and the rendezvous: validated, size-limited values, never code."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from trainer.protocol import EXIT_USAGE
from yolo_launch.diagnosis.outcome import NodeReport
from yolo_launch.rendezvous.framing import FramingError
from yolo_launch.spec import Finding, Outcome

MOST_TEXT = 20_000
MOST_NODES = 4096
MOST_DEVICES = 1024
MOST_KINDS = 4
StopKind = Literal["failed", "lost", "stalled", "join", "save"]
Short = Annotated[str, Field(max_length=300)]
"""A name or a sentence: what is put together of several must still fit into one text."""


class Message(BaseModel):
    """One frame. Its field ``type`` is the class's name."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=MOST_TEXT)

    def pack(self) -> dict[str, Any]:
        """Returns JSON values, with texts cut to what the receiver takes: dataclasses do not check theirs when made."""
        values: dict[str, Any] = _fitting(self.model_dump(mode="json"))
        return values


class JoinRequest(Message):
    """Requests a node's rank and describes the node."""

    type: Literal["JoinRequest"] = "JoinRequest"
    session: Short
    """Of this launcher process, so that it is known again after its connection broke."""
    rank: int = Field(ge=0)
    host: Short
    address: Short = ""
    interface: Short = ""
    devices: tuple[Short, ...] = Field((), max_length=MOST_DEVICES)
    nproc: int = Field(ge=1, le=MOST_DEVICES)
    backend: Short = ""
    """'nccl' or 'gloo', as its workers would use."""
    torch: Short = ""
    cuda: Short = ""
    nccl: Short = ""
    code: Short = ""
    """Version and hash of yolo-launch itself."""
    nodes: Short = ""
    """'2' or '1:4' as typed there, or nothing."""
    job_id: Short = ""
    """The scheduler's, or nothing."""
    clock: float = 0.0
    """Seconds since the epoch when it was sent."""
    check_port: int = Field(0, ge=0, le=65535)
    """In a cluster check, the port at which it answers the master; 0 if it came to train."""

    @property
    def label(self) -> str:
        """Returns a text such as '1 gpu-b (10.0.0.2, 2x A100)'."""
        kinds = Counter(self.devices).most_common(MOST_KINDS)
        facts = [fact for fact in (self.address, *(f"{count}x {name}" for name, count in kinds)) if fact]
        label = f"{self.rank} {self.host}" + (f" ({', '.join(facts)})" if facts else "")
        # It is printed on every terminal of the job.
        return "".join(sign if sign.isprintable() else "?" for sign in label)


class Ready(Message):
    """The machine has looked at the job and at its own copy of the data."""

    type: Literal["Ready"] = "Ready"
    fingerprint: str = ""


class JoinRefused(Message):
    """The machine cannot do the job, in the four parts of an error."""

    type: Literal["JoinRefused"] = "JoinRefused"
    what: str
    seen: str = ""
    expected: str = ""
    next_command: str = ""
    exit_code: int = EXIT_USAGE


class Seen(Message):
    """Holds what a machine has found in a cluster check; from the master, what all have found."""

    type: Literal["Seen"] = "Seen"
    findings: tuple[tuple[int, Finding], ...] = Field((), max_length=MOST_NODES)
    """Each with the rank of the machine that found it."""


class NodeHeartbeat(Message):
    """The node lives, and its first rank is here."""

    type: Literal["NodeHeartbeat"] = "NodeHeartbeat"
    phase: str = ""
    epoch: int = 0
    step: int = 0


class StoreReady(Message):
    """Machine 0 serves the store of a round at this port."""

    type: Literal["StoreReady"] = "StoreReady"
    round: int
    port: int = Field(ge=1, le=65535)


class FailureNotice(Message):
    """Something ends a round on this machine; its report follows when its workers are gone."""

    type: Literal["FailureNotice"] = "FailureNotice"
    round: int
    kind: Literal["failed", "stalled"]


class Report(Message):
    """Holds how a round ended on one node."""

    type: Literal["Report"] = "Report"
    round: int
    report: NodeReport


class Leave(Message):
    """The machine goes on purpose."""

    type: Literal["Leave"] = "Leave"
    reason: Short = ""


class JoinAccepted(Message):
    """The rank is the machine's; this is the job."""

    type: Literal["JoinAccepted"] = "JoinAccepted"
    job: dict[str, Any]


class Roster(Message):
    """Holds the machines that have joined and those that are missing, as text."""

    type: Literal["Roster"] = "Roster"
    text: str
    left_s: float = 0.0


class Round(Message):
    """Start the workers."""

    type: Literal["Round"] = "Round"
    number: int
    members: tuple[tuple[int, int], ...] = Field(max_length=MOST_NODES)
    """Machine rank and number of workers, in order."""
    batch_size: int = Field(ge=1)
    even: bool
    """Whether the batch has to divide: at a fresh start."""


class Store(Message):
    """Holds the port at which the workers of a round meet, on the master."""

    type: Literal["Store"] = "Store"
    round: int
    port: int = Field(ge=1, le=65535)


class Stop(Message):
    """End the round's workers: because of a failure or a loss elsewhere, for a look at a stall, or to let others in."""

    type: Literal["Stop"] = "Stop"
    round: int
    kind: StopKind
    reason: str = ""


class LogLine(Message):
    """One line for every console."""

    type: Literal["LogLine"] = "LogLine"
    text: str


class End(Message):
    """The job is over."""

    type: Literal["End"] = "End"
    outcome: Outcome


class CoordinatorHeartbeat(Message):
    """The master lives."""

    type: Literal["CoordinatorHeartbeat"] = "CoordinatorHeartbeat"
    idle_s: float = 0.0
    """For how long no machine's ranks have moved."""


_FromNode = JoinRequest | Ready | JoinRefused | Seen | NodeHeartbeat | StoreReady | FailureNotice | Report | Leave
_FromCoordinator = JoinAccepted | Roster | Round | Store | Stop | LogLine | End | CoordinatorHeartbeat
_ANY: TypeAdapter[Message] = TypeAdapter(Annotated[_FromNode | _FromCoordinator, Field(discriminator="type")])


def parse(frame: dict[str, Any]) -> Message:
    """Returns the message in a frame. Raises FramingError for anything else."""
    try:
        return _ANY.validate_python(frame)
    except ValidationError as error:
        first, named = error.errors()[0], str(frame.get("type"))[:40]
        if first["type"].startswith("union_tag"):
            raise FramingError(f"an unknown message {named!r}") from None
        raise FramingError(f"a {named} that is not valid: {first['msg']}") from None


def clipped(text: str) -> str:
    """Returns the end of a long text, which is where an exception is."""
    return text if len(text) <= MOST_TEXT else "..." + text[-MOST_TEXT + 3 :]


def _fitting(value: Any) -> Any:
    if isinstance(value, str):
        return clipped(value)
    if isinstance(value, dict):
        return {name: _fitting(inner) for name, inner in value.items()}
    return [_fitting(inner) for inner in value] if isinstance(value, (list, tuple)) else value
