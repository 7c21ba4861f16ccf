"""A worker process of `ProcessExecutor`: `python -m tunewise.study.executors.worker RUNS_FOLDER FD`."""

from __future__ import annotations

import queue
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path


def main(root: str, fd: int) -> None:
    """Do the jobs that arrive through the pipe, until it is closed or None arrives."""
    import torch

    torch.set_num_threads(1)

    from tunewise.quiet import quiet_libraries
    from tunewise.store.folders import RunStore
    from tunewise.study.executors.base import Job, JobEnd, do_job
    from tunewise.training.events import Event, Listener

    quiet_libraries()
    pipe: Connection[object, Job | None] = Connection(fd)
    jobs: queue.Queue[Job | None] = queue.Queue()

    class Sender(Listener):
        """Sends events to the parent; stops where there is none any more."""

        def on(self, event: Event) -> None:
            self.send(event)

        def send(self, message: Event | JobEnd) -> None:
            try:
                pipe.send(message)
            except OSError:
                self.stop_requested = True

    sender = Sender()

    def receive() -> None:
        try:
            while (job := pipe.recv()) is not None:
                jobs.put(job)
        except (EOFError, OSError):
            pass
        sender.stop_requested = True
        jobs.put(None)

    threading.Thread(target=receive, daemon=True).start()
    while (job := jobs.get()) is not None:
        sender.send(do_job(job, RunStore(Path(root)), sender, remote=True))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
