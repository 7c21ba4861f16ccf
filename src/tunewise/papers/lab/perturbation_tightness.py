r"""Theorem 1's Phi against the true difference: never below it, and how far above (arXiv 2606.13767, corrected).

Networks h_l = sigma(W^l h_{l-1}) of random W0 and low-rank dW. Phi / (2 Ll) bounds ||f(W0 + dW; x) - f(V; x)|| for
every ||x|| <= C, V = W0 (Phi_dW) or V = dW (Phi_W0). Gradient ascent on the sphere searches the largest distance over
x, so the measured distance is at most the true one. Phi itself bounds the change of the gap, here that of a finite
population with the loss ||f(x) - t||, which is 1-Lipschitz in f.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve
from tunewise.theory import literal_perturbation, perturbation

WIDTH, RANK = 12, 2
DEPTHS = (1, 2, 3, 4, 6, 8, 12)
RADIUS = 2.0  # C
POPULATION, SAMPLE = 64, 16
STARTS, ASCENT_STEPS = 4, 24
ROUNDING = 1e-9
AT_MOST_1 = (0, 1 + ROUNDING)


@dataclass(frozen=True)
class Activation:
    """With its Lipschitz constant and its value at 0."""

    of: Callable[[Tensor], Tensor]
    lipschitz: float
    at_zero: float


ACTIVATIONS = {
    "relu": Activation(torch.relu, 1.0, 0.0),
    "tanh": Activation(torch.tanh, 1.0, 0.0),
    "softplus": Activation(softplus, 1.0, math.log(2.0)),
    "sigmoid": Activation(torch.sigmoid, 0.25, 0.5),
}


@dataclass(frozen=True)
class Networks:
    """P networks of one depth and activation; weights are (P, L, width, width)."""

    activation: Activation
    base: Tensor  # W0
    update: Tensor  # dW


RATIOS = {
    "base": "distance of outputs to W0's over Phi_dW / 2",
    "sharper": "the same with ||W0 + dW|| known",
    "update": "distance of outputs to dW's over Phi_W0 / 2",
    "gap": "difference of gaps over Phi",
}
Ratios = dict[str, list[float]]
"""True difference over its bound, a number for each network, by the keys of RATIOS."""


def forward(of: Callable[[Tensor], Tensor], weights: Tensor, x: Tensor) -> Tensor:
    """f(x) of one network. weights (L, width, width), x (.., width)."""
    for layer in weights:
        x = of(x @ layer.T)
    return x


def farthest(of: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    """The largest ||f(first; x) - f(second; x)|| that ascent on ||x|| = C finds from the rows of x (starts, width)."""

    def distance(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(forward(of, first, x) - forward(of, second, x), dim=-1)

    best = distance(x)
    for step in range(ASCENT_STEPS):
        slope = torch.func.grad(lambda x: distance(x).sum())(x)
        slope = slope / torch.linalg.vector_norm(slope, dim=-1, keepdim=True).clamp(min=1e-30)
        x = x + RADIUS * 0.5 * (1 - step / ASCENT_STEPS) * slope
        x = x * (RADIUS / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
        best = torch.maximum(best, distance(x))
    return best.amax()


def gap(of: Callable[[Tensor], Tensor], weights: Tensor, x: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of the population less that of the sample (its first rows), of one network."""
    losses = torch.linalg.vector_norm(forward(of, weights, x) - targets, dim=-1)
    return losses.mean() - losses[:SAMPLE].mean()


def random_networks(activation: Activation, depth: int, count: int, draw: torch.Generator) -> Networks:
    """W0 with spectral norms of about 2, dW of rank 2 and of 1 % to 100 % of W0's norm."""
    base = normal(draw, count, depth, WIDTH, WIDTH) / math.sqrt(WIDTH)
    down, up = normal(draw, count, depth, RANK, WIDTH), normal(draw, count, depth, WIDTH, RANK)
    update = up @ down
    size = 10 ** (-2 * torch.rand(count, 1, 1, 1, generator=draw, dtype=torch.float64))
    norms = [torch.linalg.matrix_norm(t, ord=2)[..., None, None] for t in (base, update)]
    return Networks(activation, base, size * update * norms[0] / norms[1])


