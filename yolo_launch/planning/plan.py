"""Decides the plan of a launch from a request and a host alone, so that tests can plan for any machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trainer.protocol import DEVICE_VARIABLE
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.inventory import is_rank_variable
from yolo_launch.host.torch_versions import check_torch, check_torchvision
from yolo_launch.planning.batch_split import CPU_AUTO_BATCH, BatchSplit, split_batch
from yolo_launch.planning.devices import busy_text, choose_devices, is_idle
from yolo_launch.planning.loader_workers import choose_workers
from yolo_launch.planning.masks import describe_device, mask_environment, visible_devices
from yolo_launch.spec import Device, Finding, Host, LaunchPlan, LaunchRequest, Mode, WorkerCommand
from yolo_launch.words import counted

SMALL_LOCAL_BATCH = 8
"""Up to this local batch, batch norm has too few images, and statistics over all GPUs help."""

_TORCHRUN_PORT = 29500
"""The port that torchrun takes by itself."""


def make_plan(request: LaunchRequest, host: Host, devices: tuple[Device, ...] = ()) -> LaunchPlan:
    """Decides everything that will be started on ``host``, on ``devices`` if they were chosen before.

    Raises LaunchError for a request that cannot work: absent devices, a batch that does not divide, an unsuitable
    torch. A request that works less well than it could gives a finding of the plan.
    """
    findings: list[Finding] = []
    if not devices:
        devices, findings = choose_devices(request, host)
    mode = _choose_mode(request, devices, findings)
    nproc = 1 if mode == "dp" else len(devices)
    _refuse_bad_torch(request, host, devices, mode, findings)
    is_auto = request.global_batch_size is None and devices[0].kind != "cpu"
    if is_auto and mode == "dp":
        raise LaunchError(
            "--batch auto cannot choose for --parallel dp.",
            seen="DataParallel, whose first GPU holds what the others return besides its own share",
            expected="a number, or one worker a GPU, which is faster too",
            next_command="yolo-launch train --batch auto, without --parallel dp",
        )
    split = _split(request, host, devices, is_auto=is_auto)
    findings += _batch_findings(request, split, mode, devices)
    threads = _threads(host, nproc, on_gpu=devices[0].kind == "cuda")
    local_batch_size = split.global_batch_size if mode == "dp" else split.local_batch_size
    workers, worker_findings = choose_workers(
        request, host, ranks=nproc, on_cpu=devices[0].kind == "cpu", local_batch_size=local_batch_size
    )
    findings += worker_findings + _mode_findings(request, mode) + _device_findings(devices, host)
    by_node = (1,) if mode == "dp" else _nproc_by_node(request, devices)
    return LaunchPlan(
        mode=mode,
        nnodes=len(by_node),
        node_rank=request.node_rank,
        nproc_per_node=nproc,
        world_size=sum(by_node),
        global_batch_size=split.global_batch_size,
        local_batch_size=local_batch_size,
        devices=devices,
        backend="nccl" if devices[0].kind == "cuda" else "gloo",
        threads_per_rank=threads,
        workers_per_rank=workers,
        environment=_environment(host, devices, threads, builtin_trainer=request.builtin_trainer),
        removed_environment=tuple(name for name in host.environment if is_rank_variable(name)),
        port=request.port,
        max_restarts=request.max_restarts,
        stall_timeout_s=request.stall_timeout_s,
        findings=tuple(findings),
        batch_is_auto=is_auto,
        first_rank=sum(by_node[: request.node_rank]),
    )


def settle_batch(request: LaunchRequest, host: Host, devices: Sequence[Device]) -> tuple[int, list[Finding]]:
    """Splits the total batch over the workers of all nodes, with findings. Raises LaunchError if it does not divide."""
    mode = _choose_mode(request, devices, [])
    split = _split(request, host, devices, is_auto=False)
    return split.global_batch_size, _batch_findings(request, split, mode, devices)


def plan_facts(plan: LaunchPlan, command: WorkerCommand) -> dict[str, Any]:
    """Returns the plan as JSON values, with the equivalent torchrun command."""
    return {**asdict(plan), "torchrun": torchrun_command(plan, command), "rank_devices": rank_lines(plan)}


def rank_lines(plan: LaunchPlan) -> list[str]:
    """Describes each worker in a line, as in 'rank 0 -> GPU 2 (RTX 3090, GPU-ab12…, 23.5 GB free)'."""
    if plan.mode == "dp":
        return [f"rank 0 -> {', '.join(describe_device(device) for device in plan.devices)}"]
    threads = "1 thread" if plan.threads_per_rank == 1 else f"{plan.threads_per_rank} threads"
    return [
        f"rank {plan.first_rank + local} -> {describe_device(device)}{f' ({threads})' if device.kind == 'cpu' else ''}"
        for local, device in enumerate(plan.devices)
    ]


def torchrun_command(plan: LaunchPlan, command: WorkerCommand, master: str = "MASTER") -> str:
    """Returns the torchrun command that starts the same workers without this launcher's supervision."""
    if plan.nnodes > 1:
        rendezvous = [
            f"--nnodes={plan.nnodes}",
            f"--node_rank={plan.node_rank}",
            f"--master_addr={master}",
            f"--master_port={plan.port or _TORCHRUN_PORT}",
        ]
    elif plan.port:
        rendezvous = ["--nnodes=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{plan.port}"]
    else:
        rendezvous = ["--standalone"]
    return " ".join([*_variables(plan), *_torchrun(plan, command, rendezvous)])


