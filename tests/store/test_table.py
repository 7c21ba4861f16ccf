"""The table of runs: always what the folders say."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import subprocess
import sys
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import pytest

from stored_runs import record_of, stored_spec, write_run, write_unfinished
from tunewise.store.documents import write_document
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.table import RunRow, row_of, table


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        for method in ("lora", "cla", "head"):
            write_run(tmp_path, stored_spec(method, seed))
    return tmp_path


def truth(root: Path) -> list[RunRow]:
    """The table without any index."""
    rows = [row_of(record) for record in RunStore(root).records()]
    return sorted(rows, key=lambda row: (row.started, row.id))


def test_a_row_says_what_the_record_says(runs: Path) -> None:
    spec = stored_spec("lora", 7, learning_rate=3e-4)
    write_run(runs, spec, accuracy=0.75)
    row = next(row for row in table(runs) if row.id == spec.id)
    assert (row.method, row.rank, row.alpha, row.links, row.rate, row.seed) == ("lora", 4, 8.0, None, 3e-4, 7)
    assert (row.model, row.data, row.metric, row.test) == ("models/base", "toys.csv", "accuracy", 0.75)
    assert row.gap == pytest.approx(0.2)
    assert next(row for row in table(runs) if row.method == "head").rank is None


def test_changed_new_and_removed_runs_are_seen(runs: Path) -> None:
    rows = table(runs)
    store = RunStore(runs)
    store.write(store.record(rows[0].id).model_copy(update={"seconds": 12.6}))  # as many bytes as before
    shutil.rmtree(runs / rows[1].id)
    write_run(runs, stored_spec("paca"))
    again = table(runs)
    assert again == truth(runs)
    assert {row.id for row in again} - {row.id for row in rows} == {stored_spec("paca").id}
    assert next(row for row in again if row.id == rows[0].id).seconds == 12.6


def test_runs_in_every_state_are_listed(runs: Path) -> None:
    write_run(runs, stored_spec("c3la"), status="diverged")
    stopped, held, broken = (stored_spec("cola", seed) for seed in range(3))
    write_unfinished(runs, stopped, checkpoint=True)
    write_unfinished(runs, held, checkpoint=False)
    write_run(runs, broken)
    (runs / broken.id / "run.json").write_text("{")
    moved = write_run(runs, stored_spec("asym"))
    (runs / moved.id).rename(runs / ("f" * 16))
    (runs / "notes").mkdir()
    (runs / ("e" * 16)).write_text("a file")
    with RunStore(runs).lock(held.id):
        rows = {row.id: row for row in table(runs)}
    assert len(rows) == 9 + 5
    assert rows[stored_spec("c3la").id].status == "diverged"
    assert rows[stored_spec("c3la").id].problem == "it diverged"
    assert (rows[stopped.id].status, rows[held.id].status) == ("unfinished", "running")
    assert rows[broken.id].status == "unreadable" and "can't be read" in str(rows[broken.id].problem)
    assert "the record of another run" in str(rows["f" * 16].problem)
    assert {row.id: row for row in table(runs)}[held.id].status == "unfinished"


def test_a_finished_run_that_is_done_anew_is_running(runs: Path) -> None:
    first = table(runs)[0]
    with RunStore(runs).lock(first.id):
        assert next(row for row in table(runs) if row.id == first.id).status == "running"
    assert table(runs)[0] == first


def test_what_an_unfinished_run_is_was_noted_when_it_was_begun(tmp_path: Path) -> None:
    spec, other, damaged = (stored_spec("c3la", seed) for seed in range(3))
    for each in (spec, other, damaged):
        write_unfinished(tmp_path, each, checkpoint=False)
    RunStore(tmp_path).begin(spec)
    write_atomically(tmp_path / other.id / "spec.json", spec.model_dump_json())  # of another run
    write_atomically(tmp_path / damaged.id / "spec.json", spec.model_dump_json()[:100])
    rows = {row.id: row for row in table(tmp_path)}
    assert (rows[spec.id].status, rows[spec.id].method, rows[spec.id].rank) == ("unfinished", "c3la", 4)
    assert rows[other.id].method is None and rows[damaged.id].method is None


def _write_many(root: Path, seeds: range, turns: Semaphore) -> None:
    """A turn for every twenty runs: however busy the machine, the table is read while they come to be."""
    for seed in seeds:
        if seed % 20 == 0:
            turns.acquire()
        spec = stored_spec("lora", seed)
        with RunStore(root).lock(spec.id):
            write_document(root / spec.id / "run.json", record_of(spec))


def test_readers_beside_writers_see_whole_rows_only(tmp_path: Path) -> None:
    """Three processes write runs while this one and two others read the table."""
    fork = multiprocessing.get_context("fork")
    turns = fork.Semaphore(0)
    writers = [fork.Process(target=_write_many, args=(tmp_path, range(60 * i, 60 * i + 60), turns)) for i in range(3)]
    readers = [fork.Process(target=lambda: [table(tmp_path) for _ in range(10)]) for _ in range(2)]
    for process in [*writers, *readers]:
        process.start()
    seen, last = [], []
    while any(writer.is_alive() for writer in writers):
        rows = table(tmp_path)
        assert not [row for row in rows if row.status not in ("done", "running", "unfinished")]
        done = {row.id for row in rows if row.method is not None}
        assert done >= set(last)
        seen.append(len(done))
        last = list(done)
        for _ in writers:
            turns.release()
    for process in [*writers, *readers]:
        process.join()
        assert process.exitcode == 0
    assert len(seen) > 2
    assert table(tmp_path) == truth(tmp_path)
    assert len(table(tmp_path)) == 180


def spent_on(root: Path, count: int) -> float:
    """Processor seconds of `tunewise runs ls`, which is to list so many runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "import sys; sys.argv = ['tunewise', 'runs', 'ls', sys.argv[1]]; from tunewise.cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == f"{count:,} runs: {count:,} done"
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_five_thousand_runs_are_listed_in_four_processor_seconds(tmp_path: Path) -> None:
    """The whole command, counted in processor time so that a busy machine does not change it."""
    text = record_of(stored_spec()).model_dump_json(indent=1)
    (tmp_path / ".locks").mkdir()
    for seed in range(5000):
        spec = stored_spec("lora", seed)
        (tmp_path / ".locks" / spec.id).write_text("process 1 on host")
        (tmp_path / spec.id).mkdir()
        (tmp_path / spec.id / "run.json").write_text(
            text.replace(stored_spec().id, spec.id).replace('"seed": 0', f'"seed": {seed}')
        )
    spent = spent_on(tmp_path, 5000)
    print(f"processor seconds: {spent}")
    assert spent < 4.0
