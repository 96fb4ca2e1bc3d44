"""Holds the frozen values that the launcher's rooms pass to one another; they convert to plain JSON and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.protocol import DEFAULT_BATCH_SIZE, DEFAULT_IMAGE_SIZE
from yolo_launch.defaults import MAX_RESTARTS, STALL_TIMEOUT_S

Level = Literal["ok", "warning", "failure"]
Mode = Literal["single", "ddp", "dp"]
DeviceKind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: what was seen and, if it matters, what to type."""

    check: str
    level: Level
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory on a GPU."""

    pid: int
    user: str
    command: str
    memory_bytes: int


@dataclass(frozen=True)
class Device:
    """One device that a worker can use. A CPU is a single device, whatever its cores."""

    kind: DeviceKind
    index: int = 0
    """Position among all devices of the host, whatever mask is set; MIG instances count one by one."""
    uuid: str = ""
    name: str = ""
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    processes: tuple[GpuProcess, ...] = ()
    throttled: str = ""
    """Why the clock is held down, or nothing."""
    links: dict[str, str] = field(default_factory=dict)
    """How this device reaches another: uuid -> 'NVLink', 'PCIe same switch', 'PCIe across CPUs', ..."""
    is_mig: bool = False
    card_index: int | None = None
    """Index of the card in PCI bus order, which MIG instances share; None if it is ``index``."""

    @property
    def card(self) -> int:
        """Returns the index by which CUDA's masks name this device's card."""
        return self.index if self.card_index is None else self.card_index


@dataclass(frozen=True)
class TorchFacts:
    """What the package metadata says about torch; versions are empty if a package is absent."""

    torch_version: str = ""
    torchvision_version: str = ""
    cuda_version: str = ""
    """The CUDA that this torch was built for, empty for a CPU build."""
    hip_version: str = ""
    """The ROCm that this torch was built for, empty for other builds."""
    torchvision_needs: str = ""
    """What torchvision's metadata asks of torch, for example '==2.11.0' or '>=2.14.0'."""
    torchvision_build: str = ""
    """torchvision's local version: 'cpu', 'cu128', or empty if it names none."""


