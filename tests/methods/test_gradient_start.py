"""LoRA-One's start against a dense SVD of the full gradient in fp64; what it costs, and when it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tunewise
from contracts import models
from tunewise.errors import DataError, DivergedError, SpecError
from tunewise.methods.gradient_start import GAMMA, OVERSAMPLING, gradient_svd
from tunewise.models.fused import Part

RANK = 4


class Output:
    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss


class Regression(nn.Module):
    """A linear layer whose gradient is known in closed form: G = -2 / (rows n) (x W^T - y)^T x."""

    def __init__(self, out: int = 40, features: int = 56) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(features, out, bias=False)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Output:
        return Output((self.layer(x) - labels).square().mean())


def decaying(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Inputs and labels whose gradient has a spectrum that falls off by 0.7 per direction."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 56, generator=generator) * 0.7 ** torch.arange(56)
    return {"x": x, "labels": torch.randn(rows, 40, generator=generator)}


def dense_gradient(model: Regression, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    x, y = (torch.cat([batch[key] for batch in batches]).double() for key in ("x", "labels"))
    return -2 / y.numel() * (x @ model.layer.weight.detach().double().T - y).T @ x


def attach(model: nn.Module, batches: Any, **options: Any) -> Any:
    options = {"rank": RANK, "targets": ["layer"], **options}
    return tunewise.attach(model, "lora-one", batches=batches, **options)


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4, 8, 40])
def test_the_start_is_the_best_rank_r_step_of_the_full_gradient(rank):
    """B0 A0 = U_r (S_r / S_1) V_r^T / gamma to 1e-4 of its norm, against LAPACK in fp64; balanced: B0^T B0 = A0 A0^T."""
    batches = [decaying(32, seed) for seed in range(3)]
    u, s, vh = torch.linalg.svd(dense_gradient(Regression(), batches), full_matrices=False)
    layer = attach(Regression(), batches, rank=rank).get_base_model().layer
    a, b = (factor["default"].weight.detach().double() for factor in (layer.lora_A, layer.lora_B))
    expected = u[:, :rank] @ torch.diag(s[:rank] / s[0]) @ vh[:rank] / GAMMA
    assert (b @ a - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(b.T @ b, a @ a.T, rtol=1e-4, atol=1e-8)
    assert float(torch.linalg.matrix_norm(b @ a, 2)) == pytest.approx(1 / GAMMA, rel=1e-4)


def test_singular_values_and_vectors_are_the_dense_ones():
    """Values to 1e-5, vectors up to sign to 1e-3, for a spectrum falling off by 0.7."""
    model, batches = Regression(), [decaying(64, 1)]
    u, s, vh = torch.linalg.svd(dense_gradient(model, batches))
    found_u, found_s, found_v = gradient_svd(model, {"layer": model.layer}, batches, rank=RANK, seed=0)[
        "layer", Part(0, 40)
    ]
    torch.testing.assert_close(found_s.double(), s[:RANK], rtol=1e-5, atol=0)
    for i in range(RANK):
        assert abs(float(found_u[:, i].double() @ u[:, i])) > 1 - 1e-3
        assert abs(float(found_v[:, i].double() @ vh[i])) > 1 - 1e-3


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit", "deberta"])
def test_on_a_transformer_every_layer_has_its_own_full_gradients_step(kind):
    """Autograd on plain fp64 weights over two batches; 2 % of the step's norm (small models have flat spectra)."""
    batches = [models.batch(kind, rows=rows, seed=rows) for rows in (2, 6)]
    plain = models.make(kind).double()
    for batch in batches:
        wide = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        (plain(**wide).loss * len(batch["labels"]) / 8).backward()
    model = attach(models.make(kind), batches, targets="all-linear")
    done = tunewise.attachment(model)
    for target in done.targets:
        layer = model.get_base_model().get_submodule(target.name)
        found = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        gradient = plain.get_submodule(target.name).weight.grad
        u, s, vh = torch.linalg.svd(-gradient.T if kind == "gpt2" else -gradient, full_matrices=False)
        best = u[:, :RANK] @ torch.diag(s[:RANK] / s[0]) @ vh[:RANK] / GAMMA
        assert (found - best).norm() < 0.02 * best.norm(), target.name


def test_the_scale_is_alpha_over_the_root_of_r_and_the_base_is_not_offset():
    """dW = alpha / sqrt(r) B0 A0 on W0, whose bits stay."""
    model = attach(Regression(), [decaying(16, 0)], rank=4, alpha=16)
    layer = model.get_base_model().layer
    assert layer.scaling["default"] == 16 / math.sqrt(4)
    assert torch.equal(layer.get_base_layer().weight, Regression().layer.weight)
    dense = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(tunewise.delta(model)["layer"], 8.0 * dense, rtol=1e-6, atol=1e-9)


def test_the_step_goes_downhill():
    batches = [decaying(32, 0)]
    before = Regression()(**batches[0]).loss
    assert attach(Regression(), batches)(**batches[0]).loss < before


# --- the sample ------------------------------------------------------------------------------------------------------


