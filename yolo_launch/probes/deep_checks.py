"""Makes the slower checks of ``doctor --deep``, which start processes: a new probe is one row of PROBES."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from yolo_launch.checks import machine as machine_checks
from yolo_launch.checks.context import Context
from yolo_launch.host import ports
from yolo_launch.planning.masks import describe_device, visible_devices
from yolo_launch.probes.runner import ProbeEnd, alone_on, first_problem, probe_environment, run_probe, visible_name
from yolo_launch.spec import Device, Finding, LaunchPlan

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TRIAL_BYTES = 128 << 20
SLOW_DISK_BYTES_S = 20e6
CHECKPOINT_BYTES = 60e6
"""About the size of a resumable checkpoint of yolov5s in training, with optimizer and average."""
LARGE_WAIT = 0.2
"""From this share of the time on, waiting for data is reported as a warning."""
FAST_WITHOUT_PEERS = 1.5
"""An all-reduce this many times faster without peer-to-peer shows that peer-to-peer is defective, not only slow."""


@dataclass(frozen=True)
class ProbeLimits:
    """Seconds that a probe may take."""

    disk_s: float = 60.0
    gpu_s: float = 90.0
    all_reduce_s: float = 90.0
    scan_s: float = 600.0
    loading_s: float = 300.0


Probe = Callable[[Context, ProbeLimits], Iterable[Finding]]
Say = Callable[[str], None]


def run_probes(context: Context, say: Say | None = None, limits: ProbeLimits | None = None) -> list[Finding]:
    """Returns the findings of every probe, in the order of PROBES; ``say`` is called with a line before each probe.

    Takes minutes at most and must be called in the main thread. Every error becomes a finding, and no process of a
    probe is left running.
    """
    found: list[Finding] = []
    for what, probe in PROBES:
        if what in ("gpu", "links") and not _gpus(context):
            continue
        if say is not None:
            say(f"looking at {what} ...")
        try:
            found.extend(probe(context, limits or ProbeLimits()))
        except Exception as error:  # a failed probe must not hide the findings of the others
            logger.debug("probe of %s", what, exc_info=error)
            found.append(Finding(what, "warning", f"it could not be looked at: {type(error).__name__}: {error}"))
    return found


def probe_gpus(context: Context, limits: ProbeLimits) -> Iterable[Finding]:
    """Tests each GPU in a process that sees this GPU alone: allocate, multiply, compare, free."""
    devices = _gpus(context)
    environments = [alone_on(device, context.plan) for device in devices]
    ends = run_probe("gpu", {}, environments, limits.gpu_s) if devices else []
    for device, end in zip(devices, ends, strict=True):
        name = describe_device(device)
        if end.answer is None:
            advice = "nvidia-smi, and dmesg | grep -i xid; until it works choose others with --gpus"
            yield Finding("gpu", "failure", f"{name} cannot be used: {end.problem}", advice)
        elif not end.answer["is_right"]:
            advice = "its results cannot be trusted: leave it out with --gpus, and have it looked at"
            yield Finding("gpu", "failure", f"{name} multiplies wrongly", advice)
        else:
            yield Finding("gpu", "ok", f"{name} allocates, multiplies ({end.answer['tflops']:.0f} TFLOP/s) and frees")


def probe_links(context: Context, limits: ProbeLimits) -> Iterable[Finding]:
    """Finds the link of each pair of GPUs, and whether one GPU reaches the other's memory."""
    devices = _gpus(context)
    if len(devices) < 2:
        return
    all_visible = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(visible_name, devices))}
    (end,) = run_probe("peers", {}, [probe_environment(context.plan, **all_visible)], limits.gpu_s)
    if end.answer is None:
        yield Finding("links", "warning", f"the links between GPUs cannot be read: {end.problem}")
        return
    apart = {tuple(pair) for pair in end.answer["apart"]}
    for (i, one), (j, other) in combinations(enumerate(devices), 2):
        how = one.links.get(other.uuid, "an unknown link")
        text = f"GPU {one.index} to GPU {other.index}: {how}"
        if (i, j) in apart or (j, i) in apart:
            yield Finding("links", "ok", f"{text}, through the host's memory; peer-to-peer is not possible")
        else:
            yield Finding("links", "ok", f"{text}, peer-to-peer is possible")


