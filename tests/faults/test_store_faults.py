"""Faults that a runs folder must outlive: many writers at once, a full disk, damaged bytes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import sys
from pathlib import Path

import pytest

from command_line import invoke
from faults.disks import fill, grow, small_disk
from stored_runs import record_of, stored_spec, write_run, write_unfinished
from tunewise.cli.main import run as run_command
from tunewise.errors import StoreError
from tunewise.store import files
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.garbage import leftovers, remove
from tunewise.store.records import RunRecord
from tunewise.store.table import table
from tunewise.store.verification import faults_of_run
from tunewise.training import checkpoints

WRITERS, EACH = 10, 200


def _work(root: Path, wanted: dict[str, RunRecord], order: int, start: object) -> None:
    """One worker of a sweep: goes through all runs in an order of its own and does what nobody has done."""
    store = RunStore(root)
    mine = list(wanted)
    random.Random(order).shuffle(mine)
    log = os.open(root / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    start.wait()
    for run_id in mine:
        if (store.folder(run_id) / "run.json").exists():
            continue
        try:
            with store.lock(run_id):
                if store.record(run_id) is None:
                    os.write(log, f"{run_id} {os.getpid()}\n".encode())
                    store.write(wanted[run_id].model_copy(update={"seconds": float(os.getpid())}))
        except StoreError as error:
            assert "is being run by" in str(error)


def test_ten_writers_of_two_thousand_results_lose_none_and_do_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ten want all 2,000; the disk need not be waited for, since nobody pulls the plug here."""
    monkeypatch.setattr(files.os, "fsync", lambda _: None)
    one = record_of(stored_spec())
    wanted = {f"{i:016x}": one.model_copy(update={"id": f"{i:016x}"}) for i in range(WRITERS * EACH)}
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(WRITERS)
    workers = [fork.Process(target=_work, args=(tmp_path, wanted, order, start)) for order in range(WRITERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len(done) == len({run_id for run_id, _ in done}) == WRITERS * EACH
    assert len({worker for _, worker in done}) > 1
    rows = table(tmp_path)
    assert {row.id for row in rows} == set(wanted)
    assert {(row.id, str(int(row.seconds))) for row in rows} == {tuple(line) for line in done}
    assert not list(tmp_path.glob("*/.run.json.*"))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_disk_that_is_full_at_any_moment_of_a_write_leaves_the_old_file(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "f.json", "old")
    monkeypatch.setattr(files.os, where, full)
    with pytest.raises(StoreError, match=r"no room to write .*f\.json: 2\.0 kB needed, .* free in .*; make room"):
        write_atomically(tmp_path / "f.json", "n" * 2000)
    assert [f.name for f in tmp_path.iterdir()] == ["f.json"]
    assert (tmp_path / "f.json").read_text() == "old"


def test_another_fault_of_the_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "f.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk_loses_no_record_and_can_be_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 256) as root:
        store = RunStore(root)
        record = write_run(root, stored_spec())
        stopped = write_unfinished(root, stored_spec(seed=1), checkpoint=True)
        (root / ".locks").mkdir()
        for run_id in (record.id, stopped.name):
            (root / ".locks" / run_id).touch()
        fill(root)
        with pytest.raises(
            StoreError, match=r"no room to write .*run\.json: \d\.\d kB needed, 0 B free in .*; make room"
        ):
            store.write(record.model_copy(update={"seconds": 99.0}))
        assert store.finished(record.id) == record
        assert faults_of_run(store, record.id) == []
        assert not list(root.glob("*/.run.json.*"))
        with store.lock(record.id):  # held, though there is no room to say by whom
            assert store.is_locked(record.id)
        assert [row.status for row in table(root)] == ["done", "unfinished"]
        monkeypatch.setattr(sys, "argv", ["tunewise", "runs", "ls", str(root)])
        with pytest.raises(SystemExit) as stop:
            run_command()
        assert stop.value.code == 0 and capsys.readouterr().out.count("\n") == 4
        freed, stayed = remove(store, leftovers(store, unfinished=True))
        assert freed > 1000 and stayed == []
        assert not stopped.exists()
        store.write(record.model_copy(update={"seconds": 99.0}))
        assert store.record(record.id).seconds == 99.0


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(tmp_path: Path) -> None:
    """A bit of any file of the newest, its list of checksums among them; a file cut short, or gone."""
    generator = random.Random(3)

    def make() -> Path:
        for step in (5, 10):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir(exist_ok=True)
            for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
                (folder / name).write_bytes(bytes(generator.randrange(256) for _ in range(500)))
            checkpoints.seal(folder)
        return tmp_path / "checkpoint-10"

    newest = make()
    assert checkpoints.latest(tmp_path) == newest
    for name in sorted(f.name for f in newest.iterdir()):
        for damage in ("bit", "bit", "cut", "gone"):
            file = make() / name
            raw = bytearray(file.read_bytes())
            place = generator.randrange(len(raw))
            while chr(raw[place]).isspace():
                place = generator.randrange(len(raw))
            raw[place] ^= 1 << generator.randrange(8)
            if damage == "gone":
                file.unlink()
            else:
                file.write_bytes(raw if damage == "bit" else raw[: len(raw) // 2])
            assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-5", (name, damage)
            assert not newest.exists()


def test_run_names_cannot_leave_the_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does anything follow a link out of it when it cleans."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    root = tmp_path / "runs"
    root.mkdir()
    for name in ("../outside", "..", "/etc", "0123456789abcde/", "0123456789ABCDEF", "", "0123456789abcdef\n"):
        with pytest.raises(StoreError, match="is no run id"):
            RunStore(root).folder(name)
    (root / ("0" * 16)).symlink_to(outside)
    (root / "cache").symlink_to(outside)
    folder = write_unfinished(root, stored_spec(), checkpoint=False)
    (folder / "link").symlink_to(outside)
    store = RunStore(root)
    remove(store, leftovers(store, unfinished=True, caches=True))
    assert not folder.exists()
    assert (outside / "precious").read_text() == "x"


@pytest.mark.slow
def test_a_run_that_meets_a_full_disk_again_and_again_ends_as_if_it_had_not(
    tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """The disk grows by steps, so that it is full at another write each time: of an adapter, of an optimizer's state,
    of a configuration. Each time the command ends with one line; the last time with the very same weights."""
    from test_run import make_spec
    from tunewise.run import run

    spec = make_spec(tiny_model, toy_csv, "lora")
    whole = run(spec, RunStore(tmp_path / "whole"))
    resumed, said = set(), []
    with small_disk(tmp_path / "disk", 24) as root:
        for kilobytes in range(24, 600, 24):
            grow(root, kilobytes)
            if newest := checkpoints.latest(RunStore(root).folder(spec.id) / "checkpoints"):
                resumed.add(checkpoints.step_of(newest))
            try:
                record = run(spec, RunStore(root))
            except StoreError as error:
                said.append(str(error))
                continue
            break
        assert len(said) >= 5 and all("no room to" in line and " free" in line for line in said)
        assert any("a checkpoint takes" in line for line in said)
        assert resumed
        assert record.results == whole.results
        assert record.files["adapter/adapter_model.safetensors"] == whole.files["adapter/adapter_model.safetensors"]
        assert faults_of_run(RunStore(root), spec.id) == []


@pytest.mark.parametrize("below", ["", "/runs"])
@pytest.mark.parametrize("command", ["sweep", "compare", "train"])
def test_a_file_is_no_place_for_runs(
    command: str,
    below: str,
    tiny_model: Path,
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, spec = tmp_path / "notes.txt", tmp_path / "sweep.yaml"
    file.write_text("mine")
    spec.write_text(f"{{model: {tiny_model}, data: {toy_csv}, methods: lora}}")
    what = [f"--model={tiny_model}", f"--data={toy_csv}"]
    words = {"sweep": [str(spec)], "compare": [*what, "--methods=lora"], "train": [*what, "--method=lora"]}[command]
    assert invoke(monkeypatch, command, *words, f"--out={file}{below}") == 2
    error = capsys.readouterr().err
    assert error == f"error: {file} is a file, and runs go into a folder; choose another (--out)\n"
    assert file.read_text() == "mine"
