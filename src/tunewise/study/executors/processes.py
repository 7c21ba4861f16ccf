"""Several processes of this machine, one thread each.

Each worker is `python -m tunewise.study.executors.worker`, with a pipe for pickled jobs, events and ends, so a script
without a `__main__` guard is not run again, and a worker that is killed leaves the others alone. A stop is a message:
each worker writes a checkpoint at its next step and leaves. So does a worker that finds its parent gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from multiprocessing import connection
from typing import IO

from tunewise.store.folders import RunStore
from tunewise.study.executors.base import POLL, Executor, Job, JobEnd, RemoteTraceback, WorkerDied
from tunewise.training.events import Listener

GRACE = 60.0
"""Seconds for a worker to end once it has closed its pipe."""
_KEPT = 50_000
"""Bytes of the standard error of a dead worker that are kept: the end, with the traceback."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Worker:
    """A process, its pipe and the job it has."""

    def __init__(self, store: RunStore, gpu: str | None = None) -> None:
        """`gpu`: the only one that the process sees, as `CUDA_VISIBLE_DEVICES` names it; all unless given."""
        self.gpu = gpu
        self.pipe, theirs = connection.Pipe()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunewise.study.executors.worker", str(store.root), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the parent
            env={
                **os.environ,
                **_ONE_THREAD,
                "TOKENIZERS_PARALLELISM": "false",
                **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
            },
        )
        theirs.close()
        self.job: Job | None = None

    def send(self, job: Job | None) -> None:
        """A job, or None for the request to stop."""
        with contextlib.suppress(OSError):  # it is gone, which the next look at its pipe shows
            self.pipe.send(job)

    def close(self) -> int:
        """Wait for the process to end, kill it if it does not; its exit code."""
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.pipe.close()
        return code

    def death(self, code: int) -> WorkerDied:
        """The error of a worker that ended with its job undone."""
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - _KEPT))
        printed = self.errors.read().decode(errors="replace").strip()
        if code < 0:
            error = WorkerDied(f"its process was killed ({signal.Signals(-code).name}); try fewer --jobs")
        else:
            last = (printed.splitlines() or ["no message"])[-1]
            error = WorkerDied(f"its process ended with code {code}: {last}", killed=False)
        error.__cause__ = RemoteTraceback(f"in the worker\n{printed}")
        return error


class ProcessExecutor(Executor):
    """Workers, started when there are jobs for them, spread evenly over the GPUs where there are any."""

    def __init__(self, store: RunStore, listener: Listener, jobs: int, gpus: Sequence[str] = ()) -> None:
        super().__init__(store, listener)
        self._jobs, self._gpus = jobs, gpus
        self._workers: dict[connection.Connection, Worker] = {}

    @property
    def capacity(self) -> int:
        return self._jobs

    def start(self, job: Job) -> None:
        worker = next((worker for worker in self._workers.values() if worker.job is None), None)
        if worker is None:
            worker = Worker(self.store, self._free_gpu())
            self._workers[worker.pipe] = worker
        worker.job = job
        worker.send(job)

    def _free_gpu(self) -> str | None:
        """The GPU with the fewest workers."""
        taken = [worker.gpu for worker in self._workers.values()]
        return min(self._gpus, key=taken.count, default=None)

    def wait(self) -> JobEnd | None:
        for pipe in connection.wait(list(self._workers), timeout=POLL):
            worker = self._workers[pipe]  # type: ignore[index]
            end = self._receive(worker)
            if end is not None:
                return end
        return None

    def _receive(self, worker: Worker) -> JobEnd | None:
        """All that a worker has sent, up to the end of its job."""
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, JobEnd):
                    worker.job = None
                    return message.received()
                self.listener.on(message)
        except (EOFError, OSError):
            del self._workers[worker.pipe]
            code = worker.close()
            return JobEnd(worker.job.run.id, worker.death(code)) if worker.job is not None else None
        return None

    def close(self, error: BaseException | None) -> None:
        workers = list(self._workers.values())
        try:
            for worker in workers:
                worker.send(None)
            while self._workers and (error is None or isinstance(error, Exception)):
                self.wait()
        finally:
            _kill(workers)


def _kill(workers: Iterable[Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
        worker.errors.close()
