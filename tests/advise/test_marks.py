"""What is said of a method's runs beside its row: from made-up records, each mark alone."""

from __future__ import annotations

import pytest

from tunewise.advise.marks import MARKS
from tunewise.advise.recommend import recommend
from tunewise.advise.summary import summarise
from tunewise.report import table
from tunewise.report.rows import build_table
from tunewise.spec import TuningSpec
from tunewise.store.records import EpochLosses, Floor, MethodTuning, Trial, TuningReport

LEVEL = {"lora": [0.900, 0.910, 0.905], "cla": [0.903, 0.905, 0.900]}


def names(row):
    return [mark.name for mark in row.marks]


def with_results(record, **changes):
    return record.model_copy(update={"results": record.results.model_copy(update=changes)})


def with_epochs(record, *losses, kept=None, train=0.2):
    """Epochs with these (training, validation) losses."""
    epochs = [EpochLosses(epoch=n, train=a, validation=b) for n, (a, b) in enumerate(losses, start=1)]
    loss = record.results.train.model_copy(update={"loss": train})
    return with_results(record, epochs=epochs, selected_epoch=kept or len(epochs), train=loss)


def advice_on(runs, tuning=None):
    rows = summarise(runs, None, "lora", tuning=tuning)
    return {row.label: row for row in rows}, recommend(rows, tuning=tuning)


def search(method, chosen, edge=None, values=(0.5, 0.4)):
    trials = [Trial(rate=1e-2, run="-", status="done", epochs=1, value=value) for value in values]
    return MethodTuning(method=method, middle=1e-2, trials=trials, chosen=chosen, edge=edge)


def test_runs_without_a_fault_have_no_mark(records):
    rows, advice = advice_on(records(LEVEL))
    assert not names(rows["lora"]) and not names(rows["cla"])
    assert advice.evidence == "enough"


def test_a_rate_that_was_neither_given_nor_searched_for(records):
    def untuned(run):
        method = run.spec.method.model_copy(update={"learning_rate": None})
        return run.model_copy(update={"spec": run.spec.model_copy(update={"method": method})})

    rows, advice = advice_on([untuned(run) if run.spec.method.name == "cla" else run for run in records(LEVEL)])
    assert (names(rows["lora"]), names(rows["cla"])) == ([], ["untuned rate"])
    assert advice.doubts == [
        "the learning rate of cla is an untuned default, so differences may be those of the rates (--tune 4 searches "
        "for them)"
    ]
    assert advice.sentences[0].startswith("The evidence is thin: the learning rate of cla is an untuned default")


def test_a_search_whose_trials_all_failed_leaves_an_untuned_rate(records):
    tuning = TuningReport(
        settings=TuningSpec(),
        seed=1000,
        objective="-",
        methods=[search("lora", 1e-2), search("cla", 1e-2, values=(None, None))],
    )
    rows, _ = advice_on(records(LEVEL), tuning)
    assert (names(rows["lora"]), names(rows["cla"])) == ([], ["untuned rate"])


@pytest.mark.parametrize("edge", ["lowest", "highest"])
def test_a_rate_at_an_edge_of_the_search(records, edge):
    tuning = TuningReport(
        settings=TuningSpec(), seed=1000, objective="-", methods=[search("lora", 1e-2, edge), search("cla", 1e-2)]
    )
    rows, advice = advice_on(records(LEVEL), tuning)
    assert (names(rows["lora"]), names(rows["cla"])) == (["rate at an edge"], [])
    assert advice.doubts == [
        "the best learning rate of lora lies at an edge of those that were tried (--tune-extend tries more)"
    ]


@pytest.mark.parametrize(("first", "kept", "marked"), [(0.70, 0.6999, True), (0.70, 0.72, True), (0.70, 0.69, False)])
def test_a_loss_that_never_fell(records, first, kept, marked):
    runs = [with_epochs(run, (first, 0.7), (0.69, 0.7), kept=1, train=kept) for run in records(LEVEL)]
    rows, advice = advice_on(runs)
    assert names(rows["cla"]) == ["loss never fell"] * marked
    assert any("the training loss of lora, cla never fell" in doubt for doubt in advice.doubts) == marked


@pytest.mark.parametrize(
    ("epochs", "kept", "marked"),
    [
        ([(0.7, 0.5), (0.5, 0.4)], 2, True),
        ([(0.7, 0.5), (0.5, 0.49)], 2, False),  # it has come to rest
        ([(0.7, 0.5), (0.5, 0.4), (0.4, 0.45)], 2, False),
        ([(0.7, 0.4)], 1, False),  # nothing to compare it with
    ],
)
def test_a_last_epoch_whose_loss_was_still_falling(records, epochs, kept, marked):
    rows, advice = advice_on([with_epochs(run, *epochs, kept=kept) for run in records(LEVEL)])
    assert names(rows["lora"]) == ["loss still falling"] * marked
    assert any("train longer (--epochs)" in doubt for doubt in advice.doubts) == marked


def test_a_minority_of_the_runs_is_no_mark(records):
    runs = records(LEVEL)
    runs[0] = with_epochs(runs[0], (0.7, 0.5), (0.5, 0.4))
    rows, _ = advice_on(runs)
    assert not names(rows["lora"])


