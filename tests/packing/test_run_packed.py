"""Runs over one backbone: each is what it would have been alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from tiny import save_tiny_model
from tunewise.packing.carrier import Carrier, Member
from tunewise.packing.compatible import packs
from tunewise.packing.lockstep import in_lockstep
from tunewise.packing.run_packed import run_packed
from tunewise.packing.streams import Stream
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task
from tunewise.training.build import build_model
from tunewise.training.events import Event, Interrupted, Listener, Phase, StepDone
from tunewise.training.journal import read_history


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 texts of 4 to 10 tokens: batches of different runs are of different lengths, and the last is a short one."""
    filler = ["the", "old", "big", "near", "my", "a"]
    rows = [f"{' '.join([['cat', 'saw'][i % 2], *filler[: i % 7]])} w{i},{'xy'[i % 2]}" for i in range(70)]
    path = tmp_path_factory.mktemp("uneven") / "uneven.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def make_spec(model: Path, data: Path, method: str, seed: int = 0, **options: object) -> RunSpec:
    options = {"rank": 4, "learning_rate": 2e-2, **options}
    return RunSpec(
        model=ModelSpec(path=str(model), digest="m"),
        data=DataSpec(path=str(data), digest="d"),
        method=MethodSpec(name=method, **options),
        training=TrainingSpec(epochs=2, batch_size=8, max_length=16),
        seed=seed,
    )


def adapter(store: RunStore, spec: RunSpec) -> dict[str, torch.Tensor]:
    return load_file(store.folder(spec.id) / "adapter" / "adapter_model.safetensors")


ALONE = {
    "lora": ("lora", 0, {}),
    "lora, another seed, rate and rank": ("lora+", 1, {"learning_rate": 3e-3, "rank": 2}),
    "asym": ("asym", 2, {"alpha": 3.0}),
    "cla": ("cla", 0, {}),
    "paca": ("paca", 3, {"rank": 3}),
    "c3la": ("c3la", 0, {"links": 3}),
    "cola": ("cola", 1, {"links": 2}),
}


@pytest.fixture(scope="module")
def packed(tiny_model: Path, uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """All of `ALONE` in one pack, and one more that diverges on the way."""
    specs = [make_spec(tiny_model, uneven, name, seed, **options) for name, seed, options in ALONE.values()]
    store = RunStore(tmp_path_factory.mktemp("packed"))
    records = run_packed([*specs, make_spec(tiny_model, uneven, "cla", learning_rate=1e30)], store)
    assert [r.spec for r in records[:-1]] == specs
    return store


SLOW = ("lora", "asym", "cola")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ALONE])
def test_a_packed_run_is_the_run_by_itself(
    name: str, packed: RunStore, tiny_model: Path, uneven: Path, tmp_path: Path
) -> None:
    """Weights to 1e-5 after two epochs of AdamW, dropout on: same masks, same order of data, same schedule, same
    epoch; texts padded to the longest of all runs."""
    method, seed, options = ALONE[name]
    spec = make_spec(tiny_model, uneven, method, seed, **options)
    alone = RunStore(tmp_path)
    single, together = run(spec, alone), packed.record(spec.id)
    assert together.status == "done"
    assert together.computed == ["packed with 7 other runs"]
    assert single.computed == []
    weights, found = adapter(alone, spec), adapter(packed, spec)
    assert weights.keys() == found.keys()
    assert max(float(t.abs().max()) for n, t in weights.items() if "lora_B" in n) > 0.01  # it has learnt something
    for key, tensor in weights.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
    assert together.results.selected_epoch == single.results.selected_epoch
    assert together.results.test.loss == pytest.approx(single.results.test.loss, abs=1e-6)
    histories = [read_history(store.folder(spec.id) / "history.jsonl") for store in (alone, packed)]
    for one, two in zip(*histories, strict=True):
        assert one["kind"] == two["kind"]
        assert one.get("learning_rate") == two.get("learning_rate")
        if one["kind"] == "step":
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)


