"""`verify`: every kind of damage is one fault, what is sound has none, and repairing makes damaged runs start again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stored_runs import stored_spec, write_run, write_unfinished
from tunewise.errors import StoreError
from tunewise.spec import StudySpec
from tunewise.store.documents import write_document
from tunewise.store.files import sha256, write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured, RunRecord
from tunewise.store.verification import faults_beside, faults_of_run, repair


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunStore, RunRecord, Path]:
    record = write_run(tmp_path, stored_spec())
    folder = tmp_path / record.id
    write_document(folder / "measures" / "rank.json", Measured(name="rank", version=1, seconds=0.1, values={"x": 1}))
    return RunStore(tmp_path), record, folder


def said(store: RunStore, record: RunRecord) -> list[str]:
    return [f"{fault.file}: {fault.what}" for fault in faults_of_run(store, record.id)]


def test_a_sound_run_has_no_faults(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, _ = run
    assert faults_of_run(store, record.id) == []
    assert faults_of_run(store, write_run(store.root, stored_spec(seed=1), status="diverged").id) == []
    unfinished = stored_spec(seed=2)
    write_unfinished(store.root, unfinished, checkpoint=True)
    assert faults_of_run(store, unfinished.id) == []


def test_a_flipped_bit_in_any_file_is_noticed(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, folder = run
    generator = random.Random(1)
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        raw = file.read_bytes()
        for _ in range(5):
            place = generator.randrange(len(raw))
            while chr(raw[place]).isspace():
                place = generator.randrange(len(raw))
            damaged = bytearray(raw)
            damaged[place] ^= 1 << generator.randrange(8)
            file.write_bytes(damaged)
            faults = faults_of_run(store, record.id)
            assert len(faults) == 1, (file, place)
            assert "\n" not in str(faults[0])
        file.write_bytes(raw)
    assert faults_of_run(store, record.id) == []


def test_missing_and_cut_files_are_noticed(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, folder = run
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    (folder / "predictions.npz").unlink()
    found = said(store, record)
    assert len(found) == 2
    assert any("predictions.npz: is missing" in one for one in found)
    assert any("its checksum differs; is no safetensors file" in one for one in found)


def test_a_run_that_recorded_rubbish_is_noticed_though_the_checksums_are_right(
    run: tuple[RunStore, RunRecord, Path],
) -> None:
    store, record, folder = run
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"\x80\x02pickled")
    (folder / "history.jsonl").write_text('{"kind": "step", "step": 1}\n{"kind": "st')
    store.write(record.model_copy(update={"files": store.checksums(record.id)}))
    found = said(store, record)
    assert len(found) == 2
    assert any("is no safetensors file" in one for one in found)
    assert any("history.jsonl: line 2 is no JSON" in one for one in found)


def test_a_planted_adapter_file_and_a_way_out_of_the_folder_are_noticed(
    run: tuple[RunStore, RunRecord, Path], tmp_path: Path
) -> None:
    store, record, folder = run
    save_file({"x": np.zeros(1)}, folder / "adapter" / "other.safetensors")
    (tmp_path / "outside").write_text("x")
    store.write(record.model_copy(update={"files": {**record.files, "../outside": sha256(tmp_path / "outside")}}))
    found = said(store, record)
    assert any("other.safetensors: is not one of the files of the record" in one for one in found)
    assert any("outside: lies outside the run's folder" in one for one in found)


def test_a_done_run_without_results_or_history_is_not_whole(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, _ = run
    files = {name: value for name, value in record.files.items() if name != "history.jsonl"}
    store.write(record.model_copy(update={"results": None, "files": files}))
    assert len(said(store, record)) == 2


def test_a_changed_specification_is_noticed_by_the_id(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, folder = run
    other = stored_spec(seed=5)
    store.write(record.model_copy(update={"spec": other}))
    (fault,) = faults_of_run(store, record.id)
    assert f"has the id {other.id}" in fault.what and fault.repair is None
    (folder / "run.json").replace(store.root / "kept.json")
    write_document(folder / "run.json", record.model_copy(update={"id": other.id, "spec": other}))
    (fault,) = faults_of_run(store, record.id)
    assert f"the record of another run, {other.id}" in fault.what and fault.repair == "run"


def test_repairing_marks_damaged_runs_to_be_done_again(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, folder = run
    (folder / "history.jsonl").write_text("")
    broken = write_run(store.root, stored_spec(seed=1))
    (store.folder(broken.id) / "run.json").write_text("{")
    faults = [fault for run_id in store.ids() for fault in faults_of_run(store, run_id)]
    done = repair(store, faults)
    assert len(done) == 2 and all("marked to be done again" in line for line in done)
    for one in (record, broken):
        assert store.finished(one.id) is None
        assert store.record(one.id) is None
        assert (store.folder(one.id) / "run.damaged.json").exists()
    assert [fault for run_id in store.ids() for fault in faults_of_run(store, run_id)] == []


def test_repairing_moves_what_is_made_again_aside_and_keeps_the_run(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, folder = run
    (folder / "measures" / "rank.json").write_text("{")
    faults = faults_of_run(store, record.id)
    assert [fault.repair for fault in faults] == ["file"]
    repair(store, faults)
    assert faults_of_run(store, record.id) == []
    assert store.finished(record.id) == record
    assert not (folder / "measures" / "rank.json").exists()


def test_repairing_leaves_a_run_alone_that_a_process_has(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, folder = run
    (folder / "history.jsonl").write_text("")
    faults = faults_of_run(store, record.id)
    with store.lock(record.id):
        (line,) = repair(store, faults)
    assert "left as it is: run" in line and (folder / "run.json").exists()


def test_a_record_of_another_schema_is_reported_and_not_touched(run: tuple[RunStore, RunRecord, Path]) -> None:
    store, record, folder = run
    content = json.loads(record.model_dump_json())
    (folder / "run.json").write_text(json.dumps({**content, "schema_version": 99}))
    faults = faults_of_run(store, record.id)
    assert "has schema 99" in faults[0].what
    assert repair(store, faults) == []
    with pytest.raises(StoreError, match="has schema 99"):
        store.record(record.id)


def test_comparisons_and_costs_are_looked_at(tmp_path: Path) -> None:
    spec = StudySpec.model_validate({"model": "m", "data": "d.csv", "methods": ["lora"], "task": "text"})
    folder = tmp_path / f"compare-{spec.id}"
    write_atomically(folder / "compare.json", spec.model_dump_json())
    assert faults_beside(tmp_path) == []
    write_atomically(folder / "costs.json", "{}")
    write_atomically(tmp_path / "costs" / "0.json", "rubbish")
    assert [f"{f.run}/{f.file}" for f in faults_beside(tmp_path)] == [f"{folder.name}/costs.json", "costs/0.json"]
