"""Finds why workers ended or hang, and decides what becomes of the job."""

__all__ = ["causes", "failures", "hangs", "heartbeat_monitor", "outcome", "restart_policy"]
