"""Measures ``--batch auto``, the largest total batch of the chosen devices, with real training steps on each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from trainer.config.train import TrainConfig, rounded_image_size
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.planning.masks import describe_device
from yolo_launch.probes.batch_search import round_down
from yolo_launch.probes.runner import ProbeEnd, alone_on, run_probe
from yolo_launch.spec import Device, LaunchPlan

LIMIT_S = 600.0
MOST_PER_DEVICE = 1024
FEWEST_STEPS = 16
"""Steps of an epoch at least: with larger batches a small data set would have too few steps to learn from."""
FEWEST_IMAGES = 16
"""A total that is always allowed, however small the data set is."""
LARGEST_SCALE = 1.5
"""Largest factor by which --multi-scale enlarges images."""
EVEN_STRIDE = 64


def measure_batch(plan: LaunchPlan, config: TrainConfig, *, say: Callable[[str], None], budget_bytes: int = 0) -> int:
    """Measures the total batch for ``--batch auto``: the batch of the device with the least room, times the devices.

    All chosen devices are measured at the same time, each in a process of its own, with real steps in the precision
    of the training; 85 % of the free memory may be used, or ``budget_bytes``. ``say`` is called with a line for each
    device and one for the total. Raises LaunchError if a device cannot be measured or has no room for one image.
    """
    shares = len(plan.devices) * plan.nnodes
    most, why = largest_allowed(config, shares)
    ends = _measure(plan, config, most, budget_bytes)
    sizes = [_size_of(end, device, say) for device, end in zip(plan.devices, ends, strict=True)]
    total = min(sizes) * shares
    capped = f" ({why})" if min(sizes) >= round_down(most) else ""
    devices = "1 device" if shares == 1 else f"{shares} devices"
    say(f"--batch auto: {total} in all, {min(sizes)} for each of {devices}{capped}")
    return total


def largest_allowed(config: TrainConfig, shares: int) -> tuple[int, str]:
    """Returns the most images to try on a device, with the reason; a data set of n images allows n/16 in all."""
    images = _training_images(config)
    most = max(1, max(FEWEST_IMAGES, images // FEWEST_STEPS) // shares)
    if most < MOST_PER_DEVICE:
        return most, f"no more for {images} training images"
    return MOST_PER_DEVICE, "more is not tried"


def _measure(plan: LaunchPlan, config: TrainConfig, most: int, budget_bytes: int) -> list[ProbeEnd]:
    side = rounded_image_size(config.imgsz, EVEN_STRIDE)
    if config.multi_scale:
        side = rounded_image_size(int(config.imgsz * LARGEST_SCALE), EVEN_STRIDE)
    update = {"batch_size": 1, "workers": 0, "cache": "", "multi_scale": False, "sync_bn": False, "parallel": "auto"}
    with tempfile.TemporaryDirectory(prefix="yolo-launch-") as folder:
        arguments = {
            "config": config.model_copy(update=update).model_dump(mode="json"),
            "folder": folder,
            "image_size": side,
            "most": most,
            "budget_bytes": budget_bytes,
        }
        return run_probe("batch", arguments, [alone_on(device, plan) for device in plan.devices], LIMIT_S)


def _size_of(end: ProbeEnd, device: Device, say: Callable[[str], None]) -> int:
    if end.answer is None:
        raise _cannot((end.user_error or {}).get("what") or end.problem, device)
    tried, size, budget = end.answer["tried"], end.answer["batch_size"], end.answer["budget_bytes"]
    fit = [str(count) for count, peak in tried if peak is not None and peak <= budget]
    too_large = [str(count) for count, peak in tried if peak is None or peak > budget]
    text = f"{describe_device(device)}: tried {', '.join(fit) or 'nothing'} with success"
    if too_large:
        verb = "needs" if len(too_large) == 1 else "need"
        text += f", {', '.join(too_large)} {verb} more than {budget / 2**30:.1f} GB"
    say(text)
    if size < 1:
        raise LaunchError(
            f"{describe_device(device)} has no room for a single image.",
            seen=f"{budget / 2**30:.1f} GB may be used",
            expected="a smaller model or --imgsz, or a GPU that nobody else uses: --gpus idle",
            exit_code=ExitCode.ENVIRONMENT,
        )
    return int(size)


def _cannot(why: str, device: Device) -> LaunchError:
    return LaunchError(
        f"--batch auto cannot measure {describe_device(device)}.",
        seen=why,
        expected="--batch with a number, for example --batch 16",
        next_command="yolo-launch doctor --deep",
        exit_code=ExitCode.ENVIRONMENT,
    )


def _training_images(config: TrainConfig) -> int:
    """Counts the images of the training split; draws the embedded set if the configuration has no data."""
    from trainer.data.demo.dataset import default_cache_dir, ensure_demo_dataset
    from trainer.data.formats.load import load_dataset
    from trainer.data.split_files import find_files

    path = Path(config.data) if config.data else ensure_demo_dataset(default_cache_dir())
    return len(find_files(load_dataset(path, val=config.val_data, leave_out=config.leave_out), "train").images)
