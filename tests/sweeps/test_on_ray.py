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
from tunewise.spec import parse
from tunewise.store import leases
from tunewise.store.folders import RunStore
from tunewise.sweeps.driver import sweep
from tunewise.sweeps.room import RayOptions
from tunewise.sweeps.spec import SweepSpec

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
    """The process that has each run now, by the lease's own words."""
    store = RunStore(out)
    return {
        i: int(leases.holder(store.lease_file(i)).split()[1])
        for i in store.ids()
        if store.is_leased(i) and leases.holder(store.lease_file(i)).startswith("process")
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
    assert f"begun {victim}" in log and "from step" in log and "end: " in log


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
    assert not list(out.glob("sweep-*/.stop-*"))


def test_results_are_those_of_the_same_sweep_here(content: dict[str, Any], tmp_path: Path) -> None:
    spec = parse(SweepSpec, {**content, "rank": 4, "learning_rate": 1e-2, "seeds": [0]})
    here = sweep(spec, tmp_path / "here")
    there = sweep(spec, tmp_path / "there", on="ray", ray=RayOptions(cpus=1.0, gpus=0.0))
    assert [(row.run, row.status, row.test_loss) for row in there.rows] == [
        (row.run, row.status, pytest.approx(row.test_loss, abs=1e-6)) for row in here.rows
    ]
    with pytest.raises(SpecError, match="no node of this Ray has room for a run, which takes 1000 CPUs"):
        sweep(spec, tmp_path / "nowhere", on="ray", ray=RayOptions(cpus=1000.0))
    with pytest.raises(SpecError, match="no Ray can be joined"):
        sweep(spec, tmp_path / "nowhere", on="ray", ray=RayOptions(address="127.0.0.1:1"))


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[tuple[str, list[Path]]]:
    """The address of a cluster of two nodes with a temporary folder each, and these folders."""
    from ray.cluster_utils import Cluster

    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    first, second = ({"TMPDIR": str(folder)} for folder in folders)
    made = Cluster(
        initialize_head=True, connect=False, head_node_args={**small, "include_dashboard": False, "env_vars": first}
    )
    made.add_node(**small, env_vars=second)
    try:
        yield made.address, folders
    finally:
        made.shutdown()


def test_runs_of_nodes_that_share_no_folder_come_home(
    content: dict[str, Any], tmp_path: Path, apart: tuple[str, list[Path]]
) -> None:
    """A killed worker's run goes on at whichever node, from the checkpoint at home; a killed driver's next one takes in
    what came home without it; at the end the runs folder holds what it holds without a home."""
    address, nodes = apart
    file, out, home = tmp_path / "sweep.yaml", tmp_path / "runs", tmp_path / "home"
    training = {"epochs": 20, "batch_size": 8, "max_length": 16, "save_every": 10}
    file.write_text(yaml.safe_dump({**content, "learning_rate": 1e-2, "rank": 4, "seeds": 2, "training": training}))
    flags = f"--ray-address={address}", f"--home=file://{home}"

    def under_way() -> dict[str, int]:
        return {
            run: process for node in nodes for place in node.glob("*/*") for run, process in _processes(place).items()
        }

    def copies(run_id: str) -> list[dict[str, Any]]:
        lists = [json.loads(path.read_text()) for path in (home / run_id).glob("*.json")]
        return [one for one in lists if "checksum" in one]

    def at_home() -> set[str]:
        return {path.name for path in home.glob("*") if any(one["status"] == "done" for one in copies(path.name))}

    driver = _start(file, out, *flags)
    _until(lambda: len(under_way()) == 2, driver)
    assert {len(_processes(place)) for node in nodes for place in node.glob("*/*")} == {1}  # a run each
    _until(lambda: any(copies(run) for run in under_way()), driver)
    victim, process = next((run, process) for run, process in under_way().items() if copies(run))
    os.kill(process, signal.SIGKILL)
    _until(lambda: len(_done(out)) >= 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _until(lambda: not under_way(), seconds=60)
    finished = _done(out)
    driver = _start(file, out, *flags)
    assert driver.wait(400) == 0
    last = _done(out)
    assert len(last) == 4 and {i: last[i] for i in finished} == finished and at_home() == set(last)
    (folder,) = out.glob("sweep-*")
    log = (folder / "log.txt").read_text()
    (ended,) = [line for line in log.splitlines() if f"done {victim}" in line]
    assert "from step" in ended
    shared = sweep(parse(SweepSpec, yaml.safe_load(file.read_text())), tmp_path / "shared")
    for row in shared.rows:
        here, there = out / row.run, tmp_path / "shared" / row.run
        names = [sorted(f.relative_to(at).as_posix() for f in at.rglob("*") if f.is_file()) for at in (here, there)]
        assert names[0] == names[1]
        sums = [RunStore(at).finished(row.run).files for at in (out, tmp_path / "shared")]
        assert sums[0] == sums[1]
