"""The command line on real benchmark files: TREC with its 50 fine labels, MRPC's pairs."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from command_line import invoke
from convert import mrpc_csv, trec_csv
from tunewise.store.folders import RunStore

MINILM = "package:all_minilm_l6_v2/model.zip"


def test_trec_has_50_classes_and_mrpc_is_read_as_pairs(
    shared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trec, mrpc = trec_csv(shared_data, tmp_path / "trec"), mrpc_csv(shared_data, tmp_path / "mrpc")
    common = ["compare", f"--model={tiny_model}", "--methods=cla", "--rank=4", f"--out={tmp_path / 'o'}", "--dry-run"]
    assert invoke(monkeypatch, *common, f"--data={trec['train']}", f"--test={trec['test']}") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "50 classes" in shown
    assert "500 test examples" in shown
    pairs = ["--text-pair=text_pair", f"--data={mrpc['train']}", f"--test={mrpc['test']}"]
    assert invoke(monkeypatch, *common, *pairs) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 classes" in shown
    assert "1,725 test examples" in shown


def test_a_gzipped_file_is_the_same_data(
    shared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain = trec_csv(shared_data, tmp_path / "trec")["train"]
    packed = tmp_path / "train.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    shown = []
    for data in (plain, packed):
        words = ["compare", f"--model={tiny_model}", f"--data={data}", "--methods=cla", "--rank=4", "--dry-run"]
        assert invoke(monkeypatch, *words, f"--out={tmp_path / 'o'}") == 0
        shown.append(" ".join(capsys.readouterr().out.split()))
    named = shown[0].replace("trec/trec_train.csv", "train.csv.gz").replace("trec_train.csv", "train.csv.gz")
    assert named == shown[1]


@pytest.mark.slow
def test_minilm_learns_trec_by_lora_and_by_columns(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 classes from 800 questions: well above the commonest class of the test part (0.25), by both methods."""
    files = trec_csv(shared_data, tmp_path / "trec")
    words = [f"--data={files['train']}", f"--test={files['test']}", "--seeds=1", "--methods=lora,cla", "--no-costs"]
    words += ["--max-length=24", "--train-size=800", "--validation-size=150", "--epochs=4", "--learning-rate=5e-3"]
    assert invoke(monkeypatch, "compare", "--no-tune", f"--model={MINILM}", f"--out={tmp_path / 'runs'}", *words) == 0
    for record in RunStore(tmp_path / "runs").records():
        assert record.results is not None
        assert record.results.test.metrics["accuracy"] > 0.35
        assert abs(record.results.gap) < 1.0


@pytest.mark.slow
def test_minilm_trains_on_mrpcs_pairs(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs go through from file to record; 300 pairs teach no more than the commonest class (0.665)."""
    files = mrpc_csv(shared_data, tmp_path / "mrpc")
    words = [f"--data={files['train']}", f"--test={files['test']}", "--text-pair=text_pair", "--methods=cla"]
    words += ["--seeds=1", "--no-costs", "--max-length=48", "--train-size=300", "--validation-size=100"]
    words += ["--test-size=300", "--epochs=2", "--learning-rate=5e-3"]
    assert invoke(monkeypatch, "compare", "--no-tune", f"--model={MINILM}", f"--out={tmp_path / 'runs'}", *words) == 0
    (record,) = RunStore(tmp_path / "runs").records()
    assert record.results is not None
    assert record.results.test.metrics["accuracy"] > 0.6