def probe_all_reduce(context: Context, limits: ProbeLimits) -> Iterable[Finding]:
    """Times the sum over all planned workers; with NCCL, once more without peer-to-peer."""
    plan = context.plan
    if plan is None or plan.mode != "ddp" or plan.nproc_per_node < 2:
        return
    usual = _reduce(plan, limits)
    if plan.backend != "nccl":
        if usual.answer is None:
            advice = "GLOO_SOCKET_IFNAME=lo when the host's name or network is at fault"
            yield Finding("all-reduce", "failure", f"{plan.nproc_per_node} workers over gloo: {usual.problem}", advice)
        else:
            yield Finding("all-reduce", "ok", f"{plan.nproc_per_node} workers over gloo: {_speed(usual)}")
        return
    yield _judge_nccl(plan.nproc_per_node, usual, _reduce(plan, limits, NCCL_P2P_DISABLE="1"))


def probe_data(context: Context, limits: ProbeLimits) -> Iterable[Finding]:
    """Scans both splits, every image and label file, as training does."""
    config = context.config
    if config is None or not config.data:
        yield Finding("data set", "ok", "not looked at: none was given", "yolo-launch doctor --deep --data FILE")
        return
    arguments = {
        "data": config.data,
        "single_cls": config.single_cls,
        "val": config.val_data,
        "leave_out": config.leave_out,
    }
    (end,) = run_probe("scan", arguments, [probe_environment(context.plan)], limits.scan_s)
    if end.answer is None:
        error = end.user_error or {}
        rows = [error.get("what", "") or end.problem]
        rows += [
            f"{word} {error[key]}" for word, key in (("Seen:", "seen"), ("Expected:", "expected")) if error.get(key)
        ]
        yield Finding("data set", "failure", "\n".join(rows), error.get("next_command", ""))
        return
    for split, found in end.answer.items():
        seen = f"{split}: {found['summary']}"
        if split == "val" and not found["boxes"]:
            yield Finding("data set", "warning", f"{seen}; no run can be judged by images without labels")
        else:
            yield Finding("data set", "ok", seen)
        for text, examples in found["problems"]:
            advice = "correct or remove these files; training goes on without them"
            seen = "\n".join([f"{split}: {text}", *examples])
            yield Finding("data set", "warning", seen, "" if "kept" in text else advice)


