"""The largest curvature of the training loss in the adapted weights themselves: L_grad of the step-size theorem.

The top eigenvalue of the Hessian in all adapted W together (not in a method's factors), at the selected epoch's weights
and head, on one batch of training examples. Hessian-vector products in forward over reverse mode; Lanczos (ARPACK).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from tunewise.errors import MeasureError
from tunewise.measures.finished import Check, FinishedRun
from tunewise.measures.laziness.compute import change_of
from tunewise.methods.draws import sample

EXAMPLES = 32
TOLERANCE = 1e-2


def largest_curvature(run: FinishedRun, check: Check) -> float:
    """The eigenvalue, to 1 % (a value from below). Raises `MeasureError` where Lanczos finds none."""
    base = run.base_in_fp32
    own = {name: p.detach() for name, p in base.named_parameters()}
    change = change_of(run.model if base is run.base else run.load_in_fp32(trainable=True), base)
    at = {name: own[name] + value for name, value in change.items()}
    adapted = [name for name in at if any(name == f"{layer}.weight" for layer in _layers(run))]
    if not adapted:
        raise MeasureError("no layer is adapted, so there is no curvature to measure")
    batch = run.task.collate(sample(run.task.train, EXAMPLES, 0, "curvature"))
    device = next(base.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    labels = batch["labels"].to(device)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        logits = functional_call(base, {**at, **weights}, args=(), kwargs=dict(inputs)).logits
        return run.task.losses(logits, labels).mean()

    point = {name: at[name] for name in adapted}
    sizes = [point[name].numel() for name in adapted]

    def product(flat: Any) -> Any:
        check()
        pieces = torch.from_numpy(np.asarray(flat, dtype=np.float32)).to(device).split(sizes)
        direction = {name: piece.reshape(point[name].shape) for name, piece in zip(adapted, pieces)}
        _, found, *_ = jvp(grad(loss), (point,), (direction,))
        return torch.cat([found[name].flatten() for name in adapted]).detach().double().cpu().numpy()

    size = sum(sizes)
    start = np.random.default_rng(0).standard_normal(size)
    with sdpa_kernel(SDPBackend.MATH):
        try:
            operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
            options: dict[str, Any] = {"which": "LA", "v0": start, "tol": TOLERANCE, "ncv": min(size, 8), "maxiter": 10}
            values = np.real(eigsh(operator, k=1, **options)[0])
        except ArpackNoConvergence as error:
            values = np.real(error.eigenvalues)
    if not len(values):
        raise MeasureError("the largest curvature was not found in 10 restarts of Lanczos' method")
    return float(values[-1])


def _layers(run: FinishedRun) -> list[str]:
    return run.record.model.layers if run.record.model else []
