"""The frozen prefix computed once: the same run, less work."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from tiny import save_tiny_model
from tunewise.cli.main import run as tunewise
from tunewise.errors import ModelError, SpecError
from tunewise.methods.attach import attach
from tunewise.models.blocks import find_blocks, frozen_depth
from tunewise.models.layers import find_targets
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task
from tunewise.training.build import build_model
from tunewise.training.events import Interrupted
from tunewise.training.prefix import STATES
from tunewise.training.prefix_task import Prefixes

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("deep") / "model", layers=4)


def make_spec(model: Path, data: Path, method: str = "lora", **training: object) -> RunSpec:
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "max_length": 16, "prefix_dropout": False}
    return RunSpec(
        model=ModelSpec(path=str(model), digest="m"),
        data=DataSpec(path=str(data), digest="d", train_size=40),
        method=MethodSpec(name=method, rank=4, layers="last 1"),
        training=TrainingSpec(**{**options, **training}),
    )


def both(spec: RunSpec, folder: Path, memory: int = 2**20) -> tuple[RunStore, RunStore]:
    """The run without and with its prefix cached."""
    plain, cached = RunStore(folder / "plain"), RunStore(folder / "cached")
    prefixes = Prefixes(build_task(spec), folder / "cache", memory=memory)
    run(spec, plain)
    run(spec, cached, task=prefixes.task_for(spec), computed=prefixes.words(spec))
    return plain, cached


def saved(store: RunStore, spec: RunSpec) -> dict[str, torch.Tensor]:
    (file,) = (store.folder(spec.id) / "adapter").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("method", ["lora", pytest.param("c3la", marks=pytest.mark.slow)])
def test_bit_for_bit_where_batches_have_one_shape(method: str, deep_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """With one example a batch the cache is computed in the shapes of the uncached run: dropout above the prefix is on,
    and every weight and every step's loss is the same to the last bit."""
    spec = make_spec(deep_model, toy_csv, method, batch_size=1, epochs=1)
    plain, cached = both(spec, tmp_path)
    one, two = (store.record(spec.id) for store in (plain, cached))
    assert one.files[WEIGHTS] == two.files[WEIGHTS]
    losses = [
        re.findall(r'"loss": ([^,]+), "learning_rate"', (store.folder(spec.id) / "history.jsonl").read_text())
        for store in (plain, cached)
    ]
    assert len(losses[0]) == 40
    assert losses[0] == losses[1]
    assert one.computed == []
    assert two.computed == ["states below block 3 cached"]


@pytest.mark.parametrize(
    "method", ["paca", pytest.param("lora", marks=pytest.mark.slow), pytest.param("head", marks=pytest.mark.slow)]
)
def test_padded_batches_agree_within_rounding(method: str, deep_model: Path, tmp_path: Path) -> None:
    """Texts of 4 to 10 tokens in batches of 8: states cached at each text's own length, padded with zeros."""
    data = tmp_path / "uneven.csv"
    filler = ["the", "old", "big", "near", "my", "a"]
    rows = [f"{' '.join([['cat', 'saw'][i % 2], *filler[: i % 7]])} w{i},{'xy'[i % 2]}" for i in range(90)]
    data.write_text("text,label\n" + "\n".join(rows) + "\n")
    spec = make_spec(deep_model, data, method)
    plain, cached = both(spec, tmp_path)
    one, two = saved(plain, spec), saved(cached, spec)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    results = [store.record(spec.id).results for store in (plain, cached)]
    assert results[1].test.loss == pytest.approx(results[0].test.loss, abs=1e-5)
    assert results[1].train.loss == pytest.approx(results[0].train.loss, abs=1e-5)


