"""One frozen backbone under several runs: their batches go through it as one, each past its own adapters and head."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tunewise.methods.attachment import attachment
from tunewise.packing.linear import PackedLinear
from tunewise.packing.passes import CALLS, PASS, passes
from tunewise.packing.randomness import ATTENTION, Layout, PackedDropout
from tunewise.packing.stacks import Factors, NotPackable, Stack, stack_up
from tunewise.packing.streams import Stream, global_generators, states
from tunewise.training.prefix import prefix_depth, still

TOLERANCE = 1e-4
"""Between packed and single logits, relative to the largest: a model above it mixes examples, and is not packed."""

Batch = Mapping[str, Tensor]


class Member:
    """One run's model: its adapters and head; its frozen tensors are the carrier's."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.base: nn.Module = model.get_base_model()
        done = attachment(model)
        self.head = done.head
        self.factors = {t.name: Factors(self.base.get_submodule(t.name), done.adapter_name) for t in done.targets}
        self.kind = (*next(iter(self.factors.values())).kind, done.method.chain is not None)
        self.head_parameters = [
            p for name in done.head for p in self.base.get_submodule(name).parameters() if p.requires_grad
        ]

    @property
    def links(self) -> int:
        return next(iter(self.factors.values())).links


@dataclass(frozen=True)
class Answer:
    """A run's loss at its batch, and the gradients of `parameters`."""

    loss: Tensor
    parameters: list[nn.Parameter]
    gradients: list[Tensor]


