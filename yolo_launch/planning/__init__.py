"""Turns a request and a host into a plan."""

__all__ = ["batch_split", "devices", "loader_workers", "masks", "plan"]
