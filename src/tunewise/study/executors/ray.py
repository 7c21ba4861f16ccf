"""Ray tasks: on the cores and GPUs of this machine, or on a cluster.

Models and data lie under the same paths on all nodes. A node that sees the runs folder writes there; one that does not
works in a folder of its own, and the finished run folder comes back through Ray's object store. An actor carries events
to the driver and its stop to the runs. A driver that dies takes its tasks along, and the next one goes on.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import socket
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from tunewise.device import DeviceName, asked_device, use_device
from tunewise.errors import SpecError
from tunewise.spec import RayOptions
from tunewise.store.folders import RunStore
from tunewise.store.locks import RunLocked
from tunewise.study.executors.base import POLL, Executor, Job, JobEnd, WorkerDied, do_job
from tunewise.training.events import Event, Listener, StepDone

PATIENCE = 30.0
"""Seconds that runs have for their last checkpoint once a stop was asked for."""
_ROUNDING = 1e-9
"""3 runs of a third of a GPU each fit one."""


class Mailbox:
    """The actor between driver and runs: events one way, the stop the other way."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop = False

    def push(self, events: list[Event]) -> bool:
        """Leave events; whether runs are to stop."""
        self._events += events
        return self._stop

    def drain(self) -> list[Event]:
        """Take the events."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Ask all runs to stop."""
        self._stop = True


class MailboxListener(Listener):
    """A run's side of the mailbox: looks at most once a second, and at every event but steps."""

    def __init__(self, ray: ModuleType, mailbox: Any) -> None:
        self._ray, self._mailbox = ray, mailbox
        self._events: list[Event] = []
        self._stop = False
        self._looked = 0.0

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]
        if not self._stop and time.monotonic() - self._looked > POLL:
            self._exchange()
        return self._stop

    def on(self, event: Event) -> None:
        self._events.append(event)
        if not isinstance(event, StepDone) or time.monotonic() - self._looked > POLL:
            self._exchange()

    def _exchange(self) -> None:
        self._looked = time.monotonic()
        events, self._events = self._events, []
        try:
            self._stop = self._ray.get(self._mailbox.push.remote(events))
        except self._ray.exceptions.RayError:  # the driver is gone
            self._stop = True


@dataclass(frozen=True)
class NodeResult:
    """What a task returns: the end of its job, and the run folder where the node does not see the runs folder."""

    end: JobEnd
    folder: bytes | None = None


