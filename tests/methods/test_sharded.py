"""Methods on a model that its user has sharded (FSDP2): in one process, a shard is everything, and every tensor still
is a DTensor, which does not mix with plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import tunewise
from contracts import models
from tunewise.errors import SpecError
from tunewise.methods.adapter_files import restore
from tunewise.methods.sharded import whole_for_files
from tunewise.models.blocks import blocks_of
from tunewise.models.sharded import gathered


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(name: str, *, cut: bool, **options: Any) -> Any:
    """Five steps, with a restart before the last two for a chain."""
    model = tunewise.attach(models.make("bert"), name, rank=4, seed=3, targets="all-linear", **options)
    if cut:
        for block in blocks_of(model.get_base_model()):
            fully_shard(block)
        fully_shard(model)
    optimizer = tunewise.optimizer(model, lr=1e-2)
    for step in range(5):
        if step == 3 and tunewise.CATALOG[name].chain is not None:
            tunewise.restart(model, optimizer)
        model(**models.batch("bert")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def models_state(model: Any) -> dict[str, torch.Tensor]:
    return {key: gathered(p.detach()) for key, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["c3la", "c-paca", "cola", "cla-rows"])
def test_a_users_own_sharded_training_is_the_plain_one(name: str) -> None:
    """To 1e-5 in every trained tensor, finished links included; and its state_dict is whole."""
    options = {} if name == "cla-rows" else {"fold": "never"}
    plain, cut = trained(name, cut=False, **options), trained(name, cut=True, **options)
    expected, found = plain.state_dict(), cut.state_dict()
    factors = [key for key in expected if ".lora_" in key]
    assert factors and all(type(found[key]) is torch.Tensor for key in factors)
    for key in factors:
        assert torch.allclose(found[key], expected[key], rtol=0, atol=1e-5), key


@pytest.mark.parametrize("name", ["cla", "c-paca", "cla-rows", "asym"])
def test_a_saved_adapter_goes_back_into_shards(name: str, tmp_path: Path) -> None:
    """Of one link and of two, a head beside it; bit for bit."""
    model = trained(name, cut=True, **({} if name in ("cla-rows", "asym") else {"fold": "never"}))
    with whole_for_files(model):
        tunewise.save(model, tmp_path / "adapter")
    kept = {key: tensor.clone() for key, tensor in models_state(model).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(3.0)
    assert not all(torch.equal(tensor, kept[key]) for key, tensor in models_state(model).items())
    restore(model, tmp_path / "adapter")
    for key, tensor in models_state(model).items():
        assert torch.allclose(tensor, kept[key], rtol=0, atol=1e-6 if name == "c-paca" else 0), key


def test_columns_that_would_stand_in_a_cut_weight_are_refused() -> None:
    with pytest.raises(SpecError, match="fold='never'"):
        trained("cla", cut=True)
