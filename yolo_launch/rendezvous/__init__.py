"""Lets nodes find each other, agree on one job and keep in touch; nothing is unpickled."""

__all__ = ["admission", "client", "coordinator", "dialing", "dispatch", "framing", "messages", "server"]