class RayExecutor(Executor):
    """Runs as tasks of a Ray that is joined, or of one of this machine's own. Raises `SpecError` on entry where Ray is
    not installed, can't be joined or has no room for a single run."""

    def __init__(self, store: RunStore, listener: Listener, options: RayOptions) -> None:
        super().__init__(store, listener)
        self.options = options
        self._ray = _import_ray()
        self._exit = contextlib.ExitStack()
        self._tasks: dict[object, str] = {}
        self._gpus = 0.0
        self._room = 1
        self._looked = 0.0

    def __enter__(self) -> Self:
        ray, options = self._ray, self.options
        with contextlib.ExitStack() as stack:
            stack.enter_context(_joined(ray, options))
            self._gpus = _default_gpus(ray) if options.gpus_per_run is None else options.gpus_per_run
            self._room = self._count_room()
            if not self._room:
                raise SpecError(
                    f"no node of this Ray has room for a run, which takes {options.cpus_per_run:g} CPUs and "
                    f"{self._gpus:g} GPUs; lower --cpus-per-run or --gpus-per-run"
                )
            self.store.root.mkdir(parents=True, exist_ok=True)
            self._seen = stack.enter_context(tempfile.NamedTemporaryFile(prefix=".ray-", dir=self.store.root))
            self._mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
            # The loop starts a run again whose worker died, so Ray does not.
            self._task = ray.remote(_do_on_node).options(
                num_cpus=options.cpus_per_run, num_gpus=self._gpus, max_retries=0
            )
            self._exit = stack.pop_all()
        return self

    @property
    def capacity(self) -> int:
        if time.monotonic() - self._looked > POLL:  # nodes come and go
            self._looked = time.monotonic()
            self._room = max(1, self._count_room())
        return self._room

    def start(self, job: Job) -> None:
        task = self._task.remote(
            job, str(Path(self._seen.name).absolute()), str(Path.cwd()), self._mailbox, asked_device()
        )
        self._tasks[task] = job.run.id

    def wait(self) -> JobEnd | None:
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=POLL)
        with contextlib.suppress(self._ray.exceptions.RayError):
            for event in self._ray.get(self._mailbox.drain.remote()):
                self.listener.on(event)
        return self._end(ready[0]) if ready else None

    def _end(self, task: object) -> JobEnd:
        run_id = self._tasks.pop(task)
        try:
            result: NodeResult = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # raised by our code around the run
            return JobEnd(run_id, error.cause if isinstance(error.cause, Exception) else error)
        except self._ray.exceptions.RayError as error:  # the process or its node is gone
            return JobEnd(
                run_id, WorkerDied(f"its worker died ({type(error).__name__}); see the node's memory and logs")
            )
        if result.folder is not None:
            _unpack(result.folder, run_id, self.store)
        return result.end.received()

    def close(self, error: BaseException | None) -> None:
        ray = self._ray
        with self._exit:
            if self._tasks:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(self._mailbox.stop.remote())
                _, left = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=PATIENCE)
                for task in left:
                    with contextlib.suppress(ray.exceptions.RayError):
                        ray.cancel(task, force=True)

    def _count_room(self) -> int:
        """Runs that all nodes together can do at the same time; a run is done on one node."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(fits(n.get("CPU", 0), n.get("GPU", 0), self.options.cpus_per_run, self._gpus) for n in nodes)


def fits(cpus: float, gpus: float, run_cpus: float, run_gpus: float) -> int:
    """Runs that a node with these cores and GPUs does at once. A part of a GPU is a part of one: two GPUs have room for
    four runs of 0.4 each, not five."""
    rooms = [math.floor(cpus / run_cpus + _ROUNDING)] if run_cpus else []
    if 0 < run_gpus < 1:
        rooms.append(math.floor(gpus) * math.floor(1 / run_gpus + _ROUNDING))
    elif run_gpus:
        rooms.append(math.floor(gpus / run_gpus + _ROUNDING))
    return min(rooms, default=1)


def _do_on_node(job: Job, seen: str, cwd: str, mailbox: Any, device: DeviceName) -> NodeResult:
    """A task: the job, in the driver's working folder where this node has it. `seen`: a file of the driver in the runs
    folder, there for nodes that share it."""
    import ray

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    if Path(cwd).is_dir():
        os.chdir(cwd)
    listener = MailboxListener(ray, mailbox)
    if Path(seen).is_file():
        with use_device(device):
            return NodeResult(do_job(job, RunStore(Path(seen).parent), listener, remote=True))
    with use_device(device), tempfile.TemporaryDirectory(prefix="tunewise-") as scratch:
        end = do_job(job, RunStore(scratch), listener, remote=True)
        return NodeResult(end, None if end.error else _pack(Path(scratch) / job.run.id))


def _pack(folder: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(folder, arcname=".")
    return content.getvalue()


def _unpack(content: bytes, run_id: str, store: RunStore) -> None:
    """Put a run folder in its place by a rename; not where another driver has the run, or has finished it."""
    with contextlib.suppress(RunLocked), store.lock(run_id) as folder:
        if store.finished(run_id) is None:
            with tempfile.TemporaryDirectory(prefix=f".{run_id}.", dir=store.root) as scratch:
                with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                    archive.extractall(Path(scratch) / "new", filter="data")
                os.replace(folder, Path(scratch) / "old")
                os.replace(Path(scratch) / "new", folder)


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise SpecError("executor ray needs the package ray: pip install 'tunewise[cluster]'") from None
    return ray


def _default_gpus(ray: ModuleType) -> float:
    return 1.0 if asked_device() != "cpu" and ray.cluster_resources().get("GPU", 0) else 0.0


@contextlib.contextmanager
def _joined(ray: ModuleType, options: RayOptions) -> Iterator[None]:
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
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(f"--ray-address {options.address}: no Ray can be joined there ({message})") from None
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