def test_a_run_that_diverges_leaves_the_others_alone(packed: RunStore, tiny_model: Path, uneven: Path) -> None:
    record = packed.record(make_spec(tiny_model, uneven, "cla", learning_rate=1e30).id)
    assert record.status == "diverged"


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.count += str(func).split(".")[1] in ("mm", "addmm", "bmm", "baddbmm", "baddbmm_", "addmm_")
        return func(*args, **(kwargs or {}))


def test_products_do_not_grow_with_runs_and_there_is_one_backbone(tiny_model: Path, uneven: Path) -> None:
    spec = make_spec(tiny_model, uneven, "lora")
    task = build_task(spec)
    counts, bytes_ = [], []
    for runs in (2, 6):
        carrier = Carrier(task.load_model(0), "text")
        members = []
        for seed in range(runs):
            model = build_model(spec.model_copy(update={"seed": seed}), task, fold="never").train()
            carrier.share(model)
            members.append(Member(model))
        batches = [task.collate(task.train[8 * k : 8 * k + 8]) for k in range(runs)]
        streams = [Stream() for _ in members]
        carrier.step(members, batches, streams)
        with Products() as products:
            carrier.step(members, batches, streams)
        counts.append(products.count)
        everything = [p for one in (carrier.base, *(m.model for m in members)) for p in one.parameters()]
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in everything}
        bytes_.append(sum(storages.values()))
        own = sum(p.numel() for p in members[0].model.parameters() if p.requires_grad)
    classifier = 2 * 4  # products of a run's own head, forward and backward, and of its attention under dropout
    attention = 2 * 6
    assert counts[1] - counts[0] <= 4 * (classifier + attention)
    head = 32 * 2 + 2
    assert bytes_[1] - bytes_[0] == 4 * 4 * (own + head)  # PEFT keeps the untrained head beside each run's own


@pytest.mark.slow
def test_interrupted_and_gone_on_with_alone(packed: RunStore, tiny_model: Path, uneven: Path, tmp_path: Path) -> None:
    """Every run of a stopped pack has its checkpoint; how it goes on from there is its own affair."""
    specs = [make_spec(tiny_model, uneven, *ALONE[name][:2], **ALONE[name][2]) for name in ("asym", "c3la")]

    class Stops(Listener):
        def on(self, event: Event) -> None:
            if isinstance(event, StepDone) and event.run_id == specs[1].id:
                self.stop_requested = event.step == 7

    store = RunStore(tmp_path)
    with pytest.raises(Interrupted):
        run_packed(specs, store, listener=Stops())
    reached = {
        spec.id: max(path.name for path in tmp_path.glob(f"{spec.id}/checkpoints/checkpoint-*")) for spec in specs
    }
    assert reached == {specs[0].id: "checkpoint-8", specs[1].id: "checkpoint-7"}  # the first had begun its next step
    run(specs[0], store)
    run_packed(specs, store)
    for spec in specs:
        for key, tensor in adapter(packed, spec).items():
            torch.testing.assert_close(adapter(store, spec)[key], tensor, rtol=1e-5, atol=1e-5)


def test_a_backbone_with_parts_of_its_own_for_each_seed_is_not_shared(uneven: Path, tmp_path: Path) -> None:
    """A checkpoint without a pooler: transformers draws one for each seed, and frozen it stays different."""
    folder = save_tiny_model(tmp_path / "model")
    BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).save_pretrained(folder)
    said: list[str] = []

    class Hears(Listener):
        def on(self, event: Event) -> None:
            if isinstance(event, Phase):
                said.append(event.name)

    specs = [make_spec(folder, uneven, "cla", seed) for seed in (0, 1)]
    records = run_packed(specs, RunStore(tmp_path / "runs"), listener=Hears())
    assert [r.status for r in records] == ["done", "done"]
    assert [r.computed for r in records] == [[], []]
    assert any("bert.pooler.dense.weight is not the same in all runs" in line for line in said)


