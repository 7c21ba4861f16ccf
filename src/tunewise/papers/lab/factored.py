"""LoRA's factored problem, run down from many starts at once (`tunewise.papers.lab.lazy_problem` has the problem)."""

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

    u: Tensor
    """(m, r)"""
    v: Tensor
    """(n, r)"""
    step: Tensor
    """Of the next descent step."""


class Ends(NamedTuple):
    """Where S runs ended."""

    u: Tensor
    """(S, m, r)"""
    v: Tensor
    """(S, n, r)"""
    value: Tensor
    """F(u, v): (S,)"""
    slope: Tensor
    """||gradient||_F over lam ||(u, v)||_F, 0 at a stationary point: (S,)"""


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
    """`steps` steps of gradient descent that never go up, of one run.

    Lengths are Barzilai and Borwein's (1988), quartered after a step that would have gone up and was not taken.
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
    """Every run from its start (u (S, m, r), v (S, n, r)) until its `slope` is below `tolerance`, or `blocks` blocks
    are done. `problem` holds, a row a run, what `Problems.tensors` does."""
    u, v = u.clone(), v.clone()
    step = torch.full_like(problem[2], 0.1)
    slope = torch.full_like(problem[2], torch.inf)
    open_ = torch.arange(len(step), device=step.device)
    for _ in range(blocks):
        part = [t[open_] for t in problem]
        u[open_], v[open_], step[open_] = batch(_block, u[open_], v[open_], step[open_], *part)
        slope[open_] = batch(_slope, u[open_], v[open_], *part)
        open_ = (slope > tolerance).nonzero().flatten()
        if not len(open_):
            break
    return Ends(u, v, batch(factored_value, u, v, *problem), slope)


def stacked(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Starts (u, v) of several ranks as one batch of the largest: u (S, m, r), v (S, n, r).

    Columns past a start's rank are 0, and so is the gradient in them: they stay 0.
    """
    most = max(u.shape[2] for u, _ in parts)
    u, v = (torch.cat([pad(part[side], (0, most - part[side].shape[2])) for part in parts]) for side in (0, 1))
    return u, v


def least_curvature(u: Tensor, v: Tensor, *problem: Tensor) -> Tensor:
    """The Hessian's smallest eigenvalue, of one run: not below 0 at a local minimum."""
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