def test_a_stop_is_heard_while_states_are_computed_and_leaves_nothing_half_done(
    deep_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    spec = make_spec(deep_model, toy_csv)
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Interrupted("stop")

    task = build_task(spec)
    with pytest.raises(Interrupted):
        Prefixes(task, tmp_path, memory=0, check=check).task_for(spec)
    assert not list(tmp_path.glob("prefix-*.json"))
    Prefixes(task, tmp_path, memory=0).task_for(spec)
    assert len(list(tmp_path.glob("prefix-*.json"))) == 1


def test_on_disk_as_in_memory_and_computed_once(
    deep_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(deep_model, toy_csv)
    task = build_task(spec)
    in_memory = Prefixes(task, tmp_path / "memory").task_for(spec)
    on_disk = Prefixes(task, tmp_path / "disk", memory=0).task_for(spec)
    assert not (tmp_path / "memory").exists()
    assert len(list((tmp_path / "disk").glob("prefix-m-*.f32"))) == 1
    monkeypatch.setattr(Prefixes, "_computed", None)  # a second one finds what the first has made
    again = Prefixes(task, tmp_path / "disk", memory=0).task_for(spec)
    for one in (on_disk, again):
        for part in ("train", "validation", "test"):
            expected = in_memory.collate(getattr(in_memory, part)[:8])[STATES]
            assert torch.equal(one.collate(getattr(one, part)[:8])[STATES], expected)


@pytest.mark.parametrize("memory", [0, 2**20])
def test_a_changed_or_cut_file_of_states_is_noticed_and_made_again(
    memory: int, deep_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    spec = make_spec(deep_model, toy_csv)
    task = build_task(spec)

    def states(memory: int) -> torch.Tensor:
        cached = Prefixes(task, tmp_path, memory=memory).task_for(spec)
        return cached.collate(cached.train)[STATES]

    right = states(0)
    (file,), (index,) = tmp_path.glob("prefix-*.f32"), tmp_path.glob("prefix-*.json")
    content, listed = file.read_bytes(), index.read_bytes()

    def damaged(place: int) -> bytes:
        return content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :]

    wrong = [
        (damaged(3), listed),  # the sign of the first number
        (damaged(len(content) - 1), listed),
        (content[:1000], listed),
        (content, b"{}"),
        (content, listed[:-1]),
        (content, b"[]"),
    ]
    for bytes_now, index_now in wrong:
        file.write_bytes(bytes_now)
        index.write_bytes(index_now)
        assert torch.equal(states(memory), right)
        if memory:
            assert not file.exists()
            assert not index.exists()
        else:
            assert file.read_bytes() == content
            assert index.read_bytes() == listed


def test_without_digests_the_cache_is_still_of_one_model_and_one_file(
    deep_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", layers=4)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    data = tmp_path / "data.csv"

    def states(model: Path, content: str) -> torch.Tensor:
        data.write_text(content)
        spec = make_spec(model, data)
        spec = spec.model_copy(
            update={
                "model": spec.model.model_copy(update={"digest": None}),
                "data": spec.data.model_copy(update={"digest": None}),
            }
        )
        task = Prefixes(build_task(spec), tmp_path / "cache", memory=0).task_for(spec)
        return task.collate(task.train[:8])[STATES]

    content = toy_csv.read_text()
    one, two = states(deep_model, content), states(other, content)
    assert float((one - two).abs().max()) > 0.01
    assert torch.equal(states(deep_model, content), one)
    states(deep_model, content + content.splitlines()[-1] + "\n")
    assert len(list((tmp_path / "cache").glob("prefix-*.f32"))) == 3


def test_a_step_costs_what_lies_above_the_prefix(deep_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """FLOPs by torch's counter: the forward of the three frozen blocks is gone, forward and backward of the last stay.
    A block's forward is counted on its own; nothing was computed in its backward to begin with."""
    spec = make_spec(deep_model, toy_csv)
    task = build_task(spec)
    cached = Prefixes(task, tmp_path).task_for(spec)

    def flops(one: object) -> int:
        model = build_model(spec, one).train()
        batch = one.collate(one.train[:8])
        with FlopCounterMode(display=False) as counter:
            model(**batch).loss.backward()
        return counter.get_total_flops()

    base = task.load_model(0)
    states = torch.zeros(8, 8, 32)
    with FlopCounterMode(display=False) as counter:
        base.bert.encoder.layer[0](states)
    block = counter.get_total_flops()
    assert task.collate(task.train[:8])["input_ids"].shape == (8, 8)
    assert flops(task) - flops(cached) == 3 * block
    assert flops(cached) < 0.6 * flops(task)


def test_what_the_prefix_is(deep_model: Path, toy_csv: Path) -> None:
    task = build_task(make_spec(deep_model, toy_csv))
    head = ("classifier",)
    assert find_blocks(task.load_model(0)).count == 4
    for method, layers, depth in (
        ("lora", None, 0),
        ("lora", "last 2", 2),
        ("cla", [1, 3], 1),
        ("head", None, 4),
        ("fft", None, 0),
    ):
        options = {} if layers is None else {"layers": layers}
        model = attach(task.load_model(0), method, rank=2, **options)
        assert frozen_depth(model, head) == depth, (method, layers)
    names = [t.name for t in find_targets(task.load_model(0), "qv", "last 1")]
    assert names == [f"bert.encoder.layer.3.attention.self.{role}" for role in ("query", "value")]
    with pytest.raises(ModelError, match="numbered 0 to 3"):
        find_targets(task.load_model(0), "qv", [4])


def test_dropout_in_the_prefix_is_refused_in_one_line(
    deep_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = f"compare --model={deep_model} --data={toy_csv} --methods=lora --rank=2 --seeds=1 --epochs=1 --cache-prefix"
    for more, said in (
        ("--layers=1,3", "blocks 0 to 0 of the model have dropout"),
        ("--no-prefix-dropout", "nothing below to cache"),
        ("--layers=last", "give 'last 2'"),
    ):
        for dry in ([], ["--dry-run"]):
            monkeypatch.setattr(sys, "argv", ["tunewise", *flags.split(), more, *dry, f"--out={tmp_path}"])
            with pytest.raises(SystemExit) as stop:
                tunewise()
            assert stop.value.code == 2
            (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
            assert said in line


def test_a_dry_run_says_what_is_computed_once_and_in_how_many_processes(
    deep_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = f"compare --model={deep_model} --data={toy_csv} --methods=lora --rank=2 --seeds=2 --epochs=1 --dry-run"
    more = {
        "--cache-prefix --no-prefix-dropout --layers=1,3 --jobs=2": [
            "lora: blocks 0 to 0 computed once for each example",
            "runs in 2 processes of one thread each",
        ],
        "--pack=2 --batch-size=100": ["2 runs in one pack over one backbone", "packs gain a tenth at most on a CPU"],
    }
    for words, said in more.items():
        monkeypatch.setattr(sys, "argv", ["tunewise", *flags.split(), *words.split(), f"--out={tmp_path}"])
        with pytest.raises(SystemExit) as stop:
            tunewise()
        assert stop.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(words in shown for words in said), shown
    assert not list(tmp_path.iterdir())


def test_dropout_of_the_prefix_is_part_of_a_runs_name_and_the_cache_is_not(deep_model: Path, toy_csv: Path) -> None:
    still, usual = make_spec(deep_model, toy_csv), make_spec(deep_model, toy_csv, prefix_dropout=True)
    assert still.id != usual.id
    unset = usual.model_copy(update={"method": MethodSpec(name="lora", rank=4)})
    assert unset.id != usual.id
    assert "layers" not in unset._method_content()
    with pytest.raises(SpecError, match="linearised"):
        Prefixes(build_task(still), Path()).task_for(make_spec(deep_model, toy_csv, linearised=True))
