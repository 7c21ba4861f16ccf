"""What every task promises, checked for each of them on a small model and small data."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts import toy_task
from tiny import save_tiny_model, save_toy_csv
from tiny_images import save_tiny_vit, save_toy_images
from tiny_language import save_tiny_llama, save_toy_lines, save_toy_prompts
from tunewise.errors import SpecError
from tunewise.models.head import head_modules
from tunewise.models.load import meta_model
from tunewise.registry import TASKS
from tunewise.run import run
from tunewise.spec import StudySpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task, detect_task, task_class
from tunewise.tasks.contract import Task
from tunewise.training.evaluation import evaluate

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Case:
    """One task with data: the spec to build it from, and a change of the data that its digest must show."""

    task: str
    spec: StudySpec
    change: Callable[[], None]


def _pairs(path: Path) -> Path:
    rows = list(csv.reader(save_toy_csv(path.with_name("single.csv")).open(encoding="utf-8")))[1:]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b", "label"], *((t, f"{t} again", label) for t, label in rows)])
    return path


def _append(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("a new text,food\n")


def make_text(folder: Path) -> Case:
    model, data = save_tiny_model(folder / "model"), save_toy_csv(folder / "toy.csv")
    return Case("text", _spec("text", model, path=data), lambda: _append(data))


def make_pair(folder: Path) -> Case:
    model, data = save_tiny_model(folder / "model"), _pairs(folder / "pairs.csv")
    return Case(
        "text", _spec("text", model, path=data, text="a", text_pair="b"), lambda: data.write_text("a,b,label\n")
    )


def make_causal(folder: Path) -> Case:
    model, data = save_tiny_llama(folder / "model"), save_toy_lines(folder / "toy.txt")
    return Case("causal", _spec("causal", model, path=data), lambda: _append(data))


def make_prompts(folder: Path) -> Case:
    model, data = save_tiny_llama(folder / "model"), save_toy_prompts(folder / "toy.csv")
    return Case("causal", _spec("causal", model, path=data, text="prompt", label="answer"), lambda: _append(data))


def make_generation(folder: Path) -> Case:
    model, data = save_tiny_llama(folder / "model"), save_toy_prompts(folder / "toy.csv", prompts=16)
    spec = _spec("generation", model, path=data, text="prompt", label="answer")
    return Case("generation", spec, lambda: _append(data))


def make_chat(folder: Path) -> Case:
    model, data = save_tiny_llama(folder / "model"), folder / "chats.jsonl"
    words = list(csv.reader(save_toy_csv(folder / "toy.csv").open(encoding="utf-8")))[1:]
    lines = [json.dumps({"prompt": text, "completion": f"the {label}"}) for text, label in words[:40]]
    data.write_text("\n".join(lines) + "\n")
    return Case("chat", _spec("chat", model, path=data, chat_template="plain"), lambda: _append(data))


def make_regression(folder: Path) -> Case:
    model, data = save_tiny_model(folder / "model"), save_toy_csv(folder / "toy.csv")
    numbers = {"animals": "0.5", "food": "-2", "tools": "3.25"}
    rows = [[text, numbers.get(label, label)] for text, label in csv.reader(data.open(encoding="utf-8"))]
    with data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return Case("regression", _spec("regression", model, path=data), lambda: _append(data))


def make_choice(folder: Path) -> Case:
    model, toy, data = save_tiny_model(folder / "model"), save_toy_csv(folder / "toy.csv"), folder / "toy.jsonl"
    rows, kinds = list(csv.reader(toy.open(encoding="utf-8")))[1:], ["animals", "food", "tools"]
    lines = [{"text": text, "choices": ["cat", "bread", "saw"], "label": kinds.index(label)} for text, label in rows]
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return Case("choice", _spec("choice", model, path=data), lambda: _append(data))


def make_tags(folder: Path) -> Case:
    """The toy task of `toy_task.py`: every text of one class is tagged with a second one, too."""
    model, data = save_tiny_model(folder / "model"), save_toy_csv(folder / "toy.tags.csv")
    data.write_text(data.read_text(encoding="utf-8").replace(",food", ",food|animals"), encoding="utf-8")
    return Case("tags", _spec("tags", model, path=data), lambda: _append(data))


def make_image(folder: Path) -> Case:
    model, data = save_tiny_vit(folder / "model"), save_toy_images(folder / "toy", each=12)
    return Case("image", _spec("image", model, path=data), lambda: next(data.glob("red/*")).unlink())


MAKE: dict[str, Callable[[Path], Case]] = {
    "text": make_text,
    "pair": make_pair,
    "image": make_image,
    "causal": make_causal,
    "prompts": make_prompts,
    "generation": make_generation,
    "chat": make_chat,
    "regression": make_regression,
    "choice": make_choice,
    "tags": make_tags,
}


def _spec(task: str, model: Path, **data: Any) -> StudySpec:
    data = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    return StudySpec.model_validate(
        {"task": task, "model": str(model), "data": data, "methods": "lora", "training": {"max_length": 32}}
    )


@pytest.fixture(scope="module", params=MAKE)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return MAKE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def task(case: Case) -> Task:
    return build_task(case.spec)


@pytest.fixture(scope="module")
def model(task: Task) -> Any:
    return task.load_model(0).eval()


def seen(task: Task, example: Any) -> bytes:
    """What a model sees of an example, labels left out."""
    batch = task.collate([example])
    return b"".join(batch[key].numpy().tobytes() for key in sorted(batch) if key != "labels")


def test_every_kind_of_task_is_under_contract() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = {make(Path(folder) / name).task for name, make in MAKE.items() if (Path(folder) / name).mkdir() is None}
    assert made == set(TASKS.names())


def test_no_example_is_in_two_splits_and_the_facts_count_them(task: Task) -> None:
    inputs = {part: [seen(task, e) for e in getattr(task, part)] for part in PARTS}
    assert all(inputs.values())
    for i, one in enumerate(PARTS):
        for other in PARTS[i + 1 :]:
            assert not set(inputs[one]) & set(inputs[other])
    assert (task.facts.train, task.facts.validation, task.facts.test) == tuple(len(inputs[p]) for p in PARTS)
    assert task.facts.labels == task.labels


def test_a_batch_is_tensors_of_one_length_that_the_model_takes(task: Task, model: Any) -> None:
    batch = task.collate(task.train[:5])
    assert all(isinstance(value, torch.Tensor) and len(value) == 5 for value in batch.values())
    assert "labels" in batch
    found = model(**batch)
    assert torch.isfinite(found.loss)
    assert len(found.logits) == 5
    assert "5 " in task.describe(batch)


def test_an_examples_output_does_not_hang_on_its_batch(task: Task, model: Any) -> None:
    rows = sorted(task.train[:8], key=task.length)
    with torch.no_grad():
        alone, together = (_reduced(task, model, batch) for batch in ([rows[0]], [rows[0], *rows[-3:]]))
    torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)


def _reduced(task: Task, model: Any, rows: Any) -> torch.Tensor:
    batch = task.collate(rows)
    labels = batch.pop("labels")
    return task.reduce_outputs(model(**batch).logits, labels)


def test_what_is_kept_of_a_batch_has_the_losses_of_its_logits(task: Task, model: Any) -> None:
    batch = task.collate(task.test[:6])
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits
    kept, targets = task.reduce_outputs(logits, labels), task.targets(task.test[:6])
    torch.testing.assert_close(task.losses(logits, labels), task.losses(kept, targets), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(task.weights(logits, labels), task.weights(kept, targets))
    assert len(kept) == len(targets) == 6


def test_the_evaluated_loss_is_the_models_own_over_the_split(task: Task, model: Any) -> None:
    """One batch holds the whole split, so that the model's own mean is over all of it."""
    split = task.validation
    scored = evaluate(model, task, split, batch_size=len(split))
    with torch.no_grad():
        expected = float(model(**task.collate(split)).loss)
    assert scored.scores.loss == pytest.approx(expected, rel=1e-4)
    assert scored.scores.examples == len(split)
    small = evaluate(model, task, split, batch_size=3)
    assert small.scores.loss == pytest.approx(scored.scores.loss, rel=1e-5)
    assert small.scores.metrics == pytest.approx(scored.scores.metrics, rel=1e-4)


