"""Chooses the number of loader processes of each rank by its cores and the shared memory."""

from __future__ import annotations

from yolo_launch.spec import Finding, Host, LaunchRequest

MOST_WORKERS = 8
PREFETCHED_BATCHES = 2
"""Batches that one loader process keeps ready, torch's default."""
BYTES_PER_PIXEL = 3


def choose_workers(
    request: LaunchRequest, host: Host, *, ranks: int, on_cpu: bool, local_batch_size: int
) -> tuple[int, list[Finding]]:
    """Returns loader processes per rank, at most what cores and /dev/shm allow, and findings about the choice."""
    cores_per_rank = max(1, host.cpu_cores // ranks)
    findings: list[Finding] = []
    if request.workers is None:
        # On a CPU the model needs the cores too, so loaders get a quarter of them, rounded down.
        workers = min(MOST_WORKERS, cores_per_rank // 4 if on_cpu else cores_per_rank)
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
    """Returns the most bytes of /dev/shm that loaders hold: prefetched uint8 batches and one on its way to the rank."""
    batch_bytes = local_batch_size * BYTES_PER_PIXEL * image_size * image_size
    return ranks * workers * (PREFETCHED_BATCHES + 1) * batch_bytes


def _fit_shared_memory(
    request: LaunchRequest, host: Host, ranks: int, workers: int, local_batch_size: int
) -> tuple[int, list[Finding]]:
    need = shared_memory_need(workers, ranks, local_batch_size, request.image_size)
    if not host.shm_total_bytes or need <= host.shm_free_bytes:
        return workers, []
    one_worker = shared_memory_need(1, ranks, local_batch_size, request.image_size)
    fitting = min(workers, host.shm_free_bytes // one_worker)
    seen = (
        f"/dev/shm has {size_text(host.shm_free_bytes)} free and {workers} loader processes per rank need about "
        f"{size_text(need)}; {fitting} are used"
    )
    advice = f"in a container: --ipc=host, or --shm-size={max(1, -(-need // 2**30))}g"
    return fitting, [Finding("shm", "warning", seen, advice)]


def size_text(count: int) -> str:
    """Formats bytes for people, as in '1.5 GB' or '112 MB'."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
