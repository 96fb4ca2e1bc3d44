"""Starts, finds, signals and sweeps the worker processes of one node."""

__all__ = [
    "elastic_agent",
    "environment",
    "files",
    "nonblocking_stream",
    "processes",
    "rank0_output",
    "script_entrypoint",
    "signals",
    "single_worker",
    "torch_preload",
]
