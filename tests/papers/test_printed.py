"""The printed figures that the package carries: complete, consistent with each other, and of methods that are here."""

from __future__ import annotations

import csv

import pytest

from tunewise.catalog import CATALOG
from tunewise.errors import SpecError
from tunewise.papers.models import DATA
from tunewise.papers.presets import comparison, get_preset, method_content, presets
from tunewise.papers.printed import bound_formulas, catalog_name, hyperparameters, printed_numbers, trained_shares
from tunewise.spec import StudySpec, parse


def test_every_cell_is_there_and_belongs_to_a_preset():
    counts = {2: 200, 3: 100, 4: 96, 5: 96, 14: 320, 15: 320, 16: 220, 17: 220, 18: 240}
    assert {table: len(printed_numbers(table)) for table in counts} == counts
    known = {preset.printed for preset in presets()}
    assert len(known) == len(hyperparameters()) == len(trained_shares()) == 24
    assert len({model for model, _ in known}) == 10 and len({data for _, data in known}) == 14
    for table in counts:
        assert {(c.model, c.dataset) for c in printed_numbers(table)} <= known
        assert {c.catalog for c in printed_numbers(table)} <= set(CATALOG)
    assert {catalog_name(name) for name, _, _ in bound_formulas()} <= set(CATALOG)


def test_tables_agree_where_they_print_the_same():
    """Table 17 is Table 16 over its LoRA column; the ratios of Tables 4 and 5 are those of their own values."""
    gaps = {(c.model, c.dataset, c.method): c.value for c in printed_numbers(16)}
    for cell in printed_numbers(17):
        ratio = gaps[cell.model, cell.dataset, cell.method] / gaps[cell.model, cell.dataset, "LoRA"]
        assert cell.value == pytest.approx(ratio, rel=0.01, abs=0.006)
    for table in (4, 5):
        base = {(c.model, c.dataset): c.value for c in printed_numbers(table) if c.method == "LoRA"}
        for cell in printed_numbers(table):
            assert cell.ratio == pytest.approx(
                cell.value / base[cell.model, cell.dataset], abs=2.5e-3
            )  # values have one decimal
    main = {(c.model, c.dataset, c.method): c.text for c in printed_numbers(18)}
    assert all(main[c.model, c.dataset, c.method] == c.text for c in printed_numbers(2))


def test_presets_have_table_7():
    pair = get_preset("roberta-base/mrpc")
    spec = parse(StudySpec, {**comparison(pair), "data": "x"})
    assert spec.training.epochs == 20 and spec.training.batch_size == 32 and spec.training.schedule == "linear"
    assert spec.seeds == [12, 22, 32] and len(spec.methods) == 10
    runs = {run.method.name: run for run in spec.runs()}
    assert (runs["fft"].learning_rate, runs["fft"].weight_decay) == (1e-5, 0.01)
    assert (runs["lora"].learning_rate, runs["lora"].weight_decay) == (3e-4, 0.0)
    assert runs["lora"].method.lora_a_init == "normal" and runs["cla"].method.lora_a_init is None
    assert runs["c3la"].links == 7  # 20 epochs, a restart every 3, the last link short
    assert (runs["cla"].method.rank, runs["cla"].method.alpha, runs["cla"].method.targets) == (16, 32.0, "qv")


def test_rows_with_other_meanings():
    """Restarts counted in all, rates by what is trained, no clipping where none is given, CoLA by Matthews."""
    pair = get_preset("deberta-v3-base/trec50")
    assert method_content("c3la", pair)["links"] == 6
    assert method_content("cola", pair)["learning_rate"] == pytest.approx(10**-3.25, rel=1e-5)
    assert method_content("asym", pair)["learning_rate"] == method_content("paca", pair)["learning_rate"] == 1e-3
    content = comparison(pair)["training"]
    assert content["schedule"] == "constant" and content["warmup_ratio"] == 0 and content["max_grad_norm"] > 1e6
    cola = comparison(get_preset("roberta-large/cola"))
    assert cola["metric"] == "matthews" and cola["training"]["select"] == "metric"


def test_tables_4_and_5_have_the_paca_family_on_other_layers():
    pair = get_preset("vit-tiny/cifar10")
    for setting, targets in (("all-linear", "all-linear"), ("query-value", "qv")):
        spec = parse(StudySpec, {**comparison(pair, setting), "data": "x"})
        assert {"paca", "d-paca", "c-paca"} < {m.name for m in spec.methods}
        assert spec.training.epochs == 30 and spec.seeds == [0, 1, 2]
        assert {m.targets for m in spec.methods if m.name != "fft"} == {targets}
    with pytest.raises(SpecError, match="it has roberta-base/mrpc"):
        comparison(get_preset("gpt2/e2e"), "all-linear")
    with pytest.raises(SpecError, match="did you mean 'roberta-base'"):
        get_preset("roberta-bass/mrpc")
    with pytest.raises(SpecError, match="the paper has no 'gpt2/mrpc'"):
        get_preset("gpt2/mrpc")


def test_a_column_a_table(tmp_path):
    """Every file is plain csv with as many fields in each line as in the header."""
    for file in DATA.glob("*.csv"):
        rows = list(csv.reader(file.open(encoding="utf-8", newline="")))
        assert {len(row) for row in rows} == {len(rows[0])}, file.name
