"""Reads data and weights from addresses that fsspec knows, and copies results there, with time limits of its own."""

__all__ = ["address", "cache", "mirror", "transfer"]
