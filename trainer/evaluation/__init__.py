"""Measures how good a model is: matching, average precision, validation over ranks, and its pictures."""

__all__ = ["evaluator", "metrics", "plot_boxes", "plots", "validator"]
