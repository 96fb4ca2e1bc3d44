"""The known detector, which is a script beside the tests, as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def known() -> ModuleType:
    path = Path(__file__).with_name("known_detector.py")
    spec = importlib.util.spec_from_file_location("known_detector", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
