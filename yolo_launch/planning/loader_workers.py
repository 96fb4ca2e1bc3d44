"""Chooses the number of loader processes of each rank by its cores and its batch."""

from __future__ import annotations

from trainer.protocol import default_loader_workers
from yolo_launch.spec import Finding, Host, LaunchPlan, LaunchRequest

NCCL_SEGMENT_BYTES = 9_637_888
"""A segment of /dev/shm that NCCL makes for one direction of one channel, as its own error messages give it."""
NCCL_SEGMENTS_PER_RANK = 4
"""Two channels to the neighbor before and after, where GPUs have no direct way to one another."""


def choose_workers(
    request: LaunchRequest, host: Host, *, ranks: int, on_cpu: bool, local_batch_size: int
) -> tuple[int, list[Finding]]:
    """Returns loader processes per rank, at most what its cores allow, and findings about the choice."""
    cores_per_rank = max(1, host.cpu_cores // ranks)
    findings: list[Finding] = []
    if request.workers is None:
        workers = default_loader_workers(host.cpu_cores, ranks, on_cpu=on_cpu)
    else:
        workers = min(request.workers, cores_per_rank)
        if workers < request.workers:
            text = f"--workers {request.workers} per rank is more than its {cores_per_rank} cores; {workers} are used"
            findings.append(Finding("workers", "warning", text))
    if request.builtin_trainer and request.global_batch_size is not None:
        workers = min(workers, local_batch_size)  # each makes some images of every batch
    return workers, findings


def shared_memory_need(plan: LaunchPlan) -> int:
    """Returns the bytes of /dev/shm that a run of our trainer may need on this machine.

    Its loaders use none of it; NCCL does if GPUs cannot reach one another directly.
    """
    several = plan.backend == "nccl" and plan.nproc_per_node > 1
    return plan.nproc_per_node * NCCL_SEGMENTS_PER_RANK * NCCL_SEGMENT_BYTES if several else 0


def size_text(count: int) -> str:
    """Formats bytes for people, as in '1.5 GB' or '112 MB'."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
