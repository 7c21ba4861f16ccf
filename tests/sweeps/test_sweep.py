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
from tunewise.sweeps import attempt as attempt_module
from tunewise.sweeps import driver as driver_module
from tunewise.sweeps import local
from tunewise.sweeps.driver import sweep
from tunewise.sweeps.monitor import SweepListener
from tunewise.sweeps.planning import plan_sweep
from tunewise.sweeps.room import RayOptions, SideBySide, fits, side_by_side

from command_line import invoke
from stored_runs import record_of, write_run
from tunewise.errors import StoreError
from tunewise.spec import RunSpec, StudySpec, parse
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.store.table import table
from tunewise.training.events import Interrupted, StepDone


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs without training: real locks, folders and records. The list has the ids, in order."""
    made: list[str] = []

    def run(spec: RunSpec, store: RunStore, listener: Any) -> RunRecord:
        if (done := store.finished(spec.id)) is not None:
            return done
        with store.lock(spec.id):
            made.append(spec.id)
            store.begin(spec)
            return write_run(store.root, spec, accuracy=0.5 + spec.learning_rate * spec.method.rank + 0.01 * spec.seed)

    monkeypatch.setattr(attempt_module, "run", run)
    return made


def test_a_sweep_from_the_command_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Really trained: two ordinary runs, a table of them, and nothing to do the second time."""
    out = tmp_path / "runs"
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Toys: 2 runs" in said and "lora, cla" in said and "2 runs to do, 40 steps" in said
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
    assert json.loads((folder / "table.json").read_text())[0]["run"] == rows[0]["run"]
    assert "Toys" in (folder / "sweep.html").read_text(encoding="utf-8")

    written = {run_id: (out / run_id / "run.json").stat().st_mtime_ns for run_id in records}
    capsys.readouterr()
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}") == 0
    assert "0 runs to do, 0 steps, 2 done already" in capsys.readouterr().out
    assert {run_id: (out / run_id / "run.json").stat().st_mtime_ns for run_id in records} == written
    log = (folder / "log.txt").read_text()
    assert log.count("begun") == 2 and log.count("done") >= 2 and log.count("start: 2 runs") == 2


def test_only_what_is_missing_is_run(spec: StudySpec, tmp_path: Path, quick: list[str]) -> None:
    plan = plan_sweep(spec, RunStore(tmp_path))
    write_run(tmp_path, plan.runs[3].spec)
    found = sweep(spec, tmp_path)
    assert len(found.rows) == 16 and {row.status for row in found.rows} == {"done"}
    assert sorted(quick) == sorted({run.id for run in plan.runs} - {plan.runs[3].id})
    again = sweep(spec, tmp_path)
    assert len(quick) == 15 and again.folder == found.folder
    assert [row.test for row in again.rows] == [row.test for row in found.rows]


def test_a_run_that_fails_does_not_stop_the_others(
    file: Path, spec: StudySpec, tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = attempt_module.run

    def run(spec: RunSpec, store: RunStore, listener: Any) -> RunRecord:
        if spec.method.name == "cla":
            raise ZeroDivisionError("nothing to divide by")
        return inner(spec, store, listener)

    monkeypatch.setattr(attempt_module, "run", run)
    out = tmp_path / "runs"
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}") == 1
    rows = {row.method: row for row in table(out)}
    assert (rows["lora"].status, rows["cla"].status) == ("done", "failed")
    assert rows["cla"].problem == "nothing to divide by"
    assert "ZeroDivisionError" in (out / rows["cla"].id / "error.txt").read_text()
    monkeypatch.setattr(attempt_module, "run", inner)
    assert invoke(monkeypatch, "sweep", str(file), f"--out={out}") == 0
    assert {row.status for row in table(out)} == {"done"}
    assert Counter(quick).most_common(1)[0][1] == 1


def test_a_full_disk_stops_the_sweep(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]
) -> None:
    def run(*_: Any, **__: Any) -> RunRecord:
        raise StoreError("no room to write")

    monkeypatch.setattr(attempt_module, "run", run)
    with pytest.raises(StoreError, match="no room"):
        sweep(spec, tmp_path)
    (folder,) = tmp_path.glob("sweep-*")
    assert "stopped by StoreError: no room to write" in (folder / "log.txt").read_text()


