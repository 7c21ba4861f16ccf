"""`tunewise aa` on finished runs."""

from __future__ import annotations

import json
from pathlib import Path

from cli.conftest import SCORES, write_comparison


def test_it_prints_rate_interval_and_verdict_for_metric_and_gap(comparison: Path, call) -> None:
    code, out, _ = call("aa", comparison, "--method=lora", "--repeats=40")
    lines = out.strip().splitlines()
    assert code == 0
    assert "lora against itself under 2 names: 40 simulated comparisons" in lines[0]
    assert [line.split(",")[0].strip() for line in lines[1:]] == ["3 seeds", "3 seeds", "10 seeds", "10 seeds"]
    assert all("of 40 times" in line and "95 % interval" in line and "holds" in line for line in lines[1:])


def test_json_is_a_list_of_checks(comparison: Path, call) -> None:
    code, out, _ = call("aa", comparison, "--method=cla", "--repeats=40", "--seeds=3", "--names=3", "--json")
    checks = json.loads(out)
    assert code == 0
    assert [(c["quantity"], c["against"]) for c in checks] == [
        ("metric", "the reference"),
        ("metric", "the best"),
        ("gap", "the reference"),
        ("gap", "the best"),
    ]
    for check in checks:
        assert check["method"] == "cla"
        assert check["repeats"] == 40
        assert check["low"] <= check["rate"] == check["different"] / 40 <= check["high"]


def test_a_broken_promise_has_its_own_exit_code(comparison: Path, call, monkeypatch) -> None:
    monkeypatch.setattr("tunewise.advise.statistics.t_quantile", lambda confidence, freedom: 0.5)
    monkeypatch.setattr("scipy.special.stdtr", lambda freedom, t: 0.001)
    code, out, _ = call("aa", comparison, "--repeats=40", "--seeds=3")
    assert code == 1
    assert "does NOT hold" in out


def test_seeds_that_do_not_differ_prove_nothing(tmp_path: Path, call) -> None:
    folder = write_comparison(tmp_path, {"lora": [0.9, 0.9, 0.9]}, costs=False)
    _, out, _ = call("aa", folder, "--repeats=20", "--seeds=3")
    assert "so this shows nothing" in out


def test_what_means_nothing_gets_one_line(comparison: Path, tmp_path: Path, call) -> None:
    for words, expected in (
        (["--method=lorra"], "did you mean 'lora'"),
        (["--seeds=few"], "'few'"),
        (["--seeds=1"], "'1'"),
    ):
        code, _, err = call("aa", comparison, *words)
        assert code == 2
        assert expected in err
    one = write_comparison(tmp_path / "one", {name: row[:1] for name, row in SCORES.items()})
    code, _, err = call("aa", one)
    assert code == 2
    assert "at least 2 are needed" in err
