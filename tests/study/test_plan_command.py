"""`tunewise plan` as a user types it: output, and what is said of bad input."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from command_line import invoke
from tiny import save_tiny_model

RUN = "import sys; sys.argv[0] = 'tunewise'; from tunewise.cli.main import run; run()"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("plan") / "model")


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def plan(monkeypatch, capsys):
    """`tunewise plan` in this process, at a width of the terminal."""

    def run(cache, *arguments, columns=110):
        monkeypatch.setenv("TUNEWISE_CACHE", str(cache))
        monkeypatch.setenv("COLUMNS", str(columns))
        code = invoke(monkeypatch, "plan", *arguments)
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run


def test_json_has_every_method(plan, model, tmp_path):
    asked = ("--model", str(model), "--samples", "500", "--json")
    first = plan(tmp_path, *asked)
    rows = json.loads(first.stdout)
    for row in rows:
        assert {"method", "trainable_parameters", "trainable_share", "memory_bytes", "information_bound"} <= row.keys()
    assert len(rows) == 17


def test_a_table_for_people(plan, model, tmp_path):
    said = plan(tmp_path, "--model", str(model), "--methods", "lora,cla", "--samples", "100").stdout
    assert "lora" in said and "memory" in said and "Theorem 7" in said


def test_a_plan_says_which_methods_change_the_outputs_and_which_have_no_rank(plan, model, tmp_path):
    asked = ("--model", str(model), "--methods", "lora,lora-one,peft:fourierft,peft:ia3", "--rank", "4")
    rows = {row["method"]: row for row in json.loads(plan(tmp_path, *asked, "--json").stdout)}
    assert rows["lora"]["start"] == "" and rows["lora"]["rank"] == 4 and rows["peft:ia3"]["rank"] is None
    assert rows["peft:fourierft"]["start"] == "starts at a random update: attaching changes the model's outputs"
    assert rows["lora-one"]["start"] == "starts at a step of the gradient: attaching changes the model's outputs"
    said = " ".join(plan(tmp_path, *asked).stdout.split())
    assert all(f"{name} {rows[name]['start']}." in said for name in ("peft:fourierft", "lora-one"))
    assert "peft:ia3: no rank." in said
    alone = plan(tmp_path, "--model", str(model), "--methods", "peft:ia3", "--rank", "4")
    assert alone.returncode and "'peft:ia3' has no rank" in alone.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "lorra"), "did you mean 'lora'"),
        (("--methods", "lora", "--rank", "4000"), "rank"),
        (("--methods", "lora", "--targets", "nowhere"), "nowhere"),
        (("--methods", "lora", "--length", "100000"), "positions"),
        (("--task", "poetry"), "choose one of"),
    ],
)
def test_bad_input_is_one_line(plan, model, tmp_path, arguments, words):
    done = plan(tmp_path, "--model", str(model), *arguments)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
