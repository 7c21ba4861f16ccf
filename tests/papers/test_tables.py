"""Ours beside the printed numbers: by hand for one pair, in every form, and what stands there without runs."""

from __future__ import annotations

import csv
import io
import json
from statistics import fmean, stdev

import pytest
from rich.console import Console

from command_line import invoke
from stored_runs import write_run
from tunewise.errors import SpecError
from tunewise.papers import bounds, counts
from tunewise.papers import sheet as sheets
from tunewise.papers.prepare import prepare
from tunewise.papers.presets import comparison, get_preset
from tunewise.papers.runs import PaperNote, read_comparisons, write_note
from tunewise.papers.sheet import FORMS, show
from tunewise.papers.tables import lines_of, sheet_of
from tunewise.spec import StudySpec, parse
from tunewise.store.folders import RunStore
from tunewise.store.records import CostRecord, CostReport, StepTime
from tunewise.study import evidence

T_95 = 4.302652729749464  # Student's quantile, two degrees of freedom
SCORES = {"lora": [0.86, 0.87, 0.88], "cla": [0.84, 0.84, 0.87], "asym": [0.85, 0.86, 0.865]}


def stored(root, key, setting="main", changes=(), shift=0.0):
    pair = get_preset(key)
    model = {"path": "a", "digest": ("c" if changes else "a") * 64}
    spec = parse(
        StudySpec,
        {**comparison(pair, setting, list(SCORES)), "model": model, "data": {"path": "d", "digest": "d" * 64}},
    )
    folder = evidence.begin(spec, RunStore(root), "toy", None)
    write_note(folder, PaperNote(preset=key, setting=setting, changes=list(changes)))
    for run in spec.runs():
        write_run(root, run, accuracy=SCORES[run.method.name][spec.seeds.index(run.seed)] + shift, seconds=120.0)
    return spec, folder


def test_a_score_its_interval_its_difference_and_whether_the_print_is_within(tmp_path):
    stored(tmp_path, "roberta-base/mrpc")
    lines = {line.printed.method: line for line in lines_of(18, read_comparisons(tmp_path)) if line.ours}
    assert set(lines) == {"LoRA", "cLA", "Asym"}
    for name, printed in (("LoRA", 86.34), ("cLA", 84.83), ("Asym", 86.40)):
        values = [100 * v for v in SCORES[name.lower()]]
        half = T_95 * stdev(values) / 3**0.5
        line = lines[name]
        assert line.printed.value == printed
        assert line.ours.mean == pytest.approx(fmean(values))
        assert line.ours.half_width == pytest.approx(half)
        assert line.difference == pytest.approx(fmean(values) - printed)
        assert line.within == (abs(fmean(values) - printed) <= half)
    assert lines["Asym"].within  # 85.83 ± 1.90 has 86.40
    assert lines["cLA"].ratio == pytest.approx(85.0 / 87.0)


def test_what_the_paper_ran_comes_before_a_part_of_it(tmp_path):
    stored(tmp_path, "roberta-base/mrpc")
    stored(tmp_path, "roberta-base/mrpc", changes=["only 60 train examples"], shift=0.05)
    sheet = sheet_of(2, read_comparisons(tmp_path))
    ours = {row[2].text: row[3] for row in sheet.rows}
    assert ours["LoRA"].value == pytest.approx(87.0) and "†" not in ours["LoRA"].text
    only = tmp_path / "part"
    stored(only, "roberta-base/mrpc", changes=["only 60 train examples"])
    sheet = sheet_of(2, read_comparisons(only))
    assert {row[2].text: row[3].text for row in sheet.rows}["LoRA"] == "87.00 ± 2.48†"
    assert "roberta-base/mrpc: only 60 train examples" in sheet.legend[-1]


