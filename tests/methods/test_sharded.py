"""Methods on a model that its user has sharded (FSDP2): in one process, a shard is everything, and every tensor still
is a DTensor, which does not mix with plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import tunewise
from contracts import models
from tunewise.errors import SpecError
from tunewise.models.blocks import find_blocks


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(name: str, *, sharded: bool, **options: Any) -> Any:
    model = tunewise.attach(models.make("bert"), name, rank=4, seed=3, targets="all-linear", **options)
    if sharded:
        base = model.get_base_model()
        for block in base.get_submodule(find_blocks(base).name):
            fully_shard(block)
        fully_shard(model)
    optimizer = tunewise.optimizer(model, lr=1e-2)
    for _ in range(3):
        model(**models.batch("bert")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("name", ["cla", "cla-rows", "asym", "lora"])
def test_a_users_own_sharded_training_is_the_plain_one(name: str) -> None:
    """To 1e-5 in every trained tensor, and in its state_dict."""
    options = {"fold": "never"} if name == "cla" else {}
    plain, cut = trained(name, sharded=False, **options), trained(name, sharded=True, **options)
    expected, found = plain.state_dict(), cut.state_dict()
    factors = [key for key in expected if ".lora_" in key]
    assert factors
    for key in factors:
        tensor = found[key].full_tensor() if isinstance(found[key], DTensor) else found[key]
        assert torch.allclose(tensor, expected[key], rtol=0, atol=1e-5), key


def test_columns_that_would_stand_in_a_sharded_weight_are_refused() -> None:
    with pytest.raises(SpecError, match="fold='never'"):
        trained("cla", sharded=True)


def test_a_restart_on_sharded_weights_is_refused() -> None:
    model = trained("c3la", sharded=True, fold="never")
    with pytest.raises(SpecError, match="a chain can't restart on weights that FSDP2 shards"):
        tunewise.restart(model)
