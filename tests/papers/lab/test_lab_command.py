"""`tunewise lab`: the list, an experiment's files, wrong names, exit codes; and the registry behind it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from tunewise.errors import SpecError, StoreError
from tunewise.pages import palette
from tunewise.papers.lab import results
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve
from tunewise.papers.lab.figures import figure
from tunewise.papers.lab.registry import STATEMENTS, get_statement, load
from tunewise.papers.lab.results import as_data, page, run_experiment, write_result

NAMES = [
    "random-factor",
    "spurious-minima",
    "low-rank-solution",
    "lora-one-alignment",
    "spectral-start",
    "preconditioner",
    "step-size",
    "chain-coverage",
    "perturbation-tightness",
    "equivalences",
]


def fake(value):
    """An experiment that measures `value` where 0 to 1 is expected, under a real name."""

    def run(settings):
        return Measurement(
            findings=[
                Finding.exact("a <b>number</b>", value + settings.seed, (0, 1), "a note & more"),
                Finding("a slope", 0.5, 0.4, 0.6, (0.3, float("inf"))),
                Finding.exact("only reported", float("nan"), None),
            ],
            plots=[
                Plot(
                    "A </script> plot",
                    "x",
                    "y",
                    [
                        PlotCurve("measured", [1, 10, 100], [1.0, 2.0, 3.0], [0.5, 1.5, 2.5], [1.5, 2.5, 3.5]),
                        PlotCurve.theory("theory", [1, 100], [1.0, 3.0]),
                        PlotCurve(
                            "many", list(range(1, 60)), [0.0] + [2.0] * 58, [0.0] + [1.0] * 58, [1.0] + [3.0] * 58
                        ),
                    ],
                    log="xy",
                    thresholds=[("threshold", 10.0)],
                )
            ],
            notes=["What was done."],
        )

    return run


@pytest.fixture
def faked(monkeypatch):
    def use(value):
        monkeypatch.setattr(results, "load", lambda name: fake(value))

    return use


def test_the_ten_experiments_are_there_each_with_its_module():
    assert list(STATEMENTS) == NAMES
    for name in NAMES:
        assert callable(load(name))


def test_listing_imports_neither_torch_nor_plotly():
    code = (
        "import sys; sys.argv = ['tunewise', 'lab']\n"
        "from tunewise.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'plotly', 'scipy', 'numpy'} & {m.partition('.')[0] for m in sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert name in done.stdout
    flat = " ".join(done.stdout.split())
    for each in STATEMENTS.values():
        assert each.theorem in flat and each.expectation in flat and each.source in flat


def test_the_list_as_json_has_the_same(call):
    _code, out, _err = call("lab", "--json")
    assert json.loads(out) == [asdict(s) for s in STATEMENTS.values()]


def test_an_unknown_name_is_one_line_with_the_nearest(call):
    with pytest.raises(SpecError, match=r"unknown experiment 'spurious-minimum'; did you mean 'spurious-minima'\?$"):
        get_statement("spurious-minimum")
    code, _out, err = call("lab", "spurious-minimum")
    assert code == 2 and "did you mean" in err


def test_a_confirmed_experiment_writes_both_files_and_leaves_with_0(faked, tmp_path, call):
    faked(0.5)
    code, out, _err = call("lab", "step-size", "--out", tmp_path)
    assert code == 0, out
    assert "confirmed" in out
    data = json.loads((tmp_path / "step-size" / "result.json").read_text())
    assert data["verdict"] == "confirmed" and data["settings"] == {"seed": 0, "scale": "quick"}
    assert (tmp_path / "step-size" / "plot.html").stat().st_size > 1e6  # plotly is inside


def test_a_refuted_experiment_leaves_with_1_and_says_so(faked, tmp_path, call):
    faked(1.5)
    code, out, _err = call("lab", "step-size", "--out", tmp_path)
    assert code == 1
    assert "refuted" in out


def test_seed_and_scale_reach_the_experiment_and_json_is_the_file(faked, tmp_path, call):
    faked(0.0)
    code, out, _err = call("lab", "step-size", "--seed", "7", "--full", "--json", "--out", tmp_path)
    data = json.loads(out)
    assert data["settings"]["seed"] == 7 and data["settings"]["scale"] == "full"
    assert data["findings"][0]["value"] == 7 and data["verdict"] == "refuted" and code == 1
    assert data == json.loads((tmp_path / "step-size" / "result.json").read_text())


def test_all_runs_every_experiment_and_json_is_a_list(monkeypatch, tmp_path, call):
    seen = []

    def stand_in(name):
        seen.append(name)
        return fake(0.5)

    monkeypatch.setattr(results, "load", stand_in)
    _code, out, _err = call("lab", "all", "--json", "--out", tmp_path)
    assert seen == NAMES
    assert [each["experiment"] for each in json.loads(out)] == NAMES
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


def test_what_is_not_finite_is_null_in_json(faked):
    faked(0.5)
    data = as_data(run_experiment("step-size", LabSettings()))
    json.dumps(data, allow_nan=False)
    assert data["findings"][1]["expected"] == [0.3, None]
    assert data["findings"][2]["value"] is None and data["findings"][2]["verdict"] is None
    assert {"tunewise", "torch", "python", "device"} <= data["versions"].keys()
    assert data["plots"][0]["curves"][0]["high"] == [1.5, 2.5, 3.5]


def test_the_page_is_offline_and_what_a_name_holds_is_text(faked):
    faked(0.5)
    result = run_experiment("step-size", LabSettings())
    made = page(result)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made)
    assert policy and policy.group(1).startswith("default-src &#39;none&#39;")
    outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', made.replace(made[made.find("<script>") :], ""))
    assert outside == []
    assert "a &lt;b&gt;number&lt;/b&gt;" in made and "a note &amp; more" in made
    assert "A </script> plot" not in made
    assert result.statement.theorem.split(" (")[0] in made and "What was done." in made
    assert made.count('data-figure="step-size-0"') == 1


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(monkeypatch, tmp_path, call):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(results, "load", lambda name: pytest.fail("it ran"))
    code, _out, err = call("lab", "step-size", "--out", tmp_path / "taken")
    assert code == 3 and "--out" in err


def test_a_file_that_cannot_be_written_is_a_typed_error(faked, tmp_path):
    faked(0.5)
    (tmp_path / "step-size" / "result.json").mkdir(parents=True)
    with pytest.raises(StoreError, match="--out"):
        write_result(run_experiment("step-size", LabSettings()), tmp_path)


def test_the_page_knows_both_colour_schemes():
    """Every colour of a figure has its pair for dark pages."""
    made = figure(fake(0.5)(LabSettings()).plots[0])
    found = set(re.findall(r"#[0-9a-fA-F]{6}", made.to_json()))
    assert found and found <= set(palette.DARK)


def test_a_figure_shows_intervals_theory_thresholds_and_leaves_out_what_no_axis_can_show():
    made = figure(fake(0.5)(LabSettings()).plots[0])
    few, theory, band_, many = made.data
    assert list(few.error_y.array) == [0.5, 0.5, 0.5] and few.mode == "lines+markers"
    assert theory.line.dash == "dash" and theory.mode == "lines"
    assert band_.fill == "toself" and many.mode == "lines"
    assert many.y[0] is None and many.y[1] == 2.0  # 0 has no place on a logarithmic axis
    (upright,) = made.layout.shapes
    assert upright.x0 == upright.x1 == 10.0 and upright.label.text == "threshold"


def test_seconds_are_those_of_the_run(faked, monkeypatch):
    faked(0.5)
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(results.time, "perf_counter", lambda: next(ticks))
    assert run_experiment("step-size", LabSettings()).seconds == 2.5
