r"""With the preconditioner, steps do not depend on the condition number (2502.01235, Algorithm 1).

Gradient descent on the linear model from the spectral start, until ||B A - D||_F <= TOLERANCE ||D||_F, with
kappa = sigma_1 / sigma_r* of the target D:

    plain            A <- A - eta / sigma_1(G) grad_A,           B alike
    preconditioned   A <- A - eta (B^T B + eps I)^-1 grad_A,     B <- B - eta grad_B (A A^T + eps I)^-1

Near D, where A A^T and B^T B have D's singular values on the diagonal, the slowest part of the error shrinks by
1 - eta / kappa a step without the preconditioner, by 1 - eta with it: so steps are in proportion to kappa, and the
same for all kappa. Both at the one rate eta, in the units in which each is the same step at kappa = 1.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal, speedup
from tunewise.papers.lab.contract import Curve, Finding, Outcome, Plot, Settings, exactly
from tunewise.papers.lab.fits import band, log_log_slopes, measured
from tunewise.papers.lab.linear_model import LinearModel, effective_weight, low_rank, moment
from tunewise.papers.lab.registry import experiment
from tunewise.papers.lab.spectral_start import start

OUTPUTS, INPUTS, RANK, SAMPLES = 24, 32, 3, 3200
CONDITIONS = (2.0, 5.0, 10.0, 20.0, 50.0)
RATE = 0.5
EPS = 1e-6
TOLERANCE = 1e-7
STEPS = {True: 80, False: 1600}
"""Steps run, with the preconditioner and without; the slowest plain run needs about 1100."""
NAMES = {True: "preconditioned", False: "plain"}
FLAT, PROPORTIONAL = 0.0, 1.0
"""Exponents of kappa in the number of steps."""


def errors(target: Tensor, second: Tensor, *, preconditioned: bool, steps: int) -> Tensor:
    """||B A - D||_F / ||D||_F before each of `steps` steps from the spectral start.

    Args:
        target: D (n, m), of rank RANK.
        second: M = X^T X / N (m, m).
    """
    gradient = target @ second
    a, b = start(gradient, RANK)
    rate = RATE if preconditioned else RATE / torch.linalg.matrix_norm(gradient, 2)
    damping = EPS * torch.eye(RANK, dtype=target.dtype, device=target.device)
    found = []
    for _ in range(steps):
        found.append(torch.linalg.norm(b @ a - target) / torch.linalg.norm(target))
        slope = (b @ a - target) @ second
        grad_a, grad_b = b.mT @ slope, slope @ a.mT
        if preconditioned:
            grad_a, grad_b = (
                torch.linalg.solve(b.mT @ b + damping, grad_a),
                torch.linalg.solve(a @ a.mT + damping, grad_b.mT).mT,
            )
        a, b = a - rate * grad_a, b - rate * grad_b
    return torch.stack(found)


def steps_to(found: Tensor, tolerance: float) -> Tensor:
    """Number of steps before the error is at most `tolerance`: NaN where it never is. `found` is (..., steps)."""
    below = found <= tolerance
    return torch.where(below.any(-1), below.double().argmax(-1).double(), torch.nan)


def problems(settings: Settings, condition: float, draws: int) -> tuple[Tensor, Tensor]:
    """D (draws, n, m) and M (draws, m, m)."""
    targets, moments = [], []
    for i in range(draws):
        draw = generator(settings.seed, i)  # the same singular spaces and inputs for every condition number
        targets.append(low_rank(draw, OUTPUTS, INPUTS, RANK, condition))
        moments.append(moment(normal(draw, SAMPLES, INPUTS)))
    return torch.stack(targets).to(settings.device), torch.stack(moments).to(settings.device)


def run(settings: Settings) -> Outcome:
    draws = settings.of(6, 40)
    # One batch over condition numbers and draws.
    drawn = [problems(settings, condition, draws) for condition in CONDITIONS]
    targets, moments = (torch.cat(parts) for parts in zip(*drawn))
    paths = {}
    for preconditioned in (True, False):
        descent = partial(errors, preconditioned=preconditioned, steps=STEPS[preconditioned])
        paths[preconditioned] = batch(descent, targets, moments).unflatten(0, (len(CONDITIONS), draws)).cpu()
    counts = {kind: steps_to(path, TOLERANCE).T.tolist() for kind, path in paths.items()}
    return Outcome(
        [*_findings(paths, counts), _package(settings)],
        _plots(paths, counts),
        [
            f"Linear model, {OUTPUTS} x {INPUTS}, target and adapter of rank {RANK}, {SAMPLES} Gaussian samples, "
            f"{draws} problems, eta = {RATE:g}, eps = {EPS:g}, float64.",
            "Gradient descent, as in the theorem. Training with this package puts AdamW behind the preconditioner, "
            "which rescales every entry once more: the theorem does not cover that.",
        ],
        [speedup("40 preconditioned steps", partial(errors, preconditioned=True, steps=40), targets, moments)],
    )


Paths = dict[bool, Tensor]
"""Errors (conditions, draws, steps), with the preconditioner and without."""
Counts = dict[bool, list[list[float]]]
"""Steps to TOLERANCE: a row a draw, a column a condition number."""


def _findings(paths: Paths, counts: Counts) -> list[Finding]:
    shrinking = [_shrinking(path) for path in paths[False]]
    findings = [
        measured(
            "exponent of the condition number in the steps, preconditioned",
            log_log_slopes(CONDITIONS, counts[True]),
            (FLAT - 0.05, FLAT + 0.05),
            "0: the number of steps stays the same",
        ),
        measured(
            "exponent of the condition number in the steps, plain",
            log_log_slopes(CONDITIONS, counts[False]),
            (PROPORTIONAL - 0.1, PROPORTIONAL + 0.1),
            "1: steps in proportion, but for the part of the error that shrinks slowest being smaller to begin with, "
            "by 1 / kappa",
        ),
        measured(
            "exponent of the condition number in the plain error's decrease per step",
            log_log_slopes(CONDITIONS, list(zip(*shrinking))),
            (-PROPORTIONAL - 0.05, -PROPORTIONAL + 0.05),
            "-1: the error shrinks by a factor 1 - eta c / kappa a step, c of order 1 from the inputs' second moment; "
            "over the second half of each run",
        ),
    ]
    for kind, name in NAMES.items():
        for condition in (2.0, 10.0, 50.0):
            place = CONDITIONS.index(condition)
            steps = [row[place] for row in counts[kind]]
            note = f"to ||B A - D|| <= {TOLERANCE:g} ||D||"
            findings.append(measured(f"steps, {name}, condition number {condition:g}", steps, None, note))
    return findings


def _plots(paths: Paths, counts: Counts) -> list[Plot]:
    curves, along = [], []
    shown = list(range(120))
    for kind, name in NAMES.items():
        columns = {c: column for c, column in zip(CONDITIONS, zip(*counts[kind])) if not any(map(math.isnan, column))}
        if columns:  # the condition numbers at which every run came to the target
            mean, low, high = band(list(zip(*columns.values())))
            power, reached = FLAT if kind else PROPORTIONAL, list(columns)
            line = [mean[0] * (condition / reached[0]) ** power for condition in reached]
            curves.append(Curve(name, reached, mean, low, high))
            curves.append(Curve(f"theory, exponent {power:g}", reached, line, theory=True))
        for place in (0, -1):
            error = paths[kind][place].mean(0).tolist()[: len(shown)]
            along.append(Curve(f"{name}, condition number {CONDITIONS[place]:g}", shown[: len(error)], error))
    return [
        Plot("Steps to the target", "condition number", "steps", curves, log_x=True, log_y=True),
        Plot("Error along the run", "step", "||B A - D|| / ||D||", along, log_y=True, caption="Means over problems."),
    ]


def _shrinking(found: Tensor) -> list[float]:
    """1 - (factor of the error per step), over the second half of every run's steps to TOLERANCE."""
    decreases = []
    for row, count in zip(found, steps_to(found, TOLERANCE)):
        end = len(row) - 1 if bool(count.isnan()) else int(count)
        begin = end // 2
        decreases.append(1 - (row[end] / row[begin]).item() ** (1 / (end - begin)))
    return decreases


