"""Places this process among its peers: rank, process group, the wrapped model, and the few reductions used.

The environment is read once, here. LOCAL_RANK alone selects a device. Small control values travel as CPU tensors
over gloo, so that agreeing on them never waits for a GPU.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import RELAYED, ConfigError, DeviceError
from trainer.protocol import DEVICE_VARIABLE
from trainer.runtime.collective_trace import record_collectives
from trainer.runtime.patience import wait_for_ranks
from trainer.runtime.sync_batch_norm import synchronize_batch_norm
from trainer.runtime.unloaded_compiler import compiler_not_asked

T = TypeVar("T")


@dataclass(frozen=True)
class DistEnv:
    """Rank and sizes as torchrun-style launchers give them; a lone process has none and is rank 0 of 1."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device_kind: str = ""
    """The kind of device that a launcher planned, ``cpu`` or ``cuda``; empty for a worker that was started by hand."""
    mask: str | None = None
    """CUDA_VISIBLE_DEVICES; None if it is not set."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> DistEnv:
        """Reads the ranks, the sizes and the devices. Raises ConfigError if only some of the ranks are set."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        present = [name for name in names if name in environ]
        kind, mask = environ.get(DEVICE_VARIABLE, ""), environ.get("CUDA_VISIBLE_DEVICES")
        if not present:
            return cls(device_kind=kind, mask=mask)
        if len(present) < len(names):
            raise ConfigError(
                "the worker's environment is incomplete",
                seen=", ".join(f"{name}={environ[name]}" for name in present),
                expected="RANK, LOCAL_RANK and WORLD_SIZE together, as a launcher sets them, or none of them",
            )
        rank, local_rank, world_size = (int(environ[name]) for name in names)
        return cls(rank, local_rank, world_size, int(environ.get("LOCAL_WORLD_SIZE", world_size)), kind, mask)

    @property
    def is_main(self) -> bool:
        """Returns True if this rank owns the run directory."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Returns True if this rank owns its machine's caches."""
        return self.local_rank == 0

    def device(self) -> torch.device:
        """Returns CUDA device LOCAL_RANK, or the CPU if that was planned or there is no GPU and no word of one.

        Never falls back: a GPU that was planned or that CUDA_VISIBLE_DEVICES names has to work. Raises DeviceError with
        torch's own reason if it does not, and ConfigError for a rank without a GPU.
        """
        names_a_gpu = self.mask is not None and self.mask.strip() not in ("", "-1", "NoDevFiles", "none", "void")
        if self.device_kind == "cpu" or not (self.device_kind or names_a_gpu or torch.cuda.is_available()):
            return torch.device("cpu")
        start_cuda(self.mask)
        if self.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                "there are more workers than visible GPUs",
                seen=f"local rank {self.local_rank}, {torch.cuda.device_count()} GPUs",
                expected="one worker for each GPU",
            )
        return torch.device("cuda", self.local_rank)


def start_cuda(mask: str | None) -> None:
    """Starts CUDA and runs one kernel. Raises DeviceError with torch's own reason if that fails."""
    try:
        torch.cuda.init()
        torch.zeros(1, device="cuda").add_(1).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DeviceError(
            "the planned GPU does not work with this torch",
            seen=f"{reason} (torch {torch.__version__}, CUDA_VISIBLE_DEVICES={'not set' if mask is None else mask!r})",
            expected="a GPU, driver and torch that fit one another, or --gpus cpu",
            next_command="yolo-launch doctor",
        ) from None


@contextmanager
def process_group(env: DistEnv, device: torch.device, timeout_s: float = 600.0) -> Iterator[None]:
    """Joins the peers for the duration of the block; a lone process joins nobody.

    The block ends with a barrier when it succeeds, and rank 0, which may host the store, leaves last. Where it fails,
    a group with NCCL stays as it is: taking it apart may wait for peers that wait for this rank, and the failure must
    be told first. The end of the process gives it up without waiting.
    """
    if env.world_size == 1:
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
        record_collectives(os.environ)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield
        dist.monitored_barrier(timeout=timedelta(seconds=timeout_s)) if backend == "gloo" else dist.barrier()
    except BaseException:
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


