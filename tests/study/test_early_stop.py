"""When a trial is stopped early: the rule as it is written, and what it must never do."""

from __future__ import annotations

import statistics
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.errors import SpecError
from tunewise.study.early_stop import require_optuna, stopped_at

optuna = pytest.importorskip("optuna")

losses = st.integers(0, 12).map(lambda k: k / 4)


def by_hand(own, others, epochs):
    """The three conditions, literally."""
    for epoch in range(1, epochs):
        at = [row[epoch - 1] for row in others if len(row) >= epoch]
        late = epoch >= epochs / 2 and len(others) >= 2
        behind = bool(at) and min(own[:epoch]) > statistics.median(at)
        no_longer_improving = epoch > 1 and own[epoch - 1] > min(own[: epoch - 1])
        if len(own) >= epoch and late and behind and no_longer_improving:
            return epoch
    return None


@st.composite
def histories(draw):
    epochs = draw(st.integers(1, 6))
    row = st.lists(losses, min_size=epochs, max_size=epochs)
    return draw(row), draw(st.lists(row, max_size=5)), epochs


@settings(deadline=None, max_examples=150)
@given(histories())
def test_a_trial_is_stopped_where_the_three_conditions_hold_and_nowhere_else(case):
    assert stopped_at(*case) == by_hand(*case)


def test_a_low_rate_that_is_behind_but_still_improving_is_let_go_on():
    fast = [[0.6, 0.5, 0.5, 0.5], [0.7, 0.5, 0.4, 0.4]]
    slow = [1.5, 1.0, 0.6, 0.3]  # the best in the end
    assert stopped_at(slow, fast, 4) is None
    # The rule that is usual would have thrown it away:
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    for row in fast:
        study.add_trial(optuna.trial.create_trial(value=row[-1], intermediate_values=dict(enumerate(row, 1))))
    trial = study.ask()
    trial.report(slow[0], 1)
    assert trial.should_prune()


def test_a_rate_that_is_too_high_is_stopped():
    assert stopped_at([2.0, 2.5, 3.0, 3.0], [[0.6, 0.5, 0.5, 0.5], [0.7, 0.5, 0.4, 0.4]], 4) == 2


def test_nothing_is_stopped_beside_a_single_finished_trial_or_in_its_first_half():
    assert stopped_at([2.0, 2.5, 3.0, 3.0], [[0.6, 0.5, 0.5, 0.5]], 4) is None
    assert stopped_at([2.0, 2.5, 1.0, 0.1, 0.1, 0.1], [[0.6] * 6, [0.7] * 6], 6) is None


def test_a_run_that_is_over_is_not_stopped_at_its_last_epoch():
    assert stopped_at([2.0, 3.0], [[0.5, 0.5]] * 3, 2) is None


def test_without_the_library_the_way_out_is_named_before_any_trial(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SpecError, match=r"pip install 'tunewise\[tune\]', or set 'stop: never'"):
        require_optuna()
