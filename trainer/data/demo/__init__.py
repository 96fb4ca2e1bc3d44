"""Draws the embedded data set."""

__all__ = ["dataset"]
