"""Holds what a format's reader gives: rows of an image, a class, a box, a polygon and the place they stand at."""

__all__ = ["builder", "cache", "tables"]
