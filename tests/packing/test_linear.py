"""The packed layer against the literal sum of dense products, in fp64."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunewise.packing.linear import PackedLinear
from tunewise.packing.stacks import Stack


def make_stacks(runs: list[int], out: int, inside: int) -> list[Stack]:
    """LoRA (rank 2), frozen A (rank 3), columns (rank 2) and an earlier link of the last two, for these many runs."""
    draw = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    ends = [0, runs[0], runs[0] + runs[1], sum(runs)]
    columns = torch.stack([torch.randperm(inside, generator=draw)[:2] for _ in range(runs[2])])
    scale = [randn(n, 1, 1).abs() for n in runs]
    earlier = torch.stack([torch.randperm(inside, generator=draw)[:4] for _ in range(runs[2])])
    return [
        Stack(
            ends[0],
            ends[1],
            randn(runs[0], 2, inside).requires_grad_(),
            None,
            randn(runs[0], out, 2).requires_grad_(),
            None,
            scale[0],
        ),
        Stack(
            ends[1], ends[2], randn(runs[1], 3, inside), None, randn(runs[1], out, 3).requires_grad_(), None, scale[1]
        ),
        Stack(
            ends[2], ends[3], None, columns, randn(runs[2], out, 2).requires_grad_(), randn(runs[2], out, 2), scale[2]
        ),
        Stack(ends[2], ends[3], None, earlier, randn(runs[2], out, 4), None, scale[2]),
    ]


def dense(stacks: list[Stack], weight: torch.Tensor, runs: int, inside: int) -> list[torch.Tensor]:
    """W + dW of every run, by one-hot matrices."""
    found = [weight.clone() for _ in range(runs)]
    for stack in stacks:
        for k in range(stack.start, stack.stop):
            i = k - stack.start
            a = stack.a[i] if stack.a is not None else nn.functional.one_hot(stack.columns[i], inside).double()
            b = stack.b[i] if stack.origin is None else stack.b[i] - stack.origin[i]
            found[k] = found[k] + stack.scale[i, 0, 0] * (b @ a)
    return found


def test_forward_and_all_gradients_to_1e_12() -> None:
    torch.manual_seed(1)
    for base in (
        nn.Linear(7, 5, dtype=torch.float64),
        Conv1D(5, 7).double(),
        nn.Linear(7, 5, False, dtype=torch.float64),
    ):
        base.requires_grad_(False)
        layer = PackedLinear(base)
        layer.stacks, layer.runs = make_stacks([2, 1, 2], 5, 7), 5
        x = torch.randn(10, 3, 7, dtype=torch.float64, requires_grad=True)  # 5 runs, 2 examples of 3 tokens each
        leaves = [leaf for stack in layer.stacks for leaf in stack.trained]
        assert len(leaves) == 4
        weight = base.weight.T if isinstance(base, Conv1D) else base.weight
        bias = 0 if base.bias is None else base.bias
        each = dense(layer.stacks, weight, 5, 7)
        expected = torch.cat([piece @ w.T + bias for piece, w in zip(x.chunk(5), each, strict=True)])
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        towards = torch.randn_like(y)
        for one, two in zip(
            torch.autograd.grad(y, [x, *leaves], towards),
            torch.autograd.grad(expected, [x, *leaves], towards),
            strict=True,
        ):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_nothing_is_kept_or_computed_for_an_input_without_gradient() -> None:
    base = nn.Linear(7, 5).requires_grad_(False).double()
    layer = PackedLinear(base)
    layer.stacks, layer.runs = make_stacks([0, 1, 2], 5, 7)[1:], 3
    kept: list[torch.Tensor] = []
    x = torch.randn(6, 4, 7, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert not any(t.data_ptr() == x.data_ptr() for t in kept)  # no A is trained, so x is not needed
    own = [t for t in kept if t is not base.weight and t.data_ptr() != base.weight.data_ptr()]
    assert sum(t.numel() for t in own) == 8 * 3 + 2 * 8 * 2
    y.sum().backward()
