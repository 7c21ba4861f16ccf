"""What will not fit is refused before the first run, in one line with the knob; what will is not."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from tunewise.errors import InsufficientResources
from tunewise.models.load import load_config
from tunewise.spec import (
    DataSpec,
    ExecutionOptions,
    MethodSpec,
    ModelSpec,
    RayOptions,
    RunSpec,
    StudySpec,
    TrainingSpec,
)
from tunewise.store.folders import RunStore
from tunewise.store.records import DataFacts, ModelFacts
from tunewise.study import resources
from tunewise.study.compare import compare
from tunewise.study.forecast import forecast_methods
from tunewise.study.plan import PlannedRun, make_plan
from tunewise.study.resources import SideBySide, available_memory, check_plan, check_resources
from tunewise.tasks.text import TextClassification
from tunewise.training.process_group import ProcessGroup

Usage = namedtuple("Usage", "total used free")


def wanted(model: Path, method: str = "lora", *, rank: int = 16, seed: int = 0, batch: int = 64, targets: str = "qv"):
    run = RunSpec(
        model=ModelSpec(path=str(model)),
        data=DataSpec(path="toys.csv"),
        method=MethodSpec(name=method, rank=rank, targets=targets),
        training=TrainingSpec(batch_size=batch, max_length=64),
        seed=seed,
    )
    counts = ModelFacts(parameters=1, trainable=1, adapter=1, head=0, layers=[])
    data = DataFacts(train=80, validation=20, test=20, labels=["a", "b", "c"])
    return PlannedRun(run, 20, counts, data, TextClassification.make_head(("a", "b", "c")))


def needed(one: PlannedRun, **changes: int) -> int:
    """By the forecast, called as `tunewise plan` does."""
    settings = {"batch": one.spec.training.batch_size, "length": one.spec.training.max_length, **changes}
    (found,) = forecast_methods(load_config(one.spec.model), one.task, one.head, [one.spec.method], **settings)
    return found.memory_bytes


def test_what_fits_is_not_refused(tiny_model: Path, tmp_path: Path) -> None:
    check_resources([wanted(tiny_model, name) for name in ("lora", "cla", "fft", "c3la")], tmp_path / "runs")
    assert available_memory() > 2**20


def test_memory_names_a_batch_and_a_length_that_fit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = wanted(tiny_model)
    there = needed(one, batch=20)  # between 16 and 32
    monkeypatch.setattr(resources, "available_memory", lambda: there)
    with pytest.raises(InsufficientResources) as error:
        check_resources([one], tmp_path)
    said = str(error.value)
    assert "not enough memory: lora on" in said and "batch_size 16" in said and "max_length" in said
    assert "batch_size 32" not in said and "--force" in said and "\n" not in said
    assert needed(one, batch=16) <= there < needed(one, batch=32)
    check_resources([wanted(tiny_model, batch=16)], tmp_path)


def test_the_largest_rank_and_the_heaviest_method_decide(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [wanted(tiny_model, rank=rank, targets="all-linear") for rank in (1, 32)]
    between = (needed(runs[0]) + needed(runs[1])) // 2
    monkeypatch.setattr(resources, "available_memory", lambda: between)
    check_resources(runs[:1], tmp_path)
    with pytest.raises(InsufficientResources, match=r"rank (16|8|4|2|1)\b"):
        check_resources(runs, tmp_path)


def test_a_model_that_no_setting_fits(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 1000)
    with pytest.raises(InsufficientResources, match="use a smaller model, or a machine with more memory"):
        check_resources([wanted(tiny_model, "fft")], tmp_path)


def test_runs_side_by_side_need_as_much_more(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = wanted(tiny_model)
    monkeypatch.setattr(resources, "available_memory", lambda: int(2.5 * needed(one)))
    check_resources([one], tmp_path, SideBySide(2, 2))
    with pytest.raises(InsufficientResources, match="for 4 runs at once.*or 2 at once"):
        check_resources([one], tmp_path, SideBySide(4, 4))


def _free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 * count, 9 * count, count))


def test_disk_is_counted_for_all_runs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [wanted(tiny_model, name, seed=seed) for name in ("lora", "fft") for seed in range(20)]
    weights = (tiny_model / "model.safetensors").stat().st_size
    _free(monkeypatch, 8 * weights)  # one run's checkpoints, and a few results
    with pytest.raises(InsufficientResources) as error:
        check_resources(runs, tmp_path / "not" / "there")
    said = str(error.value)
    assert re.search("not enough disk: about .* is needed for 40 runs", said)
    assert f"free in {tmp_path}" in said and "runs gc" in said
    _free(monkeypatch, 100 * weights)
    check_resources(runs, tmp_path)


def test_a_comparison_is_refused_before_its_first_run(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StudySpec.model_validate(
        {
            "model": str(tiny_model),
            "data": str(toy_csv),
            "methods": ["head"],
            "seeds": [0],
            "training": {"epochs": 1},
            "tuning": 0,
        }
    )
    monkeypatch.setattr(resources, "available_memory", lambda: 1000)
    with pytest.raises(InsufficientResources, match="head on"):
        compare(spec, tmp_path / "runs", costs=False)
    assert not (tmp_path / "runs").exists()
    found = compare(spec.model_copy(update={"measures": []}), tmp_path / "runs", costs=False, force=True)
    assert found.records[0].status == "done"


def test_no_batch_is_wider_than_the_longest_training_text(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = wanted(tiny_model, batch=16)
    short = replace(one, longest=20)
    there = needed(one, length=24)
    monkeypatch.setattr(resources, "available_memory", lambda: there)
    with pytest.raises(InsufficientResources, match="max_length 64"):
        check_resources([one], tmp_path)
    check_resources([short], tmp_path)
    monkeypatch.setattr(resources, "available_memory", lambda: needed(one, length=16))
    with pytest.raises(InsufficientResources, match=r"batch_size 16, texts of up to 20 tokens\).*batch_size 8"):
        check_resources([short], tmp_path)
    settings = {"methods": ["lora"], "seeds": [0], "training": {"max_length": 64}}
    spec = StudySpec.model_validate({"model": str(tiny_model), "data": str(toy_csv), **settings})
    plan = make_plan(spec, RunStore(tmp_path / "runs"))
    (planned,) = plan.todo
    assert planned.longest == max(len(row["input_ids"]) for row in plan.task.train) == planned.length < 64


def test_revisions_of_a_model_are_models_of_their_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is larger, and is not taken for the first."""
    small = load_config(ModelSpec(path=str(tiny_model)))
    large = load_config(ModelSpec(path=str(tiny_model)))
    large.num_hidden_layers = 3 * small.num_hidden_layers
    monkeypatch.setattr(resources, "load_config", lambda spec: large if spec.revision == "large" else small)
    first = wanted(tiny_model)
    model = first.spec.model.model_copy(update={"revision": "large"})
    second = replace(first, spec=first.spec.model_copy(update={"model": model}))
    monkeypatch.setattr(resources, "available_memory", lambda: needed(first))
    check_resources([first], tmp_path)
    with pytest.raises(InsufficientResources, match="not enough memory"):
        check_resources([first, second], tmp_path)


