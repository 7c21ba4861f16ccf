r"""What a chain of k links leaves of a target dW = D (n x m), at best and when trained.

At best [derived]: D's rows are projected on the span of the chain's A's rows, and E ||D - D P||^2 =
(1 - k r / m) ||D||^2 whatever D is, for sampled columns and for random A (rac) alike: in both laws E P is a multiple
of I by symmetry (permutations; signs). So rac reaches no more than r-c3la, and the best rank k r, D's own top singular
space (Eckart-Young), is far ahead where D's values fall.

When trained, link after link, each to its end: dW takes over D's columns one by one where the inputs are white, and
is D once all are touched. Otherwise a chain is one sweep of block Gauss-Seidel, which ends above the best loss although
it has touched every column:

    link on columns S:   dW <- dW + (D - dW) M S^T (S M S^T)^-1 S,   M = X^T X / N
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunewise.catalog import CATALOG, Chain
from tunewise.methods.row_space import one_hot, random_factor
from tunewise.papers.lab.batched import batch, generator, normal, speedup
from tunewise.papers.lab.chains import FEATURES, LINKS, OUTPUTS, RANK, left_over, selected
from tunewise.papers.lab.contract import Curve, Finding, Plot, Settings, Speedup, exactly
from tunewise.papers.lab.fits import band, measured
from tunewise.papers.lab.linear_model import LinearModel, effective_weight

DECAY = 1.0
"""The target's singular values fall like 1 / i^DECAY."""
CORRELATION = 0.5
"""Of neighbouring inputs, where they are not white."""
STEPS = 150
"""Of SGD a link, on correlated inputs: the slowest part of a block's error shrinks by 0.77 a step or faster."""


def residual(target: Tensor, rows: Tensor) -> Tensor:
    """min over B of ||D - B A||_F^2 / ||D||_F^2 for D (n, m) and the stacked A (d, m), d <= m, of full rank."""
    basis = torch.linalg.qr(rows.mT).Q
    return (target - target @ basis @ basis.mT).square().sum() / target.square().sum()


