"""Gradient descent on LoRA's factored problem from many starts at once; `lazy_problem.py` defines the problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tunewise.papers.lab.batched import batch
from tunewise.papers.lab.lazy_problem import factored_value

BLOCK = 100


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
