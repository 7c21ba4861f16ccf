"""The frozen prefix of a model: the blocks below the first one with anything trained in it, and what lies under them.

What the prefix makes of an example never changes while a run trains, as long as nothing random (dropout) is in it. So
it can be computed once for each example of a fixed data set, and training, evaluation and selection run only what lies
above. Here is what puts given states in a prefix's place; `prefix_task.py` keeps them and hands them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunewise.errors import ModelError
from tunewise.methods.attachment import attachment
from tunewise.models.blocks import blocks_of, find_blocks, frozen_depth

STATES = "prefix_states"
"""The key of a batch under which the cached states are: (rows, tokens, hidden size), fp32."""


@dataclass(frozen=True)
class Prefix:
    """The first `depth` blocks of a model. `beside`: how many values besides the states a block returns (all None), or
    None where it returns the states alone; `source`: name of the module whose output the first block reads, where one
    module hands it over as it is (the embeddings)."""

    depth: int
    beside: int | None
    source: str | None

    def dump(self) -> dict[str, Any]:
        return asdict(self)


class _Reached(Exception):
    """The last block of the prefix has its output; what lies above is not needed."""


def prefix_depth(model: nn.Module) -> int:
    """How many blocks lie below everything that a model's method trains."""
    return frozen_depth(model, attachment(model).head)


def still_prefix(model: Any) -> None:
    """Switch dropout off in the prefix, for good: its blocks and what lies under them stay in eval mode."""
    still(model.get_base_model() if hasattr(model, "get_base_model") else model, prefix_depth(model))


def still(base: nn.Module, depth: int) -> None:
    """The same of a base model's first `depth` blocks."""
    for module in below(base, depth) if depth else ():
        module.register_forward_pre_hook(_in_eval_mode)


def below(base: nn.Module, depth: int) -> list[nn.Module]:
    """The prefix's blocks, and the leaves outside of all blocks that are called before them (embeddings, their norms
    and dropout)."""
    blocks = blocks_of(base)[:depth]
    found = find_blocks(base)
    assert found is not None
    trunk = found.name.split(".")
    under: list[nn.Module] = []
    for i in range(len(trunk)):  # beside the list of blocks and each of its parents, what is registered before it
        parent = base.get_submodule(".".join(trunk[:i]))
        for name, child in parent.named_children():
            if name == trunk[i]:
                break
            under.append(child)
    return [*under, *blocks]


def _in_eval_mode(module: nn.Module, args: Any) -> None:
    for part in module.modules():
        part.training = False


@torch.no_grad()
def trace_prefix(base: nn.Module, depth: int, inputs: Mapping[str, Tensor]) -> Prefix:
    """What `install_prefix` must know of the first `depth` blocks, from one forward in eval mode. Raises `ModelError`
    where a block hands on more than its states."""
    returned: list[Any] = []
    entered: list[Tensor] = []
    made: dict[int, str] = {}
    blocks = blocks_of(base)
    hooks = [
        blocks[0].register_forward_pre_hook(lambda m, a, k: entered.append(_states_in(a, k)), with_kwargs=True),
        *(block.register_forward_hook(lambda m, a, out: returned.append(out)) for block in blocks[:depth]),
    ]
    kept: list[Any] = []  # a tensor's id means something only while the tensor lives

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not entered:
                kept.append(out)
                made[id(out)] = name

        return hook

    hooks += [module.register_forward_hook(remember(name)) for name, module in base.named_modules() if name]
    try:
        base.eval()
        base(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if len(returned) != depth or len(entered) != 1:
        raise ModelError(f"{type(base).__name__}: its blocks are not called one after another; leave out cache_prefix")
    besides = {len(out) - 1 if isinstance(out, tuple) else None for out in returned}
    extra = [value for out in returned if isinstance(out, tuple) for value in out[1:]]
    if len(besides) != 1 or any(value is not None for value in extra):
        raise ModelError(f"{type(base).__name__}: a block hands on more than its states; leave out cache_prefix")
    return Prefix(depth, besides.pop(), made.get(id(entered[0])))


@torch.no_grad()
def prefix_states(base: nn.Module, depth: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output of block `depth` - 1 (rows, tokens, hidden size); nothing above it is computed."""
    found: list[Tensor] = []

    def stop(module: nn.Module, args: Any, out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)
        raise _Reached

    hook = blocks_of(base)[depth - 1].register_forward_hook(stop)
    try:
        base(**inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


def is_random(base: nn.Module, depth: int, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the prefix draws random numbers in training mode (dropout of any kind)."""
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        base.train()
        prefix_states(base, depth, inputs)
        base.eval()
        return not torch.equal(before, torch.get_rng_state())


def install_prefix(base: nn.Module, prefix: Prefix) -> None:
    """From now on, a batch with `STATES` in it skips the prefix and goes on from them; one without runs it whole."""
    given: list[Tensor] = []

    def take(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given[:] = [kwargs.pop(STATES)] if STATES in kwargs else []
        return args, kwargs

    def drop(module: nn.Module, args: Any, out: Any) -> None:
        given.clear()

    def instead(usual: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not given:
                return usual(*args, **kwargs)
            states = given[0] if last else _states_in(args, kwargs)
            return states if prefix.beside is None else (states, *[None] * prefix.beside)

        return forward

    base.register_forward_pre_hook(take, with_kwargs=True)
    base.register_forward_hook(drop, always_call=True)
    for number, block in enumerate(blocks_of(base)[: prefix.depth]):
        block.forward = instead(block.forward, number == prefix.depth - 1)
    if prefix.source is not None:
        source = base.get_submodule(prefix.source)
        usual = source.forward
        source.forward = lambda *args, **kwargs: given[0] if given else usual(*args, **kwargs)


def _states_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
