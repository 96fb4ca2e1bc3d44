"""Reads a user's YAML file as plain values: strings, whole numbers, floats, truth values, None, lists and maps.

Nothing else is made of it, whatever its tags say; a key that stands twice is refused, since one of the two values
would be lost; depth and repeats by reference are bounded, so that no small file takes a large memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote_from_bytes, unquote_to_bytes

import yaml
from yaml.composer import Composer, ComposerError
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from trainer.errors import UserError
from trainer.reading.text_file import TextFileError, printable, read_text

LIMIT_BYTES = 2**20
"""More than 20,000 class names; parsing more takes seconds."""
_MAX_DEPTH = 40
_MAX_VALUES = 500_000
_MAX_DIGITS = 40
_PATH_TAG = "!path"
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _Resolver(BaseResolver):
    """YAML 1.1's bare words, without its dates, its numbers to base 60 and its octal numbers."""


_BARE_WORDS: tuple[tuple[str, str, Collection[str]], ...] = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
     r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)  # fmt: skip


def _resolve_bare_words(kind: Any) -> None:
    """Lets a loader take bare words for what they are, and a dumper quote strings that a loader would."""
    for tag, pattern, first in _BARE_WORDS:
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_resolve_bare_words(_Resolver)


class _PythonEvents(Reader, Scanner, Parser):
    """What libyaml does, for a PyYAML that was built without it."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)


_Events: Any = yaml.cyaml.CParser if yaml.__with_libyaml__ else _PythonEvents  # type: ignore[attr-defined]


class _Loader(Composer, _Events, SafeConstructor, _Resolver):  # type: ignore[misc]
    """Events to nodes to values; the bounds are checked as nodes are made."""

    def __init__(self, text: str, as_written: Collection[str]) -> None:
        _Events.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        BaseResolver.__init__(self)
        self._as_written = as_written
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Composes a node as PyYAML does, within the bounds of depth and size."""
        if self._depth >= _MAX_DEPTH:
            raise ComposerError(None, None, "it is nested too deeply", self.peek_event().start_mark)
        self._depth += 1
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if id(node) not in self._sizes:
            if isinstance(node, ScalarNode):
                children: list[Node] = []
            elif node.start_mark is not None and node.end_mark is None:
                # An alias of what is not complete yet.
                raise ComposerError(None, None, "it contains itself", node.start_mark)
            elif isinstance(node, MappingNode):
                _check_keys(node)
                children = [part for pair in node.value for part in pair]
            else:
                children = node.value
            self._sizes[id(node)] = 1 + sum(self._sizes[id(child)] for child in children)
            if self._sizes[id(node)] > _MAX_VALUES:
                text = "its references repeat more than is read"
                raise ComposerError(None, None, text, node.start_mark)
        return node

    def single_value(self) -> Any:
        """Returns the document's value; None for an empty one. Raises yaml.YAMLError."""
        node = self.get_single_node()
        if isinstance(node, MappingNode):
            for key, value in node.value:
                if isinstance(key, ScalarNode) and key.value in self._as_written:
                    _keep_as_written(value)
        return None if node is None else self.construct_document(node)

    def construct_scalar(self, node: Any) -> Any:
        """Returns a scalar's text. Raises ConstructorError for a character that no terminal or file takes."""
        text = super().construct_scalar(node)
        if "\0" in text or _SURROGATE.search(text):
            raise ConstructorError(None, None, "a character that no text has", node.start_mark)
        return text


def _check_keys(node: MappingNode) -> None:
    """Raises ConstructorError for a key that stands twice."""
    lines: dict[tuple[str, str], int] = {}
    for key in (key for key, _ in node.value if isinstance(key, ScalarNode)):
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in lines:
            text = f"{key.value!r} stands in line {lines[name]} and again in line {line}"
            raise ConstructorError(None, None, text, key.start_mark)
        lines[name] = line


