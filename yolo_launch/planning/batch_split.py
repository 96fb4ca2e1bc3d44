"""Splits the total batch over ranks evenly, or refuses it and names totals and devices that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolo_launch.errors import LaunchError
from yolo_launch.request.command_line import retype
from yolo_launch.spec import Device, LaunchRequest

CPU_AUTO_BATCH = 16
"""The total batch of ``--batch auto`` on a CPU, which has no GPU memory to measure."""


@dataclass(frozen=True)
class BatchSplit:
    """The total batch and the largest share of a rank."""

    global_batch_size: int
    local_batch_size: int
    grown_from: int | None = None
    """The default total, if the user typed none and the default did not divide; else None."""


def split_batch(
    request: LaunchRequest, batch: int, shares: int, devices: Sequence[Device], positions: Sequence[str]
) -> BatchSplit:
    """Splits ``batch`` over ``shares`` ranks (or DataParallel devices).

    ``positions`` are the names of the devices in ``--gpus``. A default total that does not divide grows to the next
    one that does; a resume splits as evenly as possible. Raises LaunchError for any other total that does not divide,
    with the nearest totals and a choice of devices that fits.
    """
    if batch < 1:
        raise LaunchError("--batch must be at least 1.", seen=f"--batch {batch}", expected="a total, or auto")
    if batch % shares == 0:
        return BatchSplit(batch, batch // shares)
    if request.uneven_batch_ok:
        return BatchSplit(batch, -(-batch // shares))
    if request.batch_is_default:
        grown = nearest_totals(batch, shares)[-1]
        return BatchSplit(grown, grown // shares, grown_from=batch)
    raise _does_not_divide(request, batch, shares, devices, positions)


def nearest_totals(batch: int, shares: int) -> list[int]:
    """Returns the totals below and above ``batch`` that divide, without the total below if it is zero."""
    below = batch // shares * shares
    return [total for total in (below, below + shares) if total > 0]


def largest_fitting_count(batch: int, available: int) -> int:
    """Returns the largest number of devices, below ``available``, over which ``batch`` divides; at least 1."""
    return max(count for count in range(1, max(2, available)) if batch % count == 0)


def _does_not_divide(
    request: LaunchRequest, batch: int, shares: int, devices: Sequence[Device], positions: Sequence[str]
) -> LaunchError:
    totals = " or ".join(str(total) for total in nearest_totals(batch, shares))
    if request.nnodes > 1:
        machines = " + ".join(map(str, request.nproc_by_node or (len(devices),) * request.nnodes))
        what = f"--batch {batch} cannot be split evenly over the {shares} workers of all machines ({machines})."
        command = retype(request.typed, {"--batch": str(nearest_totals(batch, shares)[-1])})
        return LaunchError(f"{what} Use --batch {totals}.", next_command=command)
    count = largest_fitting_count(batch, len(devices))
    if devices[0].kind == "cpu":
        what = f"--batch {batch} cannot be split evenly over {shares} workers on the CPU."
        fitting, changes = _number(count, "worker"), {"--gpus": "cpu", "--nproc": str(count)}
    else:
        what = f"--batch {batch} cannot be split evenly over {shares} GPUs ({', '.join(positions)})."
        fitting, changes = _number(count, "GPU"), {"--gpus": ",".join(positions[:count])}
    command = retype(request.typed, {**changes, "--batch": str(batch)})
    return LaunchError(f"{what} Use --batch {totals}, or {fitting}.", next_command=command)


def _number(count: int, noun: str) -> str:
    words = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
    return f"{words.get(count, str(count))} {noun if count == 1 else noun + 's'}"
