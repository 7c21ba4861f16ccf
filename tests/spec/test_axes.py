"""What a sweep's file comes to: which runs, each once."""

from __future__ import annotations

import pytest

from tunewise.errors import SpecError
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, StudySpec, TrainingSpec, parse
from tunewise.spec.expand import resolve_alpha


def swept(**content: object) -> list[RunSpec]:
    return parse(StudySpec, {"model": "base", "data": "toys.csv", "methods": "lora", "seeds": 1, **content}).runs()


def test_every_list_is_an_axis() -> None:
    runs = swept(
        model=["base", {"path": "large", "revision": "v2"}],
        data={"path": "toys.csv", "train_size": [100, 200]},
        methods="lora,c3la",
        rank=[4, 8],
        learning_rate=["1e-3", "1e-2.5", 1e-2],
        seeds=2,
        training={"epochs": [2, 3], "batch_size": 8},
    )
    assert len(runs) == 2 * 2 * 2 * 2 * 3 * 2 * 2 == len({run.id for run in runs})
    assert {run.learning_rate for run in runs} == {1e-3, 10.0**-2.5, 1e-2}
    assert {(run.model.path, run.model.revision) for run in runs} == {("base", None), ("large", "v2")}
    assert {run.data.train_size for run in runs} == {100, 200}
    assert {run.training.epochs for run in runs} == {2, 3}


def test_a_sweeps_run_is_the_run_that_a_comparison_would_make() -> None:
    (run,) = swept(rank=16, alpha="r/2", learning_rate=1e-3, training={"epochs": 4})
    alone = RunSpec(
        model=ModelSpec(path="base"),
        data=DataSpec(path="toys.csv"),
        method=MethodSpec(name="lora", rank=16, alpha=8.0),
        training=TrainingSpec(epochs=4, learning_rate=1e-3),
    )
    assert run.id == alone.id


def test_what_comes_to_the_same_run_is_run_once() -> None:
    """Full fine-tuning has no rank, LoRA no chain, PaCA's scale is 1 whatever alpha is."""
    runs = swept(methods="fft,lora,paca,c3la", rank=[4, 8], alpha=[8, 16], links=[1, 2])
    count = {name: sum(run.method.name == name for run in runs) for name in ("fft", "lora", "paca", "c3la")}
    assert count == {"fft": 1, "lora": 4, "paca": 2, "c3la": 8}


def test_alpha_in_ranks_is_spread_with_the_rank() -> None:
    runs = swept(rank=[4, 16], alpha=["r/4", "r/2", "r", "2r", "4r"])
    assert {(run.method.rank, run.method.alpha) for run in runs} == {
        (rank, factor * rank) for rank in (4, 16) for factor in (0.25, 0.5, 1, 2, 4)
    }
    assert resolve_alpha("1.5 * r / 3", 8) == 4.0


def test_points_are_products_of_their_own() -> None:
    runs = swept(
        rank=[4, 8],
        seeds=2,
        training={"epochs": 3, "batch_size": 8},
        points=[
            {"methods": "fft", "learning_rate": 1e-5, "training": {"epochs": 6}},
            {"rank": 4},  # among the product already
        ],
    )
    assert len(runs) == 4 + 2
    (one, two) = [run for run in runs if run.method.name == "fft"]
    assert (one.training.epochs, one.training.batch_size, one.learning_rate) == (6, 8, 1e-5)
    assert {one.seed, two.seed} == {0, 1}


def test_points_alone() -> None:
    points = [{"methods": "lora", "rank": 4, "learning_rate": 1e-3}, {"methods": "cla", "rank": 64}]
    runs = swept(methods=[], points=points)
    assert [(run.method.name, run.method.rank) for run in runs] == [("lora", 4), ("cla", 64)]


def test_a_methods_own_values_stand_above_the_axes() -> None:
    runs = swept(methods=["lora", {"name": "c3la", "rank": [1, 2], "targets": ["query", "key"]}], rank=[4, 8])
    assert {(run.method.name, run.method.rank) for run in runs} == {("lora", 4), ("lora", 8), ("c3la", 1), ("c3la", 2)}
    assert all(run.method.targets == ["query", "key"] for run in runs if run.method.name == "c3la")


