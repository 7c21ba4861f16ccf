r"""The problem of LoRA in the NTK regime, its convex optimum with a certificate, and LoRA's descent (arXiv 2402.11867).

With N samples of K outputs the linearized network sees an update W (m, n) through K N numbers <G_i, W>, and trains

    F(W) = 1/(2 N) sum_i (<G_i, W> - y_i)^2 + lam ||W||_*        (convex)
    F(u, v) = 1/(2 N) sum_i (<G_i, u v^T> - y_i)^2 + lam/2 (||u||_F^2 + ||v||_F^2)        (LoRA of rank r)

F(u, v) >= F(u v^T), with equality where the factors are balanced, so both have the same minimum once r is large enough.
FISTA (Beck & Teboulle 2009) with restarts (O'Donoghue & Candes 2015) solves the convex problem. Its residual gives a
dual point, which proves the distance to the minimum:

    D(theta) = <theta, y> - N/2 ||theta||^2 <= min F        for every theta with ||sum_i theta_i G_i||_2 <= lam
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tunewise.papers.lab.batched import batch, generator, normal

BLOCK = 100  # steps of descent between checks


@dataclass(frozen=True)
class Problems:
    """A batch of P problems of the same size, float64."""

    features: Tensor  # G: (P, K N, m, n)
    targets: Tensor  # y: (P, K N)
    penalty: Tensor  # lam: (P,)
    outputs: int
    samples: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, targets, penalty and N of every problem: the arguments of a run."""
        return self.features, self.targets, self.penalty, torch.full_like(self.penalty, self.samples)


class Optimum(NamedTuple):
    """Where FISTA ended."""

    weight: Tensor  # W: (P, m, n)
    value: Tensor  # F(W): (P,)
    gap: Tensor  # F(W) - D(theta) >= F(W) - min F: (P,)
    rank: Tensor  # number of singular values above 1e-7 of the largest: (P,)


def random_problems(seed: int, count: int, outputs: int, samples: int, size: int, penalty: float) -> Problems:
    """Four kinds of problems in turn, m = n = size. `penalty` is lam over the smallest lam with the optimum W = 0.

    Features are Gaussian, or those of one layer with one token: o_k x^T, the gradient of an output behind the layer
    times the layer's input. Targets are those of a planted W of rank 1, without noise or with noise of half their size.
    """
    draw = generator(seed, outputs, samples)
    dense = normal(draw, count, outputs * samples, size, size)
    behind = normal(draw, count, samples, outputs, size)
    inputs = normal(draw, count, samples, size)
    layer = torch.einsum("pikm,pin->pikmn", behind, inputs).flatten(1, 2)
    kind = torch.arange(count)
    features = torch.where((kind % 2 == 0)[:, None, None, None], dense, layer)
    left, right = (normal(draw, count, size) for _ in range(2))
    clean = torch.einsum("pimn,pm,pn->pi", features, left, right) / size
    noise = normal(draw, *clean.shape) * clean.square().mean(1, keepdim=True).sqrt()
    targets = clean + torch.where(kind % 4 < 2, 0.0, 0.5)[:, None] * noise
    largest = torch.linalg.matrix_norm(torch.einsum("pimn,pi->pmn", features, targets), ord=2) / samples
    return Problems(features, targets, penalty * largest, outputs, samples)


def fit(weight: Tensor, features: Tensor, targets: Tensor, samples: Tensor) -> Tensor:
    """1/(2 N) sum_i (<G_i, W> - y_i)^2 of one problem."""
    return (torch.einsum("imn,mn->i", features, weight) - targets).square().sum() / (2 * samples)


def convex_value(weight: Tensor, features: Tensor, targets: Tensor, penalty: Tensor, samples: Tensor) -> Tensor:
    """F(W) of one problem."""
    return fit(weight, features, targets, samples) + penalty * torch.linalg.svdvals(weight).sum()


