"""LoRA-One's start: the best rank-r step of one full gradient (2502.01235, Algorithm 1).

G = -grad of the mean loss over a sample, in eval mode, at W0. With U S V^T its top-r SVD and S normalised by its
first value, B0 = U sqrt(S) / sqrt(gamma), A0 = sqrt(S) V^T / sqrt(gamma), and dW starts at s B0 A0; W0 is not offset.

No full gradient is ever kept: the SVD is randomized (Halko, Martinsson, Tropp 2011, range finder with power
iterations), and its products G Omega = sum_batches g^T (x Omega) and G^T Q = sum_batches x^T (g Q) are sums over
batches of skinny products. What it costs above the model is the sketches, (n + m)(r + oversampling) numbers a layer.
All of it is fp32 and W0 is only read by the forward, so quantized and bf16 bases work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import DataError, DivergedError
from tunewise.methods.streams import stream

if TYPE_CHECKING:
    from tunewise.methods.attach import Attachment

GAMMA = 128.0
OVERSAMPLING = 8
POWER_ITERATIONS = 2


def gradient_svd(
    model: nn.Module,
    layers: Mapping[str, Any],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    rank: int,
    seed: int,
    oversampling: int = OVERSAMPLING,
    power_iterations: int = POWER_ITERATIONS,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Top-r SVD of G = -grad of the mean loss for each layer: {name: (U (n, r), S (r,), V (m, r))}, fp32.

    `batches` are dictionaries of tensors with labels, so that `model(**batch).loss` is the mean loss of a batch; a
    batch counts by its number of rows. 2 + 2 x `power_iterations` passes over them. The model is left as it was.
    Raises `DataError` for no batches, `DivergedError` for a loss that is not finite.
    """
    batches = list(batches)
    if not batches:
        raise DataError("the one-step gradient needs at least one batch with labels")
    device = next(iter(layers.values())).weight.device
    omega = {
        name: torch.randn(
            _shape(layer)[1], min(rank + oversampling, *_shape(layer)), generator=stream(seed, "sketch", name)
        ).to(device)
        for name, layer in layers.items()
    }
    basis = _range(_products(model, layers, batches, omega, left=False))
    for _ in range(power_iterations):
        basis = _range(_products(model, layers, batches, basis, left=True))
        basis = _range(_products(model, layers, batches, basis, left=False))
    projected = _products(model, layers, batches, basis, left=True)  # G^T Q, (m, p)
    result = {}
    for name, q in basis.items():
        v, s, u_small = torch.linalg.svd(projected[name], full_matrices=False)
        result[name] = (q @ u_small.T[:, :rank], s[:rank], v[:, :rank])
    return result


@torch.no_grad()
def start_at_gradient(model: PeftModel, done: Attachment, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Set A and B of every adapted layer to the start of 2502.01235; B = 0 until here, so G is taken at W0."""
    base = model.get_base_model()
    layers: dict[str, Any] = {t.name: base.get_submodule(t.name) for t in done.targets}
    plain = {name: layer.get_base_layer() for name, layer in layers.items()}
    found = gradient_svd(model, plain, batches, rank=done.rank, seed=done.seed)
    for name, layer in layers.items():
        u, s, v = found[name]
        if not bool(s[0] > 0):
            raise DivergedError(f"the gradient of layer {name} is zero, so it gives no direction to start in")
        root = torch.sqrt(s / s[0]) / math.sqrt(GAMMA)
        layer.lora_B[done.adapter_name].weight.copy_(u * root)
        layer.lora_A[done.adapter_name].weight.copy_((v * root).T)


class _Tap(torch.autograd.Function):
    """y -> y; the backward hands grad_y to `take`. `anchor` makes y require a gradient in a frozen model."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        ctx.take = take
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        ctx.take(grad_y)
        return grad_y, None, None


def _products(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: list[Mapping[str, Tensor]],
    factors: Mapping[str, Tensor],
    *,
    left: bool,
) -> dict[str, Tensor]:
    """G F (n, p) for every layer's F (m, p); with `left`, G^T F (m, p) for F (n, p)."""
    sums: dict[str, Tensor] = {}
    weight = [0.0]
    anchor = torch.zeros((), requires_grad=True)

    def watch(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            x = args[0].detach()

            def take(grad_y: Tensor) -> None:
                flat_x = x.reshape(-1, x.shape[-1]).float()
                flat_g = grad_y.reshape(-1, grad_y.shape[-1]).float()
                f = factors[name]
                product = flat_x.T @ (flat_g @ f) if left else flat_g.T @ (flat_x @ f)
                sums[name] = sums.get(name, 0.0) - weight[0] * product

            return _Tap.apply(y, anchor, take)

        return hook

    total = sum(_rows(batch) for batch in batches)
    training = model.training
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
        model.train(training)
    return sums


def _range(products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.linalg.qr(y).Q for name, y in products.items()}


def _rows(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values())))


def _shape(layer: nn.Module) -> tuple[int, int]:
    from tunewise.models.layers import shape_of

    return shape_of(layer)
