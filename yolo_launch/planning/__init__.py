"""Turns a request and a host into a plan."""

__all__ = ["devices", "loader_workers", "masks", "plan"]
