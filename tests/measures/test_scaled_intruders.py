"""Scaling intruders in a model: the loss is that of the scaled weights, and the model is afterwards what it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from measures.planted import plant
from tunewise.errors import MeasureError
from tunewise.measures._linalg.base_spectra import BaseSpectra
from tunewise.measures.intruders.scaled import scaling_curve, weights_replaced
from tunewise.store.records import Scores

NO_CACHE = BaseSpectra(None)


def test_the_curve_is_of_the_scaled_weights_and_the_model_stays_the_same() -> None:
    planted = plant(80, 64, 3)
    model = nn.ModuleDict({"layer": nn.Linear(64, 80, dtype=torch.float64)})
    with torch.no_grad():
        model["layer"].weight.copy_(planted.update.merged())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def score(m: nn.Module) -> Scores:
        norm = float(torch.linalg.svdvals(m["layer"].weight.detach()).square().sum())
        return Scores(loss=norm, metrics={}, examples=1)

    found = scaling_curve({"layer": planted.update}, NO_CACHE, [0, 0.5, 1, 2], model=model, score=score)
    intruders, rest = planted.values_after[:3].square().sum(), planted.values_after[3:].square().sum()
    assert [s.factor for s in found] == [0, 0.5, 1, 2]
    assert [s.count for s in found] == [0, 3, 3, 3]
    assert [s.loss for s in found] == pytest.approx([float(f**2 * intruders + rest) for f in (0, 0.5, 1, 2)], rel=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_data_there_are_counts_and_no_losses() -> None:
    found = scaling_curve({"layer": plant(80, 64, 3).update}, NO_CACHE, [0.0, 1.0])
    assert [(s.count, s.loss) for s in found] == [(0, None), (3, None)]


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit_also_after_an_error(kind: type, dtype: torch.dtype) -> None:
    model = nn.Sequential(kind(6, 4) if kind is nn.Linear else kind(4, 6)).to(dtype)
    before = model[0].weight.detach().clone()
    new = torch.arange(24, dtype=torch.float64).reshape(4, 6)  # out x in
    with pytest.raises(KeyError), weights_replaced(model, {"0": lambda: new}):
        held = model[0].weight.T if kind is Conv1D else model[0].weight
        assert torch.equal(held, new.to(dtype))
        raise KeyError("whatever")
    assert torch.equal(model[0].weight, before)


def test_layers_that_do_not_fit_are_refused_and_nothing_is_left_changed() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    before = model[0].weight.detach().clone()
    for weights in ({"0": lambda: torch.zeros(4, 6), "2": lambda: torch.zeros(4, 4)}, {"1": lambda: torch.zeros(4, 6)}):
        with pytest.raises(MeasureError), weights_replaced(model, weights):
            pass
        assert torch.equal(model[0].weight, before)
