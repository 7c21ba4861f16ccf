"""The number that every theorem gives for one fine-tuned network, from its shapes, norms and sample.

Assumptions that are known to fail for a transformer are listed in `unmet`; the numbers are computed all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunewise.catalog import Method
from tunewise.errors import SpecError
from tunewise.measures.base import Values
from tunewise.theory import (
    Bound,
    hoeffding,
    information_bound,
    largest_safe_step,
    pac_bayes,
    perturbation,
    random_factor_lower,
    random_factor_upper,
    rank_for_existence,
    rank_for_generic_features,
    rank_without_spurious_minima,
    trained_parameters,
)

CROSS_ENTROPY_LIPSCHITZ = math.sqrt(2)
"""||softmax - one-hot||_2 is at most the root of 2, so that is Ll of the loss in the logits; clipping keeps it."""
EPSILON = 0.1
"""The margin of the PAC-Bayes bound, fixed in advance."""

_TRANSFORMER = "a transformer: residuals, normalisation and attention between the layers"
_HEAD = "the task head is new and trained too, and is left out here"


class LayerNorms(Values):
    """One changed layer: its shape and the norms that the theorems need."""

    name: str
    shape: tuple[int, int]
    """(out n, in m)"""
    base: float
    """||W0||_2, from above."""
    update: float
    """||dW||_2"""
    frobenius: float
    """||dW||_F"""


@dataclass(frozen=True)
class FrozenFactor:
    """A and B where dW = g B A with a random A that is not trained."""

    rank: int
    scale: float
    std: Sequence[float]
    """sA of each layer's A."""
    radius: float
    """The largest ||B_l||_F."""
    gaussian: bool


@dataclass(frozen=True)
class Facts:
    """What the theorems need to know about a network. None: unknown, and the numbers that need it are left out."""

    layers: Sequence[LayerNorms]
    method: Method | None
    rank: int | None
    alpha: float | None
    links: int | None
    parameters: int
    """Trained, without the head; for a method of the catalog the paper's count replaces it."""
    head: int
    """Trained parameters of the task head."""
    input_bound: float
    input_bound_source: str
    """In words."""
    samples: int | None = None
    classes: int | None = None
    loss_range: float | None = None
    """M: the loss is clipped to [0, M]."""
    slices: Sequence[tuple[int, int]] | None = None
    """Shapes of the adapted ranges of output rows, where they are not full layers (q and v of a fused projection)."""
    frozen: FrozenFactor | None = None
    curvature: float | None = None
    """The largest curvature of the loss in the changed weights, where it was measured."""
    bits: int = 32
    transformer: bool = True
    delta: float = 0.05


class BoundLine(Values):
    """One number with its name."""

    key: str
    kind: str
    """'gap' (comparable with the measured gap), 'distance', 'rank', 'step' or 'count'."""
    title: str
    value: int | float | None = None
    """None where it is beyond the floats; then `log_value` is not."""
    log_value: float | None = None
    units: str
    ceiling: float | None
    vacuous: bool
    mark: str
    source: str
    statement: str
    assumptions: tuple[str, ...]
    unmet: tuple[str, ...]
    """Assumptions that are known not to hold."""


_COPIED = ("units", "ceiling", "vacuous", "mark", "source", "statement", "assumptions", "unmet")


def _line(key: str, kind: str, title: str, bound: Bound) -> BoundLine:
    finite = {name: v for name in ("value", "log_value") if math.isfinite(v := getattr(bound, name))}
    copied = {name: getattr(bound, name) for name in _COPIED}
    return BoundLine.model_validate({"key": key, "kind": kind, "title": title, **finite, **copied})


def theorems(facts: Facts) -> list[BoundLine]:
    """All numbers that the facts are enough for, the headline first."""
    lines = [*_information(facts), *_perturbation(facts), *_high_probability(facts), *_frozen_factor(facts)]
    return [*lines, *_ranks(facts), *_step(facts)]


