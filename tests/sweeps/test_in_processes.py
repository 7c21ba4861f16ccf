"""What a sweep makes of what its worker processes say; the workers are played."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tunewise.jobs import messages
from tunewise.jobs.messages import Work
from tunewise.jobs.pool import Died, Ended
from tunewise.sweeps import in_processes
from tunewise.sweeps.driver import sweep

from stored_runs import write_run
from tunewise.spec import StudySpec
from tunewise.store.locks import RunLocked
from tunewise.training.events import Event, RunStarted


class Played:
    """A pool without processes: of the first run it says that another process has it, once; the second is resumed at
    its last step; the third ends its process; the others are done as soon as they are given."""

    def __init__(self, root: Path, tell: Callable[[str, Event], None]) -> None:
        self.root, self.tell = root, tell
        self.at_work: deque[Work] = deque()
        self.given: Counter[str] = Counter()
        self.order: list[str] = []
        self.dismissed_with: list[int] = []

    @property
    def busy(self) -> int:
        return len(self.at_work)

    def give(self, work: Work) -> None:
        self.at_work.append(work)
        self.given[work.run.id] += 1
        if work.run.id not in self.order:
            self.order.append(work.run.id)

    def hear(self) -> Ended | Died | None:
        if not self.at_work:
            return None
        work = self.at_work.popleft()
        spec = work.run
        place = self.order.index(spec.id)
        if place == 0 and self.given[spec.id] == 1:
            # Through the pipe, from a holder that has let go since.
            error = messages.heard(messages.failed(RunLocked("run x is being run by process 1")))
            return Ended(work, error)  # type: ignore[arg-type]
        if place == 2:
            return Died(work, 1, "Traceback (most recent call last):\n  in its depths\nZeroDivisionError: of nothing")
        self.tell(RunStarted(spec.id, "lora", spec.seed, 20, 20 if place == 1 else 0))
        write_run(self.root, spec)
        return Ended(work, None)

    def dismiss_idle(self) -> None:
        self.dismissed_with.append(self.busy)

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *of_no_interest: Any) -> None:
        pass


def test_a_lease_that_was_held_a_resume_at_the_end_a_dead_process_and_idle_workers(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[Played] = []

    def make(*of: Any) -> Played:
        pools.append(Played(*of))
        return pools[-1]

    monkeypatch.setattr(in_processes, "Pool", make)
    monkeypatch.setattr(in_processes, "POLL", 0.05)
    found = sweep(spec, tmp_path, jobs=3)
    (pool,) = pools
    held, resumed, dead = pool.order[:3]
    assert {row.run: row.status for row in found.rows} == dict.fromkeys(pool.order, "done") | {dead: "failed"}
    assert pool.given[held] == 2  # the sweep went on, and did it in the end
    assert 2 in pool.dismissed_with  # as soon as nothing waits, and not only when all is done

    lines = (found.folder / "log.txt").read_text().splitlines()
    (said,) = [line for line in lines if f"done {resumed}" in line]
    assert "by another process" not in said and ": in " in said
    story = (tmp_path / dead / "error.txt").read_text()
    assert "in its depths\nZeroDivisionError: of nothing" in story
    assert "its process ended with code 1: ZeroDivisionError: of nothing" in story
