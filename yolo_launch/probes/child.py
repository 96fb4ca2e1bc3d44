"""Runs one probe in a process of its own: ``python -m yolo_launch.probes.child NAME ARGUMENTS``.

The answer is one line on standard output. Torch and the trainer are imported in the functions that need them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import UserError
from trainer.protocol import DEVICE_VARIABLE, EXIT_DONE, EXIT_FAILED, EXIT_USAGE, OUT_OF_GPU_MEMORY, RunFiles
from trainer.runtime.process_guard import guard_worker
from yolo_launch.probes.batch_search import search_largest
from yolo_launch.probes.runner import ANSWER

if TYPE_CHECKING:
    from trainer.data.collate import Batch
    from trainer.training.run import Run

MATRIX_SIDE = 4096
REDUCED_FLOATS = 7_200_000
"""About the number of gradients of yolov5s."""
REPEATS = 5
LOADING_S, STEPPING_S, REDUCING_S = 20.0, 20.0, 20.0
"""Seconds after which no further batch, step or sum is timed."""
BOXES_PER_IMAGE = 20
USABLE_MEMORY = 0.85
"""Share of the free memory to use; the rest is for communication buffers, fragmentation and validation."""


def write_disk(arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures the seconds to write ``bytes`` to the disk, into a nameless file in ``folder``."""
    block = os.urandom(1 << 20)
    count = max(1, arguments["bytes"] >> 20)
    with tempfile.TemporaryFile(dir=arguments["folder"]) as stream:
        began_at = time.monotonic()
        for _ in range(count):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        return {"bytes": count << 20, "seconds": time.monotonic() - began_at}


def use_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    """Allocates on the one visible GPU, multiplies, compares, frees. Raises RuntimeError if torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use it")
    matrix = torch.full((MATRIX_SIDE, MATRIX_SIDE), 2.0, device="cuda")
    is_right = bool((matrix @ matrix == 4.0 * MATRIX_SIDE).all())
    began_at = time.monotonic()
    for _ in range(REPEATS):
        matrix @ matrix
    torch.cuda.synchronize()
    seconds = (time.monotonic() - began_at) / REPEATS
    del matrix
    torch.cuda.empty_cache()
    left = torch.cuda.memory_allocated()
    return {"is_right": is_right, "tflops": 2 * MATRIX_SIDE**3 / seconds / 1e12, "left_bytes": left}


def list_peers(arguments: dict[str, Any]) -> dict[str, Any]:
    """Lists pairs of visible GPUs, by position, that cannot reach each other's memory."""
    import torch

    pairs = itertools.permutations(range(torch.cuda.device_count()), 2)
    return {"apart": [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]}


def all_reduce(arguments: dict[str, Any]) -> dict[str, Any]:
    """Sums as many numbers as a model's gradients over all ranks, a few times. Raises RuntimeError for a wrong sum."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    world_size, backend = int(os.environ["WORLD_SIZE"]), arguments["backend"]
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=arguments["timeout_s"]))
    payload = torch.ones(REDUCED_FLOATS, device=device)
    dist.all_reduce(payload)  # connections are made here
    if not bool((payload == world_size).all()):
        raise RuntimeError(f"the sum over {world_size} ranks is {payload.max().item()}, not {world_size}")
    overdue = torch.zeros(1, device=device)
    seconds: list[float] = []
    small_s: list[float] = []
    stop_at = time.monotonic() + REDUCING_S
    for _ in range(REPEATS):
        overdue.fill_(float(bool(seconds) and time.monotonic() > stop_at))
        dist.all_reduce(overdue)  # the ranks stop at the same step
        if overdue.item():
            break
        for numbers, times in ((overdue, small_s), (payload, seconds)):
            began_at = time.monotonic()
            dist.all_reduce(numbers)
            numbers[0].item()
            times.append(time.monotonic() - began_at)
    dist.destroy_process_group()
    reduced = {"bytes": 4 * REDUCED_FLOATS, "seconds": statistics.median(seconds)}
    return {**reduced, "small_s": statistics.median(small_s)}


def join_store(timeout_s: float) -> Any:
    """Connects to the store of this job's workers, at MASTER_ADDR and MASTER_PORT of the environment."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_s))


def scan_data(arguments: dict[str, Any]) -> dict[str, Any]:
    """Scans both splits as training does, and writes the same cache. Raises DataError."""
    from trainer.data.demo.dataset import default_cache_dir
    from trainer.data.formats.load import load_dataset
    from trainer.data.scan.scan import scan_split

    dataset = load_dataset(arguments["data"], val=arguments["val"], leave_out=arguments["leave_out"])
    splits = {}
    for split in ("train", "val"):
        _, report = scan_split(
            dataset,
            split,
            num_classes=dataset.num_classes,
            single_cls=arguments["single_cls"],
            cache_dir=default_cache_dir(),
        )
        problems = [[f"{found.count} {what}", list(found.examples)] for what, found in report.problems()]
        splits[split] = {"summary": report.headline(), "boxes": report.boxes, "problems": problems}
    return splits


