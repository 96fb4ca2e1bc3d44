"""YAML as people write it, without what YAML would make of it."""

from __future__ import annotations

import importlib.util

import pytest
import yaml

from trainer.errors import ConfigError
from trainer.reading import yaml_file
from trainer.reading.text_file import TextFileError
from trainer.reading.yaml_file import dump_yaml, parse_yaml, read_yaml


def test_values_are_plain():
    text = "a: 3\nb: 1e-3\nc: .5\nd: yes\ne: 2001-99-99\nf: 012\ng: 1:30\nh: ~\ni: [x, 'y']\nj: 0x10\nk: 1_000\n"
    assert parse_yaml(text) == {
        "a": 3, "b": 0.001, "c": 0.5, "d": True, "e": "2001-99-99", "f": "012", "g": "1:30", "h": None,
        "i": ["x", "y"], "j": 16, "k": 1000,
    }  # fmt: skip
    assert parse_yaml("") is None
    assert parse_yaml("x: -.inf\ny: " + "9" * 5000) == {"x": float("-inf"), "y": "9" * 5000}


@pytest.mark.parametrize(
    "form", ["[yes, no, 1.0, null, 012, 'on', ~]", "{0: yes, 1: no, 2: 1.0, 3: null, 4: 012, 5: on, 6: ~}"]
)
def test_names_stay_as_written(form):
    names = parse_yaml(f"names: {form}\nnc: 7", as_written=("names",))["names"]
    assert list(names.values() if isinstance(names, dict) else names) == ["yes", "no", "1.0", "null", "012", "on", "~"]


def test_references_and_merged_maps_are_read():
    text = "base: &b {x: 1, y: 2}\nmore: &m\n  <<: *b\n  y: 3\nlast: {<<: *m, x: 0}\nlist: [*b, *b]\n"
    value = parse_yaml(text)
    assert value["more"] == {"x": 1, "y": 3}
    assert value["last"] == {"x": 0, "y": 3}
    assert value["list"] == [{"x": 1, "y": 2}] * 2


def bomb() -> str:
    lines = ["a0: &a0 [" + "x," * 9 + "]"]
    lines += [f"a{i}: &a{i} [" + f"*a{i - 1}," * 9 + "]" for i in range(1, 9)]
    return "\n".join(lines)


def without_libyaml(monkeypatch):
    """The same module on a PyYAML that was built without libyaml."""
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    spec = importlib.util.spec_from_file_location("yaml_file_in_python", yaml_file.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module._Events is module._PythonEvents
    return module


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' stands in line 1 and again in line 3"),
        ("x:\n  a: 1\n  'a': 1", "line 3: 'a' stands in line 2"),
        ("names: {0: a, 0: b}", "line 1: '0' stands in line 1"),
        ("a: &x [*x]", "contains itself"),
        ("[" * 3000, "nested too deeply"),
        (bomb(), "repeat more than is read"),
        ("a: !!python/object/apply:os.system [ls]", "the tag"),
        ("a: !!int one", "'one' is not a number"),
        ("a: [1,", r"line \d: while parsing"),
        ("\x01", "characters are not allowed"),
        ("---\na\n---\nb", "single document"),
        ("{[1]: 2}", "unhashable"),
        ('a: "\\0"', "a character that no text has"),
    ],
)
def test_what_is_refused_has_a_line(text, why, monkeypatch):
    for module in (yaml_file, without_libyaml(monkeypatch)):
        with pytest.raises(TextFileError, match=why):
            module.parse_yaml(text)


def test_the_error_is_the_callers(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\na: 2\n")
    for path, seen in ((tmp_path / "a.yaml", "line 2"), (tmp_path / "none.yaml", "No such file"), (tmp_path, "folder")):
        with pytest.raises(ConfigError, match="what") as caught:
            read_yaml(path, "what", error=ConfigError)
        assert seen in caught.value.seen
        assert all(caught.value.to_dict().values())


def test_what_is_written_is_read_back():
    value = {
        "path": "/a b/caf\udce9%20.mp4",
        "list": ["\udcff", "é 红", "yes", "012", "1e-3", "2001-01-01", ""],
        "n": 1.5,
    }
    assert parse_yaml(dump_yaml(value)) == value
    assert dump_yaml({"path": "caf\udce9"}) == "path: !path 'caf%E9'\n"
    with pytest.raises(TextFileError, match="zero byte"):
        parse_yaml("a: !path a%00b")
