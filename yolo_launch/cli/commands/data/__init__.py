"""Looks at a data set, and writes splits of it."""

__all__ = ["check", "convert", "dedupe", "split"]
