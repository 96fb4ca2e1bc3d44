"""Starts, finds, signals and sweeps the worker processes of one node."""