@pytest.mark.parametrize(
    ("scores", "marked"),
    [
        # the means are 86.0 and 94.0, the runs of lora 25 points apart
        ({"lora": [0.95, 0.70, 0.93], "cla": [0.94, 0.945, 0.935]}, ["lora"]),
        # 3 points apart, more than the means, but no more than +-2 standard errors of 1,000 items (3.7 points)
        ({"lora": [0.92, 0.89, 0.905], "cla": [0.905, 0.91, 0.90]}, []),
        # further apart than the items explain, but the means of the methods are 20 points apart
        ({"lora": [0.92, 0.87, 0.89], "cla": [0.70, 0.69, 0.70]}, []),
        # a method that learned nothing does not excuse the others
        ({"lora": [0.95, 0.70, 0.93], "cla": [0.94, 0.945, 0.935], "fft": [0.4, 0.4, 0.4]}, ["lora"]),
        # far more than the others, though less than the means
        ({"lora": [0.95, 0.80, 0.94], "cla": [0.94, 0.945, 0.94], "fft": [0.6, 0.605, 0.6]}, ["lora"]),
        ({"lora": [0.95]}, []),
    ],
)
def test_runs_that_disagree(records, scores, marked):
    rows, _ = advice_on(records(scores))
    assert [label for label, row in rows.items() if "runs disagree" in names(row)] == marked


def test_the_scores_of_runs_that_disagree_are_said(records):
    scores = {
        "fft": [0.936, 0.916, 0.920],
        "cla": [0.918, 0.920, 0.910],
        "paca": [0.916, 0.912, 0.906],
        "lora": [0.916, 0.896, 0.132],
    }
    _, advice = advice_on(records(scores))
    assert any("the runs of lora (91.6, 89.6, 13.2 %) disagree" in doubt for doubt in advice.doubts)


def test_no_better_than_the_floor_is_nothing_learned(records):
    rows, advice = advice_on(records({"lora": [0.9, 0.91, 0.9], "cla": [0.5, 0.49, 0.5]}))
    assert (names(rows["lora"]), names(rows["cla"])) == ([], ["learned nothing"])
    assert "cla learned nothing" in advice.doubts
    floorless = [with_results(run, floor={}) for run in records({"lora": [0.3, 0.3]})]
    assert not names(advice_on(floorless)[0]["lora"])


def test_no_exact_match_at_all_is_nothing_learned(records):
    def generation(run):
        metrics = {"exact_match": 0.0, "perplexity": 5.0}
        floor = {
            "exact_match": Floor(score=0.01, of="best constant prediction"),
            "perplexity": Floor(score=9.0, of="untrained model"),
        }
        test = run.results.test.model_copy(update={"metrics": metrics})
        return with_results(run, metric="exact_match", lower_is_better=["perplexity"], test=test, floor=floor)

    rows, advice = advice_on([generation(run) for run in records(LEVEL)])
    assert names(rows["lora"]) == names(rows["cla"]) == ["learned nothing"]
    assert advice.sentences[0].startswith(
        "The evidence is thin: nothing was learned: even the best score (0.0 %) is no better than without learning "
        "(1.0 %, the best constant prediction)"
    )


@pytest.mark.parametrize(("perplexity", "learned"), [(19.0, True), (19.9, False), (20.0, False), (25.0, False)])
def test_a_perplexity_is_held_against_that_of_the_untrained_model(records, perplexity, learned):
    def language(run):
        test = run.results.test.model_copy(update={"metrics": {"perplexity": perplexity}})
        floor = {"perplexity": Floor(score=20.0, of="untrained model")}
        return with_results(run, metric="perplexity", lower_is_better=["perplexity"], test=test, floor=floor)

    rows, advice = advice_on([language(run) for run in records(LEVEL)])
    assert rows["cla"].learned_nothing == (not learned)
    said = f"nothing was learned: even the best score ({perplexity:.4g}) is no better than without learning (20, the "
    assert any(doubt.startswith(f"{said}untrained model)") for doubt in advice.doubts) == (not learned)


def test_floor_and_marks_stand_in_every_form_of_the_table(records):
    rows = summarise(records({"lora": [0.9, 0.91, 0.9], "cla": [0.5, 0.49, 0.5]}), None, "lora")
    built = build_table(rows)
    assert [row.method for row in built.rows] == ["lora", "cla", "no learning"]
    floor = built.rows[-1]
    assert (floor.cells["metric"].text, floor.cells["metric"].value) == ("50.00", 0.5)
    assert floor.verdict == "the best constant prediction"
    assert floor.cells["metric"].place is None and floor.cells["gap"].value is None
    assert built.legend[0] == "learned nothing: the mean is no better than that of the row “no learning”."
    assert not any(mark.meaning in line for mark in MARKS[1:] for line in built.legend)
    shown = table.markdown(built)
    assert "cla (learned nothing)" in shown and "| no learning | 50.00 |" in shown and built.legend[0] in shown
    assert "no learning,0.5," in table.csv(built)
    assert "no learning & 50.00 &" in table.latex(built)
