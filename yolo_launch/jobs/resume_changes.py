"""Says what a resumed run keeps of its configuration, and what a user may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.train import TrainConfig, make_config
from yolo_launch.errors import LaunchError
from yolo_launch.request.options import config_field_options

FREE_FIELDS = frozenset(
    {
        "data",
        "val_data",
        "max_bad_share",
        "allow_leakage",
        "workers",
        "cache",
        "parallel",
        "val",
        "save",
        "plots",
        "save_period",
        "checkpoint_interval_s",
        "patience",
    }
)
"""Fields that may change on a resume: places of files and how often they are written, not what is learned."""
PLACE_FIELDS = frozenset({"project", "name", "exist_ok"})
"""Fields that name the run's folder, which a resume knows already."""


@dataclass(frozen=True)
class Difference:
    """One option whose value differs from the run's."""

    option: str
    before: str
    after: str
    changes_result: bool


def resumed_config(saved: TrainConfig, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> TrainConfig:
    """Returns the run's configuration with what was typed now. Raises ConfigError for values that cannot be used."""
    settings = saved.model_dump(mode="json")
    changes = {name: value for name, value in given.items() if name not in PLACE_FIELDS and value is not None}
    if "hyp" in changes:
        # A set that is named again starts from the set, not from the run's values.
        del settings["hyperparameters"]
    return make_config({**settings, **changes}, dict(overrides))


def find_differences(saved: TrainConfig, wanted: TrainConfig) -> list[Difference]:
    """Returns every option and hyperparameter whose value changes, in the order of the configuration."""
    flags = {option.name: option.flags[0].split("/")[0] for option in config_field_options(TrainConfig)}
    found = []
    for name in TrainConfig.model_fields:
        before, after = getattr(saved, name), getattr(wanted, name)
        if name in PLACE_FIELDS or name in ("hyperparameters", "hyp") or before == after:
            continue
        is_longer = name == "epochs" and after > before
        changes_result = name not in FREE_FIELDS and not is_longer
        found.append(Difference(flags.get(name, name), _text(before), _text(after), changes_result))
    for name in type(saved.hyperparameters).model_fields:
        before, after = getattr(saved.hyperparameters, name), getattr(wanted.hyperparameters, name)
        if before != after:
            found.append(Difference(f"--set {name}", _text(before), _text(after), True))
    return found


def refuse_changed_result(differences: list[Difference], run_dir: str, command: str) -> None:
    """Raises LaunchError with a table if a change would make the result another one than the run's."""
    harmful = [difference for difference in differences if difference.changes_result]
    if not harmful:
        return
    width = max(len(difference.option) for difference in harmful)
    raise LaunchError(
        f"{run_dir} was started with other options, and these change its result.",
        seen="\n".join(f"{item.option:<{width}}  {item.before} -> {item.after}" for item in harmful),
        expected="the run's own values; or --override, to go on with the new ones knowingly",
        next_command=f"{command} --override",
    )


def _text(value: Any) -> str:
    return "(none)" if value in ("", None, ()) else str(value)
