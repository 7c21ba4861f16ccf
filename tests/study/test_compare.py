"""A whole comparison on a tiny model, through the command line as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import invoke
from tunewise.store.folders import RunStore


@pytest.fixture(scope="module")
def flags(tiny_model: Path, toy_csv: Path) -> list[str]:
    return [
        "compare",
        f"--model={tiny_model}",
        f"--data={toy_csv}",
        "--methods=head,lora,cla",
        "--rank=4",
        "--seeds=2",
        "--epochs=2",
        "--batch-size=8",
        "--max-length=16",
        "--learning-rate=0.01",
    ]


@pytest.fixture(scope="module")
def compared(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        assert invoke(patch, *flags, f"--out={out}") == 0
    return out


def test_every_run_has_a_folder_and_a_record(compared: Path) -> None:
    records = RunStore(compared).records()
    assert sorted((r.spec.method.name, r.spec.seed) for r in records) == [
        (m, s) for m in ("cla", "head", "lora") for s in (0, 1)
    ]
    for record in records:
        assert record.status == "done"
        assert record.spec.model.digest is not None
        assert record.spec.data.digest is not None
        assert record.id == record.spec.id
        names = {f.name for f in (compared / record.id).iterdir()}
        assert names == {"run.json", "history.jsonl", "predictions.npz", "adapter", "measures"}


def test_report_is_one_offline_file_that_names_every_run(compared: Path) -> None:
    (report,) = compared.glob("compare-*/report.html")
    html = report.read_text(encoding="utf-8")
    for record in RunStore(compared).records():
        assert record.id in html
    assert 'src="http' not in html


def test_costs_have_both_reference_lines_and_one_row_a_method(compared: Path) -> None:
    (file,) = compared.glob("costs/*.json")
    costs = json.loads(file.read_text())
    rows = {row["method"]: row for row in costs["rows"]}
    assert set(rows) == {"frozen floor", "head", "lora", "cla", "fft"}
    assert rows["frozen floor"]["ratio_to_floor"] == 1.0
    assert rows["frozen floor"]["reference_line"]
    assert rows["fft"]["reference_line"]
    assert rows["head"]["saved_bytes"] < rows["frozen floor"]["saved_bytes"] < rows["cla"]["saved_bytes"]
    assert rows["cla"]["saved_bytes"] < rows["lora"]["saved_bytes"] < rows["fft"]["saved_bytes"]
    for row in rows.values():
        assert row["peak_bytes"] >= row["base_bytes"] > 0


def test_the_same_command_again_runs_nothing_and_changes_no_run(
    compared: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {f: f.stat().st_mtime_ns for f in compared.glob("*/run.json")}
    assert invoke(monkeypatch, *flags, f"--out={compared}") == 0
    assert "6 done already" in capsys.readouterr().out
    assert {f: f.stat().st_mtime_ns for f in compared.glob("*/run.json")} == before


def test_more_methods_run_only_what_is_missing(
    compared: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f.replace("head,lora,cla", "head,lora,cla,paca") for f in flags]
    assert invoke(monkeypatch, *more, f"--out={compared}", "--dry-run") == 0
    assert "2 runs to do, 6 done already" in " ".join(capsys.readouterr().out.split())


def test_dry_run_prints_the_plan_and_writes_nothing(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert invoke(monkeypatch, *flags, f"--out={out}", "--dry-run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 methods x 2 seeds" in shown
    assert "6 runs to do" in shown
    assert not out.exists()


def test_a_spec_file_says_the_same_as_flags(
    flags: list[str], compared: Path, tiny_model: Path, toy_csv: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"model: {tiny_model}\ndata: {toy_csv}\nmethods: [head, lora, cla]\nrank: 4\nseeds: 2\nout: {compared}\n"
        "training:\n  epochs: 2\n  batch_size: 8\n  max_length: 16\n  learning_rate: 1e-2\n"
    )
    assert invoke(monkeypatch, "compare", f"--spec={spec}", "--dry-run") == 0
    assert "0 runs to do, 6 done already" in " ".join(capsys.readouterr().out.split())


def test_moving_the_data_does_not_make_another_run(
    compared: Path, flags: list[str], toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy = tmp_path / toy_csv.name
    copy.write_bytes(toy_csv.read_bytes())
    moved = [f"--data={copy}" if f.startswith("--data=") else f for f in flags]
    assert invoke(monkeypatch, *moved, f"--out={compared}", "--dry-run") == 0
    assert "0 runs to do" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--methods": "lora,clla"}, ["'clla'", "'cla'"]),
        ({"--methods": "lora,lora"}, ["'lora'", "twice"]),
        ({"--label": "lable"}, ["'lable'", "label", "toy.csv"]),
        ({"--data": "nowhere.csv"}, ["nowhere.csv"]),
        ({"--model": "./nowhere"}, ["nowhere"]),
        ({"--rank": "33"}, ["rank 33", "encoder.layer.0", "32"]),
        ({"--rank": "0"}, ["rank"]),
        ({"--targets": "querry"}, ["'querry'", "'query'"]),
        ({"--learning-rate": "nan"}, ["learning_rate"]),
        ({"--seeds": "0,0"}, ["twice"]),
        ({"--seeds": "few"}, ["few"]),
        ({"--preset": "quickstrat"}, ["'quickstart'"]),
        ({"--epochs": "0"}, ["epochs"]),
        ({"--reference": "lorra"}, ["lorra", "lora"]),
    ],
)
def test_bad_input_gets_one_line_with_the_way_out_and_exit_code_2(
    change: dict[str, str], expected: list[str], flags: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [f for f in flags if f.partition("=")[0] not in change]
    words += [f"{key}={value}" for key, value in change.items()]
    assert invoke(monkeypatch, *words, f"--out={tmp_path / 'runs'}") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for text in expected:
        assert text in lines[0]
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_in_a_spec_file_names_the_nearest(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"model: {tiny_model}\ndata: {toy_csv}\nmethods: lora\ntraining:\n  epoch: 2\n")
    assert invoke(monkeypatch, "compare", f"--spec={spec}") == 2
    message = capsys.readouterr().err
    assert "spec.yaml" in message
    assert "'training.epoch'" in message
    assert "'epochs'" in message
