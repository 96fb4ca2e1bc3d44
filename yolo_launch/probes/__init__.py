"""Measures GPUs, links, disk, data and the largest batch in processes of their own."""
