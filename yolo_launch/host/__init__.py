"""Reads what one machine has, without torch."""

__all__ = ["card_support", "cgroup", "cuda_driver", "inventory", "network", "nvml", "ports", "torch_versions"]