def factored_value(u: Tensor, v: Tensor, features: Tensor, targets: Tensor, penalty: Tensor, samples: Tensor) -> Tensor:
    """F(u, v) of one problem; u (m, r), v (n, r)."""
    return fit(u @ v.T, features, targets, samples) + penalty / 2 * (u.square().sum() + v.square().sum())


def fista(start: Tensor, features: Tensor, targets: Tensor, penalty: Tensor, samples: Tensor, steps: int) -> Tensor:
    """W after `steps` accelerated proximal steps from `start` (m, n), of one problem."""
    flat = features.flatten(1)
    step = samples / torch.linalg.matrix_norm(flat, ord=2).square()
    weight, ahead, momentum = start, start, torch.ones_like(penalty)
    for _ in range(steps):
        residual = torch.einsum("imn,mn->i", features, ahead) - targets
        moved = ahead - step / samples * torch.einsum("imn,i->mn", features, residual)
        left, sizes, right = torch.linalg.svd(moved, full_matrices=False)
        new = left @ ((sizes - step * penalty).clamp(min=0)[:, None] * right)
        uphill = ((ahead - new) * (new - weight)).sum() > 0  # restart the momentum
        momentum = torch.where(uphill, torch.ones_like(momentum), momentum)
        faster = (1 + torch.sqrt(1 + 4 * momentum.square())) / 2
        ahead = new + torch.where(uphill, torch.zeros_like(momentum), (momentum - 1) / faster) * (new - weight)
        weight, momentum = new, faster
    return weight


def certificate(weight: Tensor, features: Tensor, targets: Tensor, penalty: Tensor, samples: Tensor) -> Tensor:
    """F(W) - D(theta) of one problem, theta is the residual scaled until it is feasible."""
    residual = (targets - torch.einsum("imn,mn->i", features, weight)) / samples
    size = torch.linalg.matrix_norm(torch.einsum("imn,i->mn", features, residual), ord=2)
    theta = residual * torch.clamp(penalty / size, max=1.0)
    dual = theta @ targets - samples / 2 * theta.square().sum()
    return convex_value(weight, features, targets, penalty, samples) - dual


def solve(
    problems: Problems, start: Tensor | None = None, tolerance: float = 1e-10, block: int = 250, blocks: int = 40
) -> Optimum:
    """FISTA on all problems at once, from 0 by default, until every gap is below `tolerance` of the value, or `block` *
    `blocks` steps are done."""
    given = problems.tensors
    weight = torch.zeros_like(problems.features[:, 0]) if start is None else start.clone()
    active = torch.arange(len(problems))
    gap = torch.empty_like(problems.penalty)
    for _ in range(blocks):
        part = [t[active] for t in given]
        weight[active] = batch(lambda w, g, y, lam, n: fista(w, g, y, lam, n, block), weight[active], *part)
        gap[active] = batch(certificate, weight[active], *part)
        value = batch(convex_value, weight, *given)
        active = (gap > tolerance * value).nonzero().flatten()
        if not len(active):
            break
    sizes = torch.linalg.svdvals(weight)
    return Optimum(weight, value, gap, (sizes > 1e-7 * sizes[:, :1]).sum(1))


class State(NamedTuple):
    """One run between blocks of steps."""

    u: Tensor  # (m, r)
    v: Tensor  # (n, r)
    step: Tensor  # length of the next descent step


class Ends(NamedTuple):
    """Where S runs ended."""

    u: Tensor  # (S, m, r)
    v: Tensor  # (S, n, r)
    value: Tensor  # F(u, v): (S,)
    slope: Tensor  # ||gradient||_F / (lam ||(u, v)||_F), 0 at a stationary point: (S,)


