"""What an adapter does to each weight: dW, as factors where it has any, for whatever wrote the adapter.

`updates_of` opens a folder: ours (any method, `fft` and `head`, compact columns) or any of the PEFT library's that
changes weights. `updates_between` takes two full models. The base model is read and never written.

Shapes: W0 and dW are n x m (out x in) here, whichever way a layer stores its weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import PeftType
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import MeasureError, StoreError, is_out_of_memory
from tunewise.measures import top_singular
from tunewise.measures.finished import FinishedRun
from tunewise.measures.top_singular import Triples
from tunewise.methods.adapter_files import CHANGED, COLUMNS, CONFIG, SIDECAR, WEIGHTS, fingerprint, read_sidecar
from tunewise.methods.row_space import one_hot
from tunewise.models.bare import layers_of_adapter
from tunewise.models.head import head_modules
from tunewise.models.layers import Target, linear_layers, shape_of


@dataclass(frozen=True)
class LayerUpdate:
    """dW of one layer, n x m. Either `left` (n, q) and `right` (q, m), all scales in, with dW = left right; or
    `make_dense`, which forms dW anew each time it is called, so that a large model's updates are not all in memory."""

    name: str
    shape: tuple[int, int]
    make_base: Callable[[], Tensor]
    left: Tensor | None = None
    right: Tensor | None = None
    make_dense: Callable[[], Tensor] | None = None

    @classmethod
    def of_factors(cls, name: str, base: nn.Module, left: Tensor, right: Tensor) -> LayerUpdate:
        """From factors; columns that are touched more than once (a chain that came round) are added up.

        Raises `StoreError` where they do not fit the layer, or hold NaN or infinity.
        """
        shape = shape_of(base)
        if (left.shape[0], right.shape[1]) != shape or left.shape[1] != right.shape[0]:
            raise StoreError(
                f"layer {name}: factors {tuple(left.shape)} and {tuple(right.shape)} do not fit its "
                f"{shape[0]} x {shape[1]} weight; this is another base model"
            )
        if not (bool(torch.isfinite(left).all()) and bool(torch.isfinite(right).all())):
            raise StoreError(f"layer {name}: the adapter holds NaN or infinity; it comes from a diverged run")
        left, right = left.detach().double(), right.detach().double()
        if _is_one_hot(right):
            left, right = _distinct_columns(left, right)
        return cls(name, shape, lambda: weight_of(base), left, right)

    @classmethod
    def of_dense(cls, name: str, base: nn.Module, make_dense: Callable[[], Tensor]) -> LayerUpdate:
        """From a function that forms dW (n, m)."""
        return cls(name, shape_of(base), lambda: weight_of(base), make_dense=make_dense)

    @property
    def base(self) -> Tensor:
        """W0 (n, m), in the precision that the model has it in; a view where it can be one."""
        return self.make_base()

    @property
    def has_factors(self) -> bool:
        return self.left is not None

    @property
    def rank_bound(self) -> int:
        """dW has at most this rank."""
        return min(*self.shape, self.left.shape[1]) if self.left is not None else min(self.shape)

    @property
    def columns(self) -> Tensor | None:
        """The input columns that dW touches, where it is a column method's; else None."""
        return self.right.argmax(dim=1) if self.right is not None and _is_one_hot(self.right) else None

    def delta(self) -> Tensor:
        """dW (n, m), fp64."""
        if self.left is not None and self.right is not None:
            return self.left @ self.right
        assert self.make_dense is not None
        return self.make_dense().double()

    def merged(self) -> Tensor:
        """W0 + dW (n, m), fp64."""
        return self.base.double() + self.delta()

    @cached_property
    def _triples(self) -> Triples:
        assert self.left is not None
        assert self.right is not None
        return top_singular.of_product(self.left, self.right)

    def singular_values(self) -> Tensor:
        """All singular values of dW from the largest down, fp64: min(n, m, q) where there are factors (a dense SVD is
        not taken), else min(n, m)."""
        if self.has_factors:
            return self._triples[1]
        return top_singular.values_of_dense(self.delta())

    def top_singular_vectors(self, count: int) -> Triples:
        """U (n, k), values (k,), Vh (k, m) of dW, k = min(count, rank bound)."""
        if self.has_factors:
            u, values, vh = self._triples
            return u[:, :count], values[:count], vh[:count]
        return top_singular.of_dense(self.delta(), count)

    def spectral_norm(self) -> float:
        """The largest singular value of dW."""
        return float(self.top_singular_vectors(1)[1][0])

    def frobenius_norm(self) -> float:
        """The square root of the sum of squares of dW."""
        if self.has_factors:
            return float(self._triples[1].norm())
        return float(self.delta().norm())


