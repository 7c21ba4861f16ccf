"""What a worker process is told and what it says: lines of JSON over pipes."""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass

import tunewise.errors
from tunewise.errors import TunewiseError
from tunewise.spec import RunSpec
from tunewise.store.locks import RunLocked
from tunewise.training import events
from tunewise.training.events import Event, Interrupted
from tunewise.training.trajectory import SnapshotOptions
from tunewise.tuning.stopping import Objective, StopRule

_OTHERS = {kind.__name__: kind for kind in (Interrupted, RunLocked)}
"""Errors that are told from others and stand in modules of their own."""


class WorkerStory(Exception):
    """The cause of an error that came from a worker: what its process printed of it, as text."""


@dataclass(frozen=True)
class Work:
    """A run for a worker. `rule`: when it is stopped early."""

    run: RunSpec
    trajectory: SnapshotOptions | None = None
    track: tuple[str, ...] = ()
    rule: StopRule | None = None

    def line(self) -> str:
        rest = {key: value for key, value in asdict(self).items() if key != "run"}
        return json.dumps({"run": self.run.model_dump(mode="json"), **rest})

    @classmethod
    def read(cls, line: str) -> Work:
        content = json.loads(line)
        keep, rule = content["trajectory"], content["rule"]
        return cls(
            run=RunSpec.model_validate(content["run"]),
            trajectory=None if keep is None else SnapshotOptions(**keep),
            track=tuple(content["track"]),
            rule=None
            if rule is None
            else StopRule(
                Objective(**rule["objective"]), tuple(tuple(values) for values in rule["others"]), rule["epochs"]
            ),
        )


def said(event: Event) -> str:
    """An event, as a line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def heard(line: str) -> Event | TunewiseError | None:
    """An event; the error that ended the worker's runs; None where they came to their end."""
    content = json.loads(line)
    if "done" in content:
        return None
    if "error" in content:
        kind = _OTHERS.get(content["error"]) or getattr(tunewise.errors, content["error"])
        return told(kind(content["message"]), content["story"])
    event: Event = getattr(events, content.pop("event"))(**content)
    return event


def done() -> str:
    """A worker's last word on its runs."""
    return json.dumps({"done": True})


def failed(error: TunewiseError) -> str:
    """The same where they ended in an error that the user can mend."""
    names = [kind.__name__ for kind in type(error).__mro__]
    known = next(name for name in names if name in _OTHERS or hasattr(tunewise.errors, name))
    return json.dumps({"error": known, "message": str(error), "story": "".join(traceback.format_exception(error))})


def told(error: TunewiseError, story: str) -> TunewiseError:
    """The error with a worker's account of it as its cause: whoever writes out its traceback has both."""
    error.__cause__ = WorkerStory(f"in the worker\n{story}")
    return error
