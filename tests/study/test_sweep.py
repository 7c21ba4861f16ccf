"""A sweep in this process: each run once, none lost, a table that says what the records say."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import invoke
from stored_runs import record_of, write_run
from tunewise.errors import StoreError
from tunewise.spec import ExecutionOptions, RunSpec, StudySpec, parse
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.store.table import table
from tunewise.study import loop
from tunewise.study.executors import base
from tunewise.study.executors.ray import fits
from tunewise.study.monitor import StudyListener
from tunewise.study.plan import make_plan
from tunewise.study.resources import SideBySide, side_by_side
from tunewise.study.sweep import sweep
from tunewise.training.events import Interrupted


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs without training: real locks, folders and records. The list has the ids, in order."""
    made: list[str] = []

    def run(spec: RunSpec, store: RunStore, **_: Any) -> RunRecord:
        if (done := store.finished(spec.id)) is not None:
            return done
        with store.lock(spec.id):
            made.append(spec.id)
            store.begin(spec)
            return write_run(store.root, spec, accuracy=0.5 + spec.learning_rate * spec.method.rank + 0.01 * spec.seed)

    monkeypatch.setattr(base, "run", run)
    return made


def test_a_sweep_from_the_command_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Really trained: two ordinary runs, a table of them, and nothing to do the second time."""
    out = tmp_path / "runs"
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Toys: 2 methods x 1 seed" in said and "2 runs to do" in said and "40 steps" in said
    assert "time: not known" in said
    assert not out.exists()

    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}") == 0
    records = {record.id: record for record in RunStore(out).records()}
    assert [record.status for record in records.values()] == ["done", "done"]
    (folder,) = out.glob("sweep-*")
    with (folder / "table.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert {row["method"] for row in rows} == {"lora", "cla"}
    for row in rows:
        record = records[row["run"]]
        assert float(row["test"]) == record.results.test.metrics["accuracy"]
        assert float(row["gap"]) == record.results.gap
        assert (row["rank"], row["seed"], row["learning_rate"]) == ("4", "0", "0.01")
    assert "Toys" in (folder / "sweep.html").read_text(encoding="utf-8")

    written = {run_id: (out / run_id / "run.json").stat().st_mtime_ns for run_id in records}
    capsys.readouterr()
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}") == 0
    assert "0 runs to do, 2 done already" in capsys.readouterr().out
    assert {run_id: (out / run_id / "run.json").stat().st_mtime_ns for run_id in records} == written
    log = (folder / "log.txt").read_text()
    assert log.count("begun") == 2 and log.count("done") >= 2 and log.count("start: 2 runs") == 2


def test_only_what_is_missing_is_run(spec: StudySpec, tmp_path: Path, quick: list[str]) -> None:
    plan = make_plan(spec, RunStore(tmp_path))
    write_run(tmp_path, plan.runs[3].spec)
    found = sweep(spec, tmp_path)
    assert len(found.rows) == 16 and {row.status for row in found.rows} == {"done"}
    assert sorted(quick) == sorted({run.id for run in plan.runs} - {plan.runs[3].id})
    again = sweep(spec, tmp_path)
    assert len(quick) == 15 and again.folder == found.folder
    assert [row.facts for row in again.rows] == [row.facts for row in found.rows]


def test_a_run_that_fails_does_not_stop_the_others(
    file: Path, spec: StudySpec, tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = base.run

    def run(spec: RunSpec, store: RunStore, **_: Any) -> RunRecord:
        if spec.method.name == "cla":
            raise ZeroDivisionError("nothing to divide by")
        return inner(spec, store)

    monkeypatch.setattr(base, "run", run)
    out = tmp_path / "runs"
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}") == 1
    rows = {row.method: row for row in table(out)}
    assert (rows["lora"].status, rows["cla"].status) == ("done", "failed")
    assert rows["cla"].problem == "nothing to divide by"
    assert "ZeroDivisionError" in (out / rows["cla"].id / "error.txt").read_text()
    monkeypatch.setattr(base, "run", inner)
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}") == 0
    assert {row.status for row in table(out)} == {"done"}
    assert Counter(quick).most_common(1)[0][1] == 1


def test_a_full_disk_stops_the_sweep(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]
) -> None:
    def run(*_: Any, **__: Any) -> RunRecord:
        raise StoreError("no room to write")

    monkeypatch.setattr(base, "run", run)
    with pytest.raises(StoreError, match="no room"):
        sweep(spec, tmp_path)
    (folder,) = tmp_path.glob("sweep-*")
    assert "stopped by StoreError: no room to write" in (folder / "log.txt").read_text()


def test_what_runs_side_by_side_is_counted_by_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(devices: int, runs: int = 100, executor: str = "ray", **options: Any) -> Any:
        monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
        monkeypatch.setattr("os.cpu_count", lambda: 16)
        return side_by_side(parse(ExecutionOptions, {"executor": executor, "ray": options}), runs)

    assert counted(0, executor="serial") == SideBySide(1, 1)
    assert counted(0) == SideBySide(16, 16) and counted(0, cpus_per_run=3.0) == SideBySide(5, 5)
    assert counted(0, runs=4) == SideBySide(4, 4)
    assert counted(2) == SideBySide(2, 1)  # a GPU each
    assert counted(2, gpus_per_run=0.4) == SideBySide(4, 2)  # two to a GPU: 0.8 of each
    assert counted(2, gpus_per_run=1 / 3) == SideBySide(6, 3)
    assert counted(2, gpus_per_run=0.5, cpus_per_run=8.0) == SideBySide(2, 2)  # cores for two, maybe on one GPU
    assert counted(4, gpus_per_run=2.0) == SideBySide(2, 1)
    assert counted(1, gpus_per_run=0.0) == SideBySide(16, 16)  # all on the one there is
    assert counted(8, address="auto") == SideBySide(1, 0)
    assert fits(3, 0, 0.5, 0.0) == 6 and fits(3, 1, 1.0, 2.0) == 0


def test_a_stop_is_a_stop(spec: StudySpec, tmp_path: Path, quick: list[str]) -> None:
    class Impatient(StudyListener):
        def progressed(self, monitor: Any, message: str) -> None:
            self.stop_requested = len(monitor.statuses) == 3

    with pytest.raises(Interrupted):
        sweep(spec, tmp_path, listener=Impatient())
    assert len(quick) == 3
    (folder,) = tmp_path.glob("sweep-*")
    assert "stopped as asked, after 3 done" in (folder / "log.txt").read_text()
    with (folder / "table.csv").open(newline="") as text:
        statuses = Counter(row["status"] for row in csv.DictReader(text))
    assert statuses == {"done": 3, "to do": 13}
    sweep(spec, tmp_path)
    assert len(quick) == 16 == len(set(quick))


def _hold(root: Path, run_id: str, ready: Any, enough: Any) -> None:
    with RunStore(root).lock(run_id):
        ready.set()
        enough.wait(60)


def test_what_another_process_has_is_left_to_it_and_taken_over_at_its_end(
    spec: StudySpec, tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL", 0.05)
    first = make_plan(spec, RunStore(tmp_path)).runs[0]
    fork = multiprocessing.get_context("fork")
    ready, enough = fork.Event(), fork.Event()
    other = fork.Process(target=_hold, args=(tmp_path, first.id, ready, enough))

    class Watching(StudyListener):
        def progressed(self, monitor: Any, message: str) -> None:
            if len(monitor.statuses) == 15:
                enough.set()

    other.start()
    assert ready.wait(10)
    found = sweep(spec, tmp_path, listener=Watching())  # the other stops without a record, as a killed one would
    other.join()
    assert {row.status for row in found.rows} == {"done"}
    assert quick[-1] == first.id and len(quick) == 16


def _drive(root: Path, spec: StudySpec, made: Any) -> None:
    def run(spec: RunSpec, store: RunStore, **_: Any) -> RunRecord:
        if (done := store.finished(spec.id)) is not None:
            return done
        with store.lock(spec.id):
            if (done := store.finished(spec.id)) is not None:
                return done
            made.put((os.getpid(), spec.id))
            time.sleep(0.02)
            record = record_of(spec)
            store.write(record)
            return record

    base.run = run  # type: ignore[assignment]  # in a process of its own
    loop.POLL = 0.05
    sweep(spec, root)


def test_two_drivers_share_the_runs(spec: StudySpec, tmp_path: Path) -> None:
    make_plan(spec, RunStore(tmp_path))  # so that both start at once, with the data read
    fork = multiprocessing.get_context("fork")
    made = fork.Queue()
    drivers = [fork.Process(target=_drive, args=(tmp_path, spec, made)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    found = [made.get(timeout=60) for _ in range(16)]
    for driver in drivers:
        driver.join(60)
        assert driver.exitcode == 0
    assert made.empty()
    assert len({run_id for _, run_id in found}) == 16  # each by one of them
    assert len({process for process, _ in found}) == 2


def test_the_same_setting_written_differently_is_one_run(
    content: dict[str, Any], toy_csv: Path, tmp_path: Path
) -> None:
    """Two paths to the same data are one data set, by its digest."""
    copy = tmp_path / toy_csv.name
    copy.write_bytes(toy_csv.read_bytes())
    spec = parse(StudySpec, {**content, "data": [str(toy_csv), str(copy)], "rank": 2, "learning_rate": 1e-3})
    plan = make_plan(spec, RunStore(tmp_path / "runs"))
    assert (plan.requested, len(plan.runs)) == (8, 4)


def _start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["-c", "from tunewise.cli.main import run; run()", "sweep", str(file), f"--out={out}"]
    return subprocess.Popen([sys.executable, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})


def _until(seen: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_driver_and_a_stopped_one_lose_nothing(content: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL within the second run, Ctrl-C within the third, then to the end: no finished run is run again, and what
    was under way goes on from its checkpoint."""
    import yaml

    file, out = tmp_path / "sweep.yaml", tmp_path / "runs"
    training = {"epochs": 20, "batch_size": 8, "max_length": 16, "save_every": 10}
    file.write_text(yaml.safe_dump({**content, "rank": 4, "learning_rate": 1e-2, "training": training}))
    store = RunStore(out)

    def done() -> dict[str, int]:
        return {i: (out / i / "run.json").stat().st_mtime_ns for i in store.ids() if (out / i / "run.json").exists()}

    def under_way() -> list[Path]:
        seals = out.glob("*/checkpoints/checkpoint-*/checksums.json")
        return [seal for seal in seals if seal.parents[2].name not in done()]

    process = _start(file, out)
    _until(lambda: len(done()) == 1 and bool(under_way()), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = done()
    process = _start(file, out)
    _until(lambda: len(done()) == 2 and bool(under_way()), process)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert time.monotonic() - asked < 10
    second = done()
    (left,) = [row for row in table(out) if row.status == "unfinished"]
    assert (left.method in ("lora", "cla"), left.rank) == (True, 4)
    assert _start(file, out).wait(300) == 0
    last = done()
    assert len(last) == 4
    assert all(last[i] == stamp for i, stamp in {**first, **second}.items())
    for run_id in last:  # every step stands in the history once, in order, whoever did it
        lines = [json.loads(line) for line in (out / run_id / "history.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "step"]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) == 200
