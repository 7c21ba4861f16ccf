"""Multiple choice: every way to write it gives the same questions, faults in one line, OpenBookQA, a comparison."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet

from command_line import invoke
from tiny import FILLER, WORDS
from tunewise.errors import DataError
from tunewise.spec import DataSpec, ModelSpec, StudySpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import detect_task
from tunewise.tasks.choice import MultipleChoice

KINDS = sorted(WORDS)


def questions(count: int = 90, seed: int = 0) -> list[tuple[str, list[str], int]]:
    """Words of one class, and three answers, of which the one that can be eaten is right."""
    draw = random.Random(seed)
    found: dict[str, tuple[str, list[str], int]] = {}
    while len(found) < count:
        kind = draw.choice(KINDS)
        question = " ".join([draw.choice(FILLER), *draw.sample(WORDS[kind], 2)])
        answers = [draw.choice(WORDS[k]) for k in KINDS]
        draw.shuffle(answers)
        found[question] = (question, answers, next(i for i, a in enumerate(answers) if a in WORDS["food"]))
    return list(found.values())


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    rows = [{"text": q, "choices": answers, "label": right} for q, answers, right in questions()]
    return write_lines(tmp_path_factory.mktemp("toy") / "toy.jsonl", rows)


def load(model, **data) -> MultipleChoice:
    return MultipleChoice(ModelSpec(path=str(model)), DataSpec(**data), 32)


def content(task: MultipleChoice) -> list:
    rows = [*task.train, *task.validation, *task.test]
    return sorted((row["input_ids"], row["labels"]) for row in rows)


def test_every_way_to_write_questions_gives_the_same(tmp_path, tiny_model):
    known = questions(30)
    forms = {
        "lists": [{"text": q, "choices": a, "label": r} for q, a, r in known],
        "letters": [{"text": q, "choices": a, "label": "ABC"[r]} for q, a, r in known],
        "texts": [{"text": q, "choices": a, "label": a[r]} for q, a, r in known],
        "nested": [
            {
                "question": {"stem": q, "choices": [{"text": t, "label": n} for t, n in zip(a, "123")]},
                "answerKey": "123"[r],
            }
            for q, a, r in known
        ],
        "columns": [{"text": q, **dict(zip(("one", "two", "three"), a)), "label": r} for q, a, r in known],
    }
    columns = {
        "nested": {"text": "question.stem", "choices": "question.choices", "label": "answerKey"},
        "columns": {"choices": "one,two,three"},
    }
    found = {
        form: content(load(tiny_model, path=write_lines(tmp_path / f"{form}.jsonl", rows), **columns.get(form, {})))
        for form, rows in forms.items()
    }
    struct = [{"text": a, "label": list("ABC")} for _, a, _ in known]
    table = {"text": [q for q, _, _ in known], "choices": struct, "label": ["ABC"[r] for _, _, r in known]}
    parquet.write_table(pyarrow.table(table), tmp_path / "struct.parquet")
    found["struct"] = content(load(tiny_model, path=str(tmp_path / "struct.parquet")))
    assert all(one == found["lists"] for one in found.values()), {k: v == found["lists"] for k, v in found.items()}
    assert len(found["lists"]) == 30


def test_a_model_reads_each_answer_with_the_question(tiny_model, toy):
    task = load(tiny_model, path=toy)
    row = task.train[0]
    shown = [task.tokenizer.convert_ids_to_tokens(ids) for ids in row["input_ids"]]
    assert len(shown) == 3
    assert all(one[0] == "[CLS]" and one.count("[SEP]") == 2 for one in shown)
    assert len({tuple(one[: one.index("[SEP]")]) for one in shown}) == 1
    batch = task.collate(task.train[:4])
    assert batch["input_ids"].shape[:2] == batch["attention_mask"].shape[:2] == (4, 3)
    assert task.load_model(0)(**batch).logits.shape == (4, 3)
    assert task.describe(batch).startswith("4 questions of 3 answers (")


def test_a_question_that_is_too_long_loses_its_beginning_and_no_answer(tmp_path, tiny_model):
    rows = [
        {"text": f"{' '.join(FILLER)} {w}", "choices": ["cat", "saw and drill"], "label": i % 2}
        for i, w in enumerate(WORDS["food"])
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    task = MultipleChoice(ModelSpec(path=str(tiny_model)), DataSpec(path=path), 10)
    for row in (*task.train, *task.test):
        short, long = (task.tokenizer.convert_ids_to_tokens(ids) for ids in row["input_ids"])
        assert len(short) == len(long) == 10
        assert long[-4:] == ["saw", "and", "drill", "[SEP]"]
        assert long[-6] in WORDS["food"] and long[1] != "the"
    assert "8 of 8 texts are longer than 10 tokens and were cut there." in task.facts.notes
    with pytest.raises(DataError, match="a.jsonl, line .: an answer alone is longer than 5 tokens; raise max_length"):
        MultipleChoice(ModelSpec(path=str(tiny_model)), DataSpec(path=path), 5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"label": "Z"}, "line 2: the right answer is given as 'Z'; expected"),
        ({"label": 3}, "line 2: the right answer is given as '3'"),
        ({"label": None}, "line 2: column 'label' is null"),
        ({"choices": ["cat"]}, "line 2: 1 answers; 2 to 26 are expected"),
        ({"choices": ["cat", "dog"], "label": 0}, "line 2: 2 answers, where a.jsonl, line 1 has 3"),
        ({"choices": ["cat", "", "dog"]}, "line 2: an empty question or answer"),
        ({"choices": "cat"}, "line 2: column 'choices' holds no list of answers"),
        ({"choices": ["cat", None, "dog"]}, "line 2: column 'choices' is null"),
        ({"text": {"a": 1}}, "line 2: column 'text' holds a dict"),
    ],
)
def test_faults_name_the_line(tmp_path, tiny_model, change, expected):
    rows = [{"text": q, "choices": a, "label": r} for q, a, r in questions(6)]
    rows[1] = {**rows[1], **change}
    with pytest.raises(DataError) as caught:
        load(tiny_model, path=write_lines(tmp_path / "a.jsonl", rows))
    assert str(caught.value).startswith(f"a.jsonl, {expected}")


def test_an_absent_column_and_a_csv_without_lists_say_so(tmp_path, tiny_model, toy_csv):
    rows = [{"stem": q, "choices": a, "label": r} for q, a, r in questions(6)]
    with pytest.raises(DataError, match="line 1: no column 'text'; it has stem, choices, label"):
        load(tiny_model, path=write_lines(tmp_path / "a.jsonl", rows))
    with pytest.raises(DataError, match="line 2: no column 'choices'"):
        load(tiny_model, path=str(toy_csv))


def test_answers_make_it_multiple_choice(toy):
    spec = {"model": "m", "data": {"path": toy, "choices": "choices"}, "methods": "lora"}
    assert detect_task(StudySpec.model_validate(spec).data) == "choice"


def test_openbookqa_is_read_as_it_comes(shared_data, tiny_model):
    """Counts and overlaps of the data's README."""
    folder = shared_data / "openbookqa"
    files = {"path": "train", "validation": "dev", "test": "test"}
    task = load(
        tiny_model, **{role: str(folder / f"{name}.jsonl.gz") for role, name in files.items()},
        text="question.stem", choices="question.choices", label="answerKey",
    )  # fmt: skip
    assert (len(task.validation), len(task.test)) == (500, 500)
    assert Counter(e["labels"] for e in task.test) == {0: 138, 1: 126, 2: 132, 3: 104}
    assert "train: 14 examples removed, since the same question is in test." in task.facts.notes
    assert "train: 7 examples removed, since the same question is in validation." in task.facts.notes
    assert len(task.train) == 4_957 - 21 - sum(int(n.split()[1]) for n in task.facts.notes if "duplicate" in n)


def test_a_comparison_on_questions_learns_them(toy, tiny_model, tmp_path, monkeypatch):
    flags = [f"--model={tiny_model}", f"--data={toy}", "--choices=choices", "--methods=lora,cla", "--rank=8"]
    flags += ["--seeds=1", "--epochs=4", "--batch-size=8", "--learning-rate=0.02", "--measures=none", "--no-costs"]
    flags += ["--targets=all-linear"]
    assert invoke(monkeypatch, "compare", "--no-tune", *flags, f"--out={tmp_path}") == 0
    records = RunStore(tmp_path).records()
    assert [record.spec.task for record in records] == ["choice"] * 2
    for record in records:
        assert set(record.results.test.metrics) == {"accuracy"}
        assert record.check.max_logit_difference < 1e-4
        assert torch.isfinite(torch.tensor(record.results.gap))
        assert record.results.test.metrics["accuracy"] > 0.6  # chance: one in three
