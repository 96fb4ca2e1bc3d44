"""Checks that the nodes of a job reach one another before it starts."""

__all__ = ["check", "findings"]
