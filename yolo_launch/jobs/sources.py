"""Brings the files that a job's options name by URL to this machine, and remembers which they were."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.protocol import BEST_WEIGHTS, CONFIG_FILE, LAST_WEIGHTS, METRICS_FILE, RESULTS_FILE, SUMMARY_FILE
from yolo_launch.errors import LaunchError
from yolo_launch.jobs.run_directory import PLAN_FILE, next_run_dir, writing_to
from yolo_launch.remote.address import is_url, split_url
from yolo_launch.remote.cache import CachedCopy, RemoteCache
from yolo_launch.remote.mirror import mirrored
from yolo_launch.remote.transfer import RemoteStore, StoreError, unreachable

_WEIGHTS = (f"weights/{BEST_WEIGHTS}", f"weights/{LAST_WEIGHTS}")
MIRRORED = (CONFIG_FILE, PLAN_FILE, *_WEIGHTS, RESULTS_FILE, METRICS_FILE, SUMMARY_FILE)
"""What ``--mirror`` copies of a run directory, in this order: all that a resume reads, and the results."""
READ_FIELDS = {"data": "--data", "weights": "--weights"}
"""Options that may name a URL. Of a data set the whole folder of its YAML file is read."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sources:
    """Where files of a job came from; the copies stay on this machine for as long as this value does."""

    urls: Mapping[str, str] = field(default_factory=dict)
    """By field name of the configuration."""
    copies: tuple[CachedCopy, ...] = ()


def default_cache() -> RemoteCache:
    """Returns this user's cache on this machine."""
    from trainer.data.demo.dataset import default_cache_dir  # draws pictures, with OpenCV

    return RemoteCache(default_cache_dir() / "remote")


def fetch_sources(settings: Mapping[str, Any], say: Say) -> tuple[dict[str, Any], Sources]:
    """Returns the settings with the path of a copy for each URL, and where the copies came from. Raises LaunchError."""
    urls = {name: str(settings[name]) for name in READ_FIELDS if is_url(settings.get(name))}
    if not urls:
        return dict(settings), Sources()
    cache = default_cache()
    copies = {name: cache.fetch(url, READ_FIELDS[name], say, with_folder=name == "data") for name, url in urls.items()}
    paths = {name: os.fspath(copy.path) for name, copy in copies.items()}
    return {**settings, **paths}, Sources(urls, tuple(copies.values()))


def sources_of_resume(given: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was typed, and the URL that the run's data came from unless other data were typed.

    Its weights are in its checkpoints.
    """
    url = plan.get("sources", {}).get("data")
    return {**given, "data": url} if url and "data" not in given else dict(given)


def copied_to_mirror(run_dir: Path, url: str | None, say: Say) -> AbstractContextManager[None]:
    """Copies, in a block, a run's results to a URL, if there is one. Entering raises LaunchError."""
    return mirrored(run_dir, url, say, patterns=MIRRORED, plan_file=PLAN_FILE)


def fetch_run(url: str, project: str, *, dry_run: bool) -> Path:
    """Reads a run that ``--mirror`` copied into a new folder of ``project``, whole or not at all.

    Raises LaunchError.
    """
    if dry_run:
        raise LaunchError(
            "--dry-run makes nothing, and a run at a URL is read into a folder first.",
            seen=f"--resume {url}",
            expected="--resume without --dry-run, or a run on this machine",
        )
    run_dir = next_run_dir(project, split_url(url)[1], exist_ok=False)
    store = RemoteStore(url)
    try:
        files = [one for one in store.list() if one.path in MIRRORED]
        if not {CONFIG_FILE, PLAN_FILE} <= {one.path for one in files}:
            raise StoreError(f"there is no {CONFIG_FILE} and {PLAN_FILE} in {url}")
        with writing_to(run_dir):
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{run_dir.name}-", dir=run_dir.parent) as folder:
                store.get(files, Path(folder) / "run", lambda _: None)
                os.rename(Path(folder) / "run", run_dir)
    except StoreError as error:
        raise unreachable(url, error, "--resume") from None
    return run_dir
