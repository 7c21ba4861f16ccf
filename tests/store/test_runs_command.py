"""`tunewise runs`, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stored_runs import stored_spec, write_run, write_unfinished
from tunewise.store.documents import write_document
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call: Call) -> Call:
    return lambda *words: call("runs", *words)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path, stored_spec("lora", 0), accuracy=0.7)
    write_run(tmp_path, stored_spec("cla", 1, learning_rate=3e-3), accuracy=0.8)
    write_run(tmp_path, stored_spec("head", 2), status="diverged")
    write_unfinished(tmp_path, stored_spec("paca", 3), checkpoint=True)
    return tmp_path


def test_ls_prints_a_line_a_run(runs: Path, call: Call) -> None:
    code, out, _ = call("ls", runs)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 6
    assert lines[0].split()[:4] == ["id", "status", "method", "rank"]
    assert lines[1].split()[:6] == [stored_spec("lora", 0).id[:8], "done", "lora", "4", "8", "0.01"]
    assert "0.7000  +0.2000     12.5  2026-01-01 00:00" in lines[1]
    assert lines[3].endswith("it diverged")
    assert lines[-1] == "4 runs: 2 done, 1 diverged, 1 unfinished"
    assert call("ls", runs, "--where", "seed=1", "--method", "cla")[1].splitlines()[-1] == "1 of 4 runs: 1 done"
    assert call("ls", runs, "--where", "seed=9")[1] == f"none of the 4 runs in {runs} fits\n"


def test_ls_as_json_has_everything(runs: Path, call: Call) -> None:
    rows = json.loads(call("ls", runs, "--json", "--sort=-test")[1])
    assert [row["method"] for row in rows[:2]] == ["cla", "lora"]
    assert rows[0]["rate"] == 3e-3 and rows[0]["spec"]["training"]["epochs"] == 2


def test_an_empty_and_an_absent_folder(tmp_path: Path, call: Call) -> None:
    assert call("ls", tmp_path)[:2] == (0, f"no runs in {tmp_path}\n")
    for verb in ("ls", "gc", "verify"):
        code, _, err = call(verb, tmp_path / "absent")
        assert code == 2 and "there is no such folder" in err and err.count("\n") == 1


def test_show_says_what_is_known_of_a_run(runs: Path, call: Call) -> None:
    spec = stored_spec("lora", 0)
    folder = runs / spec.id
    write_document(
        folder / "measures" / "rank.json",
        Measured(name="rank", version=1, seconds=0.1, values={"effective": 2.5, "layers": {"q": 1, "v": 2}}),
    )
    code, out, _ = call("show", spec.id[:6], runs)
    assert code == 0
    shown = yaml.safe_load(out)
    assert (shown["id"], shown["status"], shown["spec"]["method"]["rank"]) == (spec.id, "done", 4)
    assert shown["gap"] == pytest.approx(0.2) and "run.json" in shown["files"] and "problems" not in shown
    assert call("show", folder)[1] == out
    known = json.loads(call("show", spec.id, runs, "--json")[1])
    assert known["results"]["test"]["loss"] == 0.3 and known["measures"]["rank"]["values"]["effective"] == 2.5
    (folder / "history.jsonl").write_text("")
    out = call("show", spec.id, runs)[1]
    assert "problems" in out and "history.jsonl: is not as it was written" in out


def test_show_of_runs_without_a_record(runs: Path, call: Call) -> None:
    unfinished = stored_spec("paca", 3).id
    assert "status: unfinished" in (out := call("show", unfinished, runs)[1])
    assert "after step 5" in out
    with RunStore(runs).lock(unfinished):
        out = call("show", unfinished, runs)[1]
        assert "status: running" in out and "held_by: process " in out


def test_a_prefix_must_mean_one_run(runs: Path, call: Call) -> None:
    assert call("show", "", runs)[0] == 2
    first = stored_spec("lora", 0).id
    (runs / (first[:4] + "0" * 12)).mkdir()
    code, _, err = call("show", first[:4], runs)
    assert code == 2 and f"2 runs in {runs} begin with {first[:4]!r}" in err and err.count("\n") == 1
    for name, message in (("0" * 16, "no run in"), ("xyz", "is no run id"), ("a/b", "no such folder")):
        code, _, err = call("show", name, runs)
        assert code == 2 and message in err


def test_gc_lists_and_with_yes_removes(runs: Path, call: Call) -> None:
    scratch = runs / stored_spec("lora", 0).id / ".run.json.abcd1234"
    scratch.write_bytes(b"x" * 2345)
    code, out, _ = call("gc", runs)
    assert code == 0 and "2.3 kB  " in out and "2.3 kB in all; --yes removes them" in out and scratch.exists()
    code, out, _ = call("gc", runs, "--yes")
    assert code == 0 and out.endswith("2.3 kB removed\n") and not scratch.exists()
    assert call("gc", runs, "--yes")[1] == f"nothing to remove in {runs}\n"
    assert (runs / stored_spec("paca", 3).id).exists()
    call("gc", runs, "--yes", "--all-unfinished")
    assert not (runs / stored_spec("paca", 3).id).exists()


def test_verify_ends_with_3_until_it_is_mended(runs: Path, call: Call) -> None:
    assert call("verify", runs)[:2] == (0, "4 runs checked: no faults\n")
    spec = stored_spec("lora", 0)
    (runs / spec.id / "predictions.npz").write_bytes(b"")
    code, out, _ = call("verify", runs)
    assert code == 3
    assert out.splitlines()[0] == f"{spec.id}/predictions.npz: is not as it was written (its checksum differs)"
    assert out.splitlines()[1] == "4 runs checked: 1 fault in 1 folder"
    assert call("verify", runs, "--fix")[0] == 3
    assert call("verify", runs)[0] == 0
    assert call("ls", runs, "--status=unfinished")[1].splitlines()[-1] == "2 of 4 runs: 2 unfinished"


def test_verify_leaves_running_runs_out(runs: Path, call: Call) -> None:
    spec = stored_spec("lora", 0)
    (runs / spec.id / "predictions.npz").write_bytes(b"")
    with RunStore(runs).lock(spec.id):
        assert call("verify", runs)[:2] == (0, "3 runs checked: no faults; 1 in progress were left out\n")


def test_no_verb_imports_torch(runs: Path) -> None:
    """All four in one fresh process, one after the other."""
    one = stored_spec("lora", 0).id
    script = (
        "import sys\nfrom tunewise.cli.main import run\n"
        f"for words in (['ls'], ['show', {one!r}], ['gc'], ['verify']):\n"
        "    sys.argv = ['tunewise', 'runs', *words]\n"
        "    try:\n        run()\n    except SystemExit as stop:\n        assert not stop.code, words\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'scipy') if name in sys.modules])"
    )
    (runs / "runs").symlink_to(runs)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=runs)
    assert done.stdout.splitlines()[-1] == "[]"
