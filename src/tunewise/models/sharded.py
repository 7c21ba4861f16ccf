"""A model whose weights are shared out among the processes that train it (FSDP2): each holds a piece of every tensor.

`shard` cuts each parameter along its rows, block by block, so that a step has one block whole at a time. Whatever asks
for more than a step (a chain's restart, a file) does so within `whole`, where the tensors it names are plain again.

All of it is done by all processes together, in the same order: a process alone would wait for the others for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from tunewise.errors import ModelError
from tunewise.models.blocks import blocks_of


def shard(model: nn.Module, mesh: DeviceMesh, *, keep_whole: bool = False) -> None:
    """Share out the model's parameters over the processes of `mesh`, in place: its blocks one by one, what lies outside
    of them together. With `keep_whole` a block stays whole from its forward to its backward: faster, and larger.

    From then on `load_state_dict` takes whole tensors and each process keeps its pieces. Every process must hold the
    same whole model. A block that is not on the mesh's device yet goes there by itself, so
    that never more than one is whole there. Raises `ModelError` where a parameter can't be cut.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0 or not parameter.is_floating_point():
            raise ModelError(
                f"FSDP2 can't shard {name} ({'a single number' if parameter.ndim == 0 else parameter.dtype}); "
                "launch with data parallelism (torchrun, accelerate launch --multi_gpu)"
            )
    peft: Any = model
    base = peft.get_base_model() if hasattr(model, "get_base_model") else model
    device = torch.device(mesh.device_type)
    for block in blocks_of(base):
        block.to(device)  # not by FSDP, which moves parameters alone
        fully_shard(block, mesh=mesh, reshard_after_forward=not keep_whole)
    for module in model.modules():
        if not any(map(is_shard, module.parameters())):
            module.to(device)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if any(map(is_shard, module.parameters(recurse=False))):
            module.register_load_state_dict_pre_hook(_load_in_pieces)
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")


def _load_in_pieces(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        values = state.get(prefix + name)
        if values is not None and not is_shard(values) and values.shape == parameter.shape:
            state[prefix + name] = piece_like(values, parameter)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was here."""
    return isinstance(model, FSDPModule)


def is_shard(tensor: Tensor) -> bool:
    """Whether it is a tensor of which each process holds a piece."""
    return isinstance(tensor, DTensor)


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, wherever its pieces are; a plain tensor is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_piece(tensor: Tensor) -> Tensor:
    """What this process holds of it; a plain tensor is itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def piece_like(values: Tensor, like: Tensor) -> Tensor:
    """`values`, which every process holds whole, cut as `like` is."""
    if not isinstance(like, DTensor):
        return values
    values = values.to(like.device)
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put(parameter: Tensor, values: Tensor) -> None:
    """Copy `values`, which every process holds whole, into a parameter, whole or sharded."""
    own_piece(parameter).copy_(own_piece(piece_like(values, parameter)))


def to_shards(model: nn.Module) -> None:
    """Nothing is whole from the last forward any more: the parameters are the pieces, ready to be written."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextlib.contextmanager
def whole(
    module: nn.Module,
    wanted: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True,
    *,
    here: bool = True,
    write: bool = True,
) -> Iterator[None]:
    """The sharded parameters of `module` that are `wanted` (by their names in it) are plain and whole for a while; with
    `write` what they are set to goes back into the pieces.

    `here=False`: this process only gives its pieces and keeps its shards. Nothing to do in a model that is not sharded.
    """
    to_shards(module)
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    plain: dict[nn.Parameter, nn.Parameter] = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if is_shard(parameter) and wanted(f"{path}.{name}" if path else name, parameter):
                if parameter not in plain:
                    values = gathered(parameter.detach())  # by all, and kept by those who are `here`
                    plain[parameter] = nn.Parameter(values, parameter.requires_grad) if here else parameter
                places.append((part, name, parameter))
    for part, name, parameter in places:
        setattr(part, name, plain[parameter])
    try:
        yield
    finally:
        for part, name, parameter in places:
            setattr(part, name, parameter)
    if here and write:
        for parameter, values in plain.items():
            put(parameter, values.detach())
