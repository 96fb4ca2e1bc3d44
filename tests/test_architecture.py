"""The rules of docs/architecture.md: imports, sizes, words, names that must resolve, and what loads torch."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PROJECT_DIR = Path(__file__).resolve().parents[1]
PACKAGES = ("yolo_launch", "trainer")
TESTED = ("tests", "benchmarks")
PAGE = (PROJECT_DIR / "docs" / "architecture.md").read_text(encoding="utf-8")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MODULES, MAX_ROOT_MODULES = 300, 60, 13, 4
FACE_OF_TRAINER = {
    "trainer.protocol",
    "trainer.errors",
    "trainer.config",
    "trainer.data.curation",
    "trainer.data.dataset",
    "trainer.data.formats",
    "trainer.data.split_files",
    "trainer.data.scan",
    "trainer.data.demo",
    "trainer.model.definition",
    "trainer.runtime.process_guard",
}
"""What the launcher may import of the trainer; none of it loads torch."""
LOADS_TORCH = {
    "yolo_launch.workers.elastic_agent": "runs torch's agent",
    "yolo_launch.workers.rendezvous_handler": "is called by torch's agent",
    "yolo_launch.probes.child": "measures with torch in a process of its own",
}
"""Modules of the launcher that load torch, with the reason."""
MAY_PRINT = {"rich": ("yolo_launch.cli", "trainer.runtime.reporter"), "typer": ("yolo_launch.cli",)}
FILES = sorted(path for package in PACKAGES for path in (PROJECT_DIR / package).rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT_DIR).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every name that a file imports, wherever in it: modules, and names of modules or packages."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def module_of(imported: str) -> str:
    """The module that an imported name stands in."""
    return imported if imported in MODULES else imported.rpartition(".")[0]


def floors(package: str) -> dict[str, int]:
    """Floor of each room of a package, from the page's tree."""
    (block,) = re.findall(rf"```\n{package}\n(.*?)```", PAGE, re.DOTALL)
    return {f"{package}.{name}": int(floor) for floor, name in re.findall(r"^(\d) (\w+) ", block, re.MULTILINE)}


FLOORS = {**floors("yolo_launch"), **floors("trainer")}


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def inner_imports() -> list[tuple[str, str]]:
    """(module, imported name) of both packages, for names of both packages."""
    return [
        (name, imported)
        for name, path in MODULES.items()
        for imported in sorted(imports_of(path))
        if imported.split(".")[0] in PACKAGES
    ]


def test_the_page_names_exactly_the_rooms():
    rooms = {room_of(name) for name in MODULES if "." in name and not name.endswith("__main__")}
    assert rooms == set(FLOORS)


def test_imports_go_to_a_lower_floor():
    wrong = []
    for name, imported in inner_imports():
        own, other = room_of(name), room_of(module_of(imported))
        same_package = own.split(".")[0] == other.split(".")[0]
        if not same_package or own == other or other in PACKAGES or name.endswith("__main__"):
            continue
        if FLOORS[own] <= FLOORS[other]:
            wrong.append(f"{name} (floor {FLOORS[own]}) imports {imported} (floor {FLOORS[other]})")
    assert wrong == []


def test_the_trainer_never_imports_the_launcher():
    assert [pair for pair in inner_imports() if pair[0].startswith("trainer") and "yolo_launch" in pair[1]] == []


def test_the_launcher_knows_only_the_face_of_the_trainer():
    wrong = [
        (name, imported)
        for name, imported in inner_imports()
        if name.startswith("yolo_launch") and imported.startswith("trainer.") and name != "yolo_launch.probes.child"
        if not any(f"{imported}.".startswith(f"{allowed}.") for allowed in FACE_OF_TRAINER)
    ]
    assert wrong == []


def public_names(package: str) -> set[str]:
    """``__all__`` of a package: its modules that others may import, and the names that it passes on."""
    for node in tree_of(MODULES[package]).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def outside_imports(package: str) -> set[str]:
    """What modules outside a package import of it: the name that follows the package's own."""
    return {
        imported[len(package) + 1 :].split(".")[0]
        for name, imported in inner_imports()
        if imported.startswith(f"{package}.") and not name.startswith(f"{package}.") and name != package
    }


SUBPACKAGES = [name for name, path in MODULES.items() if path.stem == "__init__" and "." in name]


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_others_import_only_what_the_face_of_a_package_names(package):
    docstring = ast.get_docstring(tree_of(MODULES[package])) or ""
    assert re.fullmatch(r"[A-Z][^.\n]*(\.\w[^.\n]*)*\.", docstring), "one sentence"
    assert outside_imports(package) <= public_names(package)
    # A test or a program from outside (python -m) may be the only user of a public module.
    unused = public_names(package) - outside_imports(package)
    assert {name for name in unused if not is_named_elsewhere(f"{package}.{name}")} == set()