class Carrier:
    """The backbone, ready to carry `members`, which may change from step to step."""

    def __init__(
        self,
        base: Any,
        task: str,
        *,
        prefix_dropout: bool = True,
        most: int | None = None,
        generators: Callable[[], Sequence[Generator]] = global_generators,
    ) -> None:
        """`prefix_dropout`: whether there is dropout below the members' first trained block. `most`: tokens that go
        through the backbone at once, a run's batch at least; `PASS` on a CPU and no limit elsewhere unless given.
        `generators`: those that a model might draw from."""
        self.base = base
        self.task = task
        self.layout = Layout()
        self.members: list[Member] = []
        self._prefix_dropout = prefix_dropout
        self._most = most
        self._generators = generators
        self._taken: list[Member] = []
        self._links: list[int] = []
        self._stacks: dict[str, list[Stack]] = {}
        self._linears: dict[str, PackedLinear] = {}
        self._checked = False
        base.requires_grad_(False)
        base.train()

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    def share(self, model: nn.Module) -> None:
        """Let the frozen tensors of a run's model be this backbone's own. Raises `NotPackable` where one of them has
        other values here: a part that the checkpoint lacks is drawn anew for each seed."""
        own = dict(self.base.named_parameters())
        for name, parameter in model.named_parameters():
            key = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            if parameter.requires_grad or key not in own:
                continue
            if own[key].shape != parameter.shape or not torch.equal(own[key].to(parameter.device), parameter):
                raise NotPackable(f"{key} is not the same in all runs: it is drawn anew for each seed")
            parameter.data = own[key].data

    def step(self, members: Sequence[Member], batches: Sequence[Batch], streams: Sequence[Stream]) -> list[Answer]:
        """Each member's loss at its own batch and the gradients of what it trains, from a forward and a backward pass
        for as many runs at a time as `passes` says. Raises `NotPackable` for a model that mixes examples or draws
        random numbers by other means than dropout.
        """
        order = sorted(range(len(members)), key=lambda i: repr(members[i].kind))
        self._seat([members[i] for i in order])
        on_cpu = self.device.type == "cpu"
        most = self._most or (PASS if on_cpu else sys.maxsize)
        answers: dict[int, Answer] = {}
        for places in passes([self._tokens(batches[i]) for i in order], most, CALLS if on_cpu else sys.maxsize):
            now = [order[place] for place in places]
            self._take(places)
            self.layout.streams = [streams[i] for i in now]
            answers.update(zip(now, self._pass([batches[i] for i in now]), strict=True))
        self._checked = True
        return [answers[i] for i in range(len(members))]

    def _pass(self, batches: Sequence[Batch]) -> list[Answer]:
        """The answers of the runs that have been taken."""
        together = self._together(batches)
        before = None
        if not self._checked:
            self._check(together)
            before = states(self._generators())
        with torch.enable_grad():
            losses = self._losses(self.base(**together).logits, [batch["labels"] for batch in batches])
        if before is not None and not all(map(torch.equal, before, states(self._generators()))):
            raise NotPackable("the model draws random numbers by other means than dropout layers")
        leaves = [leaf for linear in self._linears.values() for stack in linear.stacks for leaf in stack.trained]
        heads = [p for member in self._taken for p in member.head_parameters]
        found = torch.autograd.grad(torch.stack(losses).sum(), [*leaves, *heads], allow_unused=True)
        return self._parted(losses, found[: len(leaves)], found[len(leaves) :])

    # --- members ---------------------------------------------------------------------------------------------

    def _seat(self, members: list[Member]) -> None:
        """Stack the members' factors, where they are not as they were: others, or in another link of a chain."""
        links = [member.links for member in members]
        if members == self.members and links == self._links:
            return
        if not self._linears:
            self._furnish(members[0])
        self._stacks = {name: stack_up([member.factors[name] for member in members]) for name in self._linears}
        self.members, self._links = members, links

    def _take(self, places: Sequence[int]) -> None:
        """Let the members at these places have the backbone."""
        self._taken = [self.members[place] for place in places]
        for name, linear in self._linears.items():
            linear.stacks = [part for stack in self._stacks[name] if (part := stack.of(places)) is not None]
            linear.runs = len(places)
        for head in self._taken[0].head:
            self.base.get_submodule(head).members = [member.base.get_submodule(head) for member in self._taken]

    def _tokens(self, batch: Batch) -> tuple[int, int]:
        """A batch's (examples, tokens an example); of images, as many as the first adapted layer saw of the last."""
        rows = len(batch["labels"])
        if "input_ids" in batch:
            return batch["input_ids"].shape[:-1].numel(), batch["input_ids"].shape[-1]
        return rows, next(iter(self._linears.values())).tokens // max(1, self.layout.rows)

    def _furnish(self, first: Member) -> None:
        """Put packed layers, heads, dropout and attention in the places of the model's own."""
        for name in first.factors:
            self._linears[name] = PackedLinear(self.base.get_submodule(name))
            self.base.set_submodule(name, self._linears[name])
        for name in first.head:
            self.base.set_submodule(name, PackedHead(self.layout))
        for name, module in list(self.base.named_modules()):
            module.__dict__["packed_layout"] = self.layout
            if type(module) is nn.Dropout:
                self.base.set_submodule(name, PackedDropout(module.p, self.layout).train(module.training))
        if self.base.config._attn_implementation == "sdpa":
            self.base.config._attn_implementation = ATTENTION
        if not self._prefix_dropout:
            still(self.base, prefix_depth(first.model))

    # --- a batch ---------------------------------------------------------------------------------------------

    def _together(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The inputs one run after another; shorter texts are padded behind, missing examples are repeated."""
        layout = self.layout
        layout.own_rows = [len(batch["labels"]) for batch in batches]
        layout.rows = max(layout.own_rows)
        texts = "input_ids" in batches[0]
        layout.own_lengths = [batch["input_ids"].shape[-1] if texts else None for batch in batches]
        layout.length = max(batch["input_ids"].shape[-1] for batch in batches) if texts else None
        together = {}
        for key in batches[0]:
            if key == "labels":
                continue
            filler = getattr(self.base.config, "pad_token_id", None) or 0 if key == "input_ids" else 0
            pieces = []
            for batch, length in zip(batches, layout.own_lengths, strict=True):
                piece = batch[key]
                if length is not None and piece.shape[-1] == length:
                    assert layout.length is not None
                    piece = F.pad(piece, (0, layout.length - length), value=filler)
                missing = layout.rows - len(piece)
                pieces.append(torch.cat([piece, piece[-1:].expand(missing, *piece.shape[1:])]) if missing else piece)
            together[key] = torch.cat(pieces)
        return together

    def _losses(self, logits: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        """Each run's training loss, as the model would compute it of that run's batch alone."""
        losses = []
        for k, piece in enumerate(logits.chunk(len(labels))):
            own = self.layout.own(k, piece, (1,) if self.task in ("causal", "generation") else ())
            if self.task in ("causal", "generation"):
                losses.append(self.base.loss_function(own, labels[k], vocab_size=own.shape[-1]))
            elif self.task == "regression":
                losses.append(F.mse_loss(own.squeeze(), labels[k].squeeze().to(own.dtype)))
            else:
                losses.append(F.cross_entropy(own.view(-1, own.shape[-1]), labels[k].view(-1)))
        return losses

    def _parted(
        self, losses: Sequence[Tensor], stacked: Sequence[Tensor | None], heads: Sequence[Tensor | None]
    ) -> list[Answer]:
        """The stacks' gradients as the runs' own."""
        answers = [Answer(loss.detach(), [], []) for loss in losses]
        gradients = iter(stacked)
        for name, linear in self._linears.items():
            for stack in linear.stacks:
                for leaf in stack.trained:
                    gradient = next(gradients)
                    for k in range(stack.start, stack.stop if gradient is not None else stack.start):
                        factors = self._taken[k].factors[name]
                        answers[k].parameters.append(factors.a if leaf is stack.a else factors.b)
                        assert gradient is not None
                        answers[k].gradients.append(gradient[k - stack.start])
        rest = iter(heads)
        for member, answer in zip(self._taken, answers, strict=True):
            for parameter in member.head_parameters:
                gradient = next(rest)
                if gradient is not None:
                    answer.parameters.append(parameter)
                    answer.gradients.append(gradient)
        return answers

    @torch.no_grad()
    def _check(self, together: Mapping[str, Tensor]) -> None:
        """The packed model against each run's own, without dropout, on the first batch."""
        training = [member.model.training for member in self._taken]
        for member in self._taken:
            member.model.eval()
        self.base.eval()
        runs = len(self._taken)
        logits = self.base(**together).logits.chunk(runs)
        for k, member in enumerate(self._taken):
            inputs = {key: self.layout.own(k, value.chunk(runs)[k]) for key, value in together.items()}
            alone, packed = member.model(**inputs).logits, self.layout.own(k, logits[k])
            off = float((packed - alone).abs().max())
            if not off <= TOLERANCE * max(1.0, float(alone.abs().max())):
                raise NotPackable(f"the model's outputs in a pack differ by {off:.2g} from those of a run by itself")
        for member, mode in zip(self._taken, training, strict=True):
            member.model.train(mode)
        self.base.train()


class PackedHead(nn.Module):
    """Each run's own head on its own part of the batch, with its own random numbers."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.members: list[nn.Module] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "members":  # the heads are their models' own, and none of this one's parts
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        outputs = []
        for k, part in self.layout.parts(x):
            with self.layout.streams[k].drawing():
                outputs.append(self.members[k](part, *args, **kwargs))
        like = (x.shape[0], *outputs[0].shape[1:])
        return self.layout.whole(outputs, like)