@dataclass(frozen=True)
class Host:
    """What one machine has. Nothing in it needs torch."""

    name: str
    platform: str
    devices: tuple[Device, ...]
    """Accelerators in PCI order; empty on a machine without any."""
    cpu_cores: int
    """Cores that this process may use: affinity and cgroup quota applied."""
    memory_total_bytes: int
    memory_available_bytes: int
    """Both within the cgroup's limit."""
    shm_total_bytes: int
    shm_free_bytes: int
    open_file_limit: int
    driver_version: str = ""
    driver_cuda_version: str = ""
    """The newest CUDA that the NVIDIA driver knows, for example 12.4."""
    visible_devices: str | None = None
    """The mask of devices as inherited; None if it is not set."""
    mask_variable: str = "CUDA_VISIBLE_DEVICES"
    """The variable that holds the mask: ROCm has one of its own."""
    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Network interface -> its addresses."""
    torch: TorchFacts = TorchFacts()
    python_version: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    """Inherited variables that matter to a launch: devices, threads, networks, and ranks of another launcher."""
    gpu_problem: str = ""
    """Why the GPUs could not be read though a driver seems to be there; empty if nothing is wrong."""


@dataclass(frozen=True)
class LaunchRequest:
    """What the user asked of the launcher; None if nothing was said."""

    gpus: str | None = None
    """'0,1', UUIDs, 'all', 'idle' or 'cpu'."""
    nproc: int | None = None
    global_batch_size: int | None = DEFAULT_BATCH_SIZE
    """None is --batch auto."""
    batch_is_default: bool = False
    """True if nobody typed the batch, so that it may grow to the next total that divides."""
    uneven_batch_ok: bool = False
    """True for a resume: the world size may have changed, and the batch is split as evenly as possible."""
    image_size: int = DEFAULT_IMAGE_SIZE
    """Side of the images in pixels, for the shared memory that loaders need."""
    parallel: Literal["auto", "ddp", "dp"] = "auto"
    sync_bn: bool = False
    workers: int | None = None
    nnodes: int = 1
    node_rank: int = 0
    """Place of this machine among those of the job, counted without gaps."""
    nproc_by_node: tuple[int, ...] = ()
    """Workers of each machine of the job, by node rank; empty if all machines are like this one."""
    port: int | None = None
    max_restarts: int = MAX_RESTARTS
    stall_timeout_s: float = STALL_TIMEOUT_S
    builtin_trainer: bool = True
    """False for `run SCRIPT`."""
    typed: tuple[str, ...] = ("yolo-launch", "train")
    """The command as the user typed it, for the next command that an error proposes."""


@dataclass(frozen=True)
class WorkerCommand:
    """What each worker runs, after the Python interpreter and its -u."""

    arguments: tuple[str, ...]
    """('-m', 'trainer', 'CONFIG', ...) or ('script.py', ...)."""
    foreign: bool = False
    """True for a script that is not the built-in trainer: it may write no heartbeats and know no saving on SIGTERM."""


@dataclass(frozen=True)
class LaunchPlan:
    """All that will be started on one machine, decided before anything is."""

    mode: Mode
    nnodes: int
    node_rank: int
    nproc_per_node: int
    world_size: int
    global_batch_size: int
    local_batch_size: int
    devices: tuple[Device, ...]
    """Device of each local rank; for DataParallel, all devices of the one worker; a CPU once for each rank."""
    backend: Literal["nccl", "gloo"]
    threads_per_rank: int
    workers_per_rank: int
    environment: dict[str, str]
    """Set in every child before torch loads there."""
    removed_environment: tuple[str, ...]
    """Inherited variables that children must not see."""
    port: int | None
    max_restarts: int
    stall_timeout_s: float
    findings: tuple[Finding, ...] = ()
    batch_is_auto: bool = False
    """The batch is still to be measured on the devices; until then the batch sizes are those of one image each."""
    first_rank: int = 0
    """Global rank of this machine's local rank 0."""

    @property
    def ranks(self) -> range:
        """Returns the global ranks of this machine."""
        return range(self.first_rank, self.first_rank + self.nproc_per_node)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class StoreAddress:
    """Where the workers of one attempt find one another."""

    address: str = "127.0.0.1"
    """Of rank 0's machine, as this machine reaches it."""
    port: int | None = None
    """None: a free one is chosen."""
    is_served: bool = False
    """True if a launcher keeps the store, and rank 0 joins it like any other; else rank 0 serves it."""


@dataclass(frozen=True)
class RankFailure:
    """How one worker ended."""

    rank: int
    """-1 for a job that was refused before it had workers."""
    local_rank: int
    exit_code: int
    """Negative: killed by that signal."""
    message: str = ""
    traceback: str = ""
    user_error: dict[str, str] | None = None
    epoch: int | None = None
    step: int | None = None
    phase: str = ""
    log_path: str = ""
    host: str = ""
    device: str = ""
    """What it trained on, in words."""
    timestamp_s: float = 0.0
    hint: str = ""
    """One sentence on what to do about it; empty for an unknown cause."""


STATE_SAVED = "the state was saved"
"""Detail of an interrupted job whose workers had time to save."""
LEFT_TO_SCRIPT = "what was saved is the script's own affair"
"""Detail of an interrupted job of a script."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    kind: Literal["done", "worker_failed", "stalled", "saved_and_stopped", "interrupted", "master_lost", "not_joined"]
    exit_code: int
    failure: RankFailure | None = None
    signal: int | None = None
    restarts: int = 0
    detail: str = ""


Ready = Callable[[Path], None]
"""Called with the folder of a run's logs once the job there can go on by itself."""


def nobody_waits(run_dir: Path) -> None:
    """Does nothing: nobody waits for the job to be ready."""