def test_a_link_may_last_so_many_epochs() -> None:
    runs = swept(methods="c3la,lora", restart_every=[1, 5, 15], training={"epochs": 20})
    chained = [run for run in runs if run.method.name == "c3la"]
    assert [run.links for run in chained] == [20, 4, 2]
    assert len(runs) == 4
    halves = swept(methods="c3la", links=2, training={"epochs": 20})
    assert halves[0].id != chained[2].id  # restarted after 10 epochs, not after 15


def test_runs_on_one_data_set_follow_each_other_seed_by_seed() -> None:
    runs = swept(data=["a.csv", "b.csv"], rank=[4, 8], seeds=[3, 1])
    order = [(run.data.path, run.seed, run.method.rank) for run in runs]
    assert order == [(data, seed, rank) for data in ("a.csv", "b.csv") for seed in (1, 3) for rank in (4, 8)]


def test_the_dumped_spec_is_the_spec() -> None:
    spec = parse(
        StudySpec,
        {"model": "m", "data": "d", "methods": "lora", "alpha": ["r", 3], "seeds": 2, "points": [{"methods": "fft"}]},
    )
    again = StudySpec.model_validate_json(spec.model_dump_json())
    assert [run.id for run in again.runs()] == [run.id for run in spec.runs()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"methods": "lroa"}, "did you mean 'lora'"),
        ({"ranks": [4]}, "unknown key 'ranks'; did you mean 'rank'"),
        ({"rank": [0]}, "rank = 0"),
        ({"alpha": "r/x"}, "alpha 'r/x': give a number, or one in ranks"),
        ({"alpha": "r/0"}, "alpha 'r/0'"),
        ({"learning_rate": ["fast"]}, "method lora: learning_rate = 'fast'"),
        ({"training": {"epochs": [1, 0]}}, "grid.training.1.epochs = 0"),
        ({"links": 2, "restart_every": 3}, "give one of them"),
        ({"methods": []}, "no methods"),
        ({"seeds": []}, "seeds"),
        ({"points": [{"rnk": 4}]}, "points.0: unknown key 'rnk'; did you mean 'rank'"),
        ({"points": [{"points": [{}]}]}, "points can't hold points"),
        ({"methods": [], "points": [{"rank": 4}]}, "points.0: no method"),
        ({"methods": [{"name": "lora", "links": 2}]}, "has no chain"),
    ],
)
def test_mistakes_are_named(content: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError) as error:
        swept(**content)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_half_powers_are_read_wherever_a_rate_stands() -> None:
    runs = swept(
        methods=[{"name": "lora", "learning_rate": ["1e-3.5", "1e-2"]}, "cla"], training={"learning_rate": "1e-2.5"}
    )
    assert {(run.method.name, run.learning_rate) for run in runs} == {
        ("lora", 10.0**-3.5),
        ("lora", 1e-2),
        ("cla", 10.0**-2.5),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"seeds": 0}, "seeds: 0: give how many (1 or more"),
        ({"seeds": [-1]}, "seeds: [-1]: give how many"),
        ({"seeds": [0, 1, 0]}, "seeds [0, 1, 0] hold one twice; each run must be its own"),
        ({"points": [{"seeds": [2, 2]}]}, "points.0: seeds [2, 2] hold one twice"),
        ({"seeds": "two"}, "seeds: two: give how many"),
        ({"points": [{"seeds": []}]}, "points.0: seeds: []: give how many"),
        ({"training": {"epochs": []}}, "training.epochs: an empty list; give its values"),
        ({"data": []}, "data: an empty list"),
        ({"methods": [{"rank": 4}]}, "names no method; write {name: lora, rank: 8}"),
    ],
)
def test_what_is_empty_is_named_by_its_key(content: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError) as error:
        swept(**content)
    assert said in str(error.value)
