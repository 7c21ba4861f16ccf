"""All runs of a plan that are not done, in the order of the plan."""

from __future__ import annotations

from tunewise.store.records import RunRecord
from tunewise.study.plan import Plan, PlannedRun
from tunewise.study.policies.base import Policy


class GridPolicy(Policy):
    """Asks for every run once, whatever the results are."""

    def __init__(self, plan: Plan) -> None:
        self._left = {run.id: run for run in plan.todo}
        self._asked = False

    def ask(self) -> list[PlannedRun]:
        runs = [] if self._asked else list(self._left.values())
        self._asked = True
        return runs

    def tell(self, record: RunRecord) -> None:
        self._left.pop(record.id, None)

    def upcoming(self) -> list[PlannedRun]:
        return list(self._left.values())
