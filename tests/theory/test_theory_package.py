"""The package as a whole: what every result carries, what is refused, what is imported."""

import doctest
import importlib
import math
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

import tunewise.theory as theory
from tunewise.errors import SpecError

LAYERS = [(8, 8)] * 2
RESULTS = {
    "trained_parameters": lambda: theory.trained_parameters("lora", LAYERS, 2),
    "information_bound": lambda: theory.information_bound(100, 10),
    "phi_dw": lambda: theory.perturbation([1.0, 2.0], 0.1, 1.0).phi_dw,
    "phi_w0": lambda: theory.perturbation([1.0, 2.0], 0.1, 1.0).phi_w0,
    "literal": lambda: theory.literal_perturbation([1.0, 2.0], 0.1, 1.0).phi_dw,
    "attention_difference": lambda: theory.attention_difference((1,) * 4, (1,) * 4, 1.0, 4, 8),
    "pac_bayes": lambda: theory.pac_bayes([1.0, 2.0], 0.1, 1.0, 8, 100),
    "hoeffding": lambda: theory.hoeffding(100),
    "random_factor_upper": lambda: theory.random_factor_upper(1.0, LAYERS, 2, 4, 0.1, 1.0, 1.0, 100),
    "random_factor_lower": lambda: theory.random_factor_lower(100),
    "rank_for_existence": lambda: theory.rank_for_existence(2, 10),
    "rank_without_spurious_minima": lambda: theory.rank_without_spurious_minima(2, 10),
    "rank_for_generic_features": lambda: theory.rank_for_generic_features((8, 8), 2, 10),
    "nuclear_penalty": lambda: theory.nuclear_penalty(2, 10, 1.0),
    "excess_risk": lambda: theory.excess_risk(1.0, 2, 10, 1.0),
    "largest_safe_step": lambda: theory.largest_safe_step(4, 8, 1.0),
    "guaranteed_decrease": lambda: theory.guaranteed_decrease(0.1, 4, 8, 1.0, 1.0),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_carries_units_assumptions_mark_and_source(name):
    bound = RESULTS[name]()
    assert isinstance(bound, theory.Bound)
    assert math.isfinite(float(bound))
    assert bound.units
    assert bound.assumptions
    assert bound.statement
    assert bound.mark in theory.MARKS
    assert "arXiv" in bound.source or "Hoeffding" in bound.source
    assert len(str(bound).splitlines()) == 1


NAN, INF = math.nan, math.inf
REFUSED = {
    "negative norm": lambda: theory.perturbation([1.0, -2.0], 0.1, 1.0),
    "NaN norm": lambda: theory.perturbation([1.0, NAN], 0.1, 1.0),
    "infinite norm": lambda: theory.perturbation([1.0, INF], 0.1, 1.0),
    "NaN input bound": lambda: theory.perturbation(1.0, 0.1, NAN),
    "negative loss constant": lambda: theory.perturbation(1.0, 0.1, 1.0, loss_lipschitz=-1),
    "lists of two lengths": lambda: theory.perturbation([1.0, 2.0], [0.1] * 3, 1.0),
    "no layers": lambda: theory.perturbation([], 0.1, 1.0),
    "text for a norm": lambda: theory.perturbation("12", 0.1, 1.0),
    "text in a list": lambda: theory.perturbation([1.0, "x"], 0.1, 1.0),
    "None for a norm": lambda: theory.perturbation(None, 0.1, 1.0),
    "negative literal norm": lambda: theory.literal_perturbation([1.0, -2.0], 0.1, 1.0),
    "negative merged norm": lambda: theory.perturbation(1.0, 0.1, 1.0, merged_norms=-1.0),
    "zero samples": lambda: theory.information_bound(10, 0),
    "half a sample": lambda: theory.information_bound(10, 1.5),
    "NaN samples": lambda: theory.information_bound(10, NAN),
    "negative parameters": lambda: theory.information_bound(-1, 10),
    "sigma 0": lambda: theory.information_bound(10, 10, sigma=0.0),
    "negative bits": lambda: theory.information_bound(10, 10, bits=-1),
    "rank 0": lambda: theory.trained_parameters("lora", LAYERS, 0),
    "no layer": lambda: theory.trained_parameters("lora", [], 4),
    "a layer of one number": lambda: theory.trained_parameters("lora", [8], 4),
    "a layer of width 0": lambda: theory.trained_parameters("lora", [(8, 0)], 4),
    "zero links": lambda: theory.trained_parameters("cola", LAYERS, 4, links=0),
    "unknown method": lambda: theory.trained_parameters("lara", LAYERS, 4),
    "three attention norms": lambda: theory.attention_difference((1,) * 3, (1,) * 4, 1.0, 4, 8),
    "negative attention norm": lambda: theory.attention_difference((1,) * 4, (1, 1, -1, 1), 1.0, 4, 8),
    "no tokens": lambda: theory.attention_difference((1,) * 4, (1,) * 4, 1.0, 0, 8),
    "delta 0": lambda: theory.hoeffding(10, delta=0.0),
    "delta 1": lambda: theory.hoeffding(10, delta=1.0),
    "PAC-Bayes delta 1": lambda: theory.pac_bayes(1.0, 0.1, 1.0, 8, 10, delta=1),
    "PAC-Bayes zero samples": lambda: theory.pac_bayes(1.0, 0.1, 1.0, 8, 0),
    "random factor rank 0": lambda: theory.random_factor_upper(1.0, LAYERS, 0, 4, 0.1, 1.0, 1.0, 100),
    "random factor delta 1.1": lambda: theory.random_factor_upper(1.0, LAYERS, 2, 4, 0.1, 1, 1, 9, delta=1.1),
    "deltas of 1": lambda: theory.random_factor_upper(1.0, LAYERS, 2, 4, 0.1, 1, 1, 9, delta=0.5, factor_delta=0.5),
    "three norms, two layers": lambda: theory.random_factor_upper([1.0] * 3, LAYERS, 2, 4, 0.1, 1, 1, 9),
    "random factor zero samples": lambda: theory.random_factor_lower(0),
    "no outputs": lambda: theory.rank_for_existence(0, 10),
    "NTK zero samples": lambda: theory.rank_without_spurious_minima(1, 0),
    "excess risk delta 0": lambda: theory.excess_risk(1.0, 1, 10, 1.0, delta=0),
    "curvature 0": lambda: theory.largest_safe_step(4, 8, 0.0),
    "alpha 0": lambda: theory.largest_safe_step(4, 0, 1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_make_no_sense_are_refused_in_one_line(name):
    with pytest.raises(SpecError) as raised:
        REFUSED[name]()
    message = str(raised.value)
    assert 10 < len(message) < 160
    assert "\n" not in message


def test_the_message_names_the_argument_and_the_layer():
    with pytest.raises(SpecError, match=r"update_norms\[1\] is nan; a finite number of at least 0 is needed"):
        theory.perturbation([1.0, 2.0], [0.1, NAN], 1.0)
    with pytest.raises(SpecError, match="rank is 0; a whole number of at least 1 is needed"):
        theory.trained_parameters("lora", LAYERS, 0)
    with pytest.raises(SpecError, match="delta is 2; a probability strictly between 0 and 1 is needed"):
        theory.hoeffding(10, delta=2)


def test_numpy_numbers_and_arrays_are_as_good_as_pythons():
    norms = np.array([1.0, 2.0])
    assert theory.perturbation(norms, np.float64(0.1), np.int64(1)) == theory.perturbation([1.0, 2.0], 0.1, 1)
    assert theory.perturbation(np.array(1.0), 0.1, 1.0) == theory.perturbation(1.0, 0.1, 1.0)
    assert theory.trained_parameters("cla", [(np.int64(8), 8)], np.int64(2)).value == 16


def test_it_is_imported_without_heavy_libraries():
    heavy = "{'torch', 'transformers', 'peft', 'scipy', 'pandas'}"
    code = f"import sys, tunewise.theory; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(theory.__path__)])
def test_the_examples_in_the_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(f"tunewise.theory.{name}")).failed == 0
