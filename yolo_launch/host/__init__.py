"""Reads what one machine has, without torch."""

__all__ = ["inventory", "network", "nvml", "ports", "torch_versions"]