def counted_parameters(facts: Facts) -> Bound:
    """p: by the paper's table for the catalog's methods, else as counted in the adapter."""
    method = facts.method
    if method is not None and facts.layers and facts.rank and method.trained not in ("all", "head", "peft"):
        shapes = facts.slices or [layer.shape for layer in facts.layers]
        return trained_parameters(method, shapes, facts.rank, facts.links)
    return Bound(
        value=facts.parameters,
        units="parameters",
        assumptions=("the task head is not counted",),
        mark="text",
        source="arXiv 2606.13767 Table 1, counted in the adapter",
        statement="p, trained parameters",
    )


def _information(facts: Facts) -> list[BoundLine]:
    count = counted_parameters(facts)
    lines = [_line("parameters", "count", "trained parameters p, as the paper counts", count)]
    if facts.samples is None:
        return lines
    sigma = _range(facts) / 2
    with_head = information_bound(int(count) + facts.head, facts.samples, facts.bits, sigma)
    if facts.head:
        paper = information_bound(count, facts.samples, facts.bits, sigma).with_unmet(
            f"the task head's {facts.head:,} parameters carry information about the sample too"
        )
        lines.append(_line("information", "gap", "(A) information bound, adapter alone", paper))
        lines.append(_line("information-head", "gap", "(A) information bound, head counted", with_head))
    else:
        lines.append(_line("information", "gap", "(A) information bound", with_head))
    return lines


def _perturbation(facts: Facts) -> list[BoundLine]:
    if not facts.layers:
        return []
    base, update = [layer.base for layer in facts.layers], [layer.update for layer in facts.layers]
    found = perturbation(base, update, facts.input_bound, CROSS_ENTROPY_LIPSCHITZ)
    phi_dw, phi_w0 = (_feed_forward(bound, facts) for bound in found)
    lines = [
        _line("phi-dw", "distance", "Phi_dW: gap from that of W0", phi_dw),
        _line("phi-w0", "distance", "Phi_W0: gap from that of dW alone", phi_w0),
    ]
    if facts.samples is None:
        return lines
    information = information_bound(counted_parameters(facts), facts.samples, facts.bits, _range(facts) / 2)
    untrained = hoeffding(facts.samples, facts.delta, _range(facts))
    lines += [
        _line("phi-w0+information", "gap", "(B) Phi_W0 + (A)", phi_w0 + information),
        _line("theorem-6", "gap", "(C) Phi_dW + PAC-Bayes of W0 (Theorem 6)", phi_dw + _pac_bayes(facts, moved=False)),
        _line("theorem-6-hoeffding", "gap", "(C) Phi_dW + Hoeffding of W0", phi_dw + untrained),
    ]
    return lines


def _high_probability(facts: Facts) -> list[BoundLine]:
    if facts.samples is None:
        return []
    lines = []
    if facts.layers:
        lines.append(
            _line("pac-bayes", "gap", "PAC-Bayes (Theorem 5)", _feed_forward(_pac_bayes(facts, moved=True), facts))
        )
    w0 = hoeffding(facts.samples, facts.delta, _range(facts))
    lines.append(_line("hoeffding", "distance", "Hoeffding: gap of W0, before any training", w0))
    return lines


def _pac_bayes(facts: Facts, *, moved: bool) -> Bound:
    """Theorem 5 needs a 1-Lipschitz loss: it is applied to loss / Ll, and the result is multiplied by Ll."""
    assert facts.samples is not None
    slope = CROSS_ENTROPY_LIPSCHITZ
    bound = pac_bayes(
        [layer.base for layer in facts.layers],
        [layer.frobenius for layer in facts.layers] if moved else 0.0,
        facts.input_bound,
        max(side for layer in facts.layers for side in layer.shape),
        facts.samples,
        epsilon=EPSILON / slope if moved else 0.0,
        delta=facts.delta,
        loss_range=_range(facts) / slope,
    )
    loss_range = _range(facts)
    return replace(
        bound,
        value=bound.value * slope,
        log_value=bound.log_value + math.log(slope),
        ceiling=loss_range,
        assumptions=(
            *(a for a in bound.assumptions if not a.startswith("the loss is 1-Lipschitz")),
            f"the loss is in [0, {loss_range:.4g}] and sqrt(2)-Lipschitz: the theorem for loss / sqrt(2)",
        ),
        unmet=("the norms of dW are known only after training",) if moved else (),
    )


