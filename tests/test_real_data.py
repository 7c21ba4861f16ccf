"""The command line on real benchmark files: TREC with its 50 fine labels, MRPC's pairs."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from convert import mrpc_csv, trec_csv
from test_compare import invoke
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
        shown.append(capsys.readouterr().out)
    assert shown[0].replace("trec_train.csv", "train.csv.gz") == shown[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trec", "mrpc"])
def test_minilm_learns_the_task_by_lora_and_by_columns(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearly above the commonest class on test data, for both methods; the gap is finite and small."""
    files = (trec_csv if name == "trec" else mrpc_csv)(shared_data, tmp_path / name)
    words = [f"--data={files['train']}", f"--test={files['test']}", "--seeds=1", "--methods=lora,cla", "--no-costs"]
    words += ["--text-pair=text_pair", "--max-length=64"] if name == "mrpc" else ["--max-length=24"]
    words += ["--train-size=1500", "--validation-size=200", "--test-size=400", "--epochs=4", "--learning-rate=1e-2"]
    assert invoke(monkeypatch, "compare", f"--model={MINILM}", f"--out={tmp_path / 'runs'}", *words) == 0
    commonest = {"trec": 0.25, "mrpc": 0.665}[name]
    for record in RunStore(tmp_path / "runs").records():
        assert record.results is not None
        assert record.results.test.metrics["accuracy"] > commonest + (0.3 if name == "trec" else 0.03)
        assert abs(record.results.gap) < 1.0
