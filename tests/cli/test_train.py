"""`tunewise train` by its flags alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import invoke
from tunewise.store.folders import RunStore


def test_columns_sizes_and_layers_are_flags_as_of_a_comparison(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, _, rows = toy_csv.read_text(encoding="utf-8").partition("\n")
    assert header.strip() == "text,label"
    data = tmp_path / "own.csv"
    data.write_text("question,topic\n" + rows, encoding="utf-8")
    words = [f"--model={tiny_model}", f"--data={data}", "--text=question", "--label=topic", "--layers=last 1"]
    words += ["--train-size=40", "--epochs=1", "--rank=2", f"--out={tmp_path / 'runs'}"]
    assert invoke(monkeypatch, "train", *words, "--method=cla") == 0
    store = RunStore(tmp_path / "runs")
    (record,) = store.records()
    assert record.data.train == 40 and all(".layer.1." in name for name in record.model.layers)
    assert (
        invoke(
            monkeypatch, "compare", "--no-tune", *words, "--methods=cla", "--seeds=1", "--no-costs", "--measures=none"
        )
        == 0
    )
    assert store.ids() == [record.id]  # the same run, not done again
