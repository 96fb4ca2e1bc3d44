"""Reads and writes weights of every kind."""

__all__ = ["checkpoint", "inspect", "load"]
