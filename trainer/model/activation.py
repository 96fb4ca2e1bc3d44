"""Reads the ``activation`` line of a model definition by a table of names; nothing is evaluated as code."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from trainer.errors import ConfigError
from trainer.model.layers import Conv

_INPLACE: dict[str, type[nn.Module]] = {
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "LeakyReLU": nn.LeakyReLU,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "Mish": nn.Mish,
    "ELU": nn.ELU,
    "CELU": nn.CELU,
    "SELU": nn.SELU,
}
_PLAIN: dict[str, type[nn.Module]] = {
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
    "Identity": nn.Identity,
}


def parse_activation(text: str, source: str) -> Callable[[], nn.Module]:
    """Returns a factory for the activation written as ``nn.LeakyReLU(0.1)``, ``nn.ReLU()`` or ``ReLU``.

    Arguments are literals. Raises ConfigError, which names ``source``, for any other text.
    """
    try:
        name, arguments, keywords = _split_call(text)
    except (SyntaxError, ValueError) as error:
        raise _activation_error(text, source) from error
    known = {**_INPLACE, **_PLAIN}
    if name not in known:
        raise _activation_error(text, source, name)
    if name in _INPLACE:
        keywords = {"inplace": True, **keywords}

    def make() -> nn.Module:
        return known[name](*arguments, **keywords)

    try:
        make()
    except TypeError as error:
        raise _activation_error(text, source) from error
    return make


def set_activation(model: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Replaces the activation behind every convolution that has one."""
    for module in model.modules():
        if isinstance(module, Conv) and not isinstance(module.act, nn.Identity):
            module.act = make()


def _split_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Returns name, arguments and keywords of ``nn.Name(...)``. Raises SyntaxError or ValueError for other text."""
    node = ast.parse(text.strip(), mode="eval").body
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        arguments = [ast.literal_eval(argument) for argument in node.args]
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        node = node.func
    return ast.unparse(node).removeprefix("torch.").removeprefix("nn."), arguments, keywords


def _activation_error(text: str, source: str, name: str = "") -> ConfigError:
    known = [*_INPLACE, *_PLAIN]
    nearest = difflib.get_close_matches(name, known, n=1)
    return ConfigError(
        f"'activation' of the model definition {source} is not usable.",
        seen=repr(text),
        expected=f"nn.{nearest[0]}()" if nearest else f"nn.<name>(numbers) with one of {', '.join(known)}",
        next_command="correct the file; docs/models.md shows how a definition is written",
    )
