"""Finds what repeats in a data set, counts what it has, and splits it."""

__all__ = ["near_repeats", "overview", "split_choice", "write_lists", "write_yolo"]