def test_losses_are_one_an_example_in_double_precision(task: Task, model: Any) -> None:
    scored = evaluate(model, task, task.test, batch_size=4)
    losses = task.losses(scored.logits, scored.labels)
    assert losses.shape == (len(task.test),)
    assert losses.dtype == torch.float64
    assert bool((losses >= 0).all())


def test_the_main_metric_is_among_the_scores(task: Task, model: Any) -> None:
    scores = evaluate(model, task, task.test, batch_size=4).scores
    assert task.metric in scores.metrics
    assert set(scores.metrics) == set(task.metrics)
    assert set(task.lower_is_better) <= set(task.metrics)
    for name, value in scores.metrics.items():
        assert value >= 0 if name in task.lower_is_better else -1 <= value <= 1


def test_one_seed_has_one_head_and_another_has_another(task: Task) -> None:
    first, again, other = (task.load_model(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    if head_modules(task.load_model(1)):  # a language model's is the pretrained one
        assert any(not torch.equal(first[key], other[key]) for key in first)
    else:
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_the_model_without_weights_has_the_same_shapes(task: Task, case: Case) -> None:
    kind = task_class(case.task)
    empty = meta_model(case.spec.model, kind.make_head(kind.read_labels(case.spec.data)))
    real = task.load_model(0)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_its_beginning_goes_to_another_process(task: Task) -> None:
    small = pickle.loads(pickle.dumps(task.first_examples(4)))
    assert len(small.train) == 4
    ours, theirs = task.collate(task.train[:4]), small.collate(small.train)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert len(task.train) > 4


def test_sample_inputs_need_no_data_and_fit_the_model(task: Task, case: Case, model: Any) -> None:
    """With weights, and as shapes alone, as forecasts of memory take them."""
    head = task.make_head(task.labels, case.spec.data)
    real, empty = (
        m(**task.sample_inputs(m, head, batch=3, length=7)) for m in (model, meta_model(case.spec.model, head))
    )
    assert torch.isfinite(real.logits).all() and torch.isfinite(real.loss)
    assert empty.logits.is_meta and empty.logits.shape == real.logits.shape
    assert empty.loss.shape == ()


def test_the_processor_can_be_saved_beside_a_model(case: Case, tmp_path: Path) -> None:
    task_class(case.task).load_processor(case.spec.model, case.spec.data).save_pretrained(tmp_path)
    assert any(tmp_path.iterdir())


def test_lengths_are_of_tokens_or_all_the_same(task: Task) -> None:
    lengths = [task.length(example) for example in task.train]
    assert task.longest() == (max(lengths) if task.has_tokens else None)
    assert task.has_tokens or set(lengths) == {1}
    assert task.facts.input_size


def test_the_layout_of_the_data_shows_its_task(case: Case) -> None:
    """Where labels are classes, numbers or completions the file doesn't show; those are named by the user."""
    shown = {"text", "image", "tags"} if case.task != "causal" else set()
    found = detect_task(case.spec.data)
    assert found == case.task if case.task in shown else TASKS.check(found)


def test_a_whole_run_of_the_toy_task(tmp_path: Path) -> None:
    case = make_tags(tmp_path)
    spec = case.spec.model_copy(update={"task": detect_task(case.spec.data)}).runs()[0]
    assert toy_task.Tagging is TASKS.get(spec.task)
    record = run(spec, RunStore(tmp_path / "runs"))
    assert record.status == "done" and record.results is not None
    assert record.results.metric == "micro_f1"
    assert set(record.results.test.metrics) == {"micro_f1", "exact_match"}
    assert record.check is not None and record.check.max_logit_difference < 1e-5


def test_an_unknown_task_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown task 'imag'; did you mean 'image'\?"):
        _spec("imag", tmp_path, path=tmp_path)


def test_the_digest_changes_with_the_content(case: Case) -> None:
    """Last, since it changes the data."""
    before = task_class(case.task).digest(case.spec.data)
    assert task_class(case.task).digest(case.spec.data) == before
    case.change()
    assert task_class(case.task).digest(case.spec.data) != before
