"""A pack goes through the backbone a few runs at a time; what comes of it is the same."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tunewise.packing.carrier import Answer, Carrier, Member
from tunewise.packing.passes import passes
from tunewise.packing.stacks import NotPackable
from tunewise.packing.streams import Stream
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.tasks.build import build_task
from tunewise.training.build import build_model


def test_as_many_runs_as_fit() -> None:
    assert passes([(4, 8)] * 5, 1000, 48) == [[0, 1, 2, 3, 4]]
    assert sorted(map(len, passes([(4, 8)] * 5, 64, 48))) == [1, 2, 2]
    assert passes([(4, 8)] * 3, 10, 48) == [[0], [1], [2]]  # a run can't be parted
    assert passes([], 10, 48) == []


def test_runs_of_like_lengths_go_together_where_padding_costs_more_than_a_pass() -> None:
    sizes = [(8, 10), (8, 40), (8, 12), (8, 39)]
    assert passes(sizes, 10**6, 48) == [[0, 2], [1, 3]]  # 2 x 96 + 2 x 320 + 2 x 48 < 4 x 320 + 48
    assert passes(sizes, 10**6, 10**6) == [[0, 1, 2, 3]]
    assert passes([(8, 10), (8, 12)], 10**6, 10) == [[0], [1]]  # 16 tokens of padding against 10
    assert passes([(8, 10), (1, 10)], 10**6, 48) == [[1], [0]]  # seven examples repeated in vain


@pytest.mark.parametrize("seed", range(3))
def test_no_other_split_of_the_sorted_runs_costs_less(seed: int) -> None:
    draw = random.Random(seed)
    sizes = sorted(((draw.randint(1, 4), draw.randint(1, 30)) for _ in range(6)), key=lambda size: size[::-1])

    def cost(cuts: tuple[bool, ...]) -> float:
        groups = [[sizes[0]]]
        for size, cut in zip(sizes[1:], cuts, strict=True):
            groups.append([size]) if cut else groups[-1].append(size)
        tokens = [len(group) * max(r for r, _ in group) * max(n for _, n in group) for group in groups]
        fits = all(t <= 150 or len(group) == 1 for t, group in zip(tokens, groups, strict=True))
        return sum(tokens) + 20 * len(groups) if fits else math.inf

    found = passes(sizes, 150, 20)
    starts = {group[0] for group in found}
    assert cost(tuple(k in starts for k in range(1, 6))) == min(map(cost, itertools.product((False, True), repeat=5)))


class Pack:
    """Five runs of four kinds, cola in its second link, and what a step of them gives."""

    def __init__(self, model: Path, data: Path, **options: object) -> None:
        specs = [
            RunSpec(
                model=ModelSpec(path=str(model), digest="m"),
                data=DataSpec(path=str(data), digest="d"),
                method=MethodSpec(name=name, rank=rank, **({"links": 2} if name == "cola" else {})),
                training=TrainingSpec(epochs=2, batch_size=8, max_length=16),
                seed=seed,
            )
            for seed, (name, rank) in enumerate([("lora", 2), ("cla", 2), ("paca", 2), ("lora", 2), ("asym", 3)])
        ]
        self.task = build_task(specs[0])
        self.carrier = Carrier(self.task.load_model(0), "text", **options)
        self.members = []
        for spec in specs:
            built = build_model(spec, self.task, fold="never").train()
            draw = torch.Generator().manual_seed(spec.seed)
            for parameter in built.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
            self.carrier.share(built)
            self.members.append(Member(built))
        self.streams = [Stream() for _ in specs]

    def step(self) -> list[Answer]:
        batches = [self.task.collate(self.task.train[8 * k : 8 * k + 8 - k]) for k in range(len(self.members))]
        for k, stream in enumerate(self.streams):
            stream.cpu.manual_seed(k)
        return self.carrier.step(self.members, batches, self.streams)


def test_in_passes_the_losses_and_gradients_are_those_of_one(tiny_model: Path, toy_csv: Path) -> None:
    """Dropout on, to 1e-6 of fp32; 16 tokens hold no two runs, 200 hold two or three, not always neighbours."""
    whole = Pack(tiny_model, toy_csv, most=10**6)
    expected = whole.step()
    for most in (16, 200):
        parted = Pack(tiny_model, toy_csv, most=most)
        for _ in range(2):  # the first step is the checked one
            found = parted.step()
        for one, two, a, b in zip(expected, found, whole.members, parted.members, strict=True):
            torch.testing.assert_close(two.loss, one.loss, rtol=1e-6, atol=1e-6)
            places = [{id(p): name for name, p in m.model.named_parameters()} for m in (a, b)]
            grads = [
                {names[id(p)]: g for p, g in zip(answer.parameters, answer.gradients, strict=True)}
                for names, answer in zip(places, (one, two), strict=True)
            ]
            assert grads[0].keys() == grads[1].keys()
            assert {n for n, p in b.model.named_parameters() if p.requires_grad} == grads[1].keys()
            for name, gradient in grads[0].items():
                assert grads[1][name].is_contiguous()  # torch's fused AdamW takes it for granted
                torch.testing.assert_close(grads[1][name], gradient, rtol=1e-5, atol=1e-6)


class Noisy(nn.Module):
    """A layer that draws from a generator of its own device."""

    def __init__(self, layer: nn.Module, draw: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            torch.rand(1, generator=self.draw)
        return self.layer(x)


def test_numbers_drawn_from_any_generator_in_use_are_noticed(tiny_model: Path, toy_csv: Path) -> None:
    """As of a GPU, whose generator is another than the CPU's."""
    device = torch.Generator()
    pack = Pack(tiny_model, toy_csv, generators=lambda: [torch.default_generator, device])
    name = "bert.encoder.layer.0.intermediate.dense"
    pack.carrier.base.set_submodule(name, Noisy(pack.carrier.base.get_submodule(name), device))
    with pytest.raises(NotPackable, match="by other means than dropout"):
        pack.step()


def test_a_stream_takes_and_puts_back_every_generator() -> None:
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    stream = Stream([one, two])
    expected = [torch.rand(3, generator=g) for g in (one, two)]
    after = [g.get_state() for g in (one, two)]
    with stream.drawing():
        for generator, numbers in zip((one, two), expected, strict=True):
            assert torch.equal(torch.rand(3, generator=generator), numbers)
    assert all(torch.equal(g.get_state(), state) for g, state in zip((one, two), after, strict=True))
    stream.put()  # after the three numbers that were drawn from it
    assert all(torch.equal(g.get_state(), state) for g, state in zip((one, two), after, strict=True))
    assert torch.equal(torch.rand(2, generator=stream.cpu), torch.rand(2, generator=one))