class Collectives:
    """The collectives that the trainer uses. With one rank each is the identity and costs nothing."""

    def __init__(self, env: DistEnv) -> None:
        self.env = env

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums over ranks, on every rank, in place; CPU tensors are sent with gloo."""
        if self.env.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Returns every rank's value in rank order, on every rank. Values are the trainer's own, never foreign data."""
        if self.env.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.env.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Returns rank 0's value on every rank."""
        if self.env.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_main(self, action: Callable[[], T]) -> T:
        """Returns what ``action`` gives on rank 0, on every rank; if that fails, every rank raises its exception."""
        result: T | None = None
        failure: Exception | None = None
        if self.env.is_main:
            try:
                result = action()
            except Exception as error:
                failure = error
        self._wait_for([0], is_done=self.env.is_main)
        result, failure = self.broadcast((result, failure))
        if failure is not None:
            raise self._told_by(0, failure)
        return result  # type: ignore[return-value]

    def _wait_for(self, ranks: Sequence[int], *, is_done: bool) -> None:
        if self.env.world_size > 1:
            wait_for_ranks(ranks, self.env.rank, is_done=is_done)

    def _told_by(self, rank: int, error: Exception) -> Exception:
        """Returns one rank's failure as every rank raises it; copies are marked, so that the report skips them."""
        if rank != self.env.rank:
            setattr(error, RELAYED, True)
        return error

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrites the tensors of every rank with those of rank 0."""
        if self.env.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.sum(torch.zeros(1))

    def main_first(self, action: Callable[[bool], T]) -> T:
        """Runs ``action(is_writer)`` on each machine's local rank 0, and once it has written, on the others.

        A failure of the first ones reaches every rank as the same exception, so that nobody waits for who gave up.
        """
        result: T | None = None
        failure: Exception | None = None
        working = [rank for rank, works in enumerate(self.gather(self.env.is_local_main)) if works]
        if self.env.is_local_main:
            try:
                result = action(True)
            except Exception as error:
                failure = error
        self._wait_for(working, is_done=self.env.is_local_main)
        for rank, told in enumerate(self.gather(failure)):
            if told is not None:
                raise self._told_by(rank, told)
        return action(False) if not self.env.is_local_main else result  # type: ignore[return-value]


class AutocastModel(nn.Module):
    """A model in mixed precision of its own: threads of DataParallel take over that there is one, but not which."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = model
        self.dtype = dtype

    def forward(self, images_bchw: Tensor) -> Any:
        """Returns what the model returns."""
        with torch.autocast(images_bchw.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.module(images_bchw)


def wrap_model(
    model: nn.Module,
    env: DistEnv,
    device: torch.device,
    *,
    sync_bn: bool,
    data_parallel: bool,
    autocast_dtype: torch.dtype | None,
) -> nn.Module:
    """Returns the model as the training step calls it: itself, in DataParallel, or in DistributedDataParallel."""
    if data_parallel:
        return nn.DataParallel(AutocastModel(model, autocast_dtype)) if device.type == "cuda" else model
    if env.world_size == 1:
        return model
    if sync_bn:
        model = synchronize_batch_norm(model)
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "static_graph": True}
    # Running statistics have one truth, rank 0's, which validation and checkpoints read: no broadcast at each step.
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters:
        options["forward_sync_buffers"] = False
    else:
        # Older torch skips the first broadcast too with this option, so give every rank rank 0's state here.
        options["broadcast_buffers"] = False
        Collectives(env).broadcast_tensors(list(model.buffers()))
    if device.type == "cuda":
        options["device_ids"] = [device.index]
    with compiler_not_asked():
        return DistributedDataParallel(model, **options)


def warm_up_ddp(model: nn.Module, images_bchw: Tensor) -> None:
    """Takes DistributedDataParallel through its first step, which lays out its buckets, without learning anything.

    With a static graph that step must not be one that only accumulates, as the first after a resume may be. Rehearsed
    at every start, a resumed run also reduces in the same order as one that never stopped.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    sum(prediction.sum() for prediction in model(images_bchw)).mul(0).backward()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
