"""The floor of a model that can answer untrained: scored once for a runs folder, and the same as if every run did it."""

from __future__ import annotations

import contextlib

import pytest
import torch

from test_run import make_spec
from tiny_language import save_tiny_llama, save_toy_lines
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, StudySpec, TrainingSpec
from tunewise.store import locks
from tunewise.store.documents import write_document
from tunewise.store.folders import RunStore
from tunewise.store.records import Floor, FloorReport
from tunewise.study.compare import compare
from tunewise.tasks.build import build_task
from tunewise.training import evaluation
from tunewise.training.build import build_model
from tunewise.training.events import Interrupted, Listener


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return save_toy_lines(tmp_path_factory.mktemp("lines") / "lines.txt")


@pytest.fixture
def scored(monkeypatch):
    """The sizes of the splits that are scored in a run, but for validation while training, in order."""
    sizes = []

    def counted(model, task, split, **options):
        sizes.append("test" if split is task.test else "other")
        return evaluation.evaluate(model, task, split, **options)

    monkeypatch.setattr("tunewise.run.evaluate", counted)
    return sizes


def spec_of(llama, lines, method="lora", seed=0, **training):
    return RunSpec(
        task="causal",
        model=ModelSpec(path=str(llama)),
        data=DataSpec(path=str(lines)),
        method=MethodSpec(name=method, rank=2, learning_rate=1e-3),
        training=TrainingSpec(**{"epochs": 1, "batch_size": 16, "max_length": 16, **training}),
        seed=seed,
    )


def own_scores(spec):
    """Of the run's own model before its training."""
    task = build_task(spec)
    batch_size = 4 * spec.training.batch_size
    return evaluation.evaluate(build_model(spec, task), task, task.test, batch_size=batch_size).scores.metrics


def test_one_run_of_a_folder_scores_the_untrained_model_and_all_record_the_same(llama, lines, tmp_path, scored):
    """To the last bit what each run's own model scores before its training."""
    store = RunStore(tmp_path)
    specs = [spec_of(llama, lines, method, seed) for seed in (0, 1) for method in ("lora", "cla", "fft")]
    records = [run(spec, store) for spec in specs]
    assert scored.count("test") == len(specs) + 1
    assert len(list(tmp_path.glob("cache/floors/*.json"))) == 1
    for record in records:
        floors = {key: floor.score for key, floor in record.results.floor.items() if floor.of == "untrained model"}
        assert floors and floors == {key: own_scores(record.spec)[key] for key in floors}
    run(spec_of(llama, lines, batch_size=8), store)  # padded otherwise: other roundings
    assert scored.count("test") == len(specs) + 3


def test_a_method_that_changes_the_outputs_when_attached_has_its_own_floor(llama, lines, tmp_path, scored):
    store = RunStore(tmp_path)
    run(spec_of(llama, lines), store)
    for seed in (0, 1):
        record = run(spec_of(llama, lines, "lora-one", seed), store)
        assert record.results.floor["perplexity"].score == own_scores(record.spec)["perplexity"]
    assert scored.count("test") == 3 + 3


def test_trials_of_a_study_do_not_score_the_untrained_model(llama, lines, tmp_path, scored):
    spec = StudySpec.model_validate(
        {
            "task": "causal",
            "model": str(llama),
            "data": str(lines),
            "methods": ["lora", "cla"],
            "rank": 2,
            "seeds": 2,
            "tuning": {"trials": 2, "extend": 0},
            "measures": "none",
            "training": {"epochs": 1, "batch_size": 16, "max_length": 16},
        }
    )
    comparison = compare(spec, tmp_path, costs=False)
    trials = [r for r in RunStore(tmp_path).records() if r.spec.seed == comparison.spec.tuning_seed]
    assert len(trials) == 4 and len(comparison.records) == 4
    assert not any(trial.results.floor for trial in trials)
    assert all(record.results.floor["perplexity"].of == "untrained model" for record in comparison.records)
    assert scored.count("test") == len(trials) + len(comparison.records) + 1


def test_a_new_head_is_not_scored_and_its_trials_keep_the_constant_prediction(tiny_model, toy_csv, tmp_path, scored):
    record = run(make_spec(tiny_model, toy_csv, "head", epochs=1), RunStore(tmp_path), is_trial=True)
    assert scored.count("test") == 1
    assert record.results.floor["accuracy"].of == "best constant prediction"
    assert not (tmp_path / "cache").exists()


def test_training_does_not_depend_on_which_run_scored_the_untrained_model(llama, lines, tmp_path, monkeypatch):
    """Though scoring sets a seed, as lm-evaluation-harness does."""

    def seeding(*args, **options):
        torch.manual_seed(1234)
        return evaluation.evaluate(*args, **options)

    monkeypatch.setattr("tunewise.run.evaluate", seeding)
    spec = spec_of(llama, lines, seed=1)
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"lora_dropout": 0.5})})
    first = run(spec, RunStore(tmp_path / "first"))
    run(spec_of(llama, lines), RunStore(tmp_path / "second"))
    second = run(spec, RunStore(tmp_path / "second"))
    assert second.results == first.results and second.files == first.files


def test_a_run_waits_for_the_process_that_scores_the_same_model(llama, lines, tmp_path, scored):
    spec, store = spec_of(llama, lines), RunStore(tmp_path)
    run(spec, store)
    (file,) = tmp_path.glob("cache/floors/*.json")
    file.unlink()
    kept = {"perplexity": Floor(score=7.0, of="untrained model")}
    other = contextlib.ExitStack()
    other.enter_context(locks.hold(tmp_path / ".locks" / f"floor-{file.stem}"))

    class Waiting(Listener):
        checks = 0

        def check(self):
            self.checks += 1
            if self.checks == 2:
                write_document(file, FloorReport(floors=kept))
                other.close()

    scored.clear()
    record = run(spec_of(llama, lines, seed=1), store, listener=Waiting())
    assert record.results.floor == kept
    assert scored.count("test") == 1

    file.unlink()
    stopped = Listener()
    stopped.stop_requested = True
    with locks.hold(tmp_path / ".locks" / f"floor-{file.stem}"), pytest.raises(Interrupted):
        run(spec_of(llama, lines, seed=2), store, listener=stopped)


def test_a_damaged_floor_is_measured_again(llama, lines, tmp_path, scored):
    store = RunStore(tmp_path)
    first = run(spec_of(llama, lines), store)
    (file,) = tmp_path.glob("cache/floors/*.json")
    content = file.read_text()
    file.write_text(content.replace("untrained model", "Untrained model"))
    assert run(spec_of(llama, lines, seed=1), store).results.floor == first.results.floor
    assert scored.count("test") == 2 + 2
    assert file.read_text() == content
