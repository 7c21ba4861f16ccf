"""A worker process of `tunewise compare --jobs`: `python -m tunewise.jobs.worker RUNS_FOLDER FD`.

It reads runs from its standard input, a line each, does them on one thread, and tells what happens through the pipe
FD. When its input ends, because its parent asks it to stop or is gone, it writes a checkpoint at the next step and
leaves; whatever it prints otherwise is none of its messages.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from typing import IO


def main(root: str, fd: int) -> None:
    """Do the runs that standard input asks for, one line after another."""
    import torch

    torch.set_num_threads(1)

    from tunewise.errors import TunewiseError
    from tunewise.jobs import messages
    from tunewise.jobs.execute import do_work
    from tunewise.quiet import quiet_libraries
    from tunewise.store.folders import RunStore
    from tunewise.training.events import Event, Listener

    quiet_libraries()

    class Speaking(Listener):
        """Tells the parent; where there is none any more, stops."""

        def on(self, event: Event) -> None:
            self.say(messages.said(event))

        def say(self, line: str) -> None:
            try:
                out.write(line + "\n")
                out.flush()
            except (BrokenPipeError, ValueError):
                self.stop_requested = True

    listener = Speaking()
    waiting: queue.Queue[str | None] = queue.Queue()
    with os.fdopen(fd, "w", encoding="utf-8") as out:
        threading.Thread(target=_read, args=(sys.stdin, waiting, listener), daemon=True).start()
        while (line := waiting.get()) is not None:
            work = messages.Work.read(line)
            try:
                do_work(work, RunStore(Path(root)), listener)
                listener.say(messages.done())
            except TunewiseError as error:
                listener.say(messages.failed(error))


def _read(lines: IO[str], waiting: queue.Queue[str | None], listener: object) -> None:
    for line in lines:
        waiting.put(line)
    listener.stop_requested = True  # type: ignore[attr-defined]
    waiting.put(None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