class Updates(dict[str, LayerUpdate]):
    """Layer name -> its update, in the model's order. `family`: what wrote it ('lora', 'dora', 'fft', ...).
    `left_out`: modules that are changed too and are no linear layers (embeddings, convolutions)."""

    def __init__(self, layers: Iterable[LayerUpdate], family: str, left_out: Iterable[str] = ()) -> None:
        super().__init__((layer.name, layer) for layer in layers)
        self.family = family
        self.left_out = list(left_out)


def updates_of(adapter: str | Path, base: nn.Module) -> Updates:
    """What the adapter in a folder (or in a run's folder) does to each linear layer of its base model. Empty where no
    linear layer of the backbone changes (`head`).

    A layer with a low-rank update has its factors. For PEFT's methods whose update has none, or whose start moved the
    base weight (PiSSA, OLoRA), dW is what PEFT's own merge leaves minus the pretrained weight.

    Raises:
        StoreError: no adapter folder, a damaged one, one of another base model, one that changes no weights.
    """
    folder = adapter_folder(adapter)
    if (folder / SIDECAR).exists():
        _check_base(folder, base)
    if (folder / CHANGED).exists():
        return _of_changed(folder, base)
    if (folder / COLUMNS).exists():
        return _of_columns(folder, base)
    from tunewise.measures.peft_updates import updates_by_peft

    return updates_by_peft(folder, base)


def updates_of_run(run: FinishedRun) -> Updates:
    """The same of a finished run's adapter; `MeasureError` where there is nothing to measure, or it can't be."""
    try:
        updates = updates_of(run.adapter, run.base)
    except StoreError as reason:
        raise MeasureError(str(reason)) from None
    if not updates:
        raise MeasureError("no weight of the backbone changes")
    return updates


def updates_between(base: nn.Module, other: nn.Module) -> Updates:
    """W - W0 of every linear layer of two models of one architecture, the task head aside. Raises `StoreError` where
    their layers differ."""
    layers, others = backbone_layers(base), linear_layers(other)
    for name, module in layers.items():
        if name not in others or shape_of(others[name]) != shape_of(module):
            raise StoreError(f"the models differ in layer {name}; they must be of one architecture")
    found = [_difference(name, module, partial(weight_of, others[name])) for name, module in layers.items()]
    return Updates(found, "full model")


def adapter_folder(path: str | Path) -> Path:
    """The folder with the adapter itself: `path`, or `path/adapter` in a run's folder. Raises `StoreError`."""
    path = Path(path)
    for folder in (path, path / "adapter"):
        if any((folder / name).exists() for name in (CONFIG, CHANGED, COLUMNS)):
            return folder
    if not path.is_dir():
        raise StoreError(f"{path}: there is no such folder")
    hint = "; it is a whole model, which is compared by --model-b" if (path / "config.json").exists() else ""
    raise StoreError(f"{path} holds no {CONFIG}, {CHANGED} or {COLUMNS}, so it is no adapter folder{hint}")