def probe_loading(context: Context, limits: ProbeLimits) -> Iterable[Finding]:
    """Compares the time to load one batch with the time of one training step, on the first device."""
    plan, config = context.plan, context.config
    if plan is None or config is None or not config.data:
        return
    batch = config.batch_size if plan.batch_is_auto else plan.local_batch_size
    update = {"batch_size": batch, "workers": plan.workers_per_rank, "parallel": "auto", "sync_bn": False}
    environment = alone_on(plan.devices[0], plan)
    with tempfile.TemporaryDirectory(prefix="yolo-launch-") as folder:
        arguments = {"config": config.model_copy(update=update).model_dump(mode="json"), "folder": folder}
        (end,) = run_probe("loading", arguments, [environment], limits.loading_s)
    if end.answer is None:
        error = end.user_error or {}
        seen = f"a step could not be tried: {error.get('what') or end.problem}"
        is_slow = end.timed_out and plan.devices[0].kind == "cpu"
        advice = "try a smaller --imgsz, --batch or model" if is_slow else error.get("next_command", "")
        yield Finding("loading", "warning" if end.timed_out else "failure", seen, advice)
        return
    yield judge_loading(end.answer, plan.workers_per_rank, context.host.cpu_cores // plan.nproc_per_node)


def judge_loading(answer: dict[str, Any], workers: int, cores: int) -> Finding:
    """Judges loading times: loader processes load during the step, so only the time beyond the step counts as waiting.

    Without loader processes the whole loading time counts.
    """
    load_s, step_s = answer["load_s"], answer["step_s"]
    wait_s = load_s if workers == 0 else max(0.0, load_s - step_s)
    share = wait_s / (step_s + wait_s)
    processes = {0: "no loader process", 1: "1 loader process"}.get(workers, f"{workers} loader processes")
    seen = f"{answer['images']} images load in {load_s:.3f} s ({processes}), and a step takes {step_s:.3f} s"
    if share < LARGE_WAIT:
        return Finding("loading", "ok", f"{seen}: {1 - share:.0%} of the time is spent learning")
    ways = [f"--workers {min(cores, max(1, round(workers * load_s / step_s)))}"] if workers < cores else []
    advice = " or ".join([*ways, "--cache ram, or --cache disk if memory is short"])
    return Finding("loading", "warning", f"{seen}: {share:.0%} of the time is spent waiting for data", advice)


def probe_disk(context: Context, limits: ProbeLimits) -> Iterable[Finding]:
    """Measures the write speed of the run directory's disk with a file that is removed afterwards."""
    if context.run_dir is None:
        return
    folder = context.run_dir.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    yield _judge_disk(folder, *run_probe("disk", _disk_trial(folder), [probe_environment(None)], limits.disk_s))


def probe_network(context: Context, limits: ProbeLimits) -> Iterable[Finding]:
    """Checks the host's name and a free port of this machine, which workers need to connect."""
    yield from machine_checks.check_host_name(replace(context, plan=None))
    port = ports.free_port()
    if ports.is_free(port, LOOPBACK):
        yield Finding("port", "ok", f"workers can meet on {LOOPBACK}, for example at port {port}")
    else:
        yield Finding("port", "failure", "a port that was free a moment ago cannot be bound")


def _disk_trial(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "bytes": min(TRIAL_BYTES, shutil.disk_usage(folder).free // 4)}


def _judge_disk(folder: Path, end: ProbeEnd) -> Finding:
    if end.answer is None:
        return Finding("disk", "failure", f"{folder} cannot be written: {end.problem}", "choose another: --project DIR")
    speed = end.answer["bytes"] / max(end.answer["seconds"], 1e-6)
    seen = f"{folder} takes {speed / 1e6:.0f} MB/s, a checkpoint of yolov5s about {CHECKPOINT_BYTES / speed:.2f} s"
    if speed < SLOW_DISK_BYTES_S:
        return Finding("disk", "warning", seen, "a local disk (--project DIR), or a longer --checkpoint-interval")
    return Finding("disk", "ok", seen)


def _reduce(plan: LaunchPlan, limits: ProbeLimits, **more: str) -> ProbeEnd:
    """Runs an all-reduce over the plan's workers on this machine; returns rank 0's end, or the cause of a failure."""
    size, port = plan.nproc_per_node, ports.free_port()
    shared = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port), "WORLD_SIZE": str(size), **more}
    environments = [probe_environment(plan, RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(size)]
    arguments = {"backend": plan.backend, "timeout_s": limits.all_reduce_s}
    ends = run_probe("all_reduce", arguments, environments, limits.all_reduce_s)
    if all(end.answer is not None for end in ends):
        return ends[0]
    return ProbeEnd(problem=first_problem(ends), timed_out=all(end.timed_out for end in ends))


def _judge_nccl(count: int, usual: ProbeEnd, without_peers: ProbeEnd) -> Finding:
    gpus, advice = f"{count} GPUs over NCCL", "NCCL_P2P_DISABLE=1 yolo-launch train ..."
    if usual.answer is None and without_peers.answer is None:
        seen = f"{gpus}: {usual.problem}; with NCCL_P2P_DISABLE=1: {without_peers.problem}"
        return Finding("all-reduce", "failure", seen, "NCCL_DEBUG=INFO yolo-launch train ... shows what NCCL tries")
    if usual.answer is None:
        seen = f"{gpus}: {usual.problem}; without peer-to-peer it works: {_speed(without_peers)}"
        return Finding("all-reduce", "failure", seen, advice)
    if without_peers.answer is None:
        return Finding("all-reduce", "ok", f"{gpus}: {_speed(usual)}; without peer-to-peer: {without_peers.problem}")
    seen = f"{gpus}: {_speed(usual)}; without peer-to-peer {_speed(without_peers)}"
    if usual.answer["seconds"] > FAST_WITHOUT_PEERS * without_peers.answer["seconds"]:
        return Finding("all-reduce", "warning", f"{seen}, which is faster", advice)
    return Finding("all-reduce", "ok", seen)


def _speed(end: ProbeEnd) -> str:
    answer = end.answer or {}
    return f"{answer['bytes'] / 1e6:.0f} MB summed in {answer['seconds'] * 1e3:.1f} ms"


def _gpus(context: Context) -> Sequence[Device]:
    devices = context.plan.devices if context.plan is not None else visible_devices(context.host)
    return [device for device in devices if device.kind == "cuda"]


PROBES: tuple[tuple[str, Probe], ...] = (
    ("gpu", probe_gpus),
    ("links", probe_links),
    ("all-reduce", probe_all_reduce),
    ("disk", probe_disk),
    ("network", probe_network),
    ("data set", probe_data),
    ("loading", probe_loading),
)
"""Name and function of each probe."""
