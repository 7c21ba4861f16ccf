"""A sweep whose runs share a backbone: the same runs, and none is lost to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from command_line import invoke
from stored_runs import write_run
from tunewise.errors import ModelError, SpecError
from tunewise.jobs.messages import Work
from tunewise.jobs.pool import Died, Ended
from tunewise.spec import parse
from tunewise.store.folders import RunStore
from tunewise.sweeps import attempt as attempt_module
from tunewise.sweeps import in_processes
from tunewise.sweeps.driver import pace_of, sweep
from tunewise.sweeps.log import Log
from tunewise.sweeps.monitor import Monitor, SweepListener
from tunewise.sweeps.planning import plan_sweep
from tunewise.sweeps.spec import SweepSpec
from tunewise.sweeps.units import units
from tunewise.training.events import Event, Interrupted, StepDone

SMALL = {"rank": [2, 4], "learning_rate": 1e-2, "seeds": [0], "training": {"epochs": 1, "batch_size": 8}}


@pytest.fixture
def small(content: dict[str, Any]) -> SweepSpec:
    """lora and cla at two ranks."""
    return parse(SweepSpec, {**content, **SMALL})


def adapters(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = root.glob("*/adapter/adapter_model.safetensors")
    return {file.parts[-3]: load_file(file) for file in files}


def test_packed_runs_of_a_sweep_are_those_of_a_sweep_without(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights to 1e-5; each run has its share of the pack's time; the dry run says what goes together."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**content, **SMALL}))
    assert invoke(monkeypatch, "sweep", str(file), f"--out={tmp_path / 'packed'}", "--pack=3", "--dry-run") == 0
    assert "packs: 1 of 3 runs, 1 of 1 run" in capsys.readouterr().out
    for name, flags in (("alone", []), ("packed", ["--pack=3"])):
        assert invoke(monkeypatch, "sweep", str(file), f"--out={tmp_path / name}", *flags) == 0
    alone, packed = adapters(tmp_path / "alone"), adapters(tmp_path / "packed")
    assert alone.keys() == packed.keys() and len(alone) == 4
    for run, weights in alone.items():
        for key, tensor in weights.items():
            torch.testing.assert_close(packed[run][key], tensor, rtol=1e-5, atol=1e-5)
    records = list(RunStore(tmp_path / "packed").records())
    assert sorted(len(record.computed) for record in records) == [0, 1, 1, 1]
    (log,) = tmp_path.glob("packed/sweep-*/log.txt")
    said = log.read_text()
    assert all(f"done {record.id}" in said and f"begun {record.id}" in said for record in records)
    with pytest.raises(SpecError, match="pack = 2"):
        sweep(parse(SweepSpec, {**content, **SMALL}), tmp_path, on="ray", pack=2)


def test_a_run_that_fails_in_a_pack_is_written_down_and_the_others_are_done(
    small: SweepSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack meets the error of one; each of the others is then done by itself, and only the one fails."""
    usual = attempt_module.run
    plan = plan_sweep(small, RunStore(tmp_path))
    bad = plan.todo[1].id

    def packed(specs: Any, store: RunStore, **_: Any) -> Any:
        usual(specs[0], store)
        raise ModelError("not this one")

    def run(spec: Any, store: RunStore, **options: Any) -> Any:
        if spec.id == bad:
            raise ModelError("not this one")
        return usual(spec, store, **options)

    monkeypatch.setattr(attempt_module, "run_packed", packed)
    monkeypatch.setattr(attempt_module, "run", run)
    found = sweep(small, tmp_path, pack=4)
    assert {row.run: row.status for row in found.rows} == {
        run.id: "failed" if run.id == bad else "done" for run in plan.todo
    }
    assert "ModelError: not this one" in (tmp_path / bad / "error.txt").read_text()


def test_a_stop_within_a_pack_loses_nothing(small: SweepSpec, tmp_path: Path) -> None:
    """Weights to 1e-5 of those of a sweep that nobody stopped, which was not packed."""

    class StopsAtOnce(SweepListener):
        def on(self, event: Event) -> None:
            if isinstance(event, StepDone) and event.step == 4:
                self.stop_requested = True

    with pytest.raises(Interrupted):
        sweep(small, tmp_path / "stopped", pack=4, listener=StopsAtOnce())
    assert not [record for record in RunStore(tmp_path / "stopped").records() if record.status == "done"]
    sweep(small, tmp_path / "stopped", pack=4)
    sweep(small, tmp_path / "alone")
    stopped, alone = adapters(tmp_path / "stopped"), adapters(tmp_path / "alone")
    assert stopped.keys() == alone.keys()
    for run, weights in alone.items():
        for key, tensor in weights.items():
            torch.testing.assert_close(stopped[run][key], tensor, rtol=1e-5, atol=1e-5)


