"""`tunewise report`: the same report from the same runs, without training."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from cli.conftest import SCORES, write_comparison
from tunewise.spec import StudySpec
from tunewise.study.compare import compare


def test_the_report_of_a_real_comparison_is_rebuilt_byte_for_byte(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, call
) -> None:
    spec = StudySpec.model_validate(
        {
            "model": str(tiny_model),
            "data": str(toy_csv),
            "methods": ["head"],
            "seeds": 2,
            "measures": "none",
            "tuning": 0,
            "training": {"epochs": 1, "batch_size": 16, "max_length": 16},
        }
    )
    found = compare(spec, tmp_path / "runs", title="Toys & words", costs=False)
    before = found.report.read_bytes()
    found.report.unlink()
    code, out, _ = call("report", found.folder)
    assert (code, out.strip()) == (0, str(found.report))
    assert found.report.read_bytes() == before
    elsewhere = tmp_path / "elsewhere" / "page.html"
    assert call("report", tmp_path / "runs", f"--out={elsewhere}")[0] == 0
    assert f'href="./../runs/{found.records[0].id}/"' in elsewhere.read_text()


def test_csv_goes_to_stdout_with_unrounded_numbers(comparison: Path, call) -> None:
    code, out, err = call("report", comparison, "--format=csv")
    assert (code, err) == (0, "")
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(out))}
    assert set(rows) == set(SCORES)
    assert float(rows["lora"]["test_accuracy"]) == pytest.approx(sum(SCORES["lora"]) / 3)
    assert rows["cla"]["recommended"] == "yes"


@pytest.mark.parametrize(("format", "begins"), [("md", "| method |"), ("latex", "% needs")])
def test_other_formats(format: str, begins: str, comparison: Path, call) -> None:
    code, out, _ = call("report", comparison, f"--format={format}")
    assert code == 0
    assert out.startswith(begins)


def test_the_ending_of_the_file_says_the_format(comparison: Path, tmp_path: Path, call) -> None:
    file = tmp_path / "table.tex"
    code, out, _ = call("report", comparison, f"--out={file}")
    assert (code, out.strip()) == (0, str(file))
    assert file.read_text().startswith("% needs")


def test_an_unfinished_comparison_has_a_report_too(tmp_path: Path, call) -> None:
    folder = write_comparison(tmp_path, {**SCORES, "cla": [0.9, None, None]})
    code, out, err = call("report", folder)
    assert code == 0
    assert "2 of 9 runs are not finished" in err
    page = Path(out.strip()).read_text()
    assert "not finished" in page
    assert "Toys" in page


def test_an_unknown_format_gets_one_line(comparison: Path, tmp_path: Path, call) -> None:
    for words, expected in ((["--format=pdf"], '"pdf"'), ([f"--out={tmp_path / 'a.docx'}"], ".docx")):
        code, _, err = call("report", comparison, *words)
        assert code == 2
        assert expected in err
        assert len(err.strip().splitlines()) == 1
