"""Landscapes from the command line: settings, resumption, trajectories asked for later, the report and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from command_line import invoke
from tunewise import comparison
from tunewise.measures.landscape import compute as measured
from tunewise.store.folders import RunStore


@pytest.fixture
def flags(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> list[str]:
    return [
        "compare",
        f"--model={tiny_model}",
        f"--data={toy_csv}",
        "--methods=lora,head",
        "--rank=2",
        "--seeds=2",
        "--epochs=2",
        "--batch-size=8",
        "--max-length=16",
        "--learning-rate=0.01",
        "--no-costs",
        "--measures=landscape",
        "--landscape-grid=5",
        "--landscape-batches=2",
        f"--out={tmp_path}",
    ]


def landscapes(out: Path) -> dict[tuple[str, int], dict]:
    store = RunStore(out)
    found = {}
    for record in store.records():
        file = store.folder(record.id) / "measures" / "landscape.json"
        if file.exists():
            found[record.spec.method.name, record.spec.seed] = json.loads(file.read_text())
    return found


def test_a_comparison_draws_each_methods_first_seed_and_more_once_there_is_a_trajectory(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "write_files", lambda *_: [])
        assert invoke(patch, *flags, "--landscape-kind=random,pca") == 0
    first = landscapes(tmp_path)
    assert set(first) == {("lora", 0), ("head", 0)}
    for known in first.values():
        values = known["values"]
        assert known["settings"]["grid"] == 5
        surface = values["surfaces"]["random"]
        assert np.array(surface["loss"]).shape == (5, 5)
        assert surface["x"] == surface["y"] == [-2, -1, 0, 1, 2]
        assert surface["loss"][2][2] == pytest.approx(values["loss"]["value"], rel=1e-6)
        assert values["sharpness_low"] <= values["sharpness"] <= values["sharpness_high"]
        assert set(values["surfaces"]) == {"random"}
        assert "add --trajectory 20 to train" in values["missing"]["pca"]
    capsys.readouterr()

    again = [*flags, "--landscape-kind=random,pca", "--trajectory=4"]
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "write_files", lambda *_: [])
        assert invoke(patch, *again) == 0
    assert "4 finished runs kept no trajectory; --again trains them anew with one" in capsys.readouterr().out
    assert landscapes(tmp_path) == first
    assert invoke(monkeypatch, *again, "--again") == 0
    second = landscapes(tmp_path)
    for key, known in second.items():
        values, path = known["values"], known["values"]["surfaces"]["pca"]["path"]
        assert values["surfaces"]["random"]["loss"] == first[key]["values"]["surfaces"]["random"]["loss"]
        assert values["missing"] == {}
        surface = values["surfaces"]["pca"]
        assert min(surface["x"]) < min(path["x"]) <= max(path["x"]) < max(surface["x"])
        assert min(surface["y"]) < min(path["y"]) <= max(path["y"]) < max(surface["y"])
        assert len(path["step"]) == 5
        assert path["step"][0] == 0
        assert 0.5 < sum(surface["explained"]) <= 1.0

    (folder,) = tmp_path.glob("compare-*")
    html = (folder / "report.html").read_text(encoding="utf-8")
    for said in ("Loss landscape", "lora: random plane", "head: plane of the path", "Basins in the random plane"):
        assert said in html
    pytest.importorskip("matplotlib")
    files = {file.name for file in (folder / "landscape").iterdir()}
    stems = ("random", "random-surfaces", "pca", "pca-surfaces", "basins")
    assert files == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    assert "principal direction" in (folder / "landscape" / "pca.svg").read_text()


def test_other_settings_make_it_again_and_the_same_ones_do_not(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "write_files", lambda *_: [])
    flags = [f.replace("lora,head", "lora").replace("--seeds=2", "--seeds=1") for f in flags]
    assert invoke(monkeypatch, *flags) == 0
    file = next(tmp_path.glob("*/measures/landscape.json"))
    before, time = file.read_bytes(), file.stat().st_mtime_ns
    assert invoke(monkeypatch, *flags) == 0
    assert file.stat().st_mtime_ns == time
    assert invoke(monkeypatch, "report", str(tmp_path)) == 0
    assert file.read_bytes() == before
    assert "lora: random plane" in next(tmp_path.glob("compare-*/report.html")).read_text(encoding="utf-8")
    assert invoke(monkeypatch, *flags, "--landscape-grid=3") == 0
    assert len(json.loads(file.read_text())["values"]["surfaces"]["random"]["x"]) == 3


def test_a_stop_in_the_middle_keeps_the_rows_that_are_done(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call evaluates what is missing, and ends with what one call would have ended with."""
    monkeypatch.setattr(comparison, "write_files", lambda *_: [])
    flags = [f.replace("lora,head", "lora").replace("--seeds=2", "--seeds=1") for f in flags]
    assert invoke(monkeypatch, *flags) == 0
    file = next(tmp_path.glob("*/measures/landscape.json"))
    whole = json.loads(file.read_text())["values"]
    file.unlink()

    kept = measured.Rows.keep

    def stop(self: measured.Rows, row: int, losses: list) -> None:
        kept(self, row, losses)
        if row == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measured.Rows, "keep", stop)
        assert invoke(patch, *flags) != 0
    assert len(next(tmp_path.glob("*/measures/landscape-random.rows.jsonl")).read_text().splitlines()) == 4
    made: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(measured.Rows, "keep", lambda self, row, losses: (made.append(row), kept(self, row, losses)))
        assert invoke(patch, *flags) == 0
    assert made == [3, 4]
    again = json.loads(file.read_text())["values"]
    for values in (again, whole):
        values["surfaces"]["random"].pop("seconds")
    assert again == whole
    assert not list(tmp_path.glob("*/measures/*.rows.jsonl"))


def test_wrong_settings_are_one_line(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, *flags, "--landscape-kind=randm") == 2
    assert "measure landscape: kinds.0 = 'randm': input should be 'random' or 'pca'" in capsys.readouterr().err
    assert invoke(monkeypatch, *flags, "--landscape-grid=1") == 2
    assert "grid = 1: input should be greater than or equal to 3" in capsys.readouterr().err
