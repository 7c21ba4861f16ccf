"""The repeated blocks of a model, by number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tunewise.errors import ModelError

Layers = str | Sequence[int]
"""Numbers of blocks from 0, as PEFT's `layers_to_transform`, or 'last 2'."""

_LAST = re.compile(r"last ([1-9]\d*)")


@dataclass(frozen=True)
class Blocks:
    """The model's list of blocks: its name within the model, and how many there are."""

    name: str
    count: int

    def number_of(self, module: str) -> int | None:
        """The number of the block that contains a module or parameter, by its name; None outside of the blocks."""
        if not module.startswith(self.name + "."):
            return None
        return int(module[len(self.name) + 1 :].partition(".")[0])

    def chosen(self, layers: Layers) -> set[int]:
        """The numbers that `layers` names. Raises `ModelError` for a block that doesn't exist."""
        if isinstance(layers, str):
            last = _LAST.fullmatch(layers.strip())
            if last is None:
                raise ModelError(f"layers {layers!r}: give 'last 2', or numbers of blocks from 0")
            wanted = range(self.count - int(last[1]), self.count)
        else:
            wanted = layers  # type: ignore[assignment]
        absent = [number for number in wanted if not 0 <= number < self.count]
        if absent or not wanted:
            raise ModelError(f"layers {layers!r}: the blocks of this model are numbered 0 to {self.count - 1}")
        return set(wanted)


def find_blocks(model: nn.Module) -> Blocks | None:
    """The outermost list of modules with the most parameters (the encoder's or decoder's blocks); None where the model
    has no such list. `model` is the transformers model itself, not PEFT's wrapper."""
    lists: list[tuple[int, str, int]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for _, outer, _ in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            lists.append((sum(p.numel() for p in module.parameters()), name, len(module)))
    if not lists:
        return None
    _, name, count = max(lists, key=lambda entry: entry[0])
    return Blocks(name, count)
