r"""What a chain of k links leaves of a target dW = D (n x m), at best and after training.

At best [derived]: D's rows are projected on the span P of the rows of all A, and E ||D - D P||^2 is
(1 - k r / m) ||D||^2 for every D, for sampled columns and for random A (rac): in both cases E P is a multiple of I by
symmetry. The best rank k r is D's own top singular space (Eckart-Young).

Trained, each link to its minimum, a chain is one sweep of block Gauss-Seidel:

    link on columns S:   dW <- dW + (D - dW) M S^T (S M S^T)^-1 S,   M = X^T X / N

With white inputs dW takes over D's columns and is D once all are touched. Otherwise the final loss is not the best.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tunewise
from tunewise.catalog import CATALOG, Chain
from tunewise.methods.draws import one_hot, random_factor
from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.chains import FEATURES, LINKS, OUTPUTS, RANK, left_over, selected
from tunewise.papers.lab.contract import Finding, LabSettings, Plot, PlotCurve
from tunewise.papers.lab.linear_model import LinearModel, effective_weight

DECAY = 1.0  # the target's singular values are i^-DECAY
CORRELATION = 0.5  # of neighbouring inputs
STEPS = 150  # of SGD a link: the slowest part of a block's error shrinks by 0.77 a step or faster

Shares = list[list[float]]
"""Shares of ||D||^2 that are left: a row for each number of links, a column for each target."""


def residual(target: Tensor, rows: Tensor) -> Tensor:
    """min over B of ||D - B A||_F^2 / ||D||_F^2 for D (n, m) and the stacked A (d, m), d <= m, of full rank."""
    basis = torch.linalg.qr(rows.mT).Q
    return (target - target @ basis @ basis.mT).square().sum() / target.square().sum()


def reached(settings: LabSettings, draws: int) -> tuple[list[Finding], Plot]:
    """Best approximation of targets by chains of k links."""
    targets = torch.stack([_target(generator(settings.seed, 1, i)) for i in range(draws)])
    seeds = [settings.seed * 1_000_003 + i for i in range(draws)]
    columns = [torch.cat(selected(CATALOG["r-c3la"], seed, LINKS, RANK, FEATURES)) for seed in seeds]
    largest = targets.square().sum(1).argsort(descending=True)
    rows = {
        "r-c3la": torch.stack([one_hot(c, FEATURES) for c in columns]),
        "rac": torch.stack([torch.cat([_factor(seed, link) for link in range(LINKS)]) for seed in seeds]),
        "largest columns": torch.stack([one_hot(order, FEATURES) for order in largest]),
    }
    counts = list(range(1, LINKS + 1))
    shares: dict[str, Shares] = {
        name: [batch(residual, targets, factors.double()[:, : k * RANK]).tolist() for k in counts]
        for name, factors in rows.items()
    }
    values = torch.linalg.svdvals(targets).square()
    outside = (values.flip(-1).cumsum(-1).flip(-1) / values.sum(-1, keepdim=True)).tolist()  # of the top i values
    floor = [[row[k * RANK] if k * RANK < OUTPUTS else 0.0 for row in outside] for k in counts]
    tables = {**shares, "best rank k r": floor}
    curves = [PlotCurve.mean(name, counts, list(zip(*table))) for name, table in tables.items()]
    curves.append(PlotCurve.theory("theory, 1 - k r / m", counts, [left_over(k, RANK, FEATURES) for k in counts]))
    plot = Plot("What a chain leaves of a target", "links k", "share of ||D||^2", curves)
    return _reached_findings(shares, floor), plot


def _reached_findings(shares: dict[str, Shares], floor: Shares) -> list[Finding]:
    findings = []
    for name in ("r-c3la", "rac"):
        for k in (LINKS // 4, LINKS // 2, 3 * LINKS // 4):
            expected = left_over(k, RANK, FEATURES)
            what = f"share of ||D||^2 that {k} links of {name} leave"
            note = f"derived: 1 - k r / m = {expected:.3f} for every D; interval over {len(floor[0])} targets and draws"
            findings.append(Finding.mean(what, shares[name][k - 1], (expected - 0.025, expected + 0.025), note))
        what = f"share of ||D||^2 that {LINKS} links of {name} leave, largest"
        note = "Proposition 1: with k r = m everything can be expressed"
        findings.append(Finding.exact(what, max(shares[name][-1]), (-1e-12, 1e-12), note))
    below = max(f - s for name in shares for low, part in zip(floor, shares[name]) for f, s in zip(low, part))
    return [
        *findings,
        Finding.exact(
            "largest distance below the best rank k r", below, (-torch.inf, 1e-12), "Eckart-Young: never; k from 1"
        ),
    ]


def _target(draw: torch.Generator) -> Tensor:
    """A random D (OUTPUTS, FEATURES) with singular values i^-DECAY."""
    left = torch.linalg.qr(normal(draw, OUTPUTS, OUTPUTS)).Q
    right = torch.linalg.qr(normal(draw, FEATURES, OUTPUTS)).Q
    return (left * torch.arange(1, OUTPUTS + 1, dtype=torch.float64) ** -DECAY) @ right.T


def _factor(seed: int, link: int) -> Tensor:
    return random_factor(CATALOG["rac"].lora_a_init, seed=seed, layer="layer", link=link, rank=RANK, features=FEATURES)


def sweep(target: Tensor, second: Tensor, links: list[Tensor]) -> Tensor:
    """dW (n, m) after links on these columns, each at its minimum, for the second moment M (m, m)."""
    update = torch.zeros_like(target)
    for columns in links:
        block = second[columns][:, columns]
        update[:, columns] += torch.linalg.solve(block, ((target - update) @ second)[:, columns].mT).mT
    return update


def train(settings: LabSettings, target: Tensor, second: Tensor, rate: float, steps: int) -> list[Tensor]:
    """dW (n, m) after every link of an attached c3la on W0 + D, with torch's SGD and restarts."""
    draw = generator(settings.seed, 4)
    weight = normal(draw, OUTPUTS, FEATURES)
    # 2 m inputs with the second moment `second`
    white = torch.linalg.qr(normal(draw, 2 * FEATURES, FEATURES)).Q * (2 * FEATURES) ** 0.5
    inputs = white @ torch.linalg.cholesky(second).mT
    labels = inputs @ (weight + target).mT
    chain = Chain(links=LINKS)
    model = tunewise.attach(LinearModel(weight), "c3la", rank=RANK, targets=["linear"], chain=chain)
    scale = tunewise.attachment(model).scale
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate / scale**2)
    updates = []
    for link in range(LINKS):
        if link:
            tunewise.restart(model, optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            model(inputs=inputs, labels=labels).loss.backward()
            optimizer.step()
        updates.append(effective_weight(model, FEATURES) - weight)
    return updates


def trained(settings: LabSettings) -> list[Finding]:
    """The package's c3la on white and on correlated inputs, against the formulas."""
    target = _target(generator(settings.seed, 5))
    size = torch.linalg.norm(target)
    updates = train(settings, target, torch.eye(FEATURES, dtype=torch.float64), 1.0, 1)
    links = selected(CATALOG["c3la"], settings.seed, LINKS, RANK, FEATURES)
    expected = torch.zeros_like(target)
    worst = 0.0
    for columns, update in zip(links, updates):
        expected[:, columns] = target[:, columns]
        worst = max(worst, (torch.linalg.norm(update - expected) / size).item())
    places = torch.arange(FEATURES, dtype=torch.float64)
    second = CORRELATION ** (places[:, None] - places[None, :]).abs()
    extremes = torch.linalg.eigvalsh(second[:RANK, :RANK])  # the same for every block of neighbours
    rate = (2 / (extremes[0] + extremes[-1])).item()
    last = train(settings, target, second, rate, STEPS)[-1]
    formula = sweep(target, second, links)
    error = last - target
    left = ((error @ second) * error).sum().item() / ((target @ second) * target).sum().item()
    relative = (torch.linalg.norm(last - formula) / size).item()
    return [
        Finding.exact("trained c3la on white inputs, largest difference to D on touched columns", worst, (0.0, 1e-10)),
        Finding.exact("trained c3la on correlated inputs, difference to a Gauss-Seidel sweep", relative, (0.0, 1e-10)),
        Finding.exact("loss left after every column was touched, correlated inputs", left, (1e-6, 1.0), "over W0's"),
    ]
