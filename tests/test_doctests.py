"""The examples in docstrings run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import tunewise
import tunewise.theory

SOURCE = Path(tunewise.__file__).resolve().parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


WITH_EXAMPLES = sorted(
    _module_name(path) for path in SOURCE.rglob("*.py") if "\n>>> " in path.read_text().replace("\n    ", "\n")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.attempted
    assert not result.failed


PUBLIC = [f"tunewise.{name}" for name in tunewise.__all__] + [
    f"tunewise.theory.{name}" for name in tunewise.theory.__all__
]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    is_documented = inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception))
    if is_documented and ">>> " not in (inspect.getdoc(value) or ""):
        pytest.xfail("no example yet")
