"""Reads what one machine has, without torch."""

__all__ = ["cgroup", "cuda_driver", "inventory", "network", "nvml", "ports", "torch_versions"]