def srun_command(plan: LaunchPlan, command: WorkerCommand, master: str = "MASTER") -> str:
    """Returns the command that starts torchrun on every machine of a Slurm job, with torch's own rendezvous."""
    port = plan.port or _TORCHRUN_PORT
    rendezvous = [f"--nnodes={plan.nnodes}", "--rdzv_backend=c10d", f"--rdzv_endpoint={master}:{port}"]
    machines = f"srun --nodes={plan.nnodes} --ntasks={plan.nnodes} --ntasks-per-node=1"
    return " ".join([*_variables(plan), machines, *_torchrun(plan, command, [*rendezvous, "--rdzv_id=$SLURM_JOB_ID"])])


def _variables(plan: LaunchPlan) -> list[str]:
    """Returns the words of a shell that set and remove variables for a command."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    unset = [word for name in plan.removed_environment for word in ("-u", name)]
    return ["env", *unset, *variables] if unset else variables


def _torchrun(plan: LaunchPlan, command: WorkerCommand, rendezvous: Sequence[str]) -> list[str]:
    words = ["torchrun", *rendezvous, f"--nproc_per_node={plan.nproc_per_node}"]
    if plan.max_restarts:
        words.append(f"--max_restarts={plan.max_restarts}")
    return [*words, *(shlex.quote(word) for word in command.arguments)]


def _choose_mode(request: LaunchRequest, devices: Sequence[Device], findings: list[Finding]) -> Mode:
    if request.parallel == "dp" and request.nnodes > 1:
        raise LaunchError("--parallel dp works inside one machine.", expected="--parallel ddp for several machines")
    if request.parallel == "dp" and devices[0].kind == "cpu":
        findings.append(Finding("parallel", "warning", "--parallel dp needs GPUs; --gpus cpu uses DDP or one worker"))
    elif request.parallel == "dp" and len(devices) > 1:
        return "dp"
    return "ddp" if sum(_nproc_by_node(request, devices)) > 1 else "single"


def _nproc_by_node(request: LaunchRequest, devices: Sequence[Device]) -> tuple[int, ...]:
    return request.nproc_by_node or (len(devices),) * request.nnodes


def _refuse_bad_torch(
    request: LaunchRequest, host: Host, devices: Sequence[Device], mode: Mode, findings: list[Finding]
) -> None:
    found = check_torch(
        host.torch, device_count=len(devices), builtin_trainer=request.builtin_trainer, is_ddp=mode == "ddp"
    )
    found += check_torchvision(host.torch, builtin_trainer=request.builtin_trainer, on_gpu=devices[0].kind == "cuda")
    for finding in found:
        if finding.level == "failure":
            raise LaunchError(
                f"{finding.seen[:1].upper()}{finding.seen[1:]}.",
                seen=f"torch {host.torch.torch_version or 'absent'}",
                next_command=finding.advice,
                exit_code=ExitCode.ENVIRONMENT,
            )
        if finding.level == "warning":
            findings.append(finding)


def _split(request: LaunchRequest, host: Host, devices: Sequence[Device], *, is_auto: bool) -> BatchSplit:
    # DataParallel scatters over its devices, so the total has to divide there too.
    shares = sum(_nproc_by_node(request, devices))
    if is_auto or not request.builtin_trainer:
        return BatchSplit(shares, 1)
    batch = CPU_AUTO_BATCH if request.global_batch_size is None else request.global_batch_size
    usable = visible_devices(host)
    positions = [str(usable.index(device)) if device in usable else "cpu" for device in devices]
    return split_batch(request, batch, shares, devices, positions)


def _batch_findings(request: LaunchRequest, split: BatchSplit, mode: Mode, devices: Sequence[Device]) -> list[Finding]:
    found = []
    total, on_cpu = split.global_batch_size, devices[0].kind == "cpu"
    if not request.builtin_trainer:
        return []
    if request.global_batch_size is None:
        text = f"--batch auto takes {CPU_AUTO_BATCH} on a CPU, which has no GPU memory to measure"
        measured = "--batch auto is measured on the smallest chosen GPU when the run starts"
        found.append(Finding("batch", "ok", text if on_cpu else measured))
    if split.grown_from is not None:
        shares = sum(_nproc_by_node(request, devices))
        text = f"the default batch {split.grown_from} does not divide over {shares} devices; {total} is used"
        found.append(Finding("batch", "warning", text, f"choose it yourself: --batch {total}"))
    if total % split.local_batch_size:
        text = f"batch {total} is split as evenly as possible: at most {split.local_batch_size} images a worker"
        found.append(Finding("batch", "ok", text))
    is_small = request.global_batch_size is not None and split.local_batch_size <= SMALL_LOCAL_BATCH
    if mode == "ddp" and is_small and not request.sync_bn:
        text = f"each {'worker' if on_cpu else 'GPU'} gets {split.local_batch_size} images, few for batch norm"
        found.append(Finding("batch", "warning", text, "add --sync-bn, or raise --batch"))
    return found


def _mode_findings(request: LaunchRequest, mode: Mode) -> list[Finding]:
    found = []
    if mode == "dp":
        text = "DataParallel is slow and cannot train faster than DDP on the same GPUs"
        found.append(Finding("parallel", "warning", text, "leave --parallel dp out"))
    if request.sync_bn and mode != "ddp":
        text = "--sync-bn does nothing with one worker: there is nobody to share statistics with"
        found.append(Finding("sync-bn", "warning", text))
    return found


def _device_findings(devices: Sequence[Device], host: Host) -> list[Finding]:
    found = []
    if devices[0].kind == "cpu" and len(devices) > host.cpu_cores:
        seen = f"{len(devices)} workers share {counted(host.cpu_cores, 'core')}, and wait for one another"
        found.append(Finding("workers", "warning", seen, f"--nproc {host.cpu_cores}"))
    gpus = [device for device in devices if device.kind == "cuda"]
    kinds = sorted({(device.name, device.memory_total_bytes >> 30) for device in gpus})
    if len({name for name, _ in kinds}) > 1 or (kinds and kinds[-1][1] > kinds[0][1] * 1.2):
        slowest = min(gpus, key=lambda device: (device.compute_capability or (0, 0), device.memory_total_bytes))
        text = f"mixed cards: every one gets the same batch, so {describe_device(slowest)} sets the pace"
        found.append(Finding("devices", "warning", text, "leave the slower card out, or accept its pace"))
    for device in gpus:
        if not is_idle(device):
            text = f"in use: {busy_text(device)}"
            advice = "--gpus idle takes the GPUs that nobody uses; otherwise a lower --batch may be needed"
            found.append(Finding("devices", "warning", text, advice))
        if device.throttled:
            text = f"GPU {device.index} runs below its clock: {device.throttled}"
            found.append(Finding("devices", "warning", text, "check cooling and the power limit"))
    return found


def _threads(host: Host, nproc: int, *, on_gpu: bool) -> int:
    """Returns the threads of each rank: the user's setting, else an equal share of the cores, or 1 beside a GPU.

    There the loader processes need the cores, and what is left to the host are small sums, which threads slow down.
    """
    given = host.environment.get("OMP_NUM_THREADS", "").split(",")[0]
    if given.isdigit() and int(given) > 0:
        return int(given)
    return 1 if on_gpu else max(1, host.cpu_cores // nproc)


def _environment(host: Host, devices: Sequence[Device], threads: int, *, builtin_trainer: bool) -> dict[str, str]:
    """Returns the variables of every worker, set before torch loads there; the user's own thread settings stay."""
    given = host.environment
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in given}
    if builtin_trainer:
        environment[DEVICE_VARIABLE] = devices[0].kind
    # Threads that spin at a barrier slow a shared machine up to fourfold; threads that sleep do not.
    if "GOMP_SPINCOUNT" not in given and "OMP_WAIT_POLICY" not in given:
        environment["GOMP_SPINCOUNT"] = "0"
    return environment | mask_environment(devices, host, by_index=not builtin_trainer)
