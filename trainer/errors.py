"""Errors that are the user's to mend; each says what failed, what was seen, what was expected and what to type."""

from __future__ import annotations

RELAYED = "relayed"
"""Attribute of an exception that another rank raised first."""


class UserError(Exception):
    """A mistake in input or environment. It is shown without a traceback.

    The four parts are kept apart so that a launcher can lay them out; ``str()`` joins those that are not empty.
    """

    def __init__(self, what: str, *, seen: str = "", expected: str = "", next_command: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.seen = seen
        self.expected = expected
        self.next_command = next_command

    def __str__(self) -> str:
        parts = [self.what]
        if self.seen:
            parts.append(f"Seen: {self.seen}")
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.next_command:
            parts.append(f"Next: {self.next_command}")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, str]:
        """Returns the four parts and the error's kind, for a file that another process reads."""
        return {
            "kind": type(self).__name__,
            "what": self.what,
            "seen": self.seen,
            "expected": self.expected,
            "next_command": self.next_command,
        }


class ConfigError(UserError):
    """An option, hyperparameter or model definition that cannot be used."""


class DeviceError(UserError):
    """A device that was planned and does not work."""


class DataError(UserError):
    """A data set that is missing, empty or mostly unreadable."""


class WeightsError(UserError):
    """A weights file that is missing, damaged or foreign."""


class DiskError(UserError):
    """A disk that does not take what a run has to keep."""