def _package(settings: Settings) -> Finding:
    """The package's own preconditioner on the hardest of these problems, step by step against the batch."""
    import tunewise
    from tunewise.training.preconditioner import precondition

    steps = 30
    draw = generator(settings.seed, 0)
    target = low_rank(draw, OUTPUTS, INPUTS, RANK, CONDITIONS[-1])
    inputs = normal(draw, SAMPLES, INPUTS)
    expected = errors(target, moment(inputs), preconditioned=True, steps=steps)
    weight = normal(draw, OUTPUTS, INPUTS)
    # alpha = r, so that dW = B A as in the theorem
    model = tunewise.attach(LinearModel(weight), "lora", rank=RANK, alpha=RANK, targets=["linear"])
    layer = model.get_base_model().linear
    factors = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    for parameter, value in zip(factors, start(target @ moment(inputs), RANK)):
        parameter.data = value.clone()
    optimizer = torch.optim.SGD(factors, lr=RATE)
    precondition(optimizer, model, eps=EPS)
    worst = 0.0
    labels = inputs @ (weight + target).T
    for step in range(steps):
        update = effective_weight(model, INPUTS) - weight
        error = torch.linalg.norm(update - target) / torch.linalg.norm(target)
        worst = max(worst, abs(error - expected[step]).item())
        optimizer.zero_grad()
        model(inputs=inputs, labels=labels).loss.backward()
        optimizer.step()
    return exactly(
        "largest difference of the error, the package's preconditioner against the formula",
        worst,
        (0.0, 1e-9),
        f"training.preconditioner.precondition on SGD and attach('lora'), {steps} steps at condition number "
        f"{CONDITIONS[-1]:g}, float64",
    )


EXPERIMENT = experiment("preconditioner", run)
