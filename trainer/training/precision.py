"""Chooses the dtype of mixed precision, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.errors import ConfigError
from trainer.runtime.distributed import Collectives
from trainer.runtime.reporter import Reporter

# fp16 gives NaN on these cards, whatever their compute capability says.
BROKEN_FP16_CARDS = ("GTX 16", "T400", "T500", "T550", "T600", "T1000", "T1200", "T2000", "MX450", "MX550")


def pick_autocast(amp: str, device: torch.device) -> torch.dtype | None:
    """Returns the dtype of mixed precision, or None. Raises ConfigError if the choice cannot work."""
    if amp == "off":
        return None
    if device.type == "cpu":
        if amp == "fp16":
            raise ConfigError("--amp fp16 needs a GPU", seen="the CPU", expected="--amp bf16 or --amp off")
        return torch.bfloat16 if amp == "bf16" else None
    if amp != "auto":
        return torch.bfloat16 if amp == "bf16" else torch.float16
    if any(card in torch.cuda.get_device_name(device) for card in BROKEN_FP16_CARDS):
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def shared_autocast(choices: Sequence[torch.dtype | None]) -> torch.dtype | None:
    """Returns what all ranks can do: scaled and unscaled gradients must never be averaged."""
    if None in choices:
        return None
    return torch.float16 if torch.float16 in choices else torch.bfloat16


def agree_on_autocast(
    amp: str, device: torch.device, collectives: Collectives, reporter: Reporter
) -> torch.dtype | None:
    """Returns the dtype of mixed precision of all ranks, and warns if their devices alone would choose differently."""
    choices = collectives.gather(pick_autocast(amp, device))
    shared = shared_autocast(choices)
    if len(set(choices)) > 1:
        names = [str(choice or torch.float32).removeprefix("torch.") for choice in (shared, *choices)]
        reporter.warn(f"the ranks' devices differ ({', '.join(names[1:])} by rank); all of them train in {names[0]}")
    return shared
