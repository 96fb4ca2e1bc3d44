"""Validates the configuration of a run."""
