"""Runs that come home through an fsspec address: whole, once, as they were; half an upload is nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from command_line import invoke
from stored_runs import stored_spec, write_run
from tunewise.cli.main import run as tunewise
from tunewise.errors import SpecError, StoreError
from tunewise.run import run
from tunewise.spec import parse
from tunewise.store.folders import RunStore
from tunewise.sweeps import away, driver, home
from tunewise.sweeps.arrivals import bring, pick_up
from tunewise.sweeps.away import attempt_away, names_of
from tunewise.sweeps.driver import with_arrivals
from tunewise.sweeps.home import Damaged, Home
from tunewise.sweeps.planning import plan_sweep
from tunewise.sweeps.spec import SweepSpec
from tunewise.sweeps.ways import ByHome
from tunewise.training.events import Event, Interrupted, Listener, RunStarted, StepDone


class Failing(MemoryFileSystem):
    """Fails at the writes that are listed, with half of the bytes written."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails: ClassVar[set[int]] = set()
    error: ClassVar[BaseException] = OSError("connection lost")
    writes: ClassVar[int] = 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        cls = type(self)
        cls.writes += 1
        if cls.writes in cls.fails:
            super().pipe_file(path, value[: len(value) // 2], mode, **kwargs)
            raise cls.error
        super().pipe_file(path, value, mode, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:  # type: ignore[override]
        self.pipe_file(rpath, Path(lpath).read_bytes())


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Failing]]:
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(home, "PAUSES", ())
    Failing.writes, Failing.fails, Failing.error = 0, set(), OSError("connection lost")
    yield Failing
    Failing.store.clear()


@pytest.fixture(params=["file", "memory"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    yield Home(f"file://{tmp_path}/home" if request.param == "file" else "memory://home")
    MemoryFileSystem.store.clear()


def _send(at: Home, node: Path, run_id: str, status: Any = "done", step: int = 0) -> Any:
    folder = RunStore(node).folder(run_id)
    return at.send(run_id, folder, names_of(folder), status=status, step=step)


def _content(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_what_comes_home_is_what_was_sent(there: Home, tmp_path: Path) -> None:
    there.check()
    record = write_run(tmp_path / "node", stored_spec())
    (tmp_path / "node" / record.id / ".run.json.ab12cd34").write_text("a temporary file")
    _send(there, tmp_path / "node", record.id)
    store = RunStore(tmp_path / "runs")
    assert there.runs() == {record.id}
    assert pick_up(there, ["f" * 16, record.id], store) == [record.id]
    assert store.finished(record.id) == record
    sent = _content(tmp_path / "node" / record.id)
    del sent[".run.json.ab12cd34"]
    assert _content(store.folder(record.id)) == sent
    assert [path.name for path in store.root.iterdir() if path.name != ".leases"] == [record.id]
    before = (store.folder(record.id) / "run.json").stat().st_mtime_ns
    pick_up(there, [record.id], store)  # what is here is not brought again
    assert (store.folder(record.id) / "run.json").stat().st_mtime_ns == before


def test_half_an_upload_is_no_copy(failing: type[Failing], tmp_path: Path) -> None:
    """Cut short at every one of its writes, by an error and by a death: what was there before stays, nothing else is."""
    at = Home("failing://home")
    record = write_run(tmp_path / "node", stored_spec())
    store = RunStore(tmp_path / "runs")
    earlier = _send(at, tmp_path / "node", record.id, status=None, step=5)
    writes = len(names_of(tmp_path / "node" / record.id)) + 1
    for error, raised in ((OSError("connection lost"), StoreError), (SystemExit("killed"), SystemExit)):
        for place in range(writes):
            failing.error, failing.fails = error, {failing.writes + 1 + place}
            with pytest.raises(raised):
                _send(at, tmp_path / "node", record.id)
            assert at.copies(record.id) == [earlier]
            assert bring(at, record.id, store) is None
    assert not store.root.exists() or store.ids() == []
    last = _send(at, tmp_path / "node", record.id)
    assert at.copies(record.id) == [last]
    with store.lease(record.id):
        assert bring(at, record.id, store) == record


def test_a_node_that_was_given_up_too_early_takes_nothing_away(there: Home, tmp_path: Path) -> None:
    """It goes on sending after another has ended the run, and at last ends it, too."""
    record = write_run(tmp_path / "node", stored_spec())
    first = _send(there, tmp_path / "node", record.id, status=None, step=5)
    ended = _send(there, tmp_path / "node", record.id)
    late = _send(there, tmp_path / "node", record.id, status=None, step=7)
    assert there.copies(record.id) == [ended, late] and first not in there.copies(record.id)
    again = _send(there, tmp_path / "node", record.id)
    assert there.copies(record.id) == [again]
    store = RunStore(tmp_path / "runs")
    assert pick_up(there, [record.id], store) == [record.id] and store.finished(record.id) == record


def test_a_write_that_fails_is_tried_again(
    failing: type[Failing], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(home, "PAUSES", (0.0, 0.0))
    at = Home("failing://home")
    record = write_run(tmp_path / "node", stored_spec())
    failing.fails = {1, 2, 4, 7}
    sent = _send(at, tmp_path / "node", record.id)
    at.fetch(sent, tmp_path / "here")
    assert _content(tmp_path / "here") == _content(tmp_path / "node" / record.id)


def test_what_is_damaged_at_home_is_passed_over(there: Home, tmp_path: Path) -> None:
    record = write_run(tmp_path / "node", stored_spec())
    store = RunStore(tmp_path / "runs")
    good = _send(there, tmp_path / "node", record.id)
    name = "adapter/adapter_model.safetensors"
    bad = good.model_copy(update={"name": f"9{good.name[1:]}"})  # a later one
    with there.fs.open(there._at(record.id, good.name, name), "rb") as file:
        content = file.read()
    for one in good.files:
        there.fs.makedirs(there._at(record.id, bad.name, one).rpartition("/")[0], exist_ok=True)
        there.fs.copy(there._at(record.id, good.name, one), there._at(record.id, bad.name, one))
    there.fs.pipe_file(there._at(record.id, bad.name, name), content[:-1] + bytes([content[-1] ^ 1]))
    listed = {**bad.model_dump(mode="json")}
    text = json.dumps({**listed, "checksum": home.checksum(listed)}).encode()
    there.fs.pipe_file(there._at(record.id, f"{bad.name}.json"), text)
    there.fs.pipe_file(there._at(record.id, "99.json"), text[:40])  # a torn list
    assert [copy.name for copy in there.copies(record.id)] == [bad.name, good.name]
    with store.lease(record.id):
        assert bring(there, record.id, store) == record  # the other one
    assert store.finished(record.id) == record
    assert there.copies(record.id) == [good]  # the damaged one is dropped
    there.fs.pipe_file(there._at(record.id, good.name, name), content[:-1])
    other = RunStore(tmp_path / "others")
    with other.lease(record.id), pytest.raises(Damaged, match="not as it was sent"):
        bring(there, record.id, other)
    assert pick_up(there, [record.id], other) == []
    assert _content(other.folder(record.id)) == {}
    assert there.copies(record.id) == []  # so that a node does it again
    outside = good.model_copy(update={"files": {"../../x": next(iter(good.files.values()))}})
    with pytest.raises(StoreError, match="outside its folder"):
        there.fetch(outside, tmp_path / "fetched")


def test_a_run_that_its_own_record_contradicts_does_not_come_in(tmp_path: Path) -> None:
    """Sent whole, but wrong before it was sent: the store's own verification has the last word."""
    at = Home(f"{tmp_path}/home")
    record = write_run(tmp_path / "node", stored_spec())
    (tmp_path / "node" / record.id / "history.jsonl").write_text("{}\n")
    _send(at, tmp_path / "node", record.id)
    store = RunStore(tmp_path / "runs")
    with store.lease(record.id), pytest.raises(Damaged, match="history.jsonl: is not as it was written"):
        bring(at, record.id, store)


class Stopping(Listener):
    """Stops at a step, or dies there."""

    def __init__(self, step: int = 10**9, death: type[BaseException] | None = None) -> None:
        self.step, self.death = step, death
        self.first: int | None = None

    def on(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.first = event.first_step
        if isinstance(event, StepDone) and event.step >= self.step:
            if self.death is not None:
                raise self.death
            self.stop_requested = True


def test_a_run_goes_on_at_another_node_and_ends_as_it_would_have_here(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on the first node, stopped on the second, ended on the third: the same folder as a run done here."""
    monkeypatch.setattr(away, "SHARE", 1.0)  # every checkpoint goes home
    at = Home(f"{tmp_path}/home")
    training = {"epochs": 2, "batch_size": 8, "max_length": 16, "save_every": 3}
    spec = parse(SweepSpec, {**content, "methods": ["c3la"], "rank": 2, "learning_rate": 1e-2, "seeds": 1})
    spec = parse(SweepSpec, {**spec.model_dump(mode="json"), "training": training})
    (planned,) = plan_sweep(spec, RunStore(tmp_path / "runs")).runs
    nodes = [RunStore(tmp_path / f"node{i}") for i in range(3)]
    with pytest.raises(SystemExit):
        attempt_away(planned.spec, at, nodes[0], Stopping(8, SystemExit))
    assert [copy.step for copy in at.copies(planned.id)] == [6]
    second = Stopping(11)
    with pytest.raises(Interrupted):
        attempt_away(planned.spec, at, nodes[1], second)
    assert second.first == 6 and [copy.step for copy in at.copies(planned.id)] == [11]
    third = Stopping()
    outcome = attempt_away(planned.spec, at, nodes[2], third)
    assert (outcome.status, third.first) == ("done", 11) and "from step 11" in outcome.note
    assert nodes[2].ids() == []  # its folder went home
    store = RunStore(tmp_path / "runs")
    assert pick_up(at, [planned.id], store) == [planned.id]
    alone = run(planned.spec, RunStore(tmp_path / "alone"))
    here, there = _content(store.folder(planned.id)), _content(tmp_path / "alone" / planned.id)
    assert here.keys() == there.keys()
    assert {name for name in here if here[name] != there[name]} <= {"run.json"}  # times of day
    assert store.finished(planned.id).files == alone.files
    assert nodes[0].ids() == [planned.id]
    again = attempt_away(planned.spec, at, nodes[0], Stopping())
    assert nodes[0].ids() == []  # what others have ended is cleared away
    assert (again.status, again.steps) == ("done", None)  # what is at home is not done again


def test_a_node_with_other_data_does_no_run(content: dict[str, Any], toy_csv: Path, tmp_path: Path) -> None:
    spec = parse(SweepSpec, {**content, "methods": ["lora"], "rank": 2, "learning_rate": 1e-2, "seeds": 1})
    (planned,) = plan_sweep(spec, RunStore(tmp_path)).runs
    other = planned.spec.model_copy(update={"data": planned.spec.data.model_copy(update={"digest": "0" * 64})})
    with pytest.raises(StoreError, match="toy.csv is not what the sweep was planned with"):
        attempt_away(other, Home("memory://nowhere"), RunStore(tmp_path / "node"), Listener())


def test_a_driver_that_starts_again_takes_in_what_is_home(content: dict[str, Any], tmp_path: Path, there: Home) -> None:
    spec = parse(SweepSpec, content)
    store = RunStore(tmp_path / "runs")
    plan = plan_sweep(spec, store)
    ids = [run.id for run in plan.runs]
    write_run(tmp_path / "node", plan.runs[2].spec)
    _send(there, tmp_path / "node", ids[2])
    write_run(tmp_path / "node", plan.runs[3].spec, status="oom")
    _send(there, tmp_path / "node", ids[3], status="oom")
    later = with_arrivals(plan, there, store)
    assert later.done == {ids[2]} and len(later.todo) == len(ids) - 1  # what ran out of memory is tried again
    # Two drivers on one runs folder share the runs, and what is done already is not given to a node.
    first, second = ByHome(store, there), ByHome(store, there)
    assert first.take(plan.runs[0].spec) is None and second.take(plan.runs[0].spec).status == "held"
    assert second.take(plan.runs[2].spec).status == "done"
    first.close()
    assert second.take(plan.runs[0].spec) is None
    second.stop()
    assert there.is_marked(second.place.stop)
    second.close()
    assert not there.is_marked(second.place.stop)


def test_the_command_line_looks_at_home_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Home
) -> None:
    looks: list[int] = []
    inner = driver.pick_up
    monkeypatch.setattr(
        driver, "pick_up", lambda home, runs, store: looks.append(len(runs)) or inner(home, runs, store)
    )
    monkeypatch.setattr(driver, "run_on_ray", lambda *of_no_interest: None)
    invoke(monkeypatch, "sweep", str(file), f"--out={tmp_path}", "--on=ray", f"--home={there.url}", "--force")
    assert looks == [2]


def test_an_address_that_cannot_be_used_is_named(
    file: Path,
    tmp_path: Path,
    failing: type[Failing],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SpecError, match="--home nope://x: Protocol not known: nope; give an address"):
        Home("nope://x")
    with monkeypatch.context() as without_s3fs:
        without_s3fs.setitem(sys.modules, "s3fs", None)
        with pytest.raises(SpecError, match=r"--home s3://b/p: Install s3fs to access S3, here and on the nodes$"):
            Home("s3://b/p")
    failing.fails = {1}
    with pytest.raises(SpecError, match=r"can't use it \(OSError: connection lost\); check the address"):
        Home("failing://x").check()
    monkeypatch.setattr("sys.argv", ["tunewise", "sweep", str(file), f"--out={tmp_path}", "--home=memory://x"])
    with pytest.raises(SystemExit):
        tunewise()
    assert "--home means something with --on ray alone" in capsys.readouterr().err
