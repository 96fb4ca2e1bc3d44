"""Turns files into batches, one stage a module."""

__all__ = [
    "augment",
    "collate",
    "curation",
    "dataset",
    "demo",
    "device_copy",
    "epoch_loader",
    "formats",
    "image_cache",
    "image_format",
    "images",
    "loader",
    "loading",
    "sampler",
    "scan",
    "shared_scan",
    "split_files",
]
