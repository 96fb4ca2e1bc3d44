"""Finds the images of a split and reads their labels."""

__all__ = ["label_cache", "report", "scan"]
