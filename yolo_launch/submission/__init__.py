"""Writes the batch file or the manifests of a job on a cluster, and hands them over."""

__all__ = ["handover", "job", "kubernetes", "slurm", "submit_options"]
