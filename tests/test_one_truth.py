"""What launcher and worker agree on stands in trainer.protocol and nowhere else."""

from __future__ import annotations

import ast

import pytest

from tests.test_architecture import MODULES, tree_of

PROTOCOL = "trainer.protocol"
FOLDERS = {"weights", "logs"}
"""Words that name other things too, and a folder of the run directory only where a path is put together."""


def constants() -> dict[str, object]:
    """Strings and numbers that the protocol's uppercase names stand for."""
    found: dict[str, object] = {}
    for node in tree_of(MODULES[PROTOCOL]).body:
        if not isinstance(node, ast.Assign):
            continue
        names, values = node.targets[0], node.value
        pairs = zip(names.elts, values.elts, strict=True) if isinstance(names, ast.Tuple) else iter([(names, values)])
        for name, value in pairs:
            if isinstance(value, ast.Constant):
                found[name.id] = value.value
    return found


STRINGS = {name: value for name, value in constants().items() if isinstance(value, str)}


def code_strings(module: str) -> list[str]:
    """Strings that a module works with or shows: all but docstrings."""
    nodes = list(ast.walk(tree_of(MODULES[module])))
    described = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described
    ]


def stands_in(literal: str, text: str) -> bool:
    """A word has to be the whole string; a file's or a variable's name may be part of a sentence."""
    return literal in text if "." in literal or "_" in literal else literal == text


@pytest.mark.parametrize("name", STRINGS)
def test_a_name_of_the_protocol_stands_nowhere_else(name):
    others = [module for module in MODULES if module != PROTOCOL]
    assert [
        f"{module}: {text!r}" for module in others for text in code_strings(module) if stands_in(STRINGS[name], text)
    ] == []


def test_the_protocol_names_what_both_sides_need():
    assert len(STRINGS) >= 13
    assert {"YOLO_LOGS_DIR", "TORCHELASTIC_ERROR_FILE", "config.yaml", "summary.json"} <= set(STRINGS.values())


@pytest.mark.parametrize("word", [".heartbeat.json", ".error.json", ".stacks", "rank{rank}.log", "rank0."])
def test_a_rank_s_file_is_named_by_the_protocol_alone(word):
    users = {module for module in MODULES if any(word in text for text in code_strings(module))}
    assert users <= {PROTOCOL}


def divided_by() -> set[tuple[str, str]]:
    """(module, literal) of every ``path / "literal"``."""
    return {
        (module, node.right.value)
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        if isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)
    }


def test_the_folders_of_a_run_are_named_by_the_protocol_alone():
    found = {(module, word) for module, word in divided_by() if word in FOLDERS}
    assert found == {(PROTOCOL, word) for word in FOLDERS}


def numbers_that_default(module: str) -> list[tuple[str, object]]:
    """(name, number) of every parameter, field or option whose default is a literal."""
    found: list[tuple[str, object]] = []
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            inner = node.value.args[:1] if isinstance(node.value, ast.Call) else [node.value]
            found += [(node.target.id, value.value) for value in inner if isinstance(value, ast.Constant)]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            places = node.args.posonlyargs + node.args.args
            pairs = [*zip(places[::-1], node.args.defaults[::-1], strict=False)]
            pairs += [*zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
            found += [(place.arg, value.value) for place, value in pairs if isinstance(value, ast.Constant)]
    return found


SHARED_DEFAULTS = {
    "DEFAULT_IMAGE_SIZE": ("imgsz", "image_size"),
    "DEFAULT_BATCH_SIZE": ("batch_size", "global_batch_size"),
    "VAL_CONFIDENCE": ("conf", "confidence", "confidence_threshold"),
    "PREDICT_CONFIDENCE": ("conf", "confidence", "report_confidence", "min_confidence"),
    "VAL_IOU": ("iou", "nms_iou_threshold"),
    "PREDICT_IOU": ("iou", "nms_iou_threshold"),
    "MAX_DETECTIONS": ("max_det", "max_detections"),
    "PREDICT_MAX_DETECTIONS": ("max_det", "max_detections"),
    "EXIT_USAGE": ("exit_code",),
}
"""Constant -> the parameters and fields whose defaults come from it."""


@pytest.mark.parametrize("name", SHARED_DEFAULTS)
def test_a_shared_default_is_no_literal(name):
    assert [
        module
        for module in MODULES
        if module != PROTOCOL
        for parameter, value in numbers_that_default(module)
        if parameter in SHARED_DEFAULTS[name] and value == constants()[name]
    ] == []
