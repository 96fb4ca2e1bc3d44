"""Finds the images of a split and reads their labels."""

__all__ = ["label_cache", "labels", "repeats", "report", "scan", "small_boxes", "tables"]
