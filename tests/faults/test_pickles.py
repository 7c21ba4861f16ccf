"""Weights that are a pickle, whose reading could run anything, are refused in one line; nothing of them is run."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from test_run import make_spec
from tunewise.errors import ModelError
from tunewise.models.bare import load_bare
from tunewise.models.language import language_model
from tunewise.spec import ModelSpec
from tunewise.tasks.build import build_task


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


READERS: dict[str, Callable[[Path, Path], object]] = {
    "a run": lambda model, data: build_task(make_spec(model, data)).load_model(0),
    "inspect": lambda model, _: load_bare(ModelSpec(path=str(model)), [], "FEATURE_EXTRACTION"),
    "forgetting": lambda model, _: language_model(ModelSpec(path=str(model))),
}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("reader", list(READERS))
def test_a_pickle_is_refused_and_not_opened(
    reader: str, name: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    model, mark = tmp_path / "model", tmp_path / "it ran"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ModelError, match=rf"as a pickle \({name}\), which is not read; .* save_pretrained"):
        READERS[reader](model, toy_csv)
    assert not mark.exists()


def test_a_pickle_beside_safetensors_is_left_alone(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    model, mark = tmp_path / "model", tmp_path / "it ran"
    shutil.copytree(tiny_model, model)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    assert build_task(make_spec(model, toy_csv)).load_model(0) is not None
    assert not mark.exists()