@cache
def other_texts() -> str:
    """Strings of both packages, and the imports and strings of tests and benchmarks."""
    texts = [text for path in FILES for text in strings_of(path)]
    for folder in TESTED:
        texts += [path.read_text(encoding="utf-8") for path in (PROJECT_DIR / folder).rglob("*.py")]
    return "\n".join([*texts, (PROJECT_DIR / "pyproject.toml").read_text(encoding="utf-8")])


def is_named_elsewhere(name: str) -> bool:
    package, _, last = name.rpartition(".")
    pattern = rf"(?<![\w.]){re.escape(name)}\b|from {re.escape(package)} import [^\n]*\b{last}\b"
    return re.search(pattern, other_texts()) is not None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PROJECT_DIR)))
def test_folders_have_few_modules(folder):
    modules = [path for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__")]
    is_root = folder.parent == PROJECT_DIR
    assert len(modules) <= (MAX_ROOT_MODULES if is_root else MAX_MODULES)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_short_and_typed(path):
    assert path.read_text(encoding="utf-8").count("\n") <= MAX_FILE_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = node.end_lineno - node.lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{node.name} has {size} lines"
            assert node.returns is not None, f"{node.name} has no return type"


def words_of(name: str) -> set[str]:
    """The words of a CamelCase or snake_case name."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_module_or_class_has_an_invented_word_for_a_name():
    (sentence,) = re.findall(r"stand in no module or class name: (.*?)\.\n", PAGE, re.DOTALL)
    banned = set(re.findall(r"`(\w+)`", sentence))
    assert len(banned) > 15
    names = [(name, name.rpartition(".")[2]) for name in MODULES]
    for name, path in MODULES.items():
        names += [(name, node.name) for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    allowed = {"StatusLine", "status_line", "command_line", "LogLine"}  # a line of text
    wrong = [f"{where}: {name}" for where, name in names if name not in allowed and words_of(name) & banned]
    assert wrong == []


def strings_of(path: Path) -> list[str]:
    nodes = ast.walk(tree_of(path))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name that a module binds, as deep as its text can tell."""
    module, rest = dotted, []
    while importlib.util.find_spec(module.partition(".")[0]) and module not in all_modules() and "." in module:
        module, _, last = module.rpartition(".")
        rest.insert(0, last)
    if module not in all_modules() or (module in PACKAGES and rest):
        return False
    text = all_modules()[module].read_text(encoding="utf-8")
    return all(re.search(rf"\b{name}\b", text) for name in rest[:1])


@cache
def all_modules() -> dict[str, Path]:
    tests = [path for folder in TESTED for path in (PROJECT_DIR / folder).rglob("*.py")]
    folders = {".".join(path.parent.relative_to(PROJECT_DIR).parts): path for path in tests}
    return {**folders, **{module_name(path): path for path in tests}, **MODULES}


def test_dotted_names_in_strings_resolve():
    dotted = re.compile(r"(?<![\w./-])(?:yolo_launch|trainer|tests)(?:\.[A-Za-z_]\w*)+(?![\w/(-])")
    wrong = []
    for name, path in all_modules().items():
        if path.stem == "__init__" or name == "tests.test_architecture":
            continue
        for text in strings_of(path):
            wrong += [f"{name}: {found}" for found in dotted.findall(text) if not resolves(found)]
    # A file, an operator of Kubernetes, and a package of this name that a test plants.
    known = re.compile(r"\.(kubeflow|yaml|json|py|md|toml|OWNER)\b")
    assert [text for text in wrong if not known.search(text)] == []


def test_tests_have_the_folders_of_the_packages():
    for package in PACKAGES:
        tests = {
            path.parent.relative_to(PROJECT_DIR / "tests") for path in (PROJECT_DIR / "tests" / package).rglob("*.py")
        }
        folders = {
            folder.relative_to(PROJECT_DIR) for folder in FOLDERS if folder.is_relative_to(PROJECT_DIR / package)
        }
        empty = {folder for folder in folders if not has_code(PROJECT_DIR / folder)}
        assert tests - folders == set()
        assert folders - tests - empty == set()


def has_code(folder: Path) -> bool:
    return any(path.stem not in ("__init__", "__main__") for path in folder.glob("*.py"))


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT_DIR)


def test_the_launcher_loads_without_torch():
    names = [name for name in MODULES if name.startswith("yolo_launch") and not name.endswith("__main__")]
    wanted = [name for name in names if name not in LOADS_TORCH]
    face = [name for name in MODULES if any(f"{name}.".startswith(f"{allowed}.") for allowed in FACE_OF_TRAINER)]
    assert len(wanted) > 60
    assert len(face) >= 6
    check = "assert 'torch' not in sys.modules, name + ' loads torch'"
    run_python(f"import sys, importlib\nfor name in {wanted + face}:\n    importlib.import_module(name)\n    {check}")