def reached(settings: Settings, draws: int) -> tuple[list[Finding], Plot, Speedup]:
    """Best approximation of targets by chains of k links."""
    targets = torch.stack([_target(generator(settings.seed, 1, i)) for i in range(draws)]).to(settings.device)
    seeds = [settings.seed * 1_000_003 + i for i in range(draws)]
    columns = [torch.cat(selected(CATALOG["r-c3la"], seed, LINKS, RANK, FEATURES)) for seed in seeds]
    rows = {
        "r-c3la": torch.stack([one_hot(c, FEATURES) for c in columns]),
        "rac": torch.stack([torch.cat([_factor(seed, link) for link in range(LINKS)]) for seed in seeds]),
    }
    # The best there is: D's largest columns, D's top singular space.
    largest = targets.cpu().square().sum(1).argsort(descending=True)
    rows["largest columns"] = torch.stack([one_hot(order, FEATURES) for order in largest])
    values = torch.linalg.svdvals(targets).square().cpu()
    best = values.flip(-1).cumsum(-1).flip(-1) / values.sum(-1, keepdim=True)  # share outside the top i
    shares: dict[str, list[list[float]]] = {name: [] for name in rows}
    counts = list(range(1, LINKS + 1))
    for name, factors in rows.items():
        factors = factors.double().to(settings.device)
        for k in counts:
            shares[name].append(batch(residual, targets, factors[:, : k * RANK]).tolist())
    floor = [[row[k * RANK] if k * RANK < OUTPUTS else 0.0 for row in best.tolist()] for k in counts]
    findings = []
    for name in ("r-c3la", "rac"):
        for k in (LINKS // 4, LINKS // 2, 3 * LINKS // 4):
            expected = left_over(k, RANK, FEATURES)
            findings.append(
                measured(
                    f"share of ||D||^2 that {k} links of {name} leave",
                    shares[name][k - 1],
                    (expected - 0.025, expected + 0.025),
                    f"derived: 1 - k r / m = {expected:.3f} for every D; interval over {draws} targets and draws",
                )
            )
        findings.append(
            exactly(
                f"share of ||D||^2 that {LINKS} links of {name} leave, largest",
                max(shares[name][-1]),
                (-1e-12, 1e-12),
                "Proposition 1: with k r = m everything can be expressed",
            )
        )
    k = LINKS // 4
    findings.append(
        exactly(
            "how far any of them is below the best rank k r",
            max(f - s for name in rows for low, part in zip(floor, shares[name]) for f, s in zip(low, part)),
            (-torch.inf, 1e-12),
            "Eckart-Young: never; k from 1",
        )
    )
    findings.append(
        measured(f"share of ||D||^2 that the {k * RANK} largest columns leave", shares["largest columns"][k - 1], None)
    )
    findings.append(
        measured(f"share of ||D||^2 that the best rank {k * RANK} leaves", floor[k - 1], None, "Eckart-Young")
    )
    curves = []
    for name, table in (*shares.items(), ("best rank k r", floor)):
        mean, low, high = band(list(zip(*table)))
        curves.append(Curve(name, counts, mean, low, high))
    curves.append(Curve("theory, 1 - k r / m", counts, [left_over(k, RANK, FEATURES) for k in counts], theory=True))
    half = rows["rac"][:, : LINKS // 2 * RANK].double().to(settings.device)
    faster = speedup("best approximation of a target", residual, targets, half, rounds=3)
    return findings, Plot("What a chain leaves of a target", "links k", "share of ||D||^2", curves), faster


def _target(draw: torch.Generator) -> Tensor:
    """A random D (OUTPUTS, FEATURES) with singular values 1 / i^DECAY."""
    left = torch.linalg.qr(normal(draw, OUTPUTS, OUTPUTS)).Q
    right = torch.linalg.qr(normal(draw, FEATURES, OUTPUTS)).Q
    return (left * torch.arange(1, OUTPUTS + 1, dtype=torch.float64) ** -DECAY) @ right.T


def _factor(seed: int, link: int) -> Tensor:
    return random_factor(CATALOG["rac"].a_law, seed=seed, layer="layer", link=link, rank=RANK, features=FEATURES)


def sweep(target: Tensor, second: Tensor, links: list[Tensor]) -> Tensor:
    """dW (n, m) after links on these columns, each at its minimum: the module's formula."""
    update = torch.zeros_like(target)
    for columns in links:
        block = second[columns][:, columns]
        update[:, columns] += torch.linalg.solve(block, ((target - update) @ second)[:, columns].mT).mT
    return update


def train(settings: Settings, target: Tensor, second: Tensor, rate: float, steps: int) -> list[Tensor]:
    """dW after every link of an attached c3la on W0 + D, by torch's SGD, through restarts: LINKS of (n, m)."""
    import tunewise

    draw = generator(settings.seed, 4)
    weight = normal(draw, OUTPUTS, FEATURES)
    # 2 m inputs whose second moment is exactly `second`
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


def trained(settings: Settings) -> list[Finding]:
    """The package's c3la, trained on white and on correlated inputs, against the formulae."""
    target = _target(generator(settings.seed, 5))
    size = torch.linalg.norm(target)
    white = torch.eye(FEATURES, dtype=torch.float64)
    updates = train(settings, target, white, 1.0, 1)
    links = selected(CATALOG["c3la"], settings.seed, LINKS, RANK, FEATURES)
    expected = torch.zeros_like(target)
    worst = 0.0
    for columns, update in zip(links, updates):
        expected[:, columns] = target[:, columns]
        worst = max(worst, (torch.linalg.norm(update - expected) / size).item())
    places = torch.arange(FEATURES, dtype=torch.float64)
    second = CORRELATION ** (places[:, None] - places[None, :]).abs()
    extremes = torch.linalg.eigvalsh(second[:RANK, :RANK])  # every block of neighbours is the same one
    rate = (2 / (extremes[0] + extremes[-1])).item()
    last = train(settings, target, second, rate, STEPS)[-1]
    formula = sweep(target, second, links)

    def loss(update: Tensor) -> float:
        error = update - target
        return ((error @ second) * error).sum().item() / ((target @ second) * target).sum().item()

    return [
        exactly(
            "trained c3la on white inputs, largest difference to D on the touched columns",
            worst,
            (0.0, 1e-10),
            f"relative to ||D||, after each of {LINKS} links; the last touches the last columns, so dW is D "
            "(Proposition 1)",
        ),
        exactly(
            "trained c3la on correlated inputs, difference to a Gauss-Seidel sweep",
            (torch.linalg.norm(last - formula) / size).item(),
            (0.0, 1e-10),
            f"relative to ||D||; {STEPS} steps a link, correlation {CORRELATION:g} of neighbours",
        ),
        exactly(
            "loss left after every column was touched, correlated inputs, over the loss at W0",
            loss(last),
            (1e-6, 1.0),
            "the best loss is 0 and within what the chain can express: touching every column is not having D",
        ),
    ]