class Played:
    """A pool without processes: the first pack does its first run and then meets an error, the second dies by a kill or,
    with `code` 1, of an error that nobody foresaw; whatever is given again is done."""

    code = -9

    def __init__(self, root: Path, tell: Callable[[str, Event], None]) -> None:
        self.root = root
        self.at_work: deque[Work] = deque()
        self.given: list[tuple[str, ...]] = []

    @property
    def busy(self) -> int:
        return len(self.at_work)

    def give(self, work: Work) -> None:
        self.at_work.append(work)
        self.given.append(tuple(run.id for run in work.runs))

    def hear(self) -> Ended | Died | None:
        if not self.at_work:
            return None
        work = self.at_work.popleft()
        place = self.given.index(tuple(run.id for run in work.runs))
        if place == 1:
            return Died(work, self.code, "AttributeError: no such thing")
        for spec in work.runs[: 1 if place == 0 else None]:
            write_run(self.root, spec)
        return Ended(work, ModelError("not this one") if place == 0 else None)

    def dismiss_idle(self) -> None:
        pass

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *of_no_interest: Any) -> None:
        pass


@pytest.mark.parametrize("code", [-9, 1])
def test_in_processes_those_that_a_pack_leaves_undone_are_done_by_themselves(
    code: int, spec: SweepSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Played, "code", code)
    pools: list[Played] = []
    monkeypatch.setattr(in_processes, "Pool", lambda *of: pools.append(Played(*of)) or pools[-1])
    monkeypatch.setattr(in_processes, "POLL", 0.05)
    plan = plan_sweep(spec, RunStore(tmp_path))
    found = sweep(spec, tmp_path, jobs=2, pack=4)
    assert {row.status for row in found.rows} == {"done"} and len(found.rows) == len(plan.todo)
    (pool,) = pools
    first, second = (tuple(run.id for run in unit) for unit in units(plan.todo, 4)[:2])
    assert pool.given[:2] == [first, second]
    assert [given for given in pool.given if len(given) == 1] == [(run,) for run in (*first[1:], *second)]


def test_in_processes_a_run_that_ran_out_of_memory_by_itself_too_is_left_at_that(
    small: SweepSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has done a pack's runs alone, where the pack had no room."""

    class Short(Played):
        def hear(self) -> Ended | Died | None:
            if not self.at_work:
                return None
            work = self.at_work.popleft()
            for spec in work.runs:
                write_run(self.root, spec, status="oom")
            return Ended(work, None)

    pools: list[Short] = []
    monkeypatch.setattr(in_processes, "Pool", lambda *of: pools.append(Short(*of)) or pools[-1])
    found = sweep(small, tmp_path, jobs=1, pack=4)
    assert [row.status for row in found.rows] == ["oom"] * 4
    assert [len(given) for given in pools[0].given] == [4]


def test_the_time_left_counts_a_packs_runs_by_their_shares(
    spec: SweepSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a pack done in 10 s: another 10 s are left of it, and as much for each as for a share of those 20."""
    store = RunStore(tmp_path)
    plan = plan_sweep(spec, store)
    now = [0.0]
    monkeypatch.setattr("tunewise.sweeps.monitor.time.monotonic", lambda: now[0])
    monitor = Monitor(plan, pace_of(plan, store), Log(tmp_path / "log.txt"), SweepListener())
    unit = [run for run in plan.todo if run.shape == plan.todo[0].shape][:4]
    for run in unit:
        monitor.begun(run.id, beside=len(unit))
    now[0] = 10.0
    for run in unit:
        monitor.on(StepDone(run.id, run.steps // 2, run.steps, 0.5, 1.0))
    alike = sum(run.shape == unit[0].shape for run in plan.todo)
    whole = 2 * now[0] / len(unit)
    assert monitor.remaining().seconds == pytest.approx((alike - len(unit) / 2) * whole)
