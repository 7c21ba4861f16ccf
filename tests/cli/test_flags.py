"""The flags of the commands come from the specs: none is missing, and what is typed wrong gets one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tunewise.cli.compare import read_request
from tunewise.cli.flags import flags_of
from tunewise.cli.main import COMMANDS, GROUPS_OF_COMMANDS
from tunewise.spec import ExecutionOptions, Flag, RunSpec, StudySpec, load_yaml

Call = Callable[..., tuple[int, str, str]]
PAGES = [[name] for name in COMMANDS] + [[group, name] for group, names in GROUPS_OF_COMMANDS.items() for name in names]


def fields(spec: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field that is not hidden, of a spec and of the specs in it, with its place; independent of `flags_of`."""
    for key, field in spec.model_fields.items():
        if Flag.of(field).hidden:
            continue
        inner = [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(t, type)]
        parts = [t for t in inner if issubclass(t, BaseModel)]
        if parts:
            yield from fields(parts[0], () if key == "methods" else (*prefix, key))
        else:
            yield (*prefix, key), field


@pytest.mark.parametrize("specs", [(StudySpec, ExecutionOptions), (RunSpec, ExecutionOptions)], ids=["study", "run"])
def test_every_field_has_a_description_and_a_flag(specs: tuple[type[BaseModel], ...]) -> None:
    places = {flag.path for flag in flags_of(*specs).values()}
    for spec in specs:
        for path, field in fields(spec):
            assert field.description, path
            assert path in places or path == ("name",), path  # of a list of methods: the list is the flag


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_every_command_has_a_help_page(words: list[str], call: Call) -> None:
    code, out, err = call(*words, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: tunewise {' '.join(words)}")


@pytest.mark.parametrize(
    ("words", "flag", "expected"),
    [
        (["compare"], "--rank", "[default: 8]"),
        (["compare"], "--measures", "[default: forgetting,"),
        (["train"], "--learning-rate", "each method's own unless given"),
        (["plan"], "--targets", "[default: qv; of language models all-linear]"),
        (["paper", "run"], "--image-size", "the model's own unless given"),
        (["runs", "ls"], "--sort", "[default: started]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_shows_the_default(
    words: list[str], flag: str, expected: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [row.strip("│ ") for row in call(*words, "--help")[1].splitlines()]
    (row,) = [row for row in rows if row.startswith(f"{flag} ")]
    assert expected in row


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["comprae"], "compare"),
        (["runs", "lss"], "ls"),
        (["compare", "--rnak=8"], "--rank"),
        (["compare", "--rank=many"], "--rank"),
        (["compare", "--select=los"], '"loss"'),
        (["compare", "--metrik", "f1"], "--metric"),
        (["compare", "--rank"], "--rank requires an argument"),
        (["compare", "more"], "more"),
        (["compare", "--model=m", "--methods=lora"], "give --data"),
        (["compare", "--model=m", "--data=d", "--methods=lora,clla"], "'cla'"),
        (["compare", "--model=m", "--data=d", "--methods=lora", "--seeds=few"], "few"),
        (["compare", "--model=m", "--data=d", "--methods=lora", "--epochs=0"], "epochs"),
        (["compare", "--preset=quickstrat"], "'quickstart'"),
        (["bounds", "nowhere", "--samples=0"], "--samples"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_with_the_nearest_name(words: list[str], expected: str, call: Call) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(
        "model: m\nmethods: [lora, {name: cla, rank: 2, learning_rate: 1e-3}]\nseeds: 2\nout: elsewhere\n"
        "training: {epochs: 7, batch_size: 4}\n"
    )
    preset = load_yaml(Path(read_request.__globals__["PRESETS"]) / "quickstart.yaml")
    options, study = read_request({"training": {"epochs": 9, "learning_rate": 0.1}, "rank": 4}, "quickstart", file)
    assert (study.training.epochs, study.training.batch_size) == (9, 4)
    assert study.training.max_length == preset["training"].get("max_length", 128)
    assert [(m.label, m.rank, m.learning_rate) for m in study.methods] == [("lora", 4, None), ("cla", 4, None)]
    assert (study.model.path, study.seeds, options.out) == ("m", [0, 1], "elsewhere")
    assert study.data.path == preset["data"]["path"]


def test_settings_of_a_method_are_flags_for_all_methods() -> None:
    assert set(StudySpec.short_keys) <= flags_of(StudySpec).keys()


def test_a_help_page_takes_little_time() -> None:
    script = "import time; from tunewise.cli.main import run\ntry: run()\nfinally: print(time.process_time())"
    command = [sys.executable, "-c", script, "compare", "--help"]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    assert min(float(out.splitlines()[-1]) for out in outputs) < 0.45  # processor seconds; 0.25 on an idle machine
