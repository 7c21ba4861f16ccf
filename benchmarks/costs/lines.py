"""The ways of training that are compared: the frozen floor, full fine-tuning, stock PEFT, a plain PaCA, and ours.

Each function takes the frozen network, the adapted layers and the rank, and gives the model to be stepped. The task
head is trained in every line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn

import tunewise
from costs.labels import AGAIN, FLOOR, FUSED_FLOOR
from tunewise.catalog import CATALOG, Chain
from tunewise.methods.adapters.base import layer_adapters
from tunewise.methods.attachment import attachment
from tunewise.models.head import head_modules
from tunewise.models.layers import ROLES, Target, find_targets
from tunewise.training.optimizers import optimizer as method_optimizer

Make = Callable[[nn.Module, list[Target], int], nn.Module]


@dataclass(frozen=True)
class Way:
    """One line: how it is made, and what it is."""

    make: Make
    about: str
    folds_low_precision: bool = False
    """Only of interest where weights are below fp32: there the update is not folded unless asked."""


def _head(model: nn.Module) -> nn.Module:
    names = head_modules(model)
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in names:
            parameter.requires_grad_(True)
    return model


def _floor(model: nn.Module, targets: list[Target], rank: int) -> nn.Module:
    first: Any = model.get_submodule(targets[0].name)
    if first.bias is None:
        first.bias = nn.Parameter(first.weight.new_zeros(targets[0].out_features))
    first.bias.requires_grad_(True)
    return _head(model)


class _Fused(nn.Module):
    """Stands in the place of the query: one product for q, k and v; the key's and the value's shares wait for them."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__()
        self.sizes = [part.out_features for part in parts]
        self.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        biases = [part.weight.new_zeros(part.out_features) if part.bias is None else part.bias for part in parts]
        self.bias = nn.Parameter(torch.cat(biases)) if any(part.bias is not None for part in parts) else None
        self.waiting: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        query, *self.waiting = F.linear(x, self.weight, self.bias).split(self.sizes, dim=-1)
        return query


class _Waiting(nn.Module):
    def __init__(self, fused: _Fused) -> None:
        super().__init__()
        self._fused = [fused]  # in a list: not a child of this one too

    def forward(self, x: Tensor) -> Tensor:
        return self._fused[0].waiting.pop(0)


def _fused_floor(model: nn.Module, targets: list[Target], rank: int) -> nn.Module:
    """The floor of a network whose q, k and v are one product."""
    for parent in list(model.modules()):
        found = [next((n for n, _ in parent.named_children() if n in ROLES[role]), "") for role in ROLES]
        if not all(found):
            continue
        fused = _Fused([parent.get_submodule(name) for name in found])
        setattr(parent, found[0], fused)
        for name in found[1:]:
            setattr(parent, name, _Waiting(fused))
    first = next(module for module in model.modules() if isinstance(module, _Fused))
    first.requires_grad_(False)
    if first.bias is None:
        first.bias = nn.Parameter(first.weight.new_zeros(first.weight.shape[0]))
    first.bias.requires_grad_(True)
    return _head(model)


def _full(model: nn.Module, targets: list[Target], rank: int) -> nn.Module:
    return model.requires_grad_(True)


def _stock(*, a_frozen: bool) -> Make:
    def make(model: nn.Module, targets: list[Target], rank: int) -> nn.Module:
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=[target.name for target in targets],
            modules_to_save=list(head_modules(model)),
            task_type=TaskType.SEQ_CLS,
        )
        adapted: nn.Module = get_peft_model(model, config)
        if a_frozen:
            for name, parameter in adapted.named_parameters():
                if ".lora_A." in name:
                    parameter.requires_grad_(False)
        return adapted

    return make


class _PlainPaca(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, own: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(x.index_select(-1, columns), weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        taken, weight = ctx.saved_tensors
        grad_x = grad_y @ weight if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_y.flatten(0, -2).T @ taken.flatten(0, -2), None


class _PlainPacaLayer(nn.Module):
    """PaCA as a custom function a layer, its columns put into the weight at every forward."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__()
        self.base = base
        self.columns = torch.randperm(base.in_features, device=base.weight.device)[:rank]
        self.own = nn.Parameter(base.weight.detach()[:, self.columns].clone())

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.base.weight.index_copy_(1, self.columns, self.own)
        found: Tensor = _PlainPaca.apply(x, self.base.weight, self.base.bias, self.own, self.columns)
        return found


def _plain_paca(model: nn.Module, targets: list[Target], rank: int) -> nn.Module:
    for target in targets:
        path, _, leaf = target.name.rpartition(".")
        setattr(model.get_submodule(path), leaf, _PlainPacaLayer(model.get_submodule(target.name), rank))
    return _head(model)


def _ours(method: str, *, fold: str = "auto") -> Make:
    """A method as `attach` gives it; a chain is in its second link, with a first one behind it."""

    def make(model: nn.Module, targets: list[Target], rank: int) -> nn.Module:
        chain = Chain(links=2) if CATALOG[method].chain is not None else None
        adapted: nn.Module = tunewise.attach(model, method, rank=rank, targets=targets, chain=chain, fold=fold)
        if chain is not None:
            generator = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for adapter in layer_adapters(adapted):
                    adapter.b.add_(torch.randn(adapter.b.shape, generator=generator).to(adapter.b), alpha=1e-3)
            tunewise.restart(adapted)
        return adapted

    return make


_DEMAND = "folded into weights below fp32 too, as asked"

WAYS: dict[str, Way] = {
    FLOOR: Way(_floor, "frozen backbone, head, a bias on the first adapted layer: gradients flow down to it"),
    FUSED_FLOOR: Way(_fused_floor, "the floor of a network that holds q, k and v in one weight"),
    "full fine-tuning": Way(_full, "every weight"),
    "PEFT LoRA": Way(_stock(a_frozen=False), "stock PEFT"),
    "PEFT LoRA, A frozen": Way(_stock(a_frozen=True), "stock PEFT, lora_A without gradient"),
    "PaCA, a function a layer": Way(
        _plain_paca, "plain PaCA: a custom function a layer, columns written every forward"
    ),
    "lora": Way(_ours("lora"), "dW = s B A"),
    "asym": Way(_ours("asym"), "A frozen"),
    "cola": Way(_ours("cola"), "chain of lora, second link"),
    "rac": Way(_ours("rac"), "chain of asym, second link"),
    "cla": Way(_ours("cla"), "the first r columns"),
    "r-cla": Way(_ours("r-cla"), "r sampled columns"),
    "c3la": Way(_ours("c3la"), "chain of cla, second link"),
    "paca": Way(_ours("paca"), "r sampled columns of W"),
    "d-paca": Way(_ours("d-paca"), "the first r columns of W"),
    "cla, additive": Way(_ours("cla", fold="never"), "cla beside the weight"),
    "r-cla, additive": Way(_ours("r-cla", fold="never"), "r-cla beside the weight"),
    "cla, folded": Way(_ours("cla", fold="always"), f"cla {_DEMAND}", True),
    "r-cla, folded": Way(_ours("r-cla", fold="always"), f"r-cla {_DEMAND}", True),
    AGAIN: Way(_floor, "the same once more, built last: how far two equal lines lie apart in this run"),
}


def make_line(label: str, model: nn.Module, targets: str, rank: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model of a line and its optimizer: AdamW, fused, in all of them."""
    adapted = WAYS[label].make(model, find_targets(model, targets), rank)
    if label in CATALOG or hasattr(adapted, "tunewise"):
        attachment(adapted)
        return adapted, method_optimizer(adapted, lr=1e-4)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return adapted, torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
