"""Runs in processes of their own, each on one thread: as many at a time as there are workers.

A worker has each of its runs' leases, so no run is done twice, here or by another comparison. A stop closes the
workers' inputs: each writes a checkpoint at its next step and leaves. A worker whose parent is gone does the same.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tunewise.errors import NoRoom, TunewiseError
from tunewise.jobs import messages
from tunewise.jobs.messages import Work
from tunewise.training.events import Interrupted, Listener, OfRun

PATIENCE = 60.0
"""Seconds for a worker to end once its pipe is closed."""


class Worker:
    """One process and its pipes; what it says goes into the pool's queue."""

    def __init__(self, root: Path, inbox: queue.Queue[tuple[Worker, str | None]]) -> None:
        read, write = os.pipe()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunewise.jobs.worker", str(root), str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            pass_fds=[write],
            start_new_session=True,  # Ctrl-C is the parent's affair
            text=True,
            env={**os.environ, **one_thread, "TOKENIZERS_PARALLELISM": "false"},
        )
        os.close(write)
        self.work: Work | None = None
        threading.Thread(target=self._listen, args=(read, inbox), daemon=True).start()

    def _listen(self, fd: int, inbox: queue.Queue[tuple[Worker, str | None]]) -> None:
        with os.fdopen(fd, encoding="utf-8") as lines:
            for line in lines:
                inbox.put((self, line))
        inbox.put((self, None))

    def give(self, work: Work) -> None:
        """Runs to do."""
        self.work = work
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone: its end of output says so, with this work undone
            self.process.stdin.write(work.line() + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """No more runs; those at work stop at their next step."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it is gone already
                self.process.stdin.close()

    def last_words(self) -> str:
        """The end of what it printed to its standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def in_processes(work: Sequence[Work], jobs: int, root: Path, listener: Listener) -> None:
    """Do all of `work` in at most `jobs` processes; returns when every run has its record.

    Raises `Interrupted` where the listener asks for a stop, the first error of a worker, and `NoRoom` where a worker
    was killed from outside; the others have then stopped at a checkpoint.
    """
    waiting = deque(work)
    inbox: queue.Queue[tuple[Worker, str | None]] = queue.Queue()
    workers = [Worker(root, inbox) for _ in range(min(jobs, len(work)))]
    at_work = set(workers)
    problem: TunewiseError | None = None
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while at_work:
            if listener.stop_requested and problem is None:
                problem = Interrupted("stopped; run the same command again to go on from the last checkpoints")
            if problem is not None:
                for worker in workers:
                    worker.dismiss()
            try:
                worker, line = inbox.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                at_work.discard(worker)
                worker.dismiss()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(PATIENCE)
                if worker.work is not None and problem is None:
                    problem = _gone(worker)
                continue
            news = messages.heard(line)
            if isinstance(news, tuple):
                listener.on(OfRun(*news))
                continue
            worker.work = None
            if isinstance(news, TunewiseError):
                problem = problem or news
            elif waiting and problem is None:
                worker.give(waiting.popleft())
            if worker.work is None:
                worker.dismiss()
    finally:
        for worker in workers:
            worker.dismiss()
            if worker in at_work:  # an interrupt that would not wait
                worker.process.kill()
            worker.process.wait()
            worker.errors.close()
    if problem is not None:
        raise problem


def _gone(worker: Worker) -> TunewiseError:
    assert worker.work is not None
    code = worker.process.returncode
    what = messages.labels(worker.work.runs)
    if code == -9:
        return NoRoom(f"the process with {what} was killed, by the system most likely; try fewer --jobs")
    return TunewiseError(f"the process with {what} ended with code {code}: {worker.last_words()}")
