"""Sweeps as Ray tasks: a local Ray, and a cluster of four nodes of which workers and the driver are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunewise.errors import SpecError
from tunewise.spec import StudySpec, parse
from tunewise.store import locks
from tunewise.store.folders import RunStore
from tunewise.study.sweep import sweep

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of four nodes with a core each, their heads, stores and workers all real processes."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, connect=False, head_node_args={**small, "include_dashboard": False})
    for _ in range(3):
        made.add_node(**small)
    try:
        yield made.address
    finally:
        made.shutdown()


def _start(file: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    words = ["-c", "from tunewise.cli.main import run; run()", "sweep", str(file), f"--out={out}", "--on=ray", *flags]
    return subprocess.Popen([sys.executable, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})


def _until(seen: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.05)


def _done(out: Path) -> dict[str, int]:
    found = ((i, out / i / "run.json") for i in RunStore(out).ids())
    return {i: path.stat().st_mtime_ns for i, path in found if path.exists()}


def _processes(out: Path) -> dict[str, int]:
    """The process that has each run now, by the lock's own words."""
    store = RunStore(out)
    return {
        i: int(locks.holder(store.lock_file(i)).split()[1])
        for i in store.ids()
        if store.is_locked(i) and locks.holder(store.lock_file(i)).startswith("process")
    }


def _sealed(out: Path, run_id: str) -> bool:
    return any((out / run_id).glob("checkpoints/checkpoint-*/checksums.json"))


def test_a_killed_worker_and_a_killed_driver_lose_nothing(
    content: dict[str, Any], tmp_path: Path, cluster: str
) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "runs"
    training = {"epochs": 20, "batch_size": 8, "max_length": 16, "save_every": 10}
    file.write_text(yaml.safe_dump({**content, "learning_rate": 1e-2, "seeds": 3, "training": training}))
    driver = _start(file, out, f"--ray-address={cluster}")
    _until(lambda: len(_processes(out)) == 4, driver)  # four nodes, a run each
    _until(lambda: any(_sealed(out, i) for i in _processes(out)), driver)
    victim, process = next((i, p) for i, p in _processes(out).items() if _sealed(out, i))
    before = _done(out)
    os.kill(process, signal.SIGKILL)
    # Its run goes on in another process, or ends there.
    _until(lambda: victim in _done(out) or _processes(out).get(victim, process) != process, driver)
    _until(lambda: len(_done(out)) >= len(before) + 3, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _until(lambda: not _processes(out), seconds=60)  # Ray ends the tasks of a driver that is gone
    finished = _done(out)
    assert 3 <= len(finished) < 12
    driver = _start(file, out, f"--ray-address={cluster}")
    assert driver.wait(400) == 0
    last = _done(out)
    assert len(last) == 12
    assert {i: last[i] for i in finished} == finished  # none of them was run again
    for run_id in last:
        assert json.loads((out / run_id / "run.json").read_text())["status"] == "done"
        lines = [json.loads(line) for line in (out / run_id / "history.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "step"]
        assert steps == list(range(1, 201))  # each once, in order, whoever did it
    (folder,) = out.glob("sweep-*")
    log = (folder / "log.txt").read_text()
    assert f"begun {victim}" in log and "goes on from its last checkpoint" in log and "end: " in log


def test_a_local_ray_starts_by_itself_and_stops_at_ctrl_c(content: dict[str, Any], tmp_path: Path) -> None:
    """Half a core for a run, so that two share one; Ctrl-C leaves checkpoints and exit code 130."""
    file, out = tmp_path / "sweep.yaml", tmp_path / "runs"
    training = {"epochs": 60, "batch_size": 8, "max_length": 16}
    file.write_text(yaml.safe_dump({**content, "rank": 4, "learning_rate": 1e-2, "training": training}))
    driver = _start(file, out, "--cpus-per-run=0.5")
    _until(lambda: len(_processes(out)) >= 2 and any(_sealed(out, i) for i in _processes(out)), driver)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    assert not _processes(out)
    assert any(_sealed(out, i) for i in RunStore(out).ids() if i not in _done(out))
    assert not list(out.glob(".ray-*"))


def test_results_are_those_of_the_same_sweep_here(content: dict[str, Any], tmp_path: Path) -> None:
    spec = parse(StudySpec, {**content, "rank": 4, "learning_rate": 1e-2, "seeds": [0]})
    here = sweep(spec, tmp_path / "here")
    there = sweep(spec, tmp_path / "there", executor="ray", ray={"cpus_per_run": 1.0, "gpus_per_run": 0.0})
    assert [(row.run, row.status, row.test_loss) for row in there.rows] == [
        (row.run, row.status, pytest.approx(row.test_loss, abs=1e-6)) for row in here.rows
    ]
    with pytest.raises(SpecError, match="no node of this Ray has room for a run, which takes 1000 CPUs"):
        sweep(spec, tmp_path / "nowhere", executor="ray", ray={"cpus_per_run": 1000.0})
    with pytest.raises(SpecError, match="no Ray can be joined"):
        sweep(spec, tmp_path / "nowhere", executor="ray", ray={"address": "127.0.0.1:1"})
