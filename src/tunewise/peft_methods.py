"""The methods of the PEFT library (`peft:NAME`): which fields of PEFT's config hold the rank, and how each starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

Options = dict[str, object]


def _r(rank: int, size: int) -> Options:
    return {"r": rank}


def _never(rank: int) -> bool:
    return False


def _always(rank: int) -> bool:
    return True


@dataclass(frozen=True)
class PeftMethod:
    """How a run's settings become fields of PEFT's config."""

    fields_of_rank: Callable[[int, int], Options] | None = _r
    """Rank and the greatest common divisor of the layers' sizes to fields; None where nothing in the config is like a
    rank. Raises `ValueError` for a rank that the method can't have."""
    options: Options = field(default_factory=dict)
    is_lora: bool = False
    """Whether it is PEFT's LoRA with these options."""
    default_rank: int = 8
    trains_norms: bool = False
    """Whether it trains the norms of the blocks, whatever the targets are."""
    full_at: Callable[[int, int], int] | None = None
    """(outputs, inputs) to the rank from which on more changes nothing."""
    moves_outputs: Callable[[int], bool] = _never
    """Whether attaching at a rank changes the model's outputs: the start is random, and not an update of zero."""


def _blocks(rank: int, size: int) -> Options:
    if size % rank:
        raise ValueError(f"rank {rank} does not divide {size}, the common divisor of the layers' sizes")
    return {"block_size": size // rank}


def _variant(rank: int, size: int) -> Options:
    if rank not in (1, 2, 4):
        raise ValueError(f"rank {rank}: it has 1, 2 and 4 (its variants road_1, road_2, road_4)")
    return {"variant": f"road_{rank}", "group_size": math.gcd(size, 64)}


def _lokr_full_at(outputs: int, inputs: int) -> int:
    """Half the larger side of the second Kronecker factor: from there on PEFT trains that factor whole."""
    larger = max(next(d for d in range(math.isqrt(n - 1) + 1, n + 1) if n % d == 0) for n in (outputs, inputs))
    return math.ceil(larger / 2)


# Where the knob is no rank, rank 8 stands for PEFT's default, and other ranks for as much more or less.
PEFT_METHODS: dict[str, PeftMethod] = {
    "lora": PeftMethod(is_lora=True),
    "dora": PeftMethod(options={"use_dora": True}, is_lora=True),
    "pissa": PeftMethod(options={"init_lora_weights": "pissa"}, is_lora=True),
    "olora": PeftMethod(options={"init_lora_weights": "olora"}, is_lora=True),
    "orthogonal": PeftMethod(options={"init_lora_weights": "orthogonal"}, is_lora=True),
    # It starts with more ranks than it keeps, 12 for 8 by default.
    "adalora": PeftMethod(lambda rank, _: {"target_r": rank, "init_r": round(1.5 * rank)}),
    "boft": PeftMethod(lambda rank, _: {"boft_block_size": rank}),
    "c3a": PeftMethod(_blocks, moves_outputs=_always),
    "delora": PeftMethod(),
    "fourierft": PeftMethod(lambda rank, _: {"n_frequency": 125 * rank}, moves_outputs=_always),
    "gralora": PeftMethod(),
    "hira": PeftMethod(),
    # An odd number of reflections can't cancel in pairs.
    "hra": PeftMethod(moves_outputs=lambda rank: rank % 2 == 1),
    # None of the targets is treated as a feed-forward layer.
    "ia3": PeftMethod(None, options={"feedforward_modules": []}),
    "ln_tuning": PeftMethod(None, trains_norms=True),
    "loha": PeftMethod(),
    "lokr": PeftMethod(full_at=_lokr_full_at),
    "miss": PeftMethod(),
    # Its rank and its block size exclude each other, and the block size has a default.
    "oft": PeftMethod(options={"oft_block_size": 0}),
    # 20 times the rank, as PEFT advises: the default belongs to rank 32.
    "randlora": PeftMethod(lambda rank, _: {"r": rank, "randlora_alpha": 20 * rank}),
    "road": PeftMethod(_variant, default_rank=1),
    "shira": PeftMethod(),
    "vblora": PeftMethod(lambda rank, size: {"r": rank, "vector_length": math.gcd(size, 256)}, moves_outputs=_always),
    "vera": PeftMethod(),
    "waveft": PeftMethod(lambda rank, _: {"n_frequency": 324 * rank}),
}