def time_loading(arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures the seconds that this rank's loader takes for a batch, and those of a training step on a ready batch."""
    from trainer.training.loop import train_step

    run = _make_run(arguments)
    batches = _endless(run)
    workers = arguments["config"]["workers"]
    batch = next(batches)
    for _ in range(workers):  # the loader processes finish their first batches at the same time
        next(batches)
    began_at = time.monotonic()
    loaded = 0
    while loaded < max(4, 3 * workers) and time.monotonic() - began_at < LOADING_S:
        next(batches)
        loaded += 1
    load_s = (time.monotonic() - began_at) / loaded
    run.model.train()
    step_s: list[float] = []
    began_at = time.monotonic()
    while len(step_s) < 1 + REPEATS and (len(step_s) < 2 or time.monotonic() - began_at < STEPPING_S):
        step_began_at = time.monotonic()
        train_step(run, batch, is_update=True)
        _wait_for_device(run)
        step_s.append(time.monotonic() - step_began_at)
    return {"images": len(batch), "load_s": load_s, "step_s": statistics.median(step_s[1:]), "steps": len(step_s) - 1}


def measure_batch(arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures the most images for which real training steps fit the free memory, and lists the trials."""
    import torch

    from trainer.config.train import rounded_image_size

    run = _make_run(arguments)
    torch.backends.cudnn.benchmark = False  # its trials take more memory than what it chooses
    run.model.train()
    side = rounded_image_size(arguments["image_size"], run.settings.size_grid)
    budget = arguments["budget_bytes"]
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        budget = budget or int(USABLE_MEMORY * (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()))

    def peak_of(batch_size: int) -> int | None:
        try:
            return _peak_bytes(run, _synthetic_batch(batch_size, side))
        except RuntimeError as error:  # of which torch's own OutOfMemoryError is one
            if re.search(OUT_OF_GPU_MEMORY, f"{type(error).__name__}: {error}") is None:
                raise
            return run.state.optimizer.zero_grad(set_to_none=True)

    found = search_largest(peak_of, budget, arguments["most"])
    return {"batch_size": found.batch_size, "tried": found.tried, "budget_bytes": budget}


def _make_run(arguments: dict[str, Any]) -> Run:
    """Builds the run of rank 0 of a one-worker job, which writes below ``folder``."""
    from trainer.config.train import TrainConfig
    from trainer.data.demo.dataset import default_cache_dir, ensure_demo_dataset
    from trainer.runtime.distributed import DistEnv
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.reporter import Reporter
    from trainer.training.build import build_run
    from trainer.training.worker import set_determinism

    files = RunFiles(Path(tempfile.mkdtemp(dir=arguments["folder"])))
    files.make_folders()
    values = dict(arguments["config"])
    values["data"] = values["data"] or str(ensure_demo_dataset(default_cache_dir()))
    config, env = TrainConfig(**values), DistEnv(device_kind=os.environ.get(DEVICE_VARIABLE, ""))
    device = env.device()
    set_determinism(device, config.deterministic)
    beat = HeartbeatWriter(files.logs, rank=0)
    return build_run(config, env, device, files.run_dir, Reporter(enabled=False), beat)[0]


def _endless(run: Run) -> Iterator[Batch]:
    """Yields the batches of epoch after epoch, because an epoch of a small data set has few."""
    for epoch in itertools.count():
        yield from run.epoch_loader.epoch(epoch, 0, ())


def _wait_for_device(run: Run) -> None:
    import torch

    if run.device.type == "cuda":
        torch.cuda.synchronize()


def _synthetic_batch(batch_size: int, image_size: int) -> Batch:
    """Makes gray images with random boxes; the content of images does not change the memory needed."""
    import torch

    from trainer.data.collate import Batch

    count = batch_size * BOXES_PER_IMAGE
    image = torch.arange(batch_size).repeat_interleave(BOXES_PER_IMAGE).float()[:, None]
    boxes = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    positions = torch.arange(batch_size)
    return Batch(
        images_bchw=torch.full((batch_size, 3, image_size, image_size), 114, dtype=torch.uint8),
        targets=torch.cat((image, torch.zeros(count, 1), boxes), 1),
        positions=positions,
        indices=positions,
    )


def _peak_bytes(run: Run, batch: Batch) -> int:
    """Returns the peak memory of two steps, the second with the optimizer's state; of the whole process on a CPU."""
    import torch

    from trainer.training.loop import train_step

    on_gpu = run.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        if train_step(run, batch, is_update=True).rollback:
            raise RuntimeError("the loss of a made-up batch is not finite, so memory cannot be measured")
    _wait_for_device(run)
    if on_gpu:
        return torch.cuda.max_memory_reserved()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PROBES = {
    "disk": write_disk,
    "gpu": use_gpu,
    "peers": list_peers,
    "all_reduce": all_reduce,
    "scan": scan_data,
    "loading": time_loading,
    "batch": measure_batch,
}


def main() -> int:
    """Runs the probe that the command line names and prints its answer, or the reason if there is none."""
    guard_worker()
    try:
        answer, exit_code = PROBES[sys.argv[1]](json.loads(sys.argv[2])), EXIT_DONE
    except UserError as error:
        answer, exit_code = {"problem": str(error), "user_error": error.to_dict()}, EXIT_USAGE
    except Exception as error:  # any error is a result of the probe
        answer, exit_code = {"problem": f"{type(error).__name__}: {error}".strip()[:2000]}, EXIT_FAILED
    print(f"\n{ANSWER}{json.dumps(answer)}", flush=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
