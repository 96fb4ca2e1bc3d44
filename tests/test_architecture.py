"""The floors of the house: who may import whom, sizes, types, and what must not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT_DIR = Path(__file__).resolve().parents[1]
PACKAGES = ("yolo_launch", "trainer")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60
FORBIDDEN_NAMES = {"utils", "util", "misc", "general", "helpers", "common"}

FILES = sorted(path for package in PACKAGES for path in (PROJECT_DIR / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT_DIR).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def offenders(package: str, forbidden: tuple[str, ...], allowed_files: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in FILES:
        name = module_name(path)
        if not name.startswith(package) or name in allowed_files:
            continue
        bad = [used for used in imports_of(path) if any(used == f or used.startswith(f + ".") for f in forbidden)]
        found += [f"{name} imports {used}" for used in sorted(bad)]
    return found


def test_the_packages_are_found():
    assert len(FILES) > 40


def test_trainer_never_imports_the_launcher():
    assert offenders("trainer", ("yolo_launch",)) == []


def test_launcher_knows_only_the_torch_free_part_of_the_trainer():
    allowed = (
        "trainer.config.train",
        "trainer.config.hyperparameters",
        "trainer.errors",
        "trainer.runtime.process_guard",
        "trainer.data.dataset",
        "trainer.data.demo.dataset",
        "trainer.model.definition",
    )
    used = {
        node.module
        for path in FILES
        if module_name(path).startswith("yolo_launch")
        and module_name(path) != "yolo_launch.probes.child"  # runs in a child of its own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("trainer")
    }
    assert used <= set(allowed)
    code = f"import sys, {', '.join(allowed)}\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT_DIR)


@pytest.mark.parametrize("room", ["data", "model", "loss"])
def test_data_model_and_loss_do_not_know_one_another(room):
    others = tuple(f"trainer.{other}" for other in ("data", "model", "loss", "evaluation") if other != room)
    assert offenders(f"trainer.{room}", others) == []


def test_configuration_stops_at_the_builder():
    allowed = (
        "trainer.config.train",
        "trainer.training.worker",
        "trainer.training.build",
        "trainer.training.components",
        "trainer.__main__",
    )
    assert offenders("trainer", ("trainer.config.train",), allowed) == []


def test_only_elastic_imports_torch_in_the_launcher():
    allowed = (
        "yolo_launch.workers.elastic_agent",
        "yolo_launch.workers.rendezvous_handler",
        "yolo_launch.probes.child",
    )
    assert offenders("yolo_launch", ("torch",), allowed) == []


def test_boxes_and_errors_are_the_ground_floor():
    assert offenders("trainer.boxes", ("trainer",)) == []
    assert offenders("trainer.errors", ("trainer",)) == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_functions_and_signatures_keep_to_the_house_rules(path):
    text = path.read_text(encoding="utf-8")
    assert path.stem not in FORBIDDEN_NAMES
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = node.end_lineno - node.lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{node.name} has {size} lines"
            assert node.returns is not None, f"{node.name} has no return type"


@pytest.mark.parametrize(
    "statement",
    [
        "import yolo_launch.cli.main",
        "import yolo_launch.planning.plan, yolo_launch.checks.preflight, yolo_launch.host.inventory",
    ],
)
def test_help_and_planning_leave_torch_unloaded(statement):
    code = f"{statement}\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT_DIR)
