"""Reads data sets as annotation programs write them, one format a module and a row in one table."""

__all__ = ["load"]
