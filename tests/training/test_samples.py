"""Samples of the data are drawn at random: a file that is sorted by class gives the same picture as a shuffled one."""

from __future__ import annotations

import csv

import pytest
import torch

from test_run import make_spec
from tunewise.measures.cost.stepping import probe_batch
from tunewise.methods.draws import sample
from tunewise.spec import StudySpec
from tunewise.tasks.build import build_task
from tunewise.training.build import one_step_batches


@pytest.fixture(scope="module")
def by_class(tiny_model, toy_csv, tmp_path_factory):
    """A task whose training file has all rows of one class after those of the other."""
    with toy_csv.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["label"])
    folder = tmp_path_factory.mktemp("sorted")
    paths = [folder / f"{part}.csv" for part in ("train", "validation", "test")]
    for path, part in zip(paths, (rows[2::4] + rows[3::4], rows[::4], rows[1::4]), strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(sorted(part, key=lambda row: row["label"]))
    spec = make_spec(tiny_model, paths[0], "lora-one")
    data = spec.data.model_copy(update={"validation": str(paths[1]), "test": str(paths[2])})
    return spec.model_copy(update={"data": data})


def gradient(model, batches):
    model.zero_grad()
    total = sum(len(batch["labels"]) for batch in batches)
    for batch in batches:
        (model(**batch).loss * len(batch["labels"]) / total).backward()
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "encoder" in n])


def test_the_gradient_of_a_sample_is_near_that_of_all_examples(by_class):
    """The first third of the file has one class alone, and another direction."""
    task = build_task(by_class)
    model = task.load_model(0).eval()
    count = len(task.train) // 3
    full = gradient(model, [task.collate(list(task.train))])
    first = gradient(model, [task.collate(list(task.train[:count]))])
    drawn = gradient(model, one_step_batches(by_class, task, count))
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(drawn, full, dim=0)) > 0.8
    assert float(cosine(first, full, dim=0)) < float(cosine(drawn, full, dim=0)) - 0.1


def test_the_probed_batch_has_several_classes(by_class):
    task = build_task(by_class)
    spec = StudySpec(model=by_class.model, data=by_class.data, methods=[by_class.method], training=by_class.training)
    assert len(set(probe_batch(spec, task)["labels"].tolist())) > 1


def test_a_sample_depends_on_seed_and_name_alone_and_has_no_repeats():
    items = list(range(100))
    drawn = sample(items, 30, 0, "a")
    assert drawn == sample(items, 30, 0, "a") and len(set(drawn)) == 30
    assert len({tuple(sample(items, 30, seed, name)) for seed in (0, 1) for name in ("a", "b")}) == 4
    assert sorted(sample(items, 200, 0, "a")) == items