def test_every_form_says_the_same(tmp_path):
    stored(tmp_path, "roberta-base/mrpc")
    sheet = sheet_of(18, read_comparisons(tmp_path))
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(FORMS[".csv"](sheet)))}
    assert float(rows["cLA"]["difference"]) == pytest.approx(85.0 - 84.83)
    assert float(rows["cLA"]["ours_high"]) == pytest.approx(85.0 + T_95 * stdev([84, 84, 87]) / 3**0.5)
    assert rows["cLA"]["printed"] == "84.83" and rows["FFT"]["ours"] == "" and rows["FFT"]["printed"] == "87.4"
    assert "| RoBERTa-Base | MRPC | cLA | 85.00 ± 4.30 | 84.83 | +0.17 | 3 | yes |" in FORMS[".md"](sheet)
    assert r"RoBERTa-Base & MRPC & cLA & 85.00 $\pm$ 4.30 & 84.83 & +0.17 & 3 & yes \\" in FORMS[".tex"](sheet)


def test_costs_are_the_probes_and_ratios_are_to_lora(tmp_path):
    _, folder = stored(tmp_path, "vit-tiny/cifar10", "query-value")

    def row(method: str, seconds: float, peak: int) -> CostRecord:
        return CostRecord(
            method=method, step=StepTime(median=seconds, low=0.9 * seconds, high=1.25 * seconds, steps=9),
            ratio_to_floor=1, ratio_low=1, ratio_high=1, samples_per_second=64 / seconds, saved_bytes=1, peak_bytes=peak,
            base_bytes=1, trainable=64,
        )  # fmt: skip

    rows = [row("lora", 0.2, 2_000_000_000), row("cla", 0.16, 1_500_000_000), row("asym", 0.19, 1_900_000_000)]
    evidence.keep_costs(folder, CostReport(device="toy", batch_size=64, max_length=1, tokens=0, rows=rows))
    lines = {
        (line.printed.quantity, line.printed.method): line
        for line in lines_of(15, read_comparisons(tmp_path))
        if line.ours
    }
    speed = lines["throughput (samples/s)", "s-cLA"]
    assert speed.ours.mean == pytest.approx(400) and speed.ratio == pytest.approx(1.25)
    assert speed.ours.low == pytest.approx(320)  # the slow end of the median step
    assert lines["peak memory (GB)", "s-cLA"].ratio == pytest.approx(0.75)
    assert lines["runtime (minutes)", "LoRA"].ours.mean == pytest.approx(2.0)
    assert lines["trained parameters", "Asym"].ours.mean == 64
    assert {line.comparison.note.setting for line in lines.values()} == {"query-value"}
    with pytest.raises(SpecError, match="tunewise paper run vit-tiny/officehome --table 14"):
        sheet_of(14, read_comparisons(tmp_path))


def test_table_1_is_the_theory_and_says_where_the_print_differs():
    sheet = bounds.sheet()
    rows = {row[0].text: row for row in sheet.rows}
    assert rows["cLA"][2].value == 24 * 768 * 16 and rows["cLA"][4].text == "16.2"
    assert rows["LoRA"][2].value == 2 * rows["cLA"][2].value
    assert rows["c3LA"][2].value == 6 * rows["cLA"][2].value  # 30 epochs, a restart every 5
    assert all(row[2].value == row[3].value for row in rows.values())
    assert "square root" in rows["PaCA"][6].text
    capped = {r[0].text: r for r in bounds.sheet("tinyllama/clutrr", 100).rows}  # 256 x 2,048 value layers
    assert capped["FFT"][2].value == 22 * (2048 * 2048 + 2048 * 256)


def test_table_6_is_counted():
    found = {count.preset.key: count for count in counts.counts(["roberta-base/mrpc", "gpt2/e2e", "vit-tiny/cifar10"])}
    assert found["roberta-base/mrpc"].parameters == 124_647_170
    assert found["roberta-base/mrpc"].verdict == "shares of model and adapter"
    assert found["gpt2/e2e"].lora.trainable == 2 * 12 * 16 * (768 + 768)
    assert found["gpt2/e2e"].verdict == "shares with all key projections trained"
    assert found["vit-tiny/cifar10"].lora.head == 1930


@pytest.mark.slow
def test_all_of_table_6_is_found_again():
    """Every printed share under one reading or another; parameters but for what is said."""
    found = {count.preset.key: count for count in counts.counts()}
    assert len(found) == 24
    assert not [key for key, count in found.items() if "differ" in count.verdict]
    assert found["deberta-v2-xxl/paws"].verdict.startswith("shares without the head")
    assert "ours is 7.50B" in found["llama3-8b/clutrr"].verdict


