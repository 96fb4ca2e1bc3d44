"""Starts, finds, signals and sweeps the worker processes of one node."""

__all__ = [
    "elastic_agent",
    "environment",
    "files",
    "processes",
    "script_entrypoint",
    "signals",
    "single_worker",
    "torch_preload",
]