def module_names(folder: Path) -> list[str]:
    """Names of the modules that the adapter in `folder` changes, as its files have them: by them one tells which form
    of the base model it is for. Empty where they can't be told. Raises `StoreError` for a damaged file."""
    if not (folder / CONFIG).exists():
        return layers_of_adapter(folder)
    try:
        kind = PeftType(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / CONFIG} can't be read: {error}") from None
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, "lora_")
    file = folder / WEIGHTS
    keys = read_tensors(file) if file.exists() else {}
    found = (key.removeprefix("base_model.model.").partition(f".{prefix}") for key in keys)
    return list(dict.fromkeys(name for name, mark, _ in found if mark))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises `StoreError` where it can't be read."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise StoreError(f"{file} can't be read: {reason}") from None


def weight_of(module: nn.Module) -> Tensor:
    """A linear layer's weight, out x in, dequantized where it is quantized."""
    return _out_in(dequantize_module_weight(module).detach(), module)


def _out_in(weight: Tensor, layer: nn.Module) -> Tensor:
    return weight.T if isinstance(layer, Conv1D) else weight


def backbone_layers(model: Any) -> dict[str, nn.Module]:
    """Every linear layer by name, the task head's and a language-model head's aside."""
    heads = tuple(f"{name}." for name in head_modules(model))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        name: module
        for name, module in linear_layers(model).items()
        if not f"{name}.".startswith(heads or ("\0",)) and module is not output
    }


def _check_base(folder: Path, base: nn.Module) -> None:
    notes = read_sidecar(folder)
    targets = tuple(
        Target(t["name"], t["out_features"], t["in_features"], tuple((a, b) for a, b in t["parts"]))
        for t in notes["targets"]
    )
    if notes["base"] is not None and fingerprint(base, targets) not in (None, notes["base"]):
        raise StoreError(f"{folder} was trained on another base model (its weights' hash is not this one's)")


def _of_changed(folder: Path, base: nn.Module) -> Updates:
    changed, notes = read_tensors(folder / CHANGED), read_sidecar(folder)
    own = dict(base.named_parameters())
    heads = tuple(f"{name}." for name in {*head_modules(base), *notes["head"]})
    for name, tensor in changed.items():
        if name.startswith(heads or ("\0",)):
            continue  # of this run's classes, whatever the model at hand has
        if name not in own or own[name].shape != tensor.shape:
            raise StoreError(f"{folder} does not fit this model: {name} is not there, or has another shape")
    found = []
    for name, module in backbone_layers(base).items():
        stored = changed.get(f"{name}.weight")
        if stored is not None:
            found.append(_difference(name, module, partial(_out_in, stored, module)))
    return Updates(found, notes["method"]["name"])


def _difference(name: str, base: nn.Module, after: Callable[[], Tensor]) -> LayerUpdate:
    return LayerUpdate.of_dense(name, base, lambda: after().double() - weight_of(base).double())


def _of_columns(folder: Path, base: nn.Module) -> Updates:
    tensors = read_tensors(folder / COLUMNS)
    linears = linear_layers(base)
    found = []
    for key, columns in tensors.items():
        if not key.endswith(".columns"):
            continue
        name = key.removesuffix(".columns")
        update = tensors.get(f"{name}.update")
        if name not in linears or update is None:
            missing = f"layer {name} is not there" if name not in linears else f"{name}.update is missing"
            raise StoreError(f"{folder} does not fit this model: {missing}")
        features = shape_of(linears[name])[1]
        if int(columns.min()) < 0 or int(columns.max()) >= features:
            raise StoreError(f"{folder} does not fit this model: layer {name} has {features} input columns")
        found.append(LayerUpdate.of_factors(name, linears[name], update, one_hot(columns.long(), features)))
    order = {name: i for i, name in enumerate(linears)}
    return Updates(sorted(found, key=lambda u: order[u.name]), read_sidecar(folder)["method"]["name"])


def _is_one_hot(right: Tensor) -> bool:
    return bool(((right != 0).sum(dim=1) == 1).all())


def _distinct_columns(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each column once."""
    at = right.abs().argmax(dim=1)
    columns, place = at.unique(return_inverse=True)
    scaled = left * right[torch.arange(len(at)), at]
    summed = left.new_zeros(left.shape[0], len(columns)).index_add_(1, place, scaled)
    return summed, one_hot(columns, right.shape[1]).to(right.dtype)
