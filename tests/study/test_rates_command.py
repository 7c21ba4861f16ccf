"""`tunewise compare --tune`: what the plan says before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import invoke
from tunewise.cli.compare import read_request
from tunewise.spec import TuningSpec


def plan_of(
    model: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> str:
    flags = [f"--model={model}", f"--data={data}", "--methods=head,fft", "--seeds=2", f"--out={out}", "--dry-run"]
    assert invoke(monkeypatch, "compare", *flags, *more) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_shows_the_grids_and_counts_the_trials(tiny_model, toy_csv, tmp_path, monkeypatch, capsys) -> None:
    shown = plan_of(tiny_model, toy_csv, tmp_path / "runs", monkeypatch, capsys, "--tune=4")
    assert "0.0333 to 0.9" in shown
    assert "6.67e-05 to 0.0018" in shown
    assert "first 8 trials for the learning rates" in shown


def test_the_flag_wins_over_the_spec_file_and_0_means_none(tiny_model, toy_csv, tmp_path, monkeypatch, capsys) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("tuning: {trials: 3, factor: 10}\n")
    shown = plan_of(tiny_model, toy_csv, tmp_path / "runs", monkeypatch, capsys, f"--spec={spec}")
    assert "6 trials" in shown
    assert "0.01 to 1" in shown
    shown = plan_of(tiny_model, toy_csv, tmp_path / "runs", monkeypatch, capsys, f"--spec={spec}", "--tune=2")
    assert "4 trials" in shown
    assert "0.1 to 1" in shown
    assert "trials" not in plan_of(
        tiny_model, toy_csv, tmp_path / "runs", monkeypatch, capsys, f"--spec={spec}", "--tune=0"
    )


def test_bad_settings_are_refused_with_one_line(tiny_model, toy_csv, tmp_path, monkeypatch, capsys) -> None:
    flags = [f"--model={tiny_model}", f"--data={toy_csv}", "--methods=head", f"--out={tmp_path / 'runs'}"]
    assert invoke(monkeypatch, "compare", *flags, "--tune=1") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "tuning.trials" in line


def test_rates_that_are_all_given_leave_nothing_to_tune(tiny_model, toy_csv, tmp_path, monkeypatch, capsys) -> None:
    flags = [f"--model={tiny_model}", f"--data={toy_csv}", "--methods=head", f"--out={tmp_path / 'runs'}"]
    assert invoke(monkeypatch, "compare", *flags, "--tune=2", "--learning-rate=0.01") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "there is nothing to tune" in line


def test_rates_that_are_not_given_are_searched_for_by_default(tmp_path) -> None:
    file = tmp_path / "spec.yaml"

    def search_of(content: str, **given: object) -> TuningSpec | None:
        file.write_text("model: m\ndata: d.csv\n" + content)
        return read_request(given, None, file)[1].tuning

    assert search_of("methods: [lora, cla]") == TuningSpec(trials=4, extend=3)
    assert search_of("methods: [lora, {name: cla, learning_rate: 0.1}]") == TuningSpec()
    assert search_of("methods: [lora, cla]\ntraining: {learning_rate: 0.1}") is None
    assert search_of("methods: [{name: cla, learning_rate: 0.1}]") is None
    assert search_of("methods: [lora]\ntuning: 0") is None
    assert search_of("methods: [lora]", tuning={"trials": 0}) is None


def test_the_quickstart_searches_nothing() -> None:
    assert read_request({}, "quickstart", None)[1].tuning is None


def test_a_flag_turns_the_search_off(tiny_model, toy_csv, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "runs"
    assert "first 8 trials" in plan_of(tiny_model, toy_csv, out, monkeypatch, capsys)
    assert "trials" not in plan_of(tiny_model, toy_csv, out, monkeypatch, capsys, "--no-tune")
