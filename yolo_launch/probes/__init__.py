"""Measures GPUs, links, disk, data and the largest batch in processes of their own."""

__all__ = ["batch_size", "child", "deep_checks"]
