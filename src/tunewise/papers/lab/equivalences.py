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

Each run has two forms: dense float64 formulas with S as a matrix, batched; and the package's methods on a model with
torch's optimizers, with restarts of chains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

import tunewise
from tunewise.methods.adapters.base import layer_adapters
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
        [*findings, *_package(settings)],
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


class _Network(nn.Module):
    """The same network as a module."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN, bias=False, dtype=torch.float64)
        self.second = nn.Linear(HIDDEN, OUTPUTS, bias=False, dtype=torch.float64)
        self.first.weight.data.copy_(first)
        self.second.weight.data.copy_(second)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).tanh())
        return out


def attached(
    settings: LabSettings, method: str, rule: Rule, s: float, steps: int, restarts: tuple[int, ...] = ()
) -> tuple[Tensor, Problem]:
    """Outputs (steps, N, k) after every step of the package's method under torch's optimizer, and the problem with the
    columns that the method selected."""
    w1, w2, _, _, x, y, scale = problem(generator(settings.seed, 9), s)
    names = ["first", "second"]
    model = tunewise.attach(_Network(w1, w2), method, rank=RANK, alpha=s * RANK, targets=names, seed=settings.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    selectors = [adapter.a.detach().double().clone() for adapter in layer_adapters(model)]
    optimizer = _optimizer(rule, trained, s)
    outputs = []
    for step in range(steps):
        if step in restarts:
            tunewise.restart(model, optimizer)
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum(-1).mean()).backward()
        optimizer.step()
        with torch.no_grad():
            outputs.append(model(x).clone())
    return torch.stack(outputs), (w1, w2, *selectors, x, y, scale)


def _optimizer(rule: Rule, trained: list[Any], s: float) -> torch.optim.Optimizer:
    rate = rule.g * s**rule.rate
    if rule.kind == "sgd":
        return torch.optim.SGD(trained, lr=rate, momentum=rule.momentum)
    return torch.optim.AdamW(trained, lr=rate, betas=BETAS, eps=rule.epsilon * s**rule.eps, weight_decay=rule.decay)


def _package(settings: LabSettings) -> list[Finding]:
    """The package's pairs of methods on one network, and its cla against the dense formula."""
    s, steps = SCALES[1], 30
    findings = []
    for case in CASES[:3]:
        for factor, columns, restarts in (("cla", "d-paca", ()), ("r-cla", "paca", ()), ("r-c3la", "c-paca", (10, 20))):
            outputs, drawn = attached(settings, factor, case.factor, s, steps, restarts)
            other, _ = attached(settings, columns, case.columns, s, steps, restarts)
            change = _output_change(outputs, drawn)
            what = f"attached {factor} and {columns} under {case.name}: largest difference of outputs"
            note = f"relative to the change of the outputs; torch's optimizer, {steps} steps"
            if restarts:
                note += f", restarts after {', '.join(map(str, restarts))}"
            findings.append(Finding.exact(what, ((outputs - other).abs().max() / change).item(), (0.0, EQUAL), note))
            if not restarts:
                path = trajectory(drawn, case.factor, columns=False, steps=steps)
                dense = torch.stack([_outputs(drawn, update) for update in path])
                what = f"attached {factor} under {case.name}: largest difference of outputs to the dense formula"
                error = ((outputs - dense).abs().max() / change).item()
                findings.append(Finding.exact(what, error, (0.0, EQUAL), "with A as a one-hot matrix in the formula"))
    return findings


def _output_change(outputs: Tensor, problem: Problem) -> Tensor:
    """The largest change of the outputs from W0's."""
    w1, w2, _, _, x, _, _ = problem
    return (outputs[-1] - (x @ w1.mT).tanh() @ w2.mT).abs().max()


def _outputs(problem: Problem, update: Tensor) -> Tensor:
    """Outputs at W0 and this dW of the selected columns, flat as in `trajectory`."""
    w1, w2, s1, s2, x, _, _ = problem
    first, second = update.split([HIDDEN * RANK, OUTPUTS * RANK])
    hidden = (x @ (w1 + first.view(HIDDEN, RANK) @ s1).mT).tanh()
    return hidden @ (w2 + second.view(OUTPUTS, RANK) @ s2).mT