def _frozen_factor(facts: Facts) -> list[BoundLine]:
    if facts.frozen is None or facts.samples is None:
        return []
    f = facts.frozen
    upper = random_factor_upper(
        [layer.base for layer in facts.layers],
        [layer.shape for layer in facts.layers],
        f.rank,
        f.rank * f.scale,
        f.std,
        f.radius,
        facts.input_bound,
        facts.samples,
        _range(facts),
        CROSS_ENTROPY_LIPSCHITZ,
        delta=facts.delta / 2,
        factor_delta=facts.delta / 2,
    )
    upper = _feed_forward(upper, facts).with_unmet("the radius of B is known only after training")
    if not f.gaussian:
        upper = upper.with_unmet("A is uniform, not Gaussian (of the same standard deviation)")
    lower = random_factor_lower(facts.samples, _range(facts))
    return [
        _line("random-factor-upper", "gap", "random frozen factor, one run: at most", upper),
        _line("random-factor-lower", "gap", "random frozen factor, hardest problem: at least", lower),
    ]


def _ranks(facts: Facts) -> list[BoundLine]:
    if facts.samples is None or facts.classes is None or not facts.layers:
        return []
    if facts.method is not None and facts.method.trained == "all":
        return []
    k, n = facts.classes, facts.samples
    smallest = min((layer.shape for layer in facts.layers), key=min)
    lazy = "lazy training is assumed, not checked here (the measure 'laziness' checks it)"
    loss: Literal["squared", "binary_cross_entropy"] = "binary_cross_entropy" if k == 2 else "squared"
    generic = rank_for_generic_features(smallest, k, n, loss).with_unmet(lazy)
    if k != 2:
        generic = generic.with_unmet("the loss is cross-entropy, not squared error")
    without_decay = "no weight decay on the factors, so no nuclear-norm penalty"
    return [
        _line(
            "rank-exists", "rank", "a minimiser of at most this rank exists", rank_for_existence(k, n).with_unmet(lazy)
        ),
        _line(
            "rank-no-spurious",
            "rank",
            "no spurious local minimum from this rank on",
            rank_without_spurious_minima(k, n).with_unmet(lazy, without_decay),
        ),
        _line("rank-generic", "rank", "the same, by a later and weaker condition", generic),
    ]


def _step(facts: Facts) -> list[BoundLine]:
    method = facts.method
    if facts.curvature is None or not facts.curvature > 0 or method is None or not method.selects_columns:
        return []
    assert facts.rank is not None
    alpha = float(facts.rank) if method.scaling == "one" else facts.alpha
    assert alpha is not None
    bound = largest_safe_step(facts.rank, alpha, facts.curvature).with_unmet(
        "trained with AdamW on batches, not with SGD on the full loss",
        "the curvature is that of one batch at the end of training, not the largest during training",
    )
    return [_line("safe-step", "step", "largest safe rate of SGD", bound)]


def _feed_forward(bound: Bound, facts: Facts) -> Bound:
    reasons = [_TRANSFORMER] if facts.transformer else []
    if facts.head:
        reasons.append(_HEAD)
    return bound.with_unmet(*reasons)


def _range(facts: Facts) -> float:
    if facts.loss_range is None:
        raise SpecError("the loss has no range; give the number of classes, or the value it is clipped at")
    return facts.loss_range
