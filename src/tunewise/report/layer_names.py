"""Names of layers as short as they can be and still be told apart."""

from __future__ import annotations

from collections.abc import Sequence


def short_layers(names: Sequence[str]) -> list[str]:
    """Each name without the parts that all of them share: `encoder.layer.3.attention.self.query` among its like is
    `3.query`. One name alone keeps its last part."""
    split = [name.split(".") for name in names]
    if len(split) < 2:
        return [parts[-1] for parts in split]
    if len({len(parts) for parts in split}) == 1:
        kept = [i for i in range(len(split[0])) if len({parts[i] for parts in split}) > 1]
        return [".".join(parts[i] for i in kept) or parts[-1] for parts in split]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    return [".".join(parts[shared:]) for parts in split]