def test_the_first_error_is_told_where_the_tables_cannot_be_written_either(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> RunRecord:
        raise StoreError("no room to write")

    def write_tables(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(attempt_module, "run", run)
    monkeypatch.setattr(driver_module, "write_tables", write_tables)
    with pytest.raises(StoreError, match="no room to write") as told:
        sweep(spec, tmp_path)
    assert "the disk is gone" in told.value.__notes__[0]
    (folder,) = tmp_path.glob("sweep-*")
    assert "stopped by StoreError: no room to write" in (folder / "log.txt").read_text()


def test_what_runs_side_by_side_is_counted_by_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def pluralize(devices: int, cores: int = 16, runs: int = 100, on: str = "ray", **options: Any) -> Any:
        monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        return side_by_side(on, RayOptions(**options), runs)

    assert pluralize(0, on="local") == SideBySide(1, 1)
    assert pluralize(0) == SideBySide(16, 16) and pluralize(0, cpus=3.0) == SideBySide(5, 5)
    assert pluralize(0, runs=4) == SideBySide(4, 4)
    assert pluralize(2) == SideBySide(2, 1)  # a GPU each
    assert pluralize(2, gpus=0.4) == SideBySide(4, 2)  # two to a GPU: 0.8 of each
    assert pluralize(2, gpus=1 / 3) == SideBySide(6, 3)
    assert pluralize(2, gpus=0.5, cpus=8.0) == SideBySide(2, 2)  # cores for two, and they may come to one GPU
    assert pluralize(4, gpus=2.0) == SideBySide(2, 1)
    assert pluralize(1, gpus=0.0) == SideBySide(16, 16)  # all on the one there is
    assert pluralize(8, address="auto") is None
    assert fits(3, 0, 0.5, 0.0) == 6 and fits(3, 1, 1.0, 2.0) == 0


def test_a_stop_is_a_stop(spec: StudySpec, tmp_path: Path, quick: list[str]) -> None:
    class Impatient(SweepListener):
        def swept(self, monitor: Any, sentence: str) -> None:
            self.stop_requested = len(monitor.outcomes) == 3

    with pytest.raises(Interrupted):
        sweep(spec, tmp_path, listener=Impatient())
    assert len(quick) == 3
    (folder,) = tmp_path.glob("sweep-*")
    assert "stopped as asked, after 3 done" in (folder / "log.txt").read_text()
    statuses = Counter(row["status"] for row in json.loads((folder / "table.json").read_text()))
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
    monkeypatch.setattr(local, "POLL", 0.05)
    first = plan_sweep(spec, RunStore(tmp_path)).runs[0]
    fork = multiprocessing.get_context("fork")
    ready, enough = fork.Event(), fork.Event()
    other = fork.Process(target=_hold, args=(tmp_path, first.id, ready, enough))

    class Watching(SweepListener):
        def swept(self, monitor: Any, sentence: str) -> None:
            if len(monitor.outcomes) == 15:
                enough.set()

    other.start()
    assert ready.wait(10)
    found = sweep(spec, tmp_path, listener=Watching())  # the other stops without a record, as a killed one would
    other.join()
    assert {row.status for row in found.rows} == {"done"}
    assert quick[-1] == first.id and len(quick) == 16


def _drive(root: Path, spec: StudySpec, made: Any) -> None:
    def run(spec: RunSpec, store: RunStore, listener: Any) -> RunRecord:
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

    attempt_module.run = run  # type: ignore[assignment]  # in a process of its own
    local.POLL = 0.05
    sweep(spec, root)


def test_two_drivers_share_the_runs(spec: StudySpec, tmp_path: Path) -> None:
    plan_sweep(spec, RunStore(tmp_path))  # so that both start at once, with the data read
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
    plan = plan_sweep(spec, RunStore(tmp_path / "runs"))
    assert (plan.asked, len(plan.runs)) == (8, 4)


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


@pytest.mark.slow
def test_runs_side_by_side_whose_processes_are_killed(content: dict[str, Any], tmp_path: Path) -> None:
    """One process is killed once and its run goes on from its checkpoint; another is killed each time it gets to a
    step, and given up; a third run cannot be done at all. The rest is what it is without them."""
    training = {"epochs": 10, "batch_size": 8, "max_length": 16, "save_every": 10}
    fails = {"methods": "lora", "rank": 4, "learning_rate": 1e-2, "seeds": [7], "training": {**training, "epochs": 2}}
    spec = parse(StudySpec, {**content, "rank": 4, "learning_rate": 1e-2, "training": training, "points": [fails]})
    out = tmp_path / "runs"
    store = RunStore(out)
    plan = plan_sweep(spec, store)
    assert len(plan.runs) == 5
    once, always = plan.runs[0].id, plan.runs[1].id
    (last,) = [run.id for run in plan.runs if run.spec.seed == 7]
    (out / last).mkdir(parents=True)
    (out / last / "history.jsonl").mkdir()  # nothing can be written there
    killed: list[str] = []

    class Kills(SweepListener):
        def on(self, event: Any) -> None:
            if not isinstance(event, StepDone):
                return
            if (event.run_id == once and once not in killed and event.step >= 13) or (
                event.run_id == always and event.step % 13 == 0
            ):
                killed.append(event.run_id)
                os.kill(int((out / ".locks" / event.run_id).read_text().split()[1]), signal.SIGKILL)

    found = sweep(spec, out, jobs=2, listener=Kills(), plan=plan)
    statuses = {row.run: row.status for row in found.rows}
    assert found.failed == 2 and statuses.pop(always) == "failed" == statuses.pop(last)
    assert set(statuses.values()) == {"done"} and killed.count(once) == 1 and killed.count(always) == 4
    problems = {row.run: row.error or "" for row in found.rows}
    assert "killed 4 times (signal 9); try fewer --jobs" in problems[always]
    assert "ended with code 1: IsADirectoryError" in problems[last]
    assert "Traceback" in (story := (out / last / "error.txt").read_text()) and "jobs/worker.py" in story
    lines = [json.loads(line) for line in (out / once / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 101))
    log = (found.folder / "log.txt").read_text()
    assert f"the process of {once} was killed (signal 9); its run goes on in another" in log
    (out / last / "history.jsonl").rmdir()
    again = sweep(spec, out, jobs=2)
    alone = sweep(spec, tmp_path / "alone")
    assert [(row.run, row.status, row.test_loss) for row in again.rows] == [
        (row.run, "done", pytest.approx(row.test_loss, abs=1e-6)) for row in alone.rows
    ]