def compare(networks: Networks, draw: torch.Generator) -> Ratios:
    """Every network's true differences over its bounds."""
    of, count = networks.activation.of, len(networks.base)
    sphere = normal(draw, count, STARTS + POPULATION, WIDTH)
    sphere = sphere * (RADIUS / torch.linalg.vector_norm(sphere, dim=-1, keepdim=True))
    starts, x = sphere[:, :STARTS], sphere[:, STARTS:]
    targets = normal(draw, count, POPULATION, WIDTH)
    both = networks.base + networks.update
    away = partial(farthest, of)
    from_base = batch(away, both, networks.base, starts).tolist()
    from_update = batch(away, both, networks.update, starts).tolist()
    gaps = [batch(partial(gap, of), w, x, targets) for w in (both, networks.base, networks.update)]
    moved = [(gaps[0] - other).abs().tolist() for other in gaps[1:]]
    norms = [torch.linalg.matrix_norm(w, ord=2).tolist() for w in (networks.base, networks.update, both)]
    ratios: Ratios = {key: [] for key in RATIOS}
    for place in range(count):
        base, update, merged = (n[place] for n in norms)
        phi_dw, phi_w0 = bounds(networks.activation, base, update)
        ratios["base"].append(from_base[place] / (phi_dw / 2))
        ratios["sharper"].append(from_base[place] / (bounds(networks.activation, base, update, merged)[0] / 2))
        ratios["update"].append(from_update[place] / (phi_w0 / 2))
        ratios["gap"].append(max(moved[0][place] / phi_dw, moved[1][place] / phi_w0))
    return ratios


def bounds(
    activation: Activation, base: list[float], update: list[float], merged: list[float] | None = None
) -> tuple[float, float]:
    """Phi_dW and Phi_W0 by `tunewise.theory.perturbation`."""
    phi = perturbation(
        base,
        update,
        input_bound=RADIUS,
        activation_lipschitz=activation.lipschitz,
        activation_offsets=math.sqrt(WIDTH) * activation.at_zero,
        merged_norms=merged,
    )
    return float(phi.phi_dw), float(phi.phi_w0)


def aligned_ratios(depth: int, count: int, draw: torch.Generator) -> tuple[list[float], list[float]]:
    """Aligned layers, W0^l = a_l u u^T, dW^l = b_l u u^T, x = C u, u >= 0: differences of outputs over Phi_dW / 2, and
    of gaps over Phi_dW, with a sample of one example: its loss falls by as much as all other losses rise."""
    relu = ACTIVATIONS["relu"]
    u = normal(draw, count, WIDTH).abs()
    u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True)
    a, b = (0.5 + torch.rand(2, count, depth, generator=draw, dtype=torch.float64)).unbind()
    projection = (u[:, :, None] * u[:, None, :])[:, None]
    base, update = a[:, :, None, None] * projection, b[:, :, None, None] * projection
    before = batch(lambda w, x: forward(relu.of, w, x), base, RADIUS * u)
    after = batch(lambda w, x: forward(relu.of, w, x), base + update, RADIUS * u)
    far = 1e3 * torch.linalg.vector_norm(after, dim=1, keepdim=True) * u  # targets far before and far behind
    rise = torch.linalg.vector_norm(after + far, dim=1) - torch.linalg.vector_norm(before + far, dim=1)
    fall = torch.linalg.vector_norm(after - far, dim=1) - torch.linalg.vector_norm(before - far, dim=1)
    change = ((POPULATION - 1) * rise + fall) / POPULATION - fall
    phi = [bounds(relu, x, y)[0] for x, y in zip(a.tolist(), b.tolist())]
    distance = torch.linalg.vector_norm(after - before, dim=1).tolist()
    return [d / (p / 2) for d, p in zip(distance, phi)], [abs(c) / p for c, p in zip(change.tolist(), phi)]


def misprint() -> float:
    """The true distance over Phi_dW / 2 as the paper prints it: two softplus layers, W0 = 0, dW = (0.01 I, I)."""
    act = ACTIVATIONS["softplus"]
    update = torch.stack([0.01 * torch.eye(WIDTH), torch.eye(WIDTH)]).double()
    x = torch.full((WIDTH,), RADIUS / math.sqrt(WIDTH), dtype=torch.float64)
    true = torch.linalg.vector_norm(forward(act.of, update, x) - forward(act.of, 0 * update, x))
    offset = math.sqrt(WIDTH) * act.at_zero
    printed = literal_perturbation([0.0, 0.0], [0.01, 1.0], RADIUS, activation_offsets=offset, as_printed=True)
    return float(true) / (float(printed.phi_dw) / 2)


