"""The ablations: every point of their grids, once, with the preset's settings for what is not varied."""

from __future__ import annotations

import math

import pytest
import yaml

from command_line import invoke
from tunewise.errors import SpecError
from tunewise.papers.ablations import ABLATIONS, get_ablation, presets_of, sweep
from tunewise.spec import DataSpec, StudySpec, load_yaml, parse, split_options


def runs(key, **options):
    ablation = get_ablation(key)
    data = {pair.data.key: DataSpec(path=f"{pair.data.key}.jsonl") for pair in presets_of(ablation)}
    return parse(StudySpec, split_options(sweep(key, data, **options))[1]).runs()


def test_table_8_is_rates_by_half_powers_and_ranks_by_doubling():
    found = runs("8", methods=["fft", "lora", "cla"])
    assert {run.method.name for run in found} == {"lora", "cla"}  # full fine-tuning has no rank
    powers = sorted({round(2 * math.log10(run.learning_rate), 6) for run in found})
    assert powers == list(range(-12, -3))
    assert {run.method.rank for run in found} == {2, 4, 8, 16, 32, 64, 128}
    assert len(found) == 9 * 7 * 2 * 3 * 3  # rates, ranks, methods, seeds, sets
    assert all(run.method.alpha == 2 * run.method.rank for run in found)
    assert {run.data.path: run.training.epochs for run in found} == {
        "mrpc.jsonl": 40, "trec50.jsonl": 40, "paws.jsonl": 20,
    }  # fmt: skip
    assert {round(2 * math.log10(run.learning_rate), 6) for run in runs("9", methods=["cla"])} == set(range(-10, -1))


def test_tables_10_to_13_and_figure_6():
    alphas = runs("11", methods=["cla"])
    assert {run.method.alpha / run.method.rank for run in alphas} == {0.25, 0.5, 1, 2, 4}
    assert {run.learning_rate for run in alphas} == {1e-3}
    chains = runs("13")
    assert {run.method.name for run in chains} == {"cola", "rac", "c3la", "r-c3la"}
    assert {(run.method.restart_every, run.links) for run in chains} == {
        (1, 30),
        (2, 15),
        (5, 6),
        (10, 3),
        (15, 2),
        (20, 2),
    }
    assert {run.method.rank for run in chains} == {4, 8, 16}
    django = runs("figure6", methods=["lora"], given={"seeds": [0]})
    assert [run.method.rank for run in django] == [8, 16, 32, 64, 128]
    assert {(run.task, run.metric, run.training.select) for run in django} == {("generation", "exact_match", "metric")}


def test_what_makes_no_sweep_is_said():
    assert set(ABLATIONS) == {"8", "9", "10", "11", "12", "13", "figure6"}
    with pytest.raises(SpecError, match="no ablation '7'"):
        get_ablation("7")
    with pytest.raises(SpecError, match="none of the methods has its axes"):
        runs("12", methods=["lora"])
    with pytest.raises(SpecError, match="one sweep, one model"):
        runs("8", presets=["gpt2/e2e", "roberta-base/mrpc"])


def test_the_file_is_what_the_sweep_command_reads(tiny_model, shared_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "t.yaml"
    words = ["--preset=roberta-base/mrpc", f"--data={shared_data / 'mrpc'}", f"--model={tiny_model}", f"--out={out}"]
    words += ["--methods=c3la", "--seeds=1", "--train-size=64", "--epochs=2"]
    assert invoke(monkeypatch, "paper", "sweep", "12", *words) == 0
    assert "18 runs" in capsys.readouterr().out
    assert "&" not in out.read_text() and yaml.safe_load(out.read_text())["title"].startswith("Table 12")
    found = parse(StudySpec, split_options(load_yaml(out))[1]).runs()
    assert len(found) == 18 and {run.training.epochs for run in found} == {2}
    assert {run.data.train_size for run in found} == {64}
