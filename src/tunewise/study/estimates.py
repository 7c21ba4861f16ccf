"""How long runs will take, from finished runs of the same shape: never from anything else, and unknown without them."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tunewise.spec import TrainingSpec
from tunewise.store.environment import device_name
from tunewise.store.folders import RunStore
from tunewise.store.table import RunRow, table
from tunewise.study.plan import Plan, PlannedRun
from tunewise.study.shapes import any_rank, data_of, shape_of
from tunewise.text_format import format_duration, pluralize

_RECENT = 8
"""Latest runs of a shape that count: a machine is not always equally busy."""


@dataclass(frozen=True)
class Remaining:
    """Seconds of the runs whose shape has been timed, how many those are, and how many others there are."""

    seconds: float
    timed: int
    untimed: int

    def words(self, at_once: int = 1) -> str:
        """'about 2.1 h', with what is not known; `at_once` runs side by side."""
        if not self.timed:
            return f"not known: no finished run of {'this shape' if self.untimed == 1 else 'these shapes'} to go by"
        text = f"about {format_duration(self.seconds / max(1, at_once))}"
        if self.untimed:
            text += f" for {pluralize(self.timed, 'run')}, and {self.untimed} of shapes not timed yet"
        return text


class Pace:
    """Seconds per step of each shape: model, data, batch, method and device; of the same rank where such a run has
    finished, else of any. Loading and evaluating are part of the time of the runs that they come from."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._paces: dict[str, list[float]] = defaultdict(list)

    @classmethod
    def of(cls, plan: Plan, store: RunStore) -> Pace:
        """What finished runs of this store say about the time of the plan's."""
        pace = cls(device_name())
        pace.learn_from(table(store.root), plan.runs)
        return pace

    def learn_from(self, rows: Iterable[RunRow], runs: Iterable[PlannedRun]) -> None:
        """Take the times of finished runs of a store that have the data of these runs."""
        examples = {data_of(run.spec.model_dump(mode="json")): run.data.train for run in runs}
        for row in rows:
            if row.status != "done" or row.device != self.device or row.spec is None or not row.seconds:
                continue
            spec = json.loads(row.spec)
            count = examples.get(data_of(spec))
            if count is not None:
                steps = TrainingSpec.model_validate(spec["training"]).steps(count)
                self._add(shape_of(spec), row.seconds / steps)

    def note(self, run: PlannedRun, seconds: float, steps: int) -> None:
        """A run has done so many steps in so many seconds."""
        if steps > 0:
            self._add(run.shape, seconds / steps)

    def seconds(self, run: PlannedRun) -> float | None:
        """Of the complete run; None where no run of its shape has been timed."""
        paces = self._paces.get(run.shape) or self._paces.get(any_rank(run.shape))
        return None if not paces else statistics.median(paces[-_RECENT:]) * run.steps

    def remaining(self, todo: Iterable[PlannedRun]) -> Remaining:
        """Of these runs, one after another."""
        times = [self.seconds(run) for run in todo]
        timed = [seconds for seconds in times if seconds is not None]
        return Remaining(sum(timed), len(timed), len(times) - len(timed))

    def _add(self, shape: str, per_step: float) -> None:
        self._paces[shape].append(per_step)
        self._paces[any_rank(shape)].append(per_step)
