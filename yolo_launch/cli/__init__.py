"""Turns typed words into a request and an outcome into words."""

__all__ = ["main"]
