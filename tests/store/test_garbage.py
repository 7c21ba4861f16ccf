"""`gc`: what nobody needs goes, and nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from stored_runs import stored_spec, write_run, write_unfinished
from tunewise.store import garbage
from tunewise.store.folders import RunStore
from tunewise.store.garbage import STALE, leftovers, remove


def names(root: Path, **wanted: bool) -> set[str]:
    return {str(one.path.relative_to(root)) for one in leftovers(RunStore(root), **wanted)}


def old(path: Path) -> Path:
    then = time.time() - 2 * STALE
    os.utime(path, (then, then))
    return path


def plant(path: Path, size: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def content(root: Path) -> dict[str, bytes]:
    """All files but the locks, which stay."""
    files = [f for f in root.rglob("*") if f.is_file() and f.parent.name != ".locks"]
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


def test_a_tidy_store_has_nothing_to_go(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, stored_spec(seed=seed))
    plant(tmp_path / "cache" / "base-spectra" / "0.safetensors")
    plant(old(plant(tmp_path / "cache" / f"behaviour-{'a' * 16}-1234.npz")))
    assert names(tmp_path) == set()
    assert names(tmp_path / "absent") == set()


def test_leftovers_of_stopped_processes_go_and_finished_runs_stay_byte_for_byte(tmp_path: Path) -> None:
    record = write_run(tmp_path, stored_spec())
    kept = content(tmp_path)
    folder = tmp_path / record.id
    plant(folder / ".run.json.abcd1234")
    plant(folder / "adapter" / ".adapter_model.safetensors.zz_99aaa", 5000)
    plant(folder / ".selected.abcdefgh" / "x")
    plant(folder / ".selected.old.abcdefgh" / "selected" / "x")
    plant(folder / ".other.old.abcdefgh" / "other" / "x")  # its successor never came: the only one
    for name in ("checkpoints/checkpoint-3/x", "selected/x", "selected.json"):
        plant(folder / name)
    written = (folder / "run.json").stat().st_mtime
    for path in folder.rglob("*"):
        os.utime(path, (written - 5, written - 5))
    os.utime(folder / "run.json", (written, written))
    bare = write_unfinished(tmp_path, stored_spec(seed=1), checkpoint=False)
    old(plant(tmp_path / "costs" / ".0.json.abcdefgh"))
    plant(tmp_path / "costs" / ".1.json.abcdefgh")  # young: a process may be writing it
    found = leftovers(RunStore(tmp_path))
    assert {str(one.path.relative_to(tmp_path)) for one in found} == {
        f"{record.id}/.run.json.abcd1234",
        f"{record.id}/adapter/.adapter_model.safetensors.zz_99aaa",
        f"{record.id}/.selected.abcdefgh",
        f"{record.id}/.selected.old.abcdefgh",
        f"{record.id}/checkpoints",
        f"{record.id}/selected",
        f"{record.id}/selected.json",
        bare.name,
        "costs/.0.json.abcdefgh",
    }
    before = sum(len(data) for data in content(tmp_path).values())
    freed, stayed = remove(RunStore(tmp_path), found)
    assert stayed == []
    left = content(tmp_path)
    assert left == {
        **kept,
        f"{record.id}/.other.old.abcdefgh/other/x": b"x" * 100,
        "costs/.1.json.abcdefgh": b"x" * 100,
    }
    assert freed == before - sum(len(data) for data in left.values())
    assert names(tmp_path) == set()
    assert RunStore(tmp_path).finished(record.id) == record


def test_checkpoints_are_kept_unless_asked_for(tmp_path: Path) -> None:
    folder = write_unfinished(tmp_path, stored_spec(), checkpoint=True)
    assert names(tmp_path) == set()
    assert names(tmp_path, unfinished=True) == {folder.name}
    (one,) = leftovers(RunStore(tmp_path), unfinished=True)
    assert one.bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) > 1000


def test_a_run_that_ran_out_of_memory_keeps_them_too(tmp_path: Path) -> None:
    record = write_run(tmp_path, stored_spec(), status="oom")
    plant(tmp_path / record.id / "checkpoints" / "checkpoint-3" / "x")
    later = (tmp_path / record.id / "checkpoints").stat().st_mtime + 5
    os.utime(tmp_path / record.id / "run.json", (later, later))
    assert names(tmp_path) == set()
    assert names(tmp_path, unfinished=True) == {f"{record.id}/checkpoints"}


def test_a_run_that_is_trained_anew_keeps_its_checkpoints(tmp_path: Path) -> None:
    record = write_run(tmp_path, stored_spec())
    plant(tmp_path / record.id / "checkpoints" / "checkpoint-3" / "x")
    later = (tmp_path / record.id / "run.json").stat().st_mtime + 5
    os.utime(tmp_path / record.id / "checkpoints", (later, later))
    assert names(tmp_path) == set()


def test_a_damaged_record_goes_once_the_run_was_done_again(tmp_path: Path) -> None:
    record = write_run(tmp_path, stored_spec())
    (tmp_path / record.id / "run.json").rename(tmp_path / record.id / "run.damaged.json")
    assert names(tmp_path) == set()
    RunStore(tmp_path).write(record)
    assert names(tmp_path) == {f"{record.id}/run.damaged.json"}


def test_nothing_of_a_locked_run_goes_not_even_if_the_lock_came_after_the_look(tmp_path: Path) -> None:
    spec = stored_spec()
    folder = write_unfinished(tmp_path, spec, checkpoint=False)
    plant(folder / ".history.jsonl.abcdefgh")
    store = RunStore(tmp_path)
    with store.lock(spec.id):
        assert leftovers(store, unfinished=True) == []
    found = leftovers(store)
    assert folder in {one.path for one in found}
    before = content(tmp_path)
    with store.lock(spec.id):
        freed, stayed = remove(store, found)
        assert freed == 0 and len(stayed) == len(found)
        assert any("being run by process" in line for line in stayed)
    assert content(tmp_path) == before


def test_a_run_that_came_to_its_end_after_the_look_stays(tmp_path: Path) -> None:
    spec = stored_spec()
    write_unfinished(tmp_path, spec, checkpoint=False)
    found = leftovers(RunStore(tmp_path))
    RunStore(tmp_path).folder(spec.id)
    (tmp_path / spec.id / "history.jsonl").unlink()
    (tmp_path / spec.id).rmdir()
    record = write_run(tmp_path, spec)
    _, stayed = remove(RunStore(tmp_path), found)
    assert "has come to its end since" in stayed[0]
    assert RunStore(tmp_path).finished(spec.id) == record


def test_unreadable_records_are_left_to_verify(tmp_path: Path) -> None:
    record = write_run(tmp_path, stored_spec())
    (tmp_path / record.id / "run.json").write_text("{")
    assert names(tmp_path, unfinished=True) == set()


def test_caches_go_only_on_demand(tmp_path: Path) -> None:
    write_run(tmp_path, stored_spec())
    old(plant(tmp_path / "cache" / "behaviour-0.npz"))
    assert names(tmp_path) == set()
    assert names(tmp_path, caches=True) == {"cache"}


def test_a_cleaning_that_was_killed_is_ended_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_unfinished(tmp_path, stored_spec(), checkpoint=False)
    store = RunStore(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(garbage.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(store, leftovers(store))
    assert not folder.exists()  # gone in one step, so nobody takes a half for a whole
    assert names(tmp_path) == {".trash"}
    remove(store, leftovers(store))
    assert not (tmp_path / ".trash").exists()


def test_names_that_only_look_like_temporary_ones_stay(tmp_path: Path) -> None:
    """Files whose names only look a little like temporary ones."""
    record = write_run(tmp_path, stored_spec())
    for name in (".hidden", ".gitignore", "part", "notes.abcdefgh"):
        plant(tmp_path / record.id / name)
    assert names(tmp_path) == set()
    assert json.loads((tmp_path / record.id / "run.json").read_text())["id"] == record.id
