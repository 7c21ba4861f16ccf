"""`tunewise recommend` as a user types it, on finished runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cli.conftest import SCORES, write_comparison
from stored_runs import stored_spec, write_run


def test_it_recommends_from_a_comparison_or_from_the_runs_folder(comparison: Path, call) -> None:
    code, out, err = call("recommend", comparison)
    assert (code, err) == (0, "")
    assert out.startswith("Use cla: its mean test accuracy of 90.2 %")
    assert "runner-up" in out
    assert str(comparison) in out.replace("\n", "")
    assert call("recommend", comparison.parent)[:2] == (0, out)


def test_json_has_the_decision_the_evidence_and_every_method(comparison: Path, call) -> None:
    code, out, _ = call("recommend", comparison, "--json", "--max-memory=2GiB")
    content = json.loads(out)
    assert code == 0
    assert (content["choice"], content["evidence"], content["metric"]) == ("cla", "enough", "accuracy")
    assert content["limits"]["max_memory_bytes"] == 2 * 2**30
    methods = {row["method"]: row for row in content["methods"]}
    assert set(methods) == set(SCORES)
    assert methods["cla"]["training_seconds"] == pytest.approx(750 * 0.11)
    assert methods["lora"]["beyond_limits"] == "lora needs 2.93 GiB of 2.00 GiB"
    assert methods["cla"]["test_metric"]["mean"] == pytest.approx(sum(SCORES["cla"]) / 3)
    assert methods["head"]["over_items"]["high"] < 0
    assert Path(content["adapter"]).parts[-1] == "adapter"


@pytest.mark.parametrize(
    ("limits", "choice"),
    [
        (["--max-memory=600MB"], "head"),
        (["--max-memory=1,6 GB"], "cla"),
        (["--max-time=1min"], "head"),
        (["--max-time=0.03h", "--tolerance=0"], "cla"),
        (["--tolerance=25"], "head"),
        (["--criterion=accuracy+gap"], "lora"),
        (["--criterion=gap"], "head"),
        (["--metric=macro_f1"], "cla"),
        (["--criterion=macro_f1+gap"], "lora"),
    ],
)
def test_limits_and_criteria_decide(limits: list[str], choice: str, comparison: Path, call) -> None:
    code, out, _ = call("recommend", comparison, "--json", *limits)
    assert code == 0
    assert json.loads(out)["choice"] == choice


def test_where_nothing_fits_it_says_what_would_have_to_give(comparison: Path, call) -> None:
    code, out, err = call("recommend", comparison, "--max-memory=100MB")
    assert (code, out) == (5, "")
    assert err.startswith("error: no method fits the limits; the memory limit would have to be 500 MiB for head")
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-memory=6XB"], "'6XB'"),
        (["--max-memory=0GB"], "above 0"),
        (["--max-time=soon"], "'soon'"),
        (["--tolerance=many"], "'many'"),
        (["--tolerance=-1"], "'-1'"),
        (["--metric=acuracy"], "did you mean 'accuracy'"),
        (["--criterion=acc+time"], "criterion"),
        (["--criterion=accuracy", "--metric=macro_f1"], "two metrics"),
    ],
)
def test_what_means_nothing_gets_one_line(words: list[str], expected: str, comparison: Path, call) -> None:
    code, _, err = call("recommend", comparison, *words)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert expected in line


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path, comparison: Path, call) -> None:
    single = write_run(tmp_path / "single", stored_spec())
    for path, expected in (
        (tmp_path / "nowhere", "is no folder"),
        (tmp_path, "holds no comparison; give a runs folder"),
        (tmp_path / "single", f"`tunewise compare --out {tmp_path / 'single'}` with the same settings"),
        (tmp_path / "single" / single.id, f"`tunewise compare --out {tmp_path / 'single'}` with the same settings"),
        (comparison.parent / "compare-xyz", comparison.name),
        (next(comparison.parent.glob("[0-9a-f]*/run.json")).parent, f"{comparison} in it"),
    ):
        code, _, err = call("recommend", path)
        assert code == 2
        assert expected in err


def test_of_several_comparisons_the_latest_is_taken_and_the_others_are_named(tmp_path: Path, call) -> None:
    first = write_comparison(tmp_path)
    second = write_comparison(tmp_path / "other", {"head": SCORES["head"], "lora": SCORES["lora"]})
    for folder in (tmp_path / "other").iterdir():
        target = tmp_path / folder.name
        if not target.exists():
            folder.rename(target)
    second = tmp_path / second.name
    os.utime(first / "compare.json", (1, 1))
    code, out, err = call("recommend", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["comparison"] == str(second)
    assert f"holds 2 comparisons; {second.name} is the latest ({first.name})" in err


def test_unfinished_runs_make_the_evidence_thin(tmp_path: Path, call) -> None:
    folder = write_comparison(tmp_path, {**SCORES, "cla": [0.9, 0.905, None]})
    code, out, err = call("recommend", folder, "--json")
    content = json.loads(out)
    assert (code, content["choice"], content["evidence"]) == (0, "lora", "thin")
    assert "cla: 1 not finished" in content["sentences"][0]
    assert "1 of 9 runs are not finished" in err


def test_one_seed_is_thin(tmp_path: Path, call) -> None:
    folder = write_comparison(tmp_path, {name: row[:1] for name, row in SCORES.items()})
    content = json.loads(call("recommend", folder, "--json")[1])
    assert content["evidence"] == "thin"
    assert "1 seed finished" in content["sentences"][0]


def test_where_nothing_was_learned_no_command_takes_a_method_for_the_recommended_one(tmp_path: Path, call) -> None:
    folder = write_comparison(tmp_path, floor=0.95)
    content = json.loads(call("recommend", folder, "--json")[1])
    assert (content["choice"], content["runner_up"], content["adapter"]) == (None, None, None)
    code, out, _ = call("recommend", folder)
    assert code == 0 and "No method is recommended: train longer" in out
    assert "recommended\n" not in out and "runner-up" not in out
    code, _, error = call("predict", folder, "--data", folder / "new.csv", "--out", tmp_path / "out.csv")
    assert code == 2 and "recommends no method; give the folder of a run" in error
    assert call("report", folder, "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No method is recommended." in page and "(recommended)" not in page and "The ring" not in page
    assert call("report", folder, "--out", tmp_path / "table.md")[0] == 0
    assert "recommended" not in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_nothing_finished_and_damaged_files_are_named(comparison: Path, call) -> None:
    (comparison / "costs.json").write_text("{")
    code, _, err = call("recommend", comparison)
    assert code == 3
    assert "costs.json can't be read" in err
    (comparison / "costs.json").unlink()
    for file in comparison.parent.glob("*/run.json"):
        file.unlink()
    code, _, err = call("recommend", comparison)
    assert code == 3
    assert "no finished run yet" in err
