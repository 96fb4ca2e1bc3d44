"""Real trainings that are killed: workers forked from a server that has torch loaded, so that a start costs little."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.faults.comparison import result_of
from tests.forked_ranks import become_rank, fork_context, rank_environments

EPOCHS = 3
PROJECT_DIR = Path(__file__).resolve().parents[2]
Hook = tuple[Callable[..., None], tuple[Any, ...]]


@pytest.fixture(scope="session")
def forkserver() -> Any:
    return fork_context()


@pytest.fixture(scope="session")
def fault_data(copy_bccd: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-set YAML with 26 training and 8 validation images of bccd."""
    return copy_bccd(tmp_path_factory.mktemp("fault_data"), 26, 8)


def run_worker(
    config: dict[str, Any], run_dir: str, environ: dict[str, str], log: str, hooks: tuple[Hook, ...] = ()
) -> None:
    """The body of a forked worker: what ``python -m trainer`` does after its imports."""
    become_rank(environ, log)
    from trainer.config.train import make_config
    from trainer.training.worker import main

    for hook, arguments in hooks:
        hook(*arguments)
    sys.stdout.flush()
    os._exit(main(make_config(config), Path(run_dir)))


@dataclass
class Training:
    """A run directory and the processes of its latest start."""

    context: Any
    config: dict[str, Any]
    run_dir: Path
    world_size: int = 1
    hooks: tuple[Hook, ...] = ()
    """Called in each worker before it trains."""
    output_dir: Path | None = None
    """Where the output of the ranks goes; the run directory, unless something happens to its disk."""
    ranks: list[BaseProcess] = field(default_factory=list)

    def start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.ranks = []
        for rank, environ in enumerate(rank_environments(self.world_size)):
            log = str((self.output_dir or self.run_dir) / f"rank{rank}.out")
            arguments = (self.config, str(self.run_dir), environ, log, self.hooks)
            process = self.context.Process(target=run_worker, args=arguments)
            process.start()
            self.ranks.append(process)

    def wait(self, timeout_s: float) -> bool:
        """Whether every rank ended within the time."""
        for process in self.ranks:
            process.join(timeout_s)
        return all(process.exitcode is not None for process in self.ranks)

    def kill(self, ranks: list[int]) -> None:
        """kill -9 of some ranks, then of what is left after the others had time to notice."""
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.ranks[rank].pid or 0, signal.SIGKILL)
        self.wait(10)
        for process in self.ranks:
            if process.exitcode is None:
                process.kill()
                process.join(10)

    def finish(self, timeout_s: float = 240) -> None:
        """Start once more and train to the end."""
        self.start()
        assert self.wait(timeout_s), "the resumed run did not end"
        assert [process.exitcode for process in self.ranks] == [0] * self.world_size, self.output()

    def output(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.output_dir or self.run_dir).glob("rank*.out")))

    def result(self) -> dict[str, Any]:
        """Everything that must be equal to the bit."""
        return result_of(self.run_dir)

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.ranks:
            if process.exitcode is None:
                process.kill()
                process.join(5)


def tiny_config(data: Path, model: Path, **options: Any) -> dict[str, Any]:
    """A configuration whose run takes seconds and writes a checkpoint at almost every step."""
    return {
        "data": str(data),
        "cfg": str(model),
        "imgsz": 64,
        "epochs": EPOCHS,
        "batch_size": 4,
        "workers": 0,
        "plots": False,
        "checkpoint_interval_s": 0.05,
        **options,
    }


@pytest.fixture
def training(forkserver: Any, fault_data: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Any]:
    """Makes a Training in a folder of its own; all of them are ended with the test."""
    made: list[Training] = []

    def make(name: str, world_size: int = 1, hooks: tuple[Hook, ...] = (), **options: Any) -> Training:
        config = {**tiny_config(fault_data, tiny_model), **options}
        made.append(Training(forkserver, config, tmp_path / name, world_size, hooks))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def undisturbed(
    forkserver: Any, fault_data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """The result of a run that nobody disturbs; each is trained once a session."""
    results: dict[str, dict[str, Any]] = {}

    def train(world_size: int = 1, **options: Any) -> dict[str, Any]:
        key = f"{world_size} {sorted(options.items())}"
        if key not in results:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            run = Training(forkserver, tiny_config(fault_data, tiny_model, **options), folder, world_size)
            try:
                run.finish()
            finally:
                run.end()
            results[key] = run.result()
        return results[key]

    return train
