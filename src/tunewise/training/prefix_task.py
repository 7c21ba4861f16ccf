"""`--cache-prefix`: a task whose batches bring along what the frozen prefix makes of their examples.

Each example is computed once, at its own length and without padding, in batches of examples of equal length; a batch
is padded with zeros, which attention's mask hides. The states are kept in memory up to `MEMORY` bytes, else in a file
in the runs' cache folder, which later comparisons and other processes find there. The file is believed as far as its
checksum in the index beside it agrees; one that is cut short or changed is dropped and computed again.

Exactness: batches that the uncached run would have given the prefix in the same shape (batch size 1) give the same
losses and weights bit for bit. In other batches a matrix product may sum in another order: states differ by the
rounding of fp32, 1e-6 of their size, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewise.errors import SpecError
from tunewise.models.load import model_digest
from tunewise.spec import RunSpec, content_hash
from tunewise.store import leases
from tunewise.store.environment import environment
from tunewise.store.files import sha256, write_atomically
from tunewise.tasks.build import KINDS
from tunewise.tasks.contract import Encoded, Generating, Task
from tunewise.training.build import build_model
from tunewise.training.prefix import (
    STATES,
    Prefix,
    install_prefix,
    is_random,
    prefix_depth,
    prefix_states,
    trace_prefix,
)

MEMORY = 2**30
"""Bytes of states that are kept in memory; more go into a file."""
INDEX = "prefix_index"
PARTS = ("train", "validation", "test")


class States:
    """The states of all examples, one after another: (rows, tokens, hidden) each."""

    def __init__(self, flat: Tensor, shapes: Sequence[tuple[int, int]], width: int) -> None:
        self.flat = flat
        self.shapes = shapes
        self.width = width
        self.starts = [0]
        for rows, tokens in shapes:
            self.starts.append(self.starts[-1] + rows * tokens * width)

    def of(self, index: int) -> Tensor:
        """One example's (rows, tokens, hidden)."""
        rows, tokens = self.shapes[index]
        return self.flat[self.starts[index] : self.starts[index + 1]].view(rows, tokens, self.width)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Those of several examples, padded with zeros to the longest."""
        longest = max(self.shapes[i][1] for i in indices)
        return torch.cat([F.pad(self.of(i), (0, 0, 0, longest - self.shapes[i][1])) for i in indices])


class PrefixedTask:
    """A task with cached states in its batches, and models that go on from them; all else is the task's own."""

    def __init__(self, task: Task, prefix: Prefix, states: States) -> None:
        self._task = task
        self._prefix = prefix
        self._states = states
        start = 0
        for part in PARTS:
            split = getattr(task, part)
            setattr(self, part, [{**example, INDEX: start + i} for i, example in enumerate(split)])
            start += len(split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        batch = self._task.collate([{k: v for k, v in example.items() if k != INDEX} for example in examples])
        return {**batch, STATES: self._states.batch([example[INDEX] for example in examples])}

    def load_model(self, seed: int) -> nn.Module:
        base = self._task.load_model(seed)
        install_prefix(base, self._prefix)
        return base


class Prefixes:
    """The prefixes of a comparison's methods on one task: each depth computed once, when a run first needs it. `check`
    is called between batches and may raise to stop."""

    def __init__(
        self, task: Task, folder: Path, *, memory: int = MEMORY, check: Callable[[], None] = lambda: None
    ) -> None:
        self.task = task
        self.folder = folder
        self.memory = memory
        self.check = check
        self._made: dict[int, Task] = {}
        self._found: dict[tuple[int, bool], Prefix] = {}
        self._depths: dict[str, int] = {}

    def depth(self, spec: RunSpec) -> int:
        """How many blocks lie below what the run trains. Raises `SpecError` for a linearised run."""
        if spec.training.linearised:
            raise SpecError("a linearised run has no prefix that could be cached; leave out cache_prefix")
        key = spec.method.model_dump_json(exclude={"learning_rate", "title"})
        if key not in self._depths:
            # LoRA-One has LoRA's factors, and where they are is all that matters here.
            method = spec.method.model_copy(update={"name": "lora"}) if spec.method.name == "lora-one" else spec.method
            self._depths[key] = prefix_depth(build_model(spec.model_copy(update={"method": method}), self.task))
        return self._depths[key]

    def task_for(self, spec: RunSpec) -> Task:
        """The task as the run is to see it; the plain one where nothing lies below what it trains.

        Raises `SpecError` where the prefix is random in training (dropout), or padding comes first, and `ModelError`
        where the blocks hand on more than their states.
        """
        prefix = self.found(spec)
        if prefix is None:
            return self.task
        if prefix.depth not in self._made:
            self._made[prefix.depth] = self._make(spec, prefix)
        return self._made[prefix.depth]

    def words(self, spec: RunSpec) -> list[str]:
        """For the record: what was not computed anew at each step."""
        depth = self.depth(spec)
        return [f"states below block {depth} cached"] if depth else []

    def found(self, spec: RunSpec) -> Prefix | None:
        """The prefix of a run; None where nothing lies below what it trains. Raises as `task_for`."""
        depth = self.depth(spec)
        if depth == 0:
            return None
        dropout = spec.training.prefix_dropout
        if (depth, dropout) not in self._found:
            self._found[depth, dropout] = self._trace(depth, dropout)
        return self._found[depth, dropout]

    def _trace(self, depth: int, dropout: bool) -> Prefix:
        if getattr(getattr(self.task, "tokenizer", None), "padding_side", "right") == "left":
            raise SpecError("the tokenizer pads on the left, so positions depend on the batch; leave out cache_prefix")
        if isinstance(self.task, Generating):
            raise SpecError("completions are generated by the whole model, token by token; leave out cache_prefix")
        base = self.task.load_model(0)
        inputs = self.task.collate(self.task.train[:1])
        inputs.pop("labels")
        if dropout and is_random(base, depth, inputs):
            raise SpecError(
                f"blocks 0 to {depth - 1} of the model have dropout, so what they make of an example changes from step "
                "to step and can't be cached; add --no-prefix-dropout (runs of their own), or leave out --cache-prefix"
            )
        return trace_prefix(base, depth, inputs)

    def _make(self, spec: RunSpec, prefix: Prefix) -> Task:
        base = self.task.load_model(0)
        base.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        states = self._kept(spec, prefix, base)
        return cast(Task, PrefixedTask(self.task, prefix, states))

    def _kept(self, spec: RunSpec, prefix: Prefix, base: nn.Module) -> States:
        """The states out of the file, or made now: in memory where they fit, else into the file."""
        digest = spec.model.digest or model_digest(spec.model)
        file = self.folder / f"prefix-{digest[:16]}-{self._key(spec, prefix, digest)}.f32"
        index = file.with_suffix(".json")
        examples = [example for part in PARTS for example in getattr(self.task, part)]
        width, sizes = self._size(examples, base)
        count = sum(rows * tokens for rows, tokens in sizes) * width

        def fill(flat: Tensor) -> States:
            states = States(flat, sizes, width)
            for i, one in self._computed(examples, prefix.depth, spec.training.batch_size, base):
                states.of(i).copy_(one)
            return states

        if not _is_whole(file, index, 4 * count):
            in_memory = 4 * count <= self.memory
            if in_memory and not index.exists():
                return fill(torch.empty(count))
            with _lease(file.with_suffix(".lease"), self.check):
                if not _is_whole(file, index, 4 * count):
                    index.unlink(missing_ok=True)
                    file.unlink(missing_ok=True)  # not emptied: another process may have it mapped
                    if in_memory:
                        return fill(torch.empty(count))
                    with file.open("wb") as room:
                        os.posix_fallocate(room.fileno(), 0, 4 * count)  # a full disk is an error here, no crash later
                    fill(torch.from_file(str(file), shared=True, size=count))
                    content = {"width": width, "shapes": sizes, "bytes": 4 * count, "sha256": sha256(file)}
                    write_atomically(index, json.dumps(content))
        return States(torch.from_file(str(file), shared=False, size=count), sizes, width)

    def _key(self, spec: RunSpec, prefix: Prefix, digest: str) -> str:
        known = environment()
        data = spec.data.model_copy(update={"digest": spec.data.digest or KINDS[spec.task].digest(spec.data)})
        what = {
            "task": spec.task,
            "model": digest,
            "data": data.content(spec.task),
            "max_length": spec.training.max_length,
            "batch_size": spec.training.batch_size,
            "prefix": prefix.dump(),
            "where": [known.device.split(",")[0], known.versions],
        }
        return content_hash(what)

    def _size(self, examples: Sequence[Encoded], base: nn.Module) -> tuple[int, list[tuple[int, int]]]:
        """Hidden size, and of each example (rows, tokens): from one example of each shape."""
        shapes = [self._shape(example) for example in examples]
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        width = 0
        for shape, example in dict(zip(shapes, examples)).items():
            states = self._states(base, 1, [example])  # every block has one shape, and the first is the cheapest
            sizes[shape] = (states.shape[0], states.shape[1])
            width = states.shape[2]
        return width, [sizes[shape] for shape in shapes]

    def _shape(self, example: Encoded) -> tuple[int, int]:
        """(texts, tokens): examples of one shape need no padding between them. A question has several texts."""
        ids = example.get("input_ids")
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return len(ids), max(map(len, ids))
        return 1, self.task.length(example)

    def _computed(
        self, examples: Sequence[Encoded], depth: int, size: int, base: nn.Module
    ) -> Iterator[tuple[int, Tensor]]:
        """(number of the example, its states), in batches of one shape and at most `size` examples."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, example in enumerate(examples):
            alike[self._shape(example)].append(i)
        for numbers in alike.values():
            for start in range(0, len(numbers), size):
                self.check()
                batch = numbers[start : start + size]
                states = self._states(base, depth, [examples[i] for i in batch]).cpu()
                yield from zip(batch, states.chunk(len(batch)), strict=True)

    def _states(self, base: nn.Module, depth: int, examples: Sequence[Encoded]) -> Tensor:
        batch = self.task.collate(examples)
        device = next(base.parameters()).device
        inputs: Mapping[str, Tensor] = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        return prefix_states(base, depth, inputs)


def _is_whole(file: Path, index: Path, size: int) -> bool:
    """Whether there is a file of so many bytes, with the checksum that its index has."""
    try:
        found = file.stat()
        content = json.loads(index.read_bytes())
        if (found.st_size, content["bytes"]) != (size, size):
            return False
        return bool(content["sha256"] == _digest(file, found.st_ino, found.st_mtime_ns, size))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return False


@functools.cache
def _digest(file: Path, inode: int, changed: int, size: int) -> str:
    """Of a file's content; of gigabytes it takes seconds, so a process reads a file through once, as long as it is the
    same one and nobody has written to it."""
    return sha256(file)


@contextlib.contextmanager
def _lease(file: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lease, waiting for as long as another process computes the same."""
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(leases.taken(file))
                break
            except leases.LeaseHeld:
                check()
                time.sleep(0.2)
        yield
