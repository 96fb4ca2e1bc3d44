"""Reads what one machine has, without torch."""

__all__ = ["cgroup", "inventory", "network", "nvml", "ports", "torch_versions"]
