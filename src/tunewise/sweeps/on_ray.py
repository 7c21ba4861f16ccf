"""A sweep as Ray tasks: on the cores and GPUs of this machine, or on a cluster.

Models, data and the runs folder lie under the same paths on all nodes. A task whose worker or node dies is done again elsewhere, from its last checkpoint,
up to a fixed number of times; a driver that dies takes its tasks along, and the next one goes on.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewise.errors import SpecError, StoreError
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.sweeps.attempt import Outcome, attempt, failed, outcome_of
from tunewise.sweeps.log import Log
from tunewise.sweeps.room import RayOptions, fits
from tunewise.training.events import Event, Interrupted, Listener, RunStarted

if TYPE_CHECKING:
    from tunewise.sweeps.monitor import Monitor

LOOK = 1.0
"""Seconds between the driver's looks at its user and at held runs, and a run's at the stop file."""
PATIENCE = 30.0
"""Seconds that runs have for their last checkpoint once a stop was asked for."""


@dataclass(frozen=True)
class Place:
    """What a node needs to know: it sees the runs folder under the driver's path."""

    root: str
    folder: str
    stop: str
    cwd: str

    def attempt(self, spec: RunSpec) -> Outcome:
        node = os.uname().nodename
        if not Path(self.folder).is_dir():
            raise StoreError(
                f"node {node} does not see {self.folder}; give an --out that all nodes see under one path (a shared "
                "file system)"
            )
        return attempt(spec, RunStore(self.root), _Ears(Path(self.stop), Log(Path(self.folder) / "log.txt"), node))


class _Ears(Listener):
    """Stops its run once the stop file is there; says when the run has begun."""

    def __init__(self, stop: Path, log: Log, node: str) -> None:
        self.stop, self.log, self.node = stop, log, node
        self._stop = False
        self._looked = 0.0

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]
        if not self._stop and time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self._stop = self.stop.exists()
        return self._stop

    def on(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            resumed = f" from step {event.first_step}" if event.first_step else ""
            self.log.say(f"begun {event.run_id} {event.label} seed {event.seed}{resumed} on {self.node}, {os.getpid()}")


def run_on_ray(monitor: Monitor, store: RunStore, folder: Path, options: RayOptions) -> None:
    """Do all that is to do. Raises `SpecError` where Ray is not installed, can't be joined or has no room for a single
    run; `Interrupted` where the listener asked for a stop; `StoreError` where a node can't use the runs folder."""
    ray = _import_ray()
    stop = folder.absolute() / f".stop-{uuid.uuid4().hex[:12]}"
    place = Place(str(store.root.absolute()), str(folder.absolute()), str(stop), str(Path.cwd()))
    with _joined(ray, options):
        gpus = _gpus(ray, options)
        monitor.at_once = _room(ray, options, gpus)
        task = ray.remote(_work).options(
            num_cpus=options.cpus, num_gpus=gpus, max_retries=options.retries, retry_exceptions=False
        )
        monitor.log.say(
            f"Ray: {len(ray.nodes())} nodes, {monitor.at_once} runs at once, each with {options.cpus:g} CPUs"
            f"{f' and {gpus:g} GPUs' if gpus else ''}, {options.retries} retries"
        )
        waiting = list(monitor.plan.todo)
        held: list[Any] = []
        under_way: dict[Any, tuple[Any, float]] = {}
        looked = time.monotonic()
        try:
            while waiting or under_way or held:
                monitor.check()
                while waiting and len(under_way) < monitor.at_once:
                    run = waiting.pop(0)
                    under_way[task.remote(run.spec.model_dump_json(), place)] = run, time.time()
                    monitor.begun(run.id, note=False)
                ready: list[Any] = []
                if under_way:
                    ready, _ = ray.wait(list(under_way), num_returns=1, timeout=LOOK)
                elif held:
                    time.sleep(LOOK)
                for reference in ready:
                    run, since = under_way.pop(reference)
                    outcome = _outcome(ray, reference, run.spec, store, since, options)
                    if outcome.status == "held":
                        monitor.put_back(run.id)
                        held.append(run)
                    else:
                        monitor.ended(outcome)
                if time.monotonic() - looked > LOOK:  # nodes come and go; other drivers finish, or stop
                    looked = time.monotonic()
                    monitor.at_once = max(1, _room(ray, options, gpus, lost=True))
                    free = [run for run in held if not store.is_locked(run.id)]
                    held = [run for run in held if run not in free]
                    waiting += free
        except BaseException:  # Ctrl-C and exit too: tasks on other machines must hear of it, whatever ends this one
            stop.touch()
            _let_stop(ray, monitor, list(under_way))
            raise
        finally:
            stop.unlink(missing_ok=True)


def _work(content: str, place: Place) -> Outcome:
    """What a task does: one attempt, in the driver's working folder where this node has it."""
    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    if Path(place.cwd).is_dir():
        os.chdir(place.cwd)
    return place.attempt(RunSpec.model_validate_json(content))


def _outcome(ray: Any, reference: Any, spec: RunSpec, store: RunStore, since: float, options: RayOptions) -> Outcome:
    try:
        found: Outcome = ray.get(reference)
        return found
    except ray.exceptions.RayTaskError as error:  # raised by the run's own process
        if isinstance(error.cause, Interrupted | StoreError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:  # its process or node is gone for good
        if (done := store.finished(spec.id)) is not None:  # ... but not before it had finished
            return outcome_of(done, time.time() - since, 0)
        said = f"its worker died {options.retries + 1} times ({type(error).__name__}); see the node's memory and logs"
        problem = RuntimeError(said)
    started = datetime.datetime.fromtimestamp(since, datetime.UTC).isoformat(timespec="seconds")
    return outcome_of(failed(spec, store, problem, started, time.time() - since), time.time() - since, 0)


def _let_stop(ray: Any, monitor: Monitor, references: list[Any]) -> None:
    """Wait for the last checkpoints of what is under way, then end what is left."""
    if not references:
        return
    stopped, left = ray.wait(references, num_returns=len(references), timeout=PATIENCE)
    for reference in left:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(reference, force=True)
    monitor.log.say(f"{len(stopped)} of {len(references)} runs under way stopped by themselves")


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise SpecError("--on ray needs the package ray: pip install 'tunewise[cluster]'") from None
    return ray


@contextlib.contextmanager
def _joined(ray: Any, options: RayOptions) -> Iterator[None]:
    """A connection to Ray: the one there is, else to the address, else a Ray of our own, which ends with us."""
    if ray.is_initialized():
        yield
        return
    _check_address(options.address)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if options.address:
            ray.init(address=options.address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(f"--ray-address {options.address}: no Ray can be joined there ({said})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Whether anybody answers there: Ray itself would go on asking for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise SpecError(f"--ray-address {address}: no Ray can be joined there ({error.strerror or error})") from None


def _gpus(ray: Any, options: RayOptions) -> float:
    if options.gpus is not None:
        return options.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def _room(ray: Any, options: RayOptions, gpus: float, *, lost: bool = False) -> int:
    """Runs that all nodes together can do side by side; a run is done on one node."""
    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            there = node["Resources"]
            count += fits(there.get("CPU", 0), there.get("GPU", 0), options.cpus, gpus)
    if not count and not lost:
        raise SpecError(
            f"no node of this Ray has room for a run, which takes {options.cpus:g} CPUs and {gpus:g} GPUs; lower "
            "--cpus-per-run or --gpus-per-run"
        )
    return count