def test_runs_on_gpus_of_their_own_share_no_memory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = wanted(tiny_model)
    monkeypatch.setattr(resources, "available_memory", lambda: int(1.5 * needed(one)))
    check_resources([one], tmp_path, SideBySide(4, 1))
    with pytest.raises(InsufficientResources, match="for 2 runs at once.*or 1 at once"):
        check_resources([one], tmp_path, SideBySide(4, 2))


def _refused_below(monkeypatch: pytest.MonkeyPatch, need: int, one: PlannedRun, out: Path, match: str, **how) -> None:
    """It is refused with a byte less than it needs, and not with that many."""
    monkeypatch.setattr(resources, "available_memory", lambda: need)
    check_resources([one], out, **how)
    monkeypatch.setattr(resources, "available_memory", lambda: need - 1)
    with pytest.raises(InsufficientResources, match=match):
        check_resources([one], out, **how)


@pytest.mark.parametrize("gpus", [False, True])
def test_processes_of_one_run_each_have_a_share_of_its_batch(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus)
    one = wanted(tiny_model, "fft", batch=62)
    (found,) = forecast_methods(
        load_config(one.spec.model),
        one.task,
        one.head,
        [one.spec.method],
        batch=16,
        length=64,
        device="cuda" if gpus else "cpu",
    )
    each = found.memory_bytes + found.gradient_bytes  # and the buckets of DDP
    said = r"in each process \(.*batch_size 31" if gpus else r"for 4 processes \(.*batch_size 31"
    _refused_below(monkeypatch, each if gpus else 4 * each, one, tmp_path, said, process_group=ProcessGroup(0, 4))
    if not gpus:  # two machines, two processes on each
        _refused_below(
            monkeypatch,
            2 * each,
            one,
            tmp_path,
            "for 2 processes",
            process_group=ProcessGroup(0, 4, local_world_size=2),
        )


def test_no_batch_has_more_examples_than_there_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = wanted(tiny_model, batch=200_000)
    said = r"\(batch_size 200000, of 80 training examples, max_length 64\).*batch_size 40"
    _refused_below(monkeypatch, needed(one, batch=80), one, tmp_path, said)


def test_the_memory_of_a_cluster_is_not_this_machines(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"model": str(tiny_model), "data": str(toy_csv), "methods": ["lora"], "seeds": [0]}
    store = RunStore(tmp_path)
    plan = make_plan(StudySpec.model_validate(spec), store)
    cluster = ExecutionOptions(executor="ray", ray=RayOptions(address="auto"))
    monkeypatch.setattr(resources, "available_memory", lambda: 1000)
    check_plan(plan, store, cluster)
    with pytest.raises(InsufficientResources, match="not enough memory"):
        check_plan(plan, store, ExecutionOptions())
    _free(monkeypatch, 1000)
    with pytest.raises(InsufficientResources, match="not enough disk"):
        check_plan(plan, store, cluster)