def test_a_batch_counts_by_its_rows():
    """One batch of 48 and its cut into 5, 11 and 32: the same step to 1e-5 of its norm."""
    whole = decaying(48, 3)
    cuts = [(0, 5), (5, 16), (16, 48)]
    parts = [{key: value[start:stop] for key, value in whole.items()} for start, stop in cuts]
    first, second = (tunewise.delta(attach(Regression(), batches))["layer"] for batches in ([whole], parts))
    assert (first - second).norm() < 1e-5 * first.norm()


def test_any_iterable_will_do_and_is_read_once():
    batches = [decaying(8, seed) for seed in range(2)]
    from_list, from_generator = (tunewise.delta(attach(Regression(), b))["layer"] for b in (batches, iter(batches)))
    assert torch.equal(from_list, from_generator)


def test_the_gradient_is_taken_in_eval_mode_and_modes_and_gradients_are_left_as_they_were():
    """Dropout does not enter; a module that was in eval mode by itself stays in it; no .grad appears."""
    inputs = [models.batch("bert")]
    calm = models.make("bert")
    busy = models.make("bert", dropout=0.5).train()
    found = [tunewise.delta(attach(model, inputs, targets="qv")) for model in (calm, busy)]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert busy.training and busy.bert.encoder.training
    assert all(p.grad is None for p in busy.parameters())
    assert {key for key, p in busy.named_parameters() if p.requires_grad and "lora_" not in key} == {
        "classifier.modules_to_save.default.weight",
        "classifier.modules_to_save.default.bias",
    }


def test_a_submodule_in_eval_mode_by_itself_stays_in_it():
    model = models.make("bert").train()
    model.bert.embeddings.eval()
    attach(model, [models.batch("bert")], targets="qv")
    assert not model.bert.embeddings.training and model.bert.encoder.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_of_the_base_gives_the_same_step(dtype):
    """fp32 sketches over a bf16 base: 3 % of the step's norm, bf16's own accuracy; over fp64: 1e-4."""
    batches = [decaying(32, 0)]
    exact = tunewise.delta(attach(Regression(), batches))["layer"]
    cast = [{key: value.to(dtype) for key, value in batch.items()} for batch in batches]
    model = attach(Regression().to(dtype), cast)
    found = tunewise.delta(model)["layer"]
    assert (found - exact).norm() < (0.03 if dtype == torch.bfloat16 else 1e-4) * exact.norm()
    assert model.get_base_model().layer.get_base_layer().weight.dtype == dtype


def test_the_modules_after_an_adapted_layer_may_work_in_place():
    """As they may under autograd alone."""

    class InPlace(Regression):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Output:
            return Output((self.layer(x).relu_() - labels).square().mean())

    attach(InPlace(), [decaying(8, 0)])


# --- memory ----------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The shapes of every tensor that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.shapes.add(tuple(value.shape))
        return result


def test_no_full_gradient_is_ever_made():
    """Rows (3), outputs (300), inputs (500), sketch (12): nothing above (n + m)(r + oversampling), no n x m product."""
    model = Regression(300, 500)
    batch = {"x": torch.randn(3, 500), "labels": torch.randn(3, 300)}
    with Largest() as seen:
        gradient_svd(model, {"layer": model.layer}, [batch, batch], rank=RANK, seed=0)
    sketch = RANK + OVERSAMPLING
    made = {shape for shape in seen.shapes if shape not in ((300, 500), (500, 300))}
    assert max(math.prod(shape) for shape in made) <= (300 + 500) * sketch
    # The weight is only read: transposed views of it have its storage.
    with Storages(model.layer.weight) as owned:
        gradient_svd(model, {"layer": model.layer}, [batch, batch], rank=RANK, seed=0)
    assert owned.others == 0


class Storages(TorchDispatchMode):
    """Counts tensors as large as `weight` that do not live in its storage."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.size, self.address, self.others = weight.numel(), weight.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.numel() >= self.size:
                self.others += value.untyped_storage().data_ptr() != self.address
        return result


# --- errors ----------------------------------------------------------------------------------------------------------


def test_it_asks_for_batches_and_no_other_method_takes_them():
    with pytest.raises(SpecError, match="batches"):
        tunewise.attach(Regression(), "lora-one", targets=["layer"])
    with pytest.raises(SpecError, match="batches"):
        tunewise.attach(Regression(), "lora", targets=["layer"], batches=[decaying(4, 0)])
    with pytest.raises(DataError, match="at least one batch"):
        attach(Regression(), [])


def test_a_loss_that_is_not_finite_is_refused():
    batch = decaying(4, 0)
    batch["labels"][0, 0] = math.inf
    with pytest.raises(DivergedError, match="not finite"):
        attach(Regression(), [batch])


def test_a_gradient_of_zero_gives_no_direction():
    batch = decaying(4, 0)
    batch["labels"] = Regression().layer(batch["x"]).detach()
    with pytest.raises(DivergedError, match=r"layer.*zero"):
        attach(Regression(), [batch])


def test_a_layer_outside_the_loss_is_named():
    class Unused(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(56, 40)

    with pytest.raises((DivergedError, DataError), match="spare"):
        attach(Unused(), [decaying(4, 0)], targets=["layer", "spare"])