@pytest.mark.parametrize(("library", "allowed"), MAY_PRINT.items())
def test_only_the_face_of_the_program_draws(library, allowed):
    users = {name for name, path in MODULES.items() if any(i.split(".")[0] == library for i in imports_of(path))}
    assert {name for name in users if not name.startswith(allowed)} == set()


def untyped_values(path: Path) -> list[str]:
    """What a module does with a mapping called ``values`` or ``options`` as Typer parsed it."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Subscript) and is_typed_dict(node.value) and is_text(node.slice):
            found.append(f"line {node.lineno} subscripts {ast.unparse(node.value)}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            found += [f"line {node.lineno} calls {ast.unparse(node.func)}"] * is_typed_dict(node.func.value)
        if isinstance(node, ast.arg) and node.arg in ("values", "options") and node.annotation is not None:
            untyped = re.fullmatch(r"(dict|Mapping)\[str, Any\]", ast.unparse(node.annotation))
            found += [f"line {node.lineno} takes {node.arg} untyped"] * bool(untyped)
    return found


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_typed_dict(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("values", "options")


READS_JSON = {"yolo_launch.host.inventory"}
"""Modules whose ``values`` are what another program wrote."""
LAUNCHER = [name for name in MODULES if name.startswith("yolo_launch.") and name not in LOADS_TORCH]


@pytest.mark.parametrize("name", [name for name in LAUNCHER if room_of(name) != "yolo_launch.cli"])
def test_what_typer_parsed_stays_in_the_face_of_the_program(name):
    assert name in READS_JSON or untyped_values(MODULES[name]) == []


def options_with_defaults() -> list[tuple[str, str, str]]:
    """(command, option, help text and default) of the program."""
    from yolo_launch.cli.command_table import COMMANDS
    from yolo_launch.request.options import options_of

    kinds = [(entry.name, *entry.options.rpartition(".")[::2]) for entry in COMMANDS]
    return [
        (command, option.name, option.text)
        for command, module, kind in kinds
        for option in options_of(getattr(importlib.import_module(module), kind))
    ]


EXAMPLES = {
    "rank": "0 on the master, then 1, 2, ...",
    "gpus": "indices or UUIDs, such as 0,1; or all, idle, cpu",
    "classes": "only these: 0,2 or person,car",
    "hyperparameters": "one hyperparameter, such as lr0=0.02; may be repeated",
    "freeze": "layers to freeze: 10 is the first ten, several numbers are just those",
    "multi_scale": "vary the image size by +-50 %",
    "patience": "stop after so many epochs without a better one; 0 never stops",
    "save_period": "keep a checkpoint every so many epochs; -1 never",
    "master": "address of the machine with rank 0",
}
"""Help texts with numbers in them that are no defaults."""


def test_no_default_number_stands_in_a_help_text():
    """A default is shown from its field, so that it stands once."""
    found = options_with_defaults()
    assert len(found) > 100
    with_number = {(name, text) for _, name, text in found if re.search(r"(?<![A-Za-z0-9])[0-9]", text)}
    assert {pair for pair in with_number if EXAMPLES.get(pair[0]) != pair[1]} == set()


FIELDS = [name for name in MODULES if re.fullmatch(r"yolo_launch\.request\.\w+_options|trainer\.config\.\w+", name)]


@pytest.mark.parametrize("name", FIELDS)
def test_no_default_text_of_an_option_has_a_number(name):
    """``default_text`` puts a default into words; its numbers come from the default."""
    literals = [
        node
        for call in ast.walk(tree_of(MODULES[name]))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg in ("default_text", "when")
        for node in ast.walk(keyword.value)
        if is_text(node)
    ]
    assert [node.value for node in literals if re.search(r"[0-9]", node.value)] == []


@pytest.mark.parametrize(
    ("typed", "absent"),
    [
        ("--help", ("pydantic", "psutil", "numpy", "yaml", "yolo_launch.spec", "yolo_launch.cli.commands")),
        ("train --help", ("psutil", "numpy", "yaml", "yolo_launch.spec", "yolo_launch.cli.commands")),
        ("run --help", ("pydantic", "psutil", "numpy", "yaml", "yolo_launch.spec", "yolo_launch.cli.commands")),
    ],
)
def test_help_loads_no_command(typed, absent):
    run_python(
        "import sys\nfrom yolo_launch.cli.main import run_program\n"
        f"assert run_program({typed.split()}) == 0\n"
        f"loaded = set({absent}) & set(sys.modules)\nassert not loaded, loaded"
    )
