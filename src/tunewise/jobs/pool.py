"""Runs in processes of their own, each on one thread: as many at a time as there are workers.

A worker has each of its runs' locks, so no run is done twice, here or by another comparison. A stop closes the
workers' inputs: each writes a checkpoint at its next step and leaves. A worker whose parent is gone does the same.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from tunewise.errors import NoRoom, TunewiseError
from tunewise.jobs import messages
from tunewise.jobs.messages import Work, told
from tunewise.training.events import INTERRUPTED_MESSAGE, Event, Interrupted, Listener

PATIENCE = 60.0
"""Seconds for a worker to end once it has said its last."""

STORY = 50_000
"""Bytes of what a dead worker printed that are kept: the end, with the traceback."""


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

    @property
    def dismissed(self) -> bool:
        assert self.process.stdin is not None
        return self.process.stdin.closed

    def dismiss(self) -> None:
        """No more runs; those at work stop at their next step."""
        if not self.dismissed:
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it is gone already
                self.process.stdin.close()

    def story(self) -> str:
        """The end of what it printed to its standard error."""
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - STORY))
        return self.errors.read().decode(errors="replace").strip()


@dataclass(frozen=True)
class Ended:
    """A worker is through with its work; `problem`: the error that ended it."""

    work: Work
    problem: TunewiseError | None


@dataclass(frozen=True)
class Died:
    """A worker has gone with its work undone. `code`: that its process left with; `story`: the end of what it
    printed."""

    work: Work
    code: int
    story: str

    @property
    def words(self) -> str:
        """The last ones."""
        return (self.story.splitlines() or ["no message"])[-1]

    @property
    def signal(self) -> int | None:
        """That killed it."""
        return -self.code if self.code < 0 else None


class Pool:
    """Workers, made when there is work for them; `tell` hears of the events of their runs.

    As a context: on the way out all are asked to stop, and waited for; after an interrupt of the keyboard, which will
    not wait, those at work are killed.
    """

    def __init__(self, root: Path, tell: Callable[[Event], None]) -> None:
        self.root, self.tell = root, tell
        self._inbox: queue.Queue[tuple[Worker, str | None]] = queue.Queue()
        self._workers: set[Worker] = set()

    @property
    def busy(self) -> int:
        """Workers at work."""
        return sum(worker.work is not None for worker in self._workers)

    def give(self, work: Work) -> None:
        """To an idle worker, or to a new one."""
        worker = next((one for one in self._workers if one.work is None and not one.dismissed), None)
        if worker is None:
            worker = Worker(self.root, self._inbox)
            self._workers.add(worker)
        worker.give(work)

    def hear(self, timeout: float = 0.2) -> Ended | Died | None:
        """What has come of some work since, if anything; waits for so many seconds at the most."""
        try:
            worker, line = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None
        if line is None:
            return self._gone(worker)
        news = messages.heard(line)
        if news is None or isinstance(news, TunewiseError):
            work, worker.work = worker.work, None
            assert work is not None
            return Ended(work, news)
        self.tell(news)
        return None

    def dismiss_idle(self) -> None:
        """Let those go that have no work."""
        for worker in self._workers:
            if worker.work is None:
                worker.dismiss()

    def _gone(self, worker: Worker) -> Died | None:
        worker.dismiss()
        try:
            worker.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        self._workers.remove(worker)
        died = Died(worker.work, worker.process.returncode, worker.story()) if worker.work is not None else None
        worker.errors.close()
        return died

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            for worker in self._workers:
                worker.dismiss()
            while self._workers and (error is None or isinstance(error, Exception)):
                self.hear()
        finally:
            for worker in self._workers:
                worker.dismiss()
                worker.process.kill()
                worker.process.wait()
                worker.errors.close()


def in_processes(work: Sequence[Work], jobs: int, root: Path, listener: Listener) -> None:
    """Do all of `work` in at most `jobs` processes; returns when every run has its record.

    Raises `Interrupted` where the listener asks for a stop, the first error of a worker, and `NoRoom` where a worker
    was killed from outside; the others have then stopped at a checkpoint.
    """
    waiting = deque(work)
    with Pool(root, listener.on) as pool:
        while waiting or pool.busy:
            if listener.stop_requested:
                raise Interrupted(INTERRUPTED_MESSAGE)
            while waiting and pool.busy < jobs:
                pool.give(waiting.popleft())
            news = pool.hear()
            if isinstance(news, Died):
                raise _problem(news)
            if isinstance(news, Ended) and news.problem is not None:
                raise news.problem
            if not waiting:
                pool.dismiss_idle()


def _problem(died: Died) -> TunewiseError:
    run = died.work.run
    what = f"{run.method.label}, seed {run.seed}"
    if died.signal == signal.SIGKILL:
        return NoRoom(f"the process with {what} was killed, by the system most likely; try fewer --jobs")
    return told(TunewiseError(f"the process with {what} ended with code {died.code}: {died.words}"), died.story)
