"""Columns of an input, taken once for all layers that read the same input (query, key and value)."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


def run_of(columns: Tensor) -> tuple[int, int] | None:
    """(start, stop) where the columns are one contiguous run, else None."""
    start = int(columns[0])
    stop = start + len(columns)
    return (start, stop) if columns.tolist() == list(range(start, stop)) else None


def take_columns(x: Tensor, columns: Tensor, run: tuple[int, int] | None = None) -> Tensor:
    """A copy of x[..., columns] as rows, (N, r): a view would keep all of x alive until the backward."""
    # Two dimensions, because a CPU selects columns of three 2.5 times as slowly.
    rows = x.reshape(-1, x.shape[-1])
    if run is not None:
        return torch.narrow_copy(rows, 1, run[0], run[1] - run[0])
    return rows.index_select(1, columns)


class ColumnSelection:
    """The columns that an adapter reads: int64 (P r,), part after part, on the layer's device."""

    columns: Tensor
    run: tuple[int, int] | None
    """[start, stop) where the columns are one run."""

    def __init__(self) -> None:
        self.group = InputGroup([self])

    def select(self, columns: Tensor, device: torch.device) -> None:
        self.run = None if columns.is_meta else run_of(columns)
        self.columns = columns.clone() if device.type == "meta" else columns.to(device)
        self.group.forget()

    def move_to(self, device: torch.device) -> None:
        self.columns = self.columns.to(device)
        self.group.forget()

    def gather(self, x: Tensor) -> Tensor:
        """x[..., columns] as (N, P r) rows: contiguous, or a view of the group's one copy."""
        return self.group.gather(self, x)


class InputGroup:
    """Selections of sibling layers: the first member that sees an input takes the columns of all members."""

    def __init__(self, members: list[ColumnSelection]) -> None:
        self.members = members
        self.forget()

    def forget(self) -> None:
        """Drop the cached plan and copy: columns have changed."""
        self._plan: tuple[Tensor, tuple[int, int] | None, dict[int, tuple[int, int]]] | None = None
        self._seen: weakref.ref[Tensor] | None = None
        self._version = 0
        self._taken: Tensor | None = None
        self._waiting: set[int] = set()

    def __getstate__(self) -> dict[str, object]:
        return {"members": self.members}

    def __setstate__(self, state: dict[str, list[ColumnSelection]]) -> None:
        self.members = state["members"]
        self.forget()

    def gather(self, member: ColumnSelection, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return take_columns(x, member.columns)
        if self._plan is None:
            self._plan = self._make_plan()
        columns, run, places = self._plan
        if len(places) == 1 or x.is_inference():  # torch does not count changes of inference tensors
            return take_columns(x, member.columns, member.run)
        me, seen = id(member), self._seen
        taken = self._taken
        if taken is None or seen is None or seen() is not x or self._version != x._version or me not in self._waiting:
            if me in self._waiting and self._split(x):
                return member.group.gather(member, x)
            taken = self._taken = take_columns(x, columns, run)
            self._seen, self._version = weakref.ref(x), x._version
            self._waiting = set(places)
        self._waiting.discard(me)
        if not self._waiting:  # every member has its columns: only the backward keeps the copy
            self._taken = self._seen = None
        start, stop = places[me]
        return taken if stop - start == taken.shape[1] else taken[:, start:stop]

    def _split(self, x: Tensor) -> bool:
        """Split off the waiting members where they read another input (keys and values of cross-attention)."""
        late = [m for m in self.members if id(m) in self._waiting]
        if len(late) == len(self.members) or (self._seen is not None and self._seen() is x):
            return False
        for members in ([m for m in self.members if id(m) not in self._waiting], late):
            group = InputGroup(members)
            for m in members:
                m.group = group
        return True

    def _make_plan(self) -> tuple[Tensor, tuple[int, int] | None, dict[int, tuple[int, int]]]:
        """The columns to take, as a run where they are one, and each member's place among them."""
        first = self.members[0].columns
        if all(torch.equal(m.columns, first) for m in self.members):
            return first, run_of(first), {id(m): (0, len(first)) for m in self.members}
        places, done = {}, 0
        for m in self.members:
            places[id(m)] = (done, done + len(m.columns))
            done += len(m.columns)
        columns = torch.cat([m.columns for m in self.members])
        return columns, run_of(columns), places
