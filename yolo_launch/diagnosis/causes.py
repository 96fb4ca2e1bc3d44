"""Holds known causes of failures: the meaning of exit codes, exceptions that are only consequences, and hints."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.protocol import OUT_OF_GPU_MEMORY
from yolo_launch.spec import Device, GpuProcess, LaunchPlan, RankFailure

CONSEQUENCES = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused"
    r"|Application timeout caused pair closure|Timed out waiting \d+ms for|gloo.*[Tt]imed? ?out"
    r"|NCCL communicator was aborted|ncclRemoteError|remote process exited"
    r"|Watchdog caught collective operation timeout|Connection was likely closed|failed to recv"
    r"|monitoredBarrier|failed to pass monitoredBarrier|recvValueWithTimeout|wait timeout after \d+ms"
    r"|Timed out after \d+ seconds waiting for clients|SocketTimeout|client socket has timed out"
)
"""What an exception of torch's reads when a collective ends because a peer is gone."""
TORCH_ERRORS = ("RuntimeError", "DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
"""Types of such exceptions."""

PORT_CLASH = re.compile(r"EADDRINUSE|[Aa]ddress already in use|failed to (?:bind|listen)")


def is_consequence(message: str, by_torch: bool | None = None) -> bool:
    """Returns whether an exception only shows that a peer is gone: one that torch raised, in such words.

    ``message`` begins with the exception's type, which decides if nobody says who raised it.
    """
    if by_torch is None:
        by_torch = message.partition(":")[0].rpartition(".")[2] in TORCH_ERRORS
    return by_torch and CONSEQUENCES.search(message) is not None and PORT_CLASH.search(message) is None


def describe_exit(exit_code: int) -> str:
    """Returns the meaning of an exit code as text; negative codes are signals."""
    meanings = {
        -signal.SIGKILL: "killed by SIGKILL",
        -signal.SIGBUS: "killed by SIGBUS, a bus error: most often /dev/shm was full",
        -signal.SIGABRT: "aborted (SIGABRT): most often a collective that failed or a C++ exception",
        -signal.SIGSEGV: "crashed with a segmentation fault (SIGSEGV)",
        -signal.SIGILL: "stopped at an instruction that this CPU does not know (SIGILL)",
        -signal.SIGFPE: "crashed with an arithmetic error (SIGFPE)",
        -signal.SIGTERM: "ended by a SIGTERM that was not the launcher's",
        -signal.SIGINT: "ended by a SIGINT that was not the launcher's",
    }
    if exit_code in meanings:
        return meanings[exit_code]
    if exit_code < 0:
        try:
            return f"ended by {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"ended by signal {-exit_code}"
    if exit_code > 128 and exit_code - 128 in {int(number) for number in signal.Signals}:
        name = signal.Signals(exit_code - 128).name
        return f"ended with exit code {exit_code}, as a shell says of a program that {name} ended"
    return f"ended with exit code {exit_code}"


@dataclass(frozen=True)
class Facts:
    """Holds what was read from the host after a failure."""

    oom_kills: int = 0
    """How often the kernel ran out of memory and killed a process while the job ran."""
    shm_free_bytes: int | None = None
    logs_disk_is_full: bool = False
    """Whether the disk of the worker's log takes nothing any more: then its own words are lost."""
    gpu_processes: tuple[GpuProcess, ...] = ()
    """Others on the failed rank's GPU."""
    device: Device | None = None
    global_batch_size: int = 0
    """Of our trainer; 0 for a script."""
    world_size: int = 1


Hint = str | Callable[[Facts], str]
DISK_FULL = "the disk is full: free some space, or --project DIR"


def hint_for(failure: RankFailure, facts: Facts) -> str:
    """Returns one sentence on what to do, for the first known cause that fits; empty for an unknown one."""
    text = f"{failure.message}\n{failure.traceback[-4000:]}"
    # A shell, or a program that started the one that was killed, says it with a number above 128.
    exit_code = 128 - failure.exit_code if failure.exit_code > 128 else failure.exit_code
    for pattern, exit_codes, hint in _KNOWN:
        if exit_code in exit_codes or (pattern and re.search(pattern, text)):
            return hint if isinstance(hint, str) else hint(facts)
    return DISK_FULL if facts.logs_disk_is_full else ""


def look_up_facts(failure: RankFailure, plan: LaunchPlan, oom_kills: int, *, foreign: bool = False) -> Facts:
    """Reads from the host what a hint needs; what cannot be read is left out."""
    device = plan.devices[failure.local_rank] if 0 <= failure.local_rank < len(plan.devices) else None
    processes: Sequence[GpuProcess] = ()
    if device is not None and device.kind == "cuda" and re.search(OUT_OF_GPU_MEMORY, failure.message):
        from yolo_launch.host.nvml import read_gpus

        processes = next((gpu.processes for gpu in read_gpus().devices if gpu.uuid == device.uuid), device.processes)
    shm = Path("/dev/shm")
    return Facts(
        oom_kills=oom_kills,
        shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
        logs_disk_is_full=_is_full(failure.log_path),
        gpu_processes=tuple(processes),
        device=device,
        global_batch_size=0 if foreign else plan.global_batch_size,
        world_size=plan.world_size,
    )


def _is_full(log_path: str) -> bool:
    try:
        return bool(log_path) and shutil.disk_usage(Path(log_path).parent).free == 0
    except OSError:
        return False


def _killed(facts: Facts) -> str:
    if facts.oom_kills:
        return (
            "the host ran out of memory and the kernel killed the worker: fewer --workers, no --cache ram, "
            "or more memory for the container"
        )
    return (
        "nothing here says who sent it; most often the host or container was out of memory (see `dmesg -T`, or the "
        "scheduler's log): try fewer --workers and no --cache ram"
    )


def _shm(facts: Facts) -> str:
    free = "" if facts.shm_free_bytes is None else f" ({facts.shm_free_bytes / 2**20:.0f} MB are free now)"
    return f"/dev/shm is too small for the loaders{free}: docker run --shm-size=8g or --ipc=host, or fewer --workers"


def _gpu_memory(facts: Facts) -> str:
    name = facts.device.name if facts.device is not None and facts.device.name else "this GPU"
    others = ", ".join(
        f"PID {one.pid} ({one.user}: {one.command[:60]}, {one.memory_bytes / 2**30:.1f} GB)"
        for one in facts.gpu_processes
    )
    shared = f"; others use it too: {others}" if others else ""
    if fewer := halved_batch(facts.global_batch_size, facts.world_size):
        kept = f"--batch {fewer} --nbs {facts.global_batch_size}, which learns from as many images an update"
        return f"{name} is full{shared}: {kept}; a smaller --imgsz; or --batch auto"
    return f"{name} is full{shared}: a smaller --batch or --imgsz, or --batch auto"


def halved_batch(global_batch_size: int, world_size: int) -> int:
    """Returns half a total batch, in equal shares of whole images; 0 if there is no smaller one."""
    half = global_batch_size // 2 // world_size * world_size
    return half if half >= world_size else 0


_KNOWN: tuple[tuple[str, tuple[int, ...], Hint], ...] = (
    (OUT_OF_GPU_MEMORY, (), _gpu_memory),
    (r"Bus error|unable to (?:open|mmap|allocate) shared memory|/torch_\d+_\d+.*No space left", (-7,), _shm),
    (r"(?:DataLoader worker|loader process).*\(pid.*killed by signal: Killed", (), _killed),
    (r"MemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate", (), _killed),
    (r"No space left on device|Disk quota exceeded", (), DISK_FULL),
    (r"Too many open files|received 0 items of ancdata", (), "raise the limit first: ulimit -n 65536"),
    (
        r"device-side assert",
        (),
        "an index was out of range on the GPU, often a class id: CUDA_LAUNCH_BLOCKING=1 shows where",
    ),
    (
        r"uncorrectable ECC|GPU is lost|fallen off the bus|CUDA error: (?:unknown|unspecified launch|misaligned)",
        (),
        "the GPU or its driver failed: see `dmesg | grep Xid`, then yolo-launch doctor --deep",
    ),
    (
        r"driver version is insufficient|no kernel image is available|driver .{0,40}is too old",
        (),
        "this torch was built for another driver or GPU: yolo-launch doctor names the versions",
    ),
    (
        r"illegal memory access|CUDA error: an illegal instruction",
        (),
        "a GPU kernel left its memory: CUDA_LAUNCH_BLOCKING=1 shows where, yolo-launch doctor --deep if the card fails",
    ),
    (
        r"busy or unavailable",
        (),
        "the GPU belongs to one process alone (nvidia-smi -q -d COMPUTE shows the mode), or hangs",
    ),
    (
        r"system not yet initialized|error 802",
        (),
        "the fabric manager of this machine's NVSwitch does not run: systemctl status nvidia-fabricmanager",
    ),
    (r"Duplicate GPU detected", (), "two workers share a GPU: see yolo-launch plan"),
    (r"NCCL.*(?:shm|shared memory)|/dev/shm/nccl", (), _shm),
    (r"invalid device ordinal", (), "there are more workers than visible GPUs: see yolo-launch plan"),
    (
        r"NCCL|ncclSystemError|ncclUnhandledCudaError",
        (),
        (
            "the GPUs cannot talk to one another: yolo-launch doctor times an all-reduce with and without "
            "peer-to-peer; NCCL_DEBUG=INFO says more, NCCL_P2P_DISABLE=1 is the usual way out"
        ),
    ),
    (
        r"Unable to find (?:address|interface)|[Nn]o socket interface found",
        (),
        "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names no interface of this machine; gloo takes one name, without ^",
    ),
    (PORT_CLASH.pattern, (), "another process took the port: leave --port out, or name a free one"),
    (
        r"FileNotFoundError|No such file or directory|(?:[Ff]ile|[Dd]ataset) not found",
        (),
        "the path is looked for from the folder where the launcher was started",
    ),
    (r"PermissionError|Permission denied", (), "this user may not read or write that path"),
    (
        r"ModuleNotFoundError|No module named",
        (),
        "the package is missing from the environment that runs the launcher; nothing is installed for you",
    ),
    (
        r"[Nn]on-?finite|\bNaN\b|\bnan\b.*loss|loss.*\bnan\b",
        (),
        "the loss is not a number: a lower --set lr0=..., or --amp off on older GPUs",
    ),
    (
        r"unrecognized arguments: --local[-_]rank",
        (),
        "the script predates torchrun: let it read LOCAL_RANK from the environment",
    ),
    (
        r"error: (?:unrecognized arguments|the following arguments are required|argument \S+:|ambiguous option)",
        (),
        "the script refused its own arguments, which are the words behind it",
    ),
    (
        r"insufficient CUDA devices|Invalid CUDA '--device",
        (),
        (
            "the script looks for other GPUs than it was given: leave its own --device out, and start no more workers "
            "than there are GPUs (--nproc 1 on a CPU)"
        ),
    ),
    (
        r"urlopen error|URLError|Failed to resolve|NameResolutionError|Temporary failure in name resolution",
        (),
        "the worker wanted to download something and this machine cannot reach it: put the file in place first",
    ),
    (CONSEQUENCES.pattern, (), "a peer went away without a word of its own: look at the logs of the others"),
    ("", (-9,), _killed),
    ("", (-6,), "the lines above the abort in the log name it; with NCCL it is a peer that failed first"),
    ("", (-11, -8), "the log shows the Python line; a defect in a compiled library, or damaged memory"),
    ("", (-4,), "a package was built for a newer CPU: install its generic build"),
    ("", (-15, -2), "the scheduler or a user sent it to the worker itself; send it to the launcher to save"),
)