def run(settings: LabSettings) -> Measurement:
    count = settings.choose(quick=30, full=250)
    ratios: dict[str, list[Ratios]] = {}
    for place, (name, activation) in enumerate(ACTIVATIONS.items()):
        draws = [(depth, generator(settings.seed, 41, place, depth)) for depth in DEPTHS]
        ratios[name] = [compare(random_networks(activation, depth, count, draw), draw) for depth, draw in draws]
    aligned = [aligned_ratios(depth, count, generator(settings.seed, 42, depth)) for depth in DEPTHS]
    largest = {key: max(max(r[key]) for by_depth in ratios.values() for r in by_depth) for key in RATIOS}
    loose = {name: [r["base"] for r in by_depth] for name, by_depth in ratios.items()}
    sharp = {name: [r["sharper"] for r in by_depth] for name, by_depth in ratios.items()}
    factor = "mean factor by which the bound loosens a layer"
    return Measurement(
        [
            *(Finding.exact(f"{RATIOS[key]}, largest", largest[key], AT_MOST_1, "theory: at most 1") for key in RATIOS),
            *_aligned_findings(aligned),
            *(
                Finding.mean(f"{factor}, {name}", _loosening(by_depth), (1.0, math.inf), "1 for aligned layers")
                for name, by_depth in loose.items()
            ),
        ],
        [_plot("Phi_dW over the true difference of outputs", loose), _plot("The same with ||W0 + dW|| known", sharp)],
        [
            f"Width {WIDTH}, depths {', '.join(map(str, DEPTHS))}, {count} networks for each depth and each of "
            f"{len(ACTIVATIONS)} activations; dW of rank {RANK}, 1 % to 100 % of W0's norm; C = {RADIUS:g}; population "
            f"{POPULATION}, sample {SAMPLE}. The largest difference comes from {ASCENT_STEPS} steps of ascent from "
            f"{STARTS} inputs, so it can be too small and the looseness too large.",
            "Layers are not aligned in random networks, nor in trained ones: norms multiply, while directions average "
            "out. The bound is right, and useful for few layers or small updates only.",
        ],
    )


def _aligned_findings(aligned: list[tuple[list[float], list[float]]]) -> list[Finding]:
    outputs, gaps = ([ratio for pair in aligned for ratio in pair[kind]] for kind in (0, 1))
    what, attained = "aligned layers: distance of outputs over Phi_dW / 2", (1 - ROUNDING, 1 + ROUNDING)
    gap_range = (1 - 2 / POPULATION, 1 + ROUNDING)
    return [
        Finding.exact(f"{what}, min", min(outputs), attained, "theory: 1, the bound is attained"),
        Finding.exact(f"{what}, max", max(outputs), attained, "theory: 1, the bound is attained"),
        Finding.exact("aligned layers: difference of gaps over Phi_dW, smallest", min(gaps), gap_range),
        Finding.exact("counterexample: true distance over the bound as printed", misprint(), (1 + ROUNDING, math.inf)),
    ]


def _loosening(by_depth: list[list[float]]) -> list[float]:
    """exp of the slope of log(bound / true) in depth, for each repetition (a network of each depth)."""
    mean = sum(DEPTHS) / len(DEPTHS)
    spread = sum((d - mean) ** 2 for d in DEPTHS)
    return [
        math.exp(sum((d - mean) * -math.log(share) for d, share in zip(DEPTHS, row)) / spread) for row in zip(*by_depth)
    ]


def _plot(title: str, ratios: dict[str, list[list[float]]]) -> Plot:
    curves = []
    for name, by_depth in ratios.items():
        logs = PlotCurve.mean(name, DEPTHS, [[-math.log(share) for share in row] for row in zip(*by_depth)])
        middle, low, high = ([math.exp(v) for v in row] for row in (logs.y, logs.low, logs.high))
        curves.append(PlotCurve(name, list(DEPTHS), middle, low, high))
    curves.append(PlotCurve.theory("attained", DEPTHS, [1.0] * len(DEPTHS)))
    caption = "Geometric means over networks with 95 % intervals."
    return Plot(title, "layers", "bound / truth", curves, log="y", caption=caption)
