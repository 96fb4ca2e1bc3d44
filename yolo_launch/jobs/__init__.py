"""Decides one training run: configuration, plan, findings and run directory."""

__all__ = ["resume_changes", "run_directory", "training_job"]
