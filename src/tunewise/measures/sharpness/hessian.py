"""Trace and top eigenvalues of the Hessian of the loss in the trained parameters, by double backward.

The parameters are the method's own (the factors it trains, and the head), as the optimizer sees them. The numbers are
not comparable between methods: a factor scaled by s has s^2 times the curvature.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tunewise.errors import MeasureError, is_out_of_memory
from tunewise.measures._device import device
from tunewise.measures._estimate import Estimate, mean_over_batches
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures.base import Values
from tunewise.measures.finished import Check, FinishedRun, no_check
from tunewise.methods.draws import stream
from tunewise.methods.folding_layer import differentiable_twice

TOLERANCE = 1e-2


class HessianFigures(Values):
    """Intervals are over batches."""

    parameters: int
    trace: Estimate
    eigenvalues: list[Estimate]
    """From the largest down."""


def hessian_figures(
    run: FinishedRun, batches: FixedBatches, *, eigenvalues: int, probes: int, seed: int, check: Check
) -> HessianFigures:
    """At the selected epoch. Raises `MeasureError` where a part of the model has no second derivative."""
    model: nn.Module = run.load_in_fp32(trainable=True)
    differentiable_twice(model)
    model = Logits(model).eval().to(device())
    trained = [p for p in model.parameters() if p.requires_grad]
    return figures_of_parameters(
        model, trained, batches, eigenvalues=eigenvalues, probes=probes, seed=seed, check=check
    )


def figures_of_parameters(
    model: nn.Module,
    parameters: list[nn.Parameter],
    batches: FixedBatches,
    *,
    eigenvalues: int,
    probes: int,
    seed: int,
    check: Check = no_check,
) -> HessianFigures:
    """Hutchinson's trace over `probes` sign vectors, Lanczos' eigenvalues (to 1 %), intervals of v^T H_batch v."""
    size = sum(p.numel() for p in parameters)

    def product(vector: Tensor) -> Tensor:
        """H_batch v for each batch, (batches, size)."""
        products = []
        for inputs, labels in zip(batches.inputs, batches.labels, strict=True):
            check()
            along = vector.to(parameters[0].device, parameters[0].dtype)
            products.append(hessian_vector_product(model, batches.losses, parameters, inputs, labels, along))
        return torch.stack(products).double().cpu()

    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of vmap, that a kernel has no batched form
        try:
            traces = np.zeros(len(batches))
            for i in range(probes):
                signs = torch.randint(2, (size,), generator=stream(seed, "hessian", i)) * 2.0 - 1.0
                traces += (product(signs) @ signs.double()).numpy() / probes
            vectors = _top_vectors(lambda v: product(torch.from_numpy(v)).mean(0).numpy(), size, eigenvalues, seed)
            values = [product(v) @ v.double() for v in vectors]
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise MeasureError(f"a part of the model has no second derivative ({str(error).splitlines()[0]})") from None
    return HessianFigures(
        parameters=size,
        trace=mean_over_batches(traces),
        eigenvalues=[mean_over_batches(v.numpy()) for v in values],
    )


def hessian_vector_product(
    model: nn.Module,
    losses: Callable[[Tensor, Tensor], Tensor],
    parameters: list[nn.Parameter],
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    vector: Tensor,
) -> Tensor:
    """Flat, as long as all parameters: the gradient of <gradient, v> of the batch's mean loss."""
    with torch.enable_grad():
        logits = model(inputs)
        loss = losses(logits, labels).mean().to(logits.dtype)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        parts = vector.split([p.numel() for p in parameters])
        along = torch.stack([(g * v.view_as(g)).sum() for g, v in zip(gradients, parts, strict=True)]).sum()
        second = torch.autograd.grad(along, parameters, materialize_grads=True)
    return torch.cat([s.flatten() for s in second])


def _top_vectors(
    product: Callable[[NDArray[np.float64]], NDArray[np.float64]], size: int, count: int, seed: int
) -> list[Tensor]:
    """Eigenvectors of the largest eigenvalues, from the top down."""
    count = min(count, size - 1)
    if count < 1:
        return []
    start = torch.randn(size, generator=stream(seed, "hessian", "lanczos"), dtype=torch.float64).numpy()
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    ncv = min(size, max(2 * count + 1, 10))
    try:
        values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=TOLERANCE, ncv=ncv, maxiter=20)
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors  # those that did converge
    order = np.argsort(-values)
    return [torch.from_numpy(np.ascontiguousarray(vectors[:, i])) for i in order]


class Logits(nn.Module):
    """Inputs -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits
