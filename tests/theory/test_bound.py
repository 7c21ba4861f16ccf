"""The result type carries what one needs to read a number."""

import dataclasses
import math
import operator
import pickle

import pytest

from tunewise.theory import Bound


def bound(**changes):
    fields = {"value": 2.0, "units": "loss", "mark": "text", "source": "arXiv 1"} | changes
    return Bound(**fields)


def test_a_bound_is_a_number_that_cannot_be_changed():
    assert float(bound()) == 2.0
    assert bound().log_value == math.log(2.0)
    assert bound(value=0.0).log_value == -math.inf
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound().value = 1.0


def test_only_a_count_is_an_index():
    assert operator.index(bound(value=3)) == 3 == int(bound(value=3))
    with pytest.raises(TypeError, match="not a whole number"):
        operator.index(bound(value=3.0))


def test_it_is_vacuous_from_its_ceiling_on():
    assert not bound().vacuous
    assert bound(ceiling=2.0).vacuous
    assert not bound(ceiling=2.1).vacuous


def test_a_sum_has_both_assumptions_and_the_weaker_mark():
    total = bound(mark="fixed", assumptions=("x", "y")) + bound(mark="derived", assumptions=("y", "z"), source="b")
    assert total.value == 4.0
    assert total.log_value == pytest.approx(math.log(4.0), rel=1e-15)
    assert (total.mark, total.assumptions, total.source) == ("derived", ("x", "y", "z"), "arXiv 1 + b")


def test_a_sum_of_numbers_beyond_the_floats_keeps_its_logarithm():
    huge = bound(value=math.inf, log_value=1000.0)
    assert (huge + huge).log_value == pytest.approx(1000 + math.log(2), rel=1e-15)
    assert (huge + bound(value=0.0)).log_value == 1000.0
    assert (bound(value=0.0) + bound(value=0.0)).log_value == -math.inf


def test_bounds_in_other_units_cannot_be_added():
    with pytest.raises(TypeError, match="can't be added"):
        bound() + bound(units="rank")
    with pytest.raises(TypeError):
        bound() + 1.0


def test_the_printed_line_names_mark_source_and_what_is_not_met():
    assert str(bound()) == "2 loss (text; arXiv 1)"
    assert str(bound(value=math.inf, log_value=1234.5)).startswith("e^1234 loss")  # four digits
    assert "assumptions not met: residuals" in str(bound().with_unmet("residuals"))
    assert bound().with_unmet("a").with_unmet("b").unmet == ("a", "b")


def test_it_survives_pickling():
    assert pickle.loads(pickle.dumps(bound(ceiling=1.0))) == bound(ceiling=1.0)