def test_from_the_preset_to_the_table_on_the_command_line(tiny_model, shared_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path / "cache"))
    runs = f"--out={tmp_path / 'runs'}"
    words = ["paper", "run", "roberta-base/cola", f"--model={tiny_model}", f"--data={shared_data / 'cola'}", runs]
    words += ["--train-size=40", "--validation-size=20", "--test-size=20", "--epochs=2", "--seeds=1", "--no-costs"]
    assert invoke(monkeypatch, *words, "--methods=lora,c3la", "--measures=none") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "differs from the paper's experiment: another model than RoBERTa-Base" in said
        and "only 40 train examples" in said
    )
    records = RunStore(tmp_path / "runs").records()
    assert {r.results.metric for r in records} == {"matthews"}
    assert {r.results.selected_by for r in records} == {"best validation metric"}
    assert all("No labelled test part is public" in " ".join(r.data.notes) for r in records)
    out = tmp_path / "table.csv"
    table = ["paper", "table", "18", f"--from={tmp_path / 'runs'}", f"--out={out}"]
    assert invoke(monkeypatch, *table) == 0
    rows = {row["method"]: row for row in csv.DictReader(out.open(encoding="utf-8"))}
    [record] = [r for r in records if r.spec.method.name == "lora"]
    assert float(rows["LoRA"]["ours"]) == pytest.approx(100 * record.results.test.metrics["matthews"])
    assert rows["LoRA"]["as_printed"] == "no"
    note = json.loads(next((tmp_path / "runs").glob("compare-*/paper.json")).read_text())
    assert "epochs 2 instead of 20" in note["changes"]
    capsys.readouterr()
    assert invoke(monkeypatch, "paper", "table", "7", f"--from={tmp_path}") == 2
    assert "table 7: there are 1, 2, 3" in capsys.readouterr().err
    assert invoke(monkeypatch, "paper", "table", "2", f"--from={tmp_path / 'none'}") == 2
    assert "tunewise paper run" in capsys.readouterr().err


@pytest.mark.parametrize("number", [2, 4, 14, 17])
def test_a_terminal_of_80_columns_breaks_no_cell(number, tmp_path):
    stored(tmp_path, "roberta-base/mrpc", changes=["3 epochs instead of 30"])
    sheet = sheet_of(number, read_comparisons(tmp_path), everything=True)
    for width in (80, 200):
        console = Console(width=width, file=io.StringIO(), record=True)
        show(sheet, console)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        columns, rows = sheet.texts()
        lines = text.splitlines()
        for row in (rows[0], rows[-1]):
            assert any(all(e in line for e in row[3:] if len(e) < 20) for line in lines)
            assert all(any(e in line for line in lines) for e in row)
        assert any(all(c.title in line for c in columns[3:7]) for line in lines)


def test_what_is_too_wide_goes_above_and_below_the_rows():
    columns = [
        sheets.SheetColumn("model", "model", lambda i: "a model of a long name", right=False),
        sheets.SheetColumn("data", "data", lambda i: f"set {i}", right=False),
        sheets.SheetColumn("n", "number", lambda i: "1,234"),
        sheets.SheetColumn("why", "why", lambda i: "because " * 9, right=False),
    ]
    console = Console(width=40, file=io.StringIO(), record=True)
    show(sheets.Sheet("Title", columns, range(2), ["legend"]), console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[:4] == [
        "Title",
        "model                  data  number",
        "a model of a long name set 0  1,234",
        "    why: because because because because",
    ]
    console = Console(width=20, file=io.StringIO(), record=True)
    show(sheets.Sheet("Title", columns, range(2), [], headings=1), console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[:4] == ["Title", "data  number", "a model of a long name", "set 0  1,234"]


def test_without_a_hub_the_flag_that_helps_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        SpecError, match=r"give a folder with the files of MRPC: --data FOLDER \(of several sets: FOLDER/mrpc\)"
    ):
        prepare(get_preset("roberta-base/mrpc").data)
