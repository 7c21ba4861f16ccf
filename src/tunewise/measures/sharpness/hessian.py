"""Trace and top eigenvalues of the Hessian of the loss in the trained parameters.

Products with it are curvlinops' where that library is installed, and else torch's own double backward, which gives the
same numbers. curvlinops brings torchvision along, which must fit the installed torch (a CPU build of torch needs a CPU
build of torchvision), so nothing here depends on it.

The parameters are the method's own (the factors it trains, and the head), as the optimizer sees them: a figure of one
method's training, not one to set beside another method's, since a factor scaled by s has s^2 of the curvature.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tunewise.errors import MeasureError, is_out_of_memory
from tunewise.measures._estimate import mean_over_batches
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures.cost.stepping import device
from tunewise.measures.finished import FinishedRun
from tunewise.methods.adapter_files import load
from tunewise.methods.fold import differentiable_twice
from tunewise.methods.streams import stream

Product = Callable[[Tensor], Tensor]
TOLERANCE = 1e-2


def hessian_figures(
    run: FinishedRun, batches: FixedBatches, *, eigenvalues: int, probes: int, seed: int, check: Callable[[], None]
) -> dict[str, Any]:
    """Of the selected epoch: {parameters, trace: {value, low, high}, eigenvalues: [{value, low, high}, ...]}, intervals
    over batches; `by`: whose products. Raises `MeasureError` where a part of the model has no second derivative."""
    model: nn.Module = load(run.task.load_model(run.spec.seed), run.adapter, trainable=True)
    differentiable_twice(model)
    model = _Logits(model).eval().to(device())
    trained = [p for p in model.parameters() if p.requires_grad]
    return of_parameters(model, trained, batches, eigenvalues=eigenvalues, probes=probes, seed=seed, check=check)


def of_parameters(
    model: nn.Module,
    parameters: list[nn.Parameter],
    batches: FixedBatches,
    *,
    eigenvalues: int,
    probes: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The same for a module from a mapping of inputs to logits, and some of its parameters.

    The trace is Hutchinson's over `probes` sign vectors. The eigenvalues are Lanczos' (to 1 %); an eigenvalue's
    interval is that of v^T H_batch v at its eigenvector v.
    """
    parts, by = products(model, parameters, batches)
    size = sum(p.numel() for p in parameters)
    like = parameters[0]

    def product(vector: Tensor) -> Tensor:
        """H_batch v for each batch, (batches, size)."""
        found = []
        for part in parts:
            check()
            found.append(part(vector.to(like.device, like.dtype)))
        return torch.stack(found).double().cpu()

    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of vmap, that a kernel has no batched form
        try:
            traces = np.zeros(len(parts))
            for i in range(probes):
                signs = torch.randint(2, (size,), generator=stream(seed, "hessian", i)) * 2.0 - 1.0
                traces += (product(signs) @ signs.double()).numpy() / probes
            vectors = _top_vectors(lambda v: product(torch.from_numpy(v)).mean(0).numpy(), size, eigenvalues, seed)
            values = [product(v) @ v.double() for v in vectors]
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise MeasureError(f"a part of the model has no second derivative ({str(error).splitlines()[0]})") from None
    return {
        "parameters": size,
        "by": by,
        "trace": mean_over_batches(traces),
        "eigenvalues": [mean_over_batches(v.numpy()) for v in values],
    }


def _top_vectors(product: Callable[[Any], Any], size: int, count: int, seed: int) -> list[Tensor]:
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


class _Logits(nn.Module):
    """Inputs -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits


class _MeanLoss(nn.Module):
    """(logits, labels) -> the mean of the examples' losses."""

    reduction = "mean"

    def __init__(self, losses: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.losses = losses

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.losses(logits, labels).mean().to(logits.dtype)


def products(
    model: nn.Module, parameters: list[nn.Parameter], batches: FixedBatches, *, library: bool = True
) -> tuple[list[Product], str]:
    """v -> H v (flat, as long as all parameters) of each batch's mean loss, and by whose hands."""
    loss = _MeanLoss(batches.losses)
    data = list(zip(batches.inputs, batches.labels, strict=True))
    operator = _curvlinops() if library else None
    if operator is not None:
        return [_by_library(operator, model, loss, parameters, *batch) for batch in data], "curvlinops"
    return [partial(_by_double_backward, model, loss, parameters, *batch) for batch in data], "double backward"


def _curvlinops() -> Any:
    """The library's Hessian; None where it is not installed, or what it brings along does not load."""
    try:
        from curvlinops import HessianLinearOperator
    except (ImportError, RuntimeError):  # a torchvision of another build than torch's
        return None
    return HessianLinearOperator


def _by_library(
    operator: Any,
    model: nn.Module,
    loss: nn.Module,
    parameters: list[nn.Parameter],
    inputs: Mapping[str, Tensor],
    labels: Tensor,
) -> Product:
    hessian: Any = operator(
        model,
        loss,
        parameters,
        [(dict(inputs), labels)],
        check_deterministic=False,  # eval mode, and the batch is a fixed list
        num_data=len(labels),
        batch_size_fn=lambda found: len(next(iter(found.values()))),
    )
    return lambda vector: hessian @ vector


def _by_double_backward(
    model: nn.Module,
    loss: nn.Module,
    parameters: list[nn.Parameter],
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    vector: Tensor,
) -> Tensor:
    """The gradient of <gradient, v>."""
    with torch.enable_grad():
        gradients = torch.autograd.grad(
            loss(model(inputs), labels), parameters, create_graph=True, materialize_grads=True
        )
        parts = vector.split([p.numel() for p in parameters])
        along = torch.stack([(g * v.view_as(g)).sum() for g, v in zip(gradients, parts, strict=True)]).sum()
        found = torch.autograd.grad(along, parameters, materialize_grads=True)
    return torch.cat([f.flatten() for f in found])
