"""Decides one training run: configuration, plan, findings and run directory."""

__all__ = [
    "follow",
    "overview",
    "resume_changes",
    "run_directory",
    "run_lock",
    "smaller_batch",
    "sources",
    "training_job",
]
