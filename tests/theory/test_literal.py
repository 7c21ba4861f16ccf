"""The paper's sums: mended they count every mixture of layers once; as printed the theorem is false."""

import itertools
import math

import numpy as np
import pytest

from tunewise.errors import SpecError
from tunewise.theory import literal_perturbation, perturbation


def mixtures(base, other, lam, s, c):
    """Every choice of base or other in the layers after each start, but base everywhere; no bits."""
    total, layers = 0.0, len(base)
    for start in range(layers):
        first = c if start == 0 else s[start - 1]
        after = range(start, layers)
        for choice in itertools.product((base, other), repeat=layers - start):
            if any(norms is other for norms in choice):
                total += first * math.prod(lam[k] * norms[k] for k, norms in zip(after, choice))
    return 2 * total


@pytest.mark.parametrize("layers", range(1, 9))
def test_the_mended_sums_count_every_mixture_once(layers):
    """Relative tolerance 1e-13, against an enumeration without the paper's indices."""
    a, b, lam, s = np.random.default_rng(layers).uniform(0.2, 2, size=(4, layers)).tolist()
    phi_dw, phi_w0 = literal_perturbation(a, b, 1.3, 1.0, lam, s)
    assert float(phi_dw) == pytest.approx(mixtures(a, b, lam, s, 1.3), rel=1e-13)
    assert float(phi_w0) == pytest.approx(mixtures(b, a, lam, s, 1.3), rel=1e-13)


def test_as_printed_an_offset_of_the_first_activation_refutes_it():
    """W0 = 0, dW^1 = 0, sigma_1(0) = ln 2 (softplus): outputs 0 and 3 ln 2; Phi_dW is 0."""
    true_difference = 3.0 * math.log(2)
    norms = {"base_norms": [0.0, 0.0], "update_norms": [0.0, 3.0], "activation_offsets": [math.log(2), 0.0]}
    printed = literal_perturbation(**norms, input_bound=1.0, as_printed=True).phi_dw
    assert float(printed) / 2 == 0.0 < true_difference
    assert float(literal_perturbation(**norms, input_bound=1.0).phi_dw) / 2 == pytest.approx(true_difference)
    assert float(perturbation(**norms, input_bound=1.0).phi_dw) / 2 == pytest.approx(true_difference)
    assert (printed.mark, bool(printed.unmet)) == ("text", True)


def test_as_printed_two_linear_layers_refute_it():
    """P's misprint alone: one layer in W0 only, the other in dW only; x -> 3 * 2 x against 0."""
    one_each = literal_perturbation([2.0, 0.0], [0.0, 3.0], input_bound=1.0, as_printed=True)
    assert float(one_each.phi_dw) / 2 == 0.0 < 3.0 * 2.0
    assert float(one_each.phi_w0) / 2 == 0.0 < 3.0 * 2.0
    assert float(perturbation([2.0, 0.0], [0.0, 3.0], input_bound=1.0).phi_dw) / 2 == 6.0


def test_as_printed_phi_w0_charges_an_offset_that_cancels():
    """The sum from i = 1 adds ||sigma_L(0)||, which both networks have: not zero where W0 is."""
    norms = {"base_norms": [0.0, 0.0], "update_norms": [1.0, 1.0], "activation_offsets": [0.0, 5.0]}
    assert float(literal_perturbation(**norms, input_bound=0.0, as_printed=True).phi_w0) == 10.0
    assert float(literal_perturbation(**norms, input_bound=0.0).phi_w0) == 0.0


def test_too_many_layers_are_refused_with_the_way_out():
    with pytest.raises(SpecError, match=r"use perturbation\(\)"):
        literal_perturbation([1.0] * 17, 1.0, 1.0)
