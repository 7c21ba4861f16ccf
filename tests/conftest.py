"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import invoke
from tiny import save_tiny_model, save_toy_csv

os.environ.pop("COLUMNS", None)  # pytest-xdist tells its workers of a terminal that they do not have

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; tests that use it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT with its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 toy texts in three classes."""
    return save_toy_csv(tmp_path_factory.mktemp("toy") / "toy.csv")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """Tiny matrices are faster, and the suite kinder to other processes, on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _no_libraries_in_collections() -> None:
    """Every run collects garbage twice: without this, over all objects of the libraries that are imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`tunewise WORDS` in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = invoke(monkeypatch, *map(str, words))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run
