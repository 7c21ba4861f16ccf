r"""Training columns of W (PaCA) is training cla's B on the same columns, at another rate (2606.13767, Theorem 3).

With C = W[:, cols] trained or W0 + s B S trained, s = alpha / r, one loss: grad_B = s grad_C. So s B and C - C0 move
alike if a step on B is 1 / s of a step on C for gradients s times as large:

| optimizer of B | the same on the columns | reason |
| --- | --- | --- |
| SGD at g, with momentum or without | SGD at g s^2 | a step is linear in the gradient |
| Adam at g, eps | Adam at g s, eps / s | a step does not depend on the gradient's length, eps aside |
| either, gradients clipped to norm c | clipped to c / s | the columns' gradient is 1 / s as long |

Otherwise the two differ: the paper's s^2 is for SGD only, and weight decay pulls B to 0 but C to 0 too, that is dW to
-W0.

Runs are dense float64 formulas with S as a matrix, batched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve

INPUTS, HIDDEN, OUTPUTS, RANK, SAMPLES = 16, 12, 5, 3, 64
SCALES = (0.5, 2.0, 4.0)  # s = alpha / r; not 1, where all rules agree
STEPS = 100
EQUAL, DIFFERENT = 1e-9, 1e-2
BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Rule:
    """An optimizer at the rate g s^rate, with eps s^eps and gradients clipped to the norm c s^clip."""

    kind: Literal["sgd", "adam"]
    g: float
    rate: int = 0
    eps: int = 0
    clip: int = 0
    norm: float = torch.inf
    momentum: float = 0.0
    decay: float = 0.0  # AdamW's, times the rate
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Case:
    """cla under one rule beside the same columns of W under another; `equal` is the expectation."""

    name: str
    factor: Rule
    columns: Rule
    equal: bool


SGD, ADAM = Rule("sgd", 0.01), Rule("adam", 0.003)
MOMENTUM, CLIPPED = replace(SGD, momentum=0.9), replace(SGD, norm=0.1)
LARGE_EPS, DECAY = replace(ADAM, epsilon=1e-2), replace(ADAM, decay=0.3)
CASES = (
    Case("SGD at g s^2", SGD, replace(SGD, rate=2), True),
    Case("SGD with momentum at g s^2", MOMENTUM, replace(MOMENTUM, rate=2), True),
    Case("Adam at g s, eps / s", ADAM, replace(ADAM, rate=1, eps=-1), True),
    Case("Adam at g s, eps / s, eps as large as gradients", LARGE_EPS, replace(LARGE_EPS, rate=1, eps=-1), True),
    Case("SGD clipped to c / s, at g s^2", CLIPPED, replace(CLIPPED, rate=2, clip=-1), True),
    Case("SGD at the same rate", SGD, SGD, False),
    Case("Adam at g s^2", ADAM, replace(ADAM, rate=2), False),
    Case("Adam at g s, eps unscaled and as large as gradients", LARGE_EPS, replace(LARGE_EPS, rate=1), False),
    Case("SGD clipped to the same c, at g s^2", CLIPPED, replace(CLIPPED, rate=2), False),
    Case("AdamW with weight decay, at g s, eps / s", DECAY, replace(DECAY, rate=1, eps=-1), False),
)


def loss(first: Tensor, second: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Half the mean squared error of tanh(x W1^T) W2^T; x (N, m), y (N, k)."""
    return 0.5 * ((x @ first.mT).tanh() @ second.mT - y).square().sum(-1).mean()


Problem = tuple[Tensor, ...]
"""W1 (h, m), W2 (k, h), their one-hot selectors S1 (r, m) and S2 (r, h), x, y, s."""


def trajectory(problem: Problem, rule: Rule, *, columns: bool, steps: int) -> Tensor:
    """dW of both layers' selected columns after every step: (steps, (h + k) r).

    `columns`: W's columns are trained; otherwise cla's B, from 0, in dW = s B S.
    """
    w1, w2, s1, s2, x, y, s = problem
    weights, selectors = (w1, w2), (s1, s2)
    origin = [w @ select.mT for w, select in zip(weights, selectors)]

    def moved(trained: list[Tensor]) -> list[Tensor]:
        return [t - o for t, o in zip(trained, origin)] if columns else [s * t for t in trained]

    def objective(trained: list[Tensor]) -> Tensor:
        layers = [w + d @ select for w, d, select in zip(weights, moved(trained), selectors)]
        return loss(layers[0], layers[1], x, y)

    trained = [o.clone() for o in origin] if columns else [torch.zeros_like(o) for o in origin]
    state = [[torch.zeros_like(o), torch.zeros_like(o)] for o in origin]
    slope: Callable[[list[Tensor]], list[Tensor]] = torch.func.grad(objective)
    path = []
    for step in range(1, steps + 1):
        trained = _step(rule, s, step, trained, slope(trained), state)
        path.append(torch.cat([d.flatten() for d in moved(trained)]))
    return torch.stack(path)


