"""Reads checkpoints of other programs without running what is in them."""