def value_and_gradients(
    u: Tensor, v: Tensor, features: Tensor, targets: Tensor, penalty: Tensor, samples: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """F(u, v) and its gradients in u and v, of one run. u (m, r), v (n, r), features (K N, m, n)."""
    flat = features.flatten(1)
    residual = flat @ (u @ v.T).flatten() - targets
    slope = (residual @ flat).view_as(features[0]) / samples
    value = residual.square().sum() / (2 * samples) + penalty / 2 * (u.square().sum() + v.square().sum())
    return value, slope @ v + penalty * u, slope.T @ u + penalty * v


def descend(state: State, *problem: Tensor, steps: int = BLOCK) -> State:
    """`steps` steps of gradient descent that never increase the value, of one run.

    Step lengths are Barzilai and Borwein's (1988). A step that would increase the value is not taken, and its length
    is divided by four.
    """
    u, v, step = state
    value, down_u, down_v = value_and_gradients(u, v, *problem)
    for _ in range(steps):
        new_u, new_v = u - step * down_u, v - step * down_v
        new_value, new_down_u, new_down_v = value_and_gradients(new_u, new_v, *problem)
        taken = new_value <= value
        length = down_u.square().sum() + down_v.square().sum()  # over step^2
        bent = length - (down_u * new_down_u).sum() - (down_v * new_down_v).sum()  # over step
        longer = torch.where(bent > 1e-3 * length, step * length / bent, 4 * step)
        u, v = torch.where(taken, new_u, u), torch.where(taken, new_v, v)
        down_u, down_v = torch.where(taken, new_down_u, down_u), torch.where(taken, new_down_v, down_v)
        value = torch.where(taken, new_value, value)
        step = torch.where(taken, longer, step / 4)
    return State(u, v, step)


def settle(u: Tensor, v: Tensor, problem: Sequence[Tensor], tolerance: float = 5e-7, blocks: int = 150) -> Ends:
    """Every run until its `slope` is below `tolerance` or `blocks` blocks are done. u (S, m, r), v (S, n, r); `problem`
    holds the tensors of `Problems.tensors`, a row for each run."""
    u, v = u.clone(), v.clone()
    step = torch.full_like(problem[2], 0.1)
    slope = torch.full_like(problem[2], torch.inf)
    active = torch.arange(len(step))
    for _ in range(blocks):
        part = [t[active] for t in problem]
        u[active], v[active], step[active] = batch(_block, u[active], v[active], step[active], *part)
        slope[active] = batch(_slope, u[active], v[active], *part)
        active = (slope > tolerance).nonzero().flatten()
        if not len(active):
            break
    return Ends(u, v, batch(factored_value, u, v, *problem), slope)


def stacked(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Starts (u, v) of several ranks as one batch of the largest rank: u (S, m, r), v (S, n, r).

    Columns past a start's rank are 0 and stay 0, since the gradient in them is 0.
    """
    most = max(u.shape[2] for u, _ in parts)
    u, v = (torch.cat([pad(part[side], (0, most - part[side].shape[2])) for part in parts]) for side in (0, 1))
    return u, v


def least_curvature(u: Tensor, v: Tensor, *problem: Tensor) -> Tensor:
    """The smallest eigenvalue of the Hessian, of one run: not negative at a local minimum."""
    m, r = u.shape
    point = torch.cat([u.flatten(), v.flatten()])

    def value(z: Tensor) -> Tensor:
        return factored_value(z[: m * r].view(m, r), z[m * r :].view(-1, r), *problem)

    return torch.linalg.eigvalsh(torch.func.hessian(value)(point))[0]


def _block(u: Tensor, v: Tensor, step: Tensor, *problem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return descend(State(u, v, step), *problem)


def _slope(u: Tensor, v: Tensor, *problem: Tensor) -> Tensor:
    down = torch.cat([g.flatten() for g in value_and_gradients(u, v, *problem)[1:]])
    size = torch.cat([u.flatten(), v.flatten()])
    return torch.linalg.vector_norm(down) / (problem[2] * torch.linalg.vector_norm(size)).clamp(min=1e-300)