def _number(loader: _Loader, node: Any) -> Any:
    """Returns a number; one with more digits than any setting has stays text."""
    text = str(loader.construct_scalar(node))
    bare = text.replace("_", "")
    try:
        if len(bare) > _MAX_DIGITS:
            return text
        if node.tag.endswith(":int"):
            return int(bare, 16 if bare[:2].lower() == "0x" else 10)
        return float(bare.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise ConstructorError(None, None, f"{text[:40]!r} is not a number", node.start_mark) from None


def _truth(loader: _Loader, node: Any) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if text not in SafeConstructor.bool_values:
        raise ConstructorError(None, None, f"{text[:40]!r} is neither true nor false", node.start_mark)
    return SafeConstructor.bool_values[text]


def _refuse_tag(loader: _Loader, node: Any) -> NoReturn:
    raise ConstructorError(None, None, f"the tag {node.tag!r}, which no file here needs", node.start_mark)


def _path(loader: _Loader, node: Any) -> str:
    """A path whose bytes are not UTF-8, as ``dump_yaml`` writes it: percent signs and two digits for such bytes."""
    content = unquote_to_bytes(str(loader.construct_scalar(node)))
    if b"\0" in content:
        raise ConstructorError(None, None, "a zero byte in a path", node.start_mark)
    return os.fsdecode(content)


_Loader.yaml_constructors = {
    _PATH_TAG: _path,
    "tag:yaml.org,2002:int": _number,
    "tag:yaml.org,2002:float": _number,
    "tag:yaml.org,2002:bool": _truth,
    **{
        f"tag:yaml.org,2002:{name}": SafeConstructor.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("null", "str", "seq", "map")
    },
    None: _refuse_tag,
}


def _keep_as_written(node: Node, seen: set[int] | None = None) -> None:
    """Makes strings of every scalar that is a value below ``node``: a class may be called yes, 1.0 or null."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        if node.value or node.style:
            node.tag = "tag:yaml.org,2002:str"
    elif isinstance(node, SequenceNode):
        for child in node.value:
            _keep_as_written(child, seen)
    elif isinstance(node, MappingNode):
        for _, child in node.value:
            _keep_as_written(child, seen)


def parse_yaml(text: str, *, as_written: Collection[str] = ()) -> Any:
    """Returns the value of a YAML text; scalars below the top-level keys ``as_written`` stay strings.

    Raises TextFileError with the line.
    """
    try:
        loader = _Loader(text, as_written)
        try:
            return loader.single_value()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        seen = where + " ".join(filter(None, (error.context, error.problem)))
    except yaml.YAMLError as error:  # a character that YAML does not allow
        seen = " ".join(str(error).split())[:200]
    raise TextFileError(printable(seen), "YAML, each key once", "correct the file there")


def read_yaml(path: str | Path, what: str, *, error: type[UserError], as_written: Collection[str] = ()) -> Any:
    """Returns the value of a user's YAML file. Raises ``error``, with ``what`` as its first part, if unreadable."""
    try:
        return parse_yaml(read_text(path, limit_bytes=LIMIT_BYTES), as_written=as_written)
    except TextFileError as problem:
        raise problem.as_error(error, what) from None
    except OSError as problem:
        raise error(
            what,
            seen=f"{printable(path)}: {problem.strerror or problem}",
            expected="a YAML file that can be read",
            next_command=f"ls -l {printable(path)}",
        ) from None


class _Dumper(yaml.SafeDumper):
    """Writes paths whose bytes are not UTF-8 so that every reader of YAML takes the file."""


def _represent_text(dumper: _Dumper, text: str) -> Any:
    if not _SURROGATE.search(text):
        return dumper.represent_str(text)
    return dumper.represent_scalar(_PATH_TAG, quote_from_bytes(os.fsencode(text), safe="/ "))


_Dumper.add_representer(str, _represent_text)
_resolve_bare_words(_Dumper)


def dump_yaml(value: Any) -> str:
    """Plain values as YAML, in their own order; ``parse_yaml`` gives them back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