def _step(
    rule: Rule, s: Tensor, step: int, trained: list[Tensor], slopes: list[Tensor], state: list[list[Tensor]]
) -> list[Tensor]:
    rate, eps = rule.g * s**rule.rate, rule.epsilon * s**rule.eps
    length = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
    shorter = (rule.norm * s**rule.clip / length).clamp(max=1.0)
    after = []
    for value, slope, moments in zip(trained, slopes, state):
        slope = slope * shorter
        if rule.kind == "sgd":
            moments[0] = rule.momentum * moments[0] + slope
            after.append(value - rate * moments[0])
            continue
        moments[0] = BETAS[0] * moments[0] + (1 - BETAS[0]) * slope
        moments[1] = BETAS[1] * moments[1] + (1 - BETAS[1]) * slope.square()
        mean, square = moments[0] / (1 - BETAS[0] ** step), moments[1] / (1 - BETAS[1] ** step)
        after.append(value * (1 - rate * rule.decay) - rate * mean / (square.sqrt() + eps))
    return after


def pair_distance(*problem: Tensor, case: Case, steps: int) -> Tensor:
    """||dW_cla - dW_columns|| / (the largest ||dW|| of the two runs), after every step: (steps,)."""
    factor = trajectory(problem, case.factor, columns=False, steps=steps)
    columns = trajectory(problem, case.columns, columns=True, steps=steps)
    size = torch.linalg.norm(torch.stack([factor, columns]), dim=-1).amax()
    return torch.linalg.norm(factor - columns, dim=-1) / size


def problems(settings: LabSettings, draws: int) -> Problem:
    """Every tensor with a first dimension of draws * len(SCALES)."""
    drawn = [problem(generator(settings.seed, i), s) for i in range(draws) for s in SCALES]
    return tuple(torch.stack(parts) for parts in zip(*drawn))


def problem(draw: torch.Generator, s: float) -> Problem:
    """Random weights, columns, inputs and labels."""
    w1 = normal(draw, HIDDEN, INPUTS) / INPUTS**0.5
    w2 = normal(draw, OUTPUTS, HIDDEN) / HIDDEN**0.5
    s1, s2 = (torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=draw)[:RANK]] for n in (INPUTS, HIDDEN))
    x, y = normal(draw, SAMPLES, INPUTS), normal(draw, SAMPLES, OUTPUTS)
    return w1, w2, s1, s2, x, y, torch.tensor(s, dtype=torch.float64)


def run(settings: LabSettings) -> Measurement:
    draws = settings.choose(8, 64)
    drawn = problems(settings, draws)
    findings: list[Finding] = []
    curves: dict[bool, list[PlotCurve]] = {True: [], False: []}
    for case in CASES:
        distances = batch(partial(pair_distance, case=case, steps=STEPS), *drawn)
        findings.append(_finding(case, distances.amax(-1)))
        shown = distances.amax(0).clamp_min(1e-18).tolist()
        curves[case.equal].append(PlotCurve(case.name, list(range(1, STEPS + 1)), shown))
    caption, y = f"The largest over {draws} networks and three s.", "relative difference of dW"
    return Measurement(
        findings,
        [
            Plot("Pairs that stay equal", "step", y, curves[True], log="y", caption=caption),
            Plot("Pairs that diverge", "step", y, curves[False], log="y", caption=caption),
        ],
        [
            f"A network {INPUTS}-{HIDDEN}-{OUTPUTS} with tanh, both layers adapted in {RANK} random columns, full "
            f"batch, float64; {draws} networks for each s of {', '.join(f'{s:g}' for s in SCALES)}, {STEPS} steps.",
            "A difference between cla and PaCA at one setting of the optimizer is a difference of rates, of eps, of "
            "clipping or of weight decay; a fair comparison scales them or tunes each method.",
        ],
    )


def _finding(case: Case, largest: Tensor) -> Finding:
    what = f"cla and the columns under {case.name}: {'largest' if case.equal else 'smallest'} relative difference of dW"
    if case.equal:
        return Finding.exact(what, largest.max().item(), (0.0, EQUAL), "0 but for rounding")
    return Finding.exact(what, largest.min().item(), (DIFFERENT, 2.0), "smallest of the runs' largest differences")
