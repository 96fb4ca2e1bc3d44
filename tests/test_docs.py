"""The Markdown pages: links lead somewhere, named files exist, commands have the options that they are shown with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from yolo_launch.cli.main import app
from yolo_launch.cli.typed_command import own_words
from yolo_launch.request.torchrun_arguments import takes_value

PROJECT_DIR = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "benchmarks", "examples", ".github")
PAGES = sorted([*PROJECT_DIR.glob("*.md"), *(page for name in FOLDERS for page in (PROJECT_DIR / name).rglob("*.md"))])
NAMED_FILE = re.compile(r"`((?:docs|tests|benchmarks|examples|trainer|yolo_launch|\.github)/[\w./-]*)")
PROGRAM = typer.main.get_command(app)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_DIR)))


def fenced_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, continued lines joined, and what stands between backticks."""
    blocks = "\n".join(fenced_blocks(text)).replace("\\\n", " ")
    return [*blocks.splitlines(), *re.findall(r"`([^`\n]+)`", prose(text))]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get: lower case, spaces as hyphens, other signs dropped."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_links(page: Path) -> list[str]:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not (file.exists() and file.is_relative_to(PROJECT_DIR)) or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


def missing_files(page: Path) -> list[str]:
    text = prose(page.read_text(encoding="utf-8"))
    return [name for name in NAMED_FILE.findall(text) if not (PROJECT_DIR / name).exists()]


def wrong_commands(text: str) -> list[str]:
    """Commands of the program that do not exist, or that lack an option that they are shown with."""
    wrong = []
    for line in code_lines(text):
        shown = re.split(r"(?:^|\s)#", line)[0]
        for command, rest in re.findall(r"(?<![\w/\"-])yolo-launch,? ([a-z]+)(.*?)(?= yolo-launch|$)", shown):
            if command not in PROGRAM.commands:
                wrong.append(f"yolo-launch {command}")
                continue
            if isinstance(PROGRAM.commands[command], TyperGroup):
                word, _, rest = rest.strip().partition(" ")
                command = f"{command} {word}"
            own = " ".join(own_words([command, *rest.split()]))  # the rest is the user's script's
            wrong += [
                f"{command} {flag}"
                for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", own)
                if flag not in options_of(command) and not takes_value(flag)  # torchrun's
            ]
    return wrong


def options_of(command: str) -> set[str]:
    found = PROGRAM
    for word in command.split():
        if word not in getattr(found, "commands", {}):
            return set()
        found = found.commands[word]
    parameters = found.params
    return {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@each_page
def test_links_lead_to_files_and_headings(page):
    assert wrong_links(page) == []


@each_page
def test_named_files_exist(page):
    assert missing_files(page) == []


@each_page
def test_commands_and_their_options_exist(page):
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


@each_page
def test_benchmarks_have_the_options_that_pages_give_them(page):
    for line in page.read_text(encoding="utf-8").splitlines():
        for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^`|\n]*)", line):
            source = (PROJECT_DIR / script).read_text(encoding="utf-8")
            if "add_options(parser" in source:  # those that all comparisons have
                source += (PROJECT_DIR / "benchmarks" / "peers.py").read_text(encoding="utf-8")
            assert [flag for flag in re.findall(r"--[a-z-]+", rest) if f'"{flag}"' not in source] == []


def test_wrong_links_files_and_commands_are_seen(tmp_path):
    """The checks above find something: a page with one of each fault."""
    text = "[a](none.md) [b](#none) `tests/none.py`\n```\nyolo-launch train --none\nyolo-launch fly --data a\n```\n"
    page = PROJECT_DIR / "README.md"
    assert wrong_commands(text) == ["train --none", "yolo-launch fly"]
    assert wrong_commands("`yolo-launch run --none 1 a.py`") == ["run --none"]
    assert wrong_commands("`yolo-launch run --gpus 0 a.py --none`") == []
    assert wrong_commands("`yolo-launch run a.py --gpus 0 -- --none` `yolo-launch val --batch 2 # --none`") == []
    assert NAMED_FILE.findall(text) == ["tests/none.py"]
    own = tmp_path / "page.md"
    own.write_text(text)
    assert wrong_links(own) == ["none.md", "#none"]
    assert missing_files(own) == ["tests/none.py"]
    assert "two-commands" in anchors(page)


def test_the_index_names_every_page():
    text = (PROJECT_DIR / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (PROJECT_DIR / "docs").glob("*.md")} - {"README.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)\)", text)) == set()


def test_each_question_has_a_file():
    text = (PROJECT_DIR / "docs" / "architecture.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^## Where is it\?\n(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)
    answers = re.findall(r"^\| [A-Z].*\? \| `([\w/.]+\.py)` \|$", table, flags=re.MULTILINE)
    assert len(answers) == table.count("? | ")
    assert len(answers) >= 10
    assert [name for name in answers if not (PROJECT_DIR / name).is_file()] == []
