"""LoRA-One's start: the best rank-r step of one full gradient (2502.01235, Algorithm 1).

G = -grad of the mean loss over a sample, in eval mode, at W0. With U S V^T its top-r SVD and S normalised by its
first value, B0 = U sqrt(S) / sqrt(gamma), A0 = sqrt(S) V^T / sqrt(gamma); W0 is not offset.

No full gradient is kept: the SVD is randomized (Halko, Martinsson, Tropp 2011), and its products are sums over batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import DataError, DivergedError
from tunewise.methods.attachment import Attachment
from tunewise.methods.draws import stream
from tunewise.models.fused import Part
from tunewise.models.layers import shape_of

GAMMA = 128.0
OVERSAMPLING = 8
POWER_ITERATIONS = 2


Slice = tuple[str, Part]
"""Rows of the output of a layer, by its name."""


def gradient_svd(
    model: nn.Module,
    layers: Mapping[str, Any],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    rank: int,
    seed: int,
    slices: Sequence[Slice] | None = None,
    oversampling: int = OVERSAMPLING,
    power_iterations: int = POWER_ITERATIONS,
) -> dict[Slice, tuple[Tensor, Tensor, Tensor]]:
    """{slice: (U (rows, r), S (r,), V (m, r))}, fp32: the top-r SVD of G, per slice (all layers unless given).

    Takes 2 + 2 x `power_iterations` passes over `batches`. Raises `DataError` or `DivergedError`.
    """
    batches = list(batches)
    if not batches:
        raise DataError("the one-step gradient needs at least one batch with labels")
    shapes = {name: shape_of(layer) for name, layer in layers.items()}
    wanted = list(slices) if slices is not None else [(name, Part(0, shapes[name][0])) for name in layers]
    device = next(iter(layers.values())).weight.device
    omega = {}
    for name, part in wanted:
        features = shapes[name][1]
        width = min(rank + oversampling, part.rows, features)
        generator = stream(seed, "sketch", name, part.start)
        omega[name, part] = torch.randn(features, width, generator=generator, dtype=torch.float32, device="cpu")
    factors = {key: value.to(device) for key, value in omega.items()}
    basis = _range(_products(model, layers, batches, factors, left=False))
    for _ in range(power_iterations):
        basis = _range(_products(model, layers, batches, basis, left=True))
        basis = _range(_products(model, layers, batches, basis, left=False))
    projected = _products(model, layers, batches, basis, left=True)  # G^T Q, (m, p)
    result = {}
    for key, q in basis.items():
        v, s, u_small = torch.linalg.svd(projected[key], full_matrices=False)
        result[key] = (q @ u_small.T[:, :rank], s[:rank], v[:, :rank])
    return result


@torch.no_grad()
def start_at_gradient(model: PeftModel, done: Attachment, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Set A and B of every adapted layer to LoRA-One's start. B is 0 until then, so G is taken at W0."""
    base = model.get_base_model()
    adapted: dict[str, Any] = {t.name: base.get_submodule(t.name) for t in done.targets}
    plain = {name: layer.get_base_layer() for name, layer in adapted.items()}
    slices = [(t.name, part) for t in done.targets for part in t.parts]
    found = gradient_svd(model, plain, batches, rank=done.rank, seed=done.seed, slices=slices)
    for target in done.targets:
        left, right = [], []
        for part in target.parts:
            u, s, v = found[target.name, part]
            if not bool(s[0] > 0):
                raise DivergedError(
                    f"the gradient of layer {target.name} is zero, so it gives no direction to start in"
                )
            root = torch.sqrt(s / s[0]) / math.sqrt(GAMMA)
            left.append(u * root)
            right.append((v * root).T)
        adapted[target.name].lora_B[done.adapter_name].weight.copy_(torch.cat(left))
        adapted[target.name].lora_A[done.adapter_name].weight.copy_(torch.cat(right))


class _Tap(torch.autograd.Function):
    """y -> y; the backward passes grad_y to `take`. `anchor` makes y require a gradient in a frozen model."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        ctx.take = take
        return y.clone()  # not a view, which the next module could not change in place

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        ctx.take(grad_y)
        return grad_y, None, None


def _products(
    model: nn.Module,
    layers: Mapping[str, Any],
    batches: list[Mapping[str, Tensor]],
    factors: Mapping[Slice, Tensor],
    *,
    left: bool,
) -> dict[Slice, Tensor]:
    """G F (rows, p) for every slice's F (m, p); with `left`, G^T F (m, p) for F (rows, p)."""
    sums: dict[Slice, Tensor] = {}
    weight = [0.0]
    anchor = torch.zeros((), dtype=torch.float32, device=next(iter(factors.values())).device, requires_grad=True)

    def watch(name: str) -> Callable[..., Tensor]:
        own = [key for key in factors if key[0] == name]

        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            x = args[0].detach()

            def take(grad_y: Tensor) -> None:
                flat_x = x.reshape(-1, x.shape[-1]).float()
                flat_g = grad_y.reshape(-1, grad_y.shape[-1]).float()
                for key in own:
                    g, f = flat_g[:, key[1].indices], factors[key]
                    product = flat_x.T @ (g @ f) if left else g.T @ (flat_x @ f)
                    sums[key] = sums.get(key, 0.0) - weight[0] * product

            return _Tap.apply(y, anchor, take)

        return hook

    total = sum(_rows(batch) for batch in batches)
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        model.eval()
        for p in wanted:
            p.requires_grad_(False)
        with torch.enable_grad():
            for batch in batches:
                weight[0] = _rows(batch) / total
                loss = model(**batch).loss
                if not bool(torch.isfinite(loss)):
                    raise DivergedError("the loss of the one-step gradient is not finite; check the batches")
                loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        for p in wanted:
            p.requires_grad_(True)
        for module, mode in modes:
            module.training = mode
    unreached = [key[0] for key in factors if key not in sums]
    if unreached:
        raise DataError(
            f"the loss does not depend on layer {unreached[0]}, so it has no gradient; leave it out of targets"
        )
    return sums


def _range(products: Mapping[Slice, Tensor]) -> dict[Slice, Tensor]:
    return {key: torch.linalg.qr(y).Q for key, y in products.items()}


def _rows(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values())))
