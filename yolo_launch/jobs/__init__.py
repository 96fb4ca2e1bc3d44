"""Decides one training run: configuration, plan, findings and run directory."""

__all__ = ["overview", "resume_changes", "run_directory", "smaller_batch", "training_job"]
