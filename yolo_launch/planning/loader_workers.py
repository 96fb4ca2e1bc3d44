"""Chooses the number of loader processes of each rank by its cores and the shared memory."""

from __future__ import annotations

from trainer.protocol import batches_in_shared_memory, default_loader_workers
from yolo_launch.spec import Finding, Host, LaunchRequest

BYTES_PER_PIXEL = 3


def choose_workers(
    request: LaunchRequest, host: Host, *, ranks: int, on_cpu: bool, local_batch_size: int
) -> tuple[int, list[Finding]]:
    """Returns loader processes per rank, at most what cores and /dev/shm allow, and findings about the choice."""
    cores_per_rank = max(1, host.cpu_cores // ranks)
    findings: list[Finding] = []
    if request.workers is None:
        workers = default_loader_workers(host.cpu_cores, ranks, on_cpu=on_cpu)
    else:
        workers = min(request.workers, cores_per_rank)
        if workers < request.workers:
            text = f"--workers {request.workers} per rank is more than its {cores_per_rank} cores; {workers} are used"
            findings.append(Finding("workers", "warning", text))
    if not request.builtin_trainer:
        return workers, findings
    fitting, shm_findings = _fit_shared_memory(request, host, ranks, workers, local_batch_size)
    return fitting, findings + shm_findings


def shared_memory_need(workers: int, ranks: int, local_batch_size: int, image_size: int) -> int:
    """Returns the most bytes of /dev/shm that the uint8 batches of all ranks take."""
    batch_bytes = local_batch_size * BYTES_PER_PIXEL * image_size * image_size
    return ranks * batches_in_shared_memory(workers) * batch_bytes


def _fit_shared_memory(
    request: LaunchRequest, host: Host, ranks: int, workers: int, local_batch_size: int
) -> tuple[int, list[Finding]]:
    needs = [shared_memory_need(n, ranks, local_batch_size, request.image_size) for n in range(workers + 1)]
    need = needs[workers]
    if not host.shm_total_bytes or need <= host.shm_free_bytes:
        return workers, []
    fitting = max(n for n in range(workers + 1) if needs[n] <= host.shm_free_bytes)
    seen = (
        f"/dev/shm has {size_text(host.shm_free_bytes)} free and {workers} loader processes per rank need about "
        f"{size_text(need)}; {fitting} are used"
    )
    advice = f"in a container: --ipc=host, or --shm-size={max(1, -(-need // 2**30))}g"
    return fitting, [Finding("shm", "warning", seen, advice)]


def size_text(count: int) -> str:
    """Formats bytes for people, as in '1.5 GB' or '112 MB'."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