def test_which_runs_go_together(tiny_model: Path, uneven: Path) -> None:
    names = ["lora", "fft", "cla", "head", "peft:dora", "paca"]
    specs = [make_spec(tiny_model, uneven, name) for name in names]
    specs.append(make_spec(tiny_model, uneven, "lora", targets="attention"))
    found = packs(specs, 2)
    assert [[s.method.name for s in pack.runs] for pack in found] == [
        ["lora", "cla"],
        ["fft"],
        ["head"],
        ["peft:dora"],
        ["paca"],
        ["lora"],
    ]
    assert [pack.why for pack in found] == [
        None,
        "trains the backbone",
        "needs no backward pass through the backbone, and is cheaper by itself",
        "is PEFT's own forward",
        None,
        None,
    ]


def test_jobs_take_turns_with_their_own_random_numbers() -> None:
    """Numbers drawn by jobs that interleave are those that each draws alone; what an answer raises, every job gets."""

    def answer(questions):
        if "stop" in questions.values():
            raise ValueError("enough")
        return {seat: 10 * question for seat, question in questions.items()}

    torch.manual_seed(99)
    expected_after = torch.rand(())
    torch.manual_seed(99)
    seen: list[list[float]] = []

    def kept(seed: int):
        def work(seat):
            torch.manual_seed(seed)
            drawn = []
            for _ in range(3):
                drawn += [float(torch.rand(())), seat.ask(seed)]
            seen.append(drawn)
            return seat.ask("stop")

        return work

    outcomes = in_lockstep([kept(1), kept(2)], answer)
    assert [type(outcome.error) for outcome in outcomes] == [ValueError, ValueError]
    for seed, drawn in zip((1, 2), seen, strict=True):
        torch.manual_seed(seed)
        assert drawn[0::2] == [float(torch.rand(())) for _ in range(3)]
        assert drawn[1::2] == [10 * seed] * 3
    outcomes = in_lockstep([kept(1), kept(2)], answer)
    torch.manual_seed(99)
    in_lockstep([kept(1)], answer)
    assert torch.equal(torch.rand(()), expected_after)


def test_time_is_shared_out_among_the_jobs() -> None:
    """A job's own turns are its own, an answer's time is everybody's in equal parts: together, what has passed."""

    def work(share: float):
        def job(seat) -> float:
            began = seat.clock()
            time.sleep(share)
            seat.ask(None)
            return seat.clock() - began

        return job

    def answer(questions):
        time.sleep(0.2)
        return dict.fromkeys(questions)

    since = time.monotonic()
    long, short = (outcome.result for outcome in in_lockstep([work(0.3), work(0.0)], answer))
    assert long >= 0.4 and 0.1 <= short < long
    assert long + short <= time.monotonic() - since


def test_dropout_below_the_first_trained_block_is_off_in_a_pack_where_it_is_off_in_a_run(
    tiny_model: Path, uneven: Path, tmp_path: Path
) -> None:
    """Weights to 1e-5 of the run by itself, and other weights than with dropout there."""

    def spec_of(method: str, prefix_dropout: bool) -> RunSpec:
        spec = make_spec(tiny_model, uneven, method, layers="last 1")
        training = spec.training.model_copy(update={"epochs": 1, "prefix_dropout": prefix_dropout})
        return spec.model_copy(update={"training": training})

    stores = [RunStore(tmp_path / name) for name in ("alone", "packed", "with")]
    quiet, usual = ([spec_of(name, way) for name in ("cla", "lora")] for way in (False, True))
    run(quiet[0], stores[0])
    assert [r.status for r in run_packed(quiet, stores[1]) + run_packed(usual, stores[2])] == ["done"] * 4
    alone, packed, other = (
        adapter(store, spec) for store, spec in zip(stores, (quiet[0], quiet[0], usual[0]), strict=True)
    )
    for key, tensor in alone.items():
        torch.testing.assert_close(packed[key], tensor, rtol=1e-5, atol=1e-5)
    assert any(float((other[key] - tensor).abs().max()) > 1e-3 for key, tensor in alone.items())
