"""`log.txt` of a sweep: what happened when, a line an event, for people; every driver adds to the one file."""

from __future__ import annotations

import datetime
import os
from pathlib import Path


class Log:
    """Appends lines, each in one write, so that two drivers' lines never mix."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def say(self, sentence: str) -> None:
        """One line, with the time (UTC) before it."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = f"{now}  {' '.join(sentence.split())}\n".encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
